"""Data from outside: files, hub data sets, rows and formats, and the one split into training and held-out sides."""
