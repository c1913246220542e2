"""Human review: a queue of samples, a web page to judge them, agreement, and exports to learn from."""
