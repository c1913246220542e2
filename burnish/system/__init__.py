"""The machine and the process: cores and memory, paths, files, and the record of the environment."""
