"""Tasks: prompts, and the data they come from."""
