"""Held-out measurement, with intervals and paired tests."""
