"""What is asked: prompts, and where their data comes from."""
