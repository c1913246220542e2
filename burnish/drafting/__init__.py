"""Recipes drafted from the columns of a user's data."""
