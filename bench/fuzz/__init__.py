"""Fuzzing: random damage to everything that comes from outside, and what burnish must never do about it."""
