"""Fast and exact kernels for packed batches: attention, products, the head, recomputation and the forward cache."""
