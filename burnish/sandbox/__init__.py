"""Running Python that nobody has read: what a model wrote, with nothing to reach and little to use up."""
