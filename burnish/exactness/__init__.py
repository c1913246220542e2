"""Gradients against enumeration: a world small enough to write down, the estimators, and their verification."""
