"""The built-in rewards, one file for each family.

All of them raise InputError if an option is out of range, or if the prompt or a package that they need is missing.
"""
