"""Revisions of the review database, oldest first by number."""
