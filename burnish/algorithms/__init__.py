"""Tensors in, tensors out: advantages, losses, KL estimators and how they are aggregated.

Nothing here imports anything else of burnish, so each function can be read, tested and reused by itself.
"""
