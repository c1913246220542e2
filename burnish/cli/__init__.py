"""The ``burnish`` command: thin verbs over the library, one file for each group of them."""
