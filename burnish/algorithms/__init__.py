"""Pure functions of tensors: advantages, losses, KL estimators and their aggregation.

Nothing here imports the rest of burnish, so that each function can be read, tested and reused alone. Every function
checks the shapes of its arguments and raises ValueError where they do not fit.
"""
