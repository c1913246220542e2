"""Data of a user: files, hub data sets, row formats, and the split into training and held-out sides."""
