"""Terminal output: progress, tables and the results of the exactness check."""
