"""Tensors in, tensors out: advantages, losses, KL estimators, and the exact world they are checked against.

Nothing here imports anything else of burnish, so each function can be read, tested and reused by itself.
"""
