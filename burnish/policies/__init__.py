"""Models that can be trained: causal language models, torch modules, tables, reward and value models."""
