"""Safety as a loop: content filter, human review, red team, release."""
