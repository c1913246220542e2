"""The rewards that come with burnish, one file for each family."""
