"""The life of a run: its folder, checkpoints, launch, resume and interrupts."""
