"""What a person or a program at the terminal sees: progress, tables, the exactness check."""
