"""One step of learning, and the loop around it."""
