"""The machine: its processor and memory, paths, files, optional packages, and the record of all that a run depends
on."""
