"""Fast, exact forward and backward passes: packing, attention, linear layers, head, recomputation, forward cache."""
