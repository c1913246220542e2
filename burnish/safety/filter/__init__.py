"""Content filter: layers that find unwanted text, and a policy that turns what they find into one verdict."""
