"""Sandbox for untrusted Python programs, such as those that a model writes."""
