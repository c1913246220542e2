"""Built-in rewards, one file per family."""
