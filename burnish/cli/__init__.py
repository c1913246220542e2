"""The ``burnish`` command: thin verbs over the library, one file per group of verbs."""
