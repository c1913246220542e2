"""Where a run runs: builds policy, sampler, scorer and task from a recipe and joins them."""
