"""Estimates on paper of a run on GPUs: memory, time and cost, from published figures and constants that can be set."""
