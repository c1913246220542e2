"""Supervised learning: fine-tuning on texts, preference optimisation and reward models."""
