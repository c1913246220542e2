"""Backends: they build policy, sampler, scorer and task from a recipe and join them in a learner."""
