"""Gradients against enumeration: an enumerable world, the gradient estimators, and their verification."""
