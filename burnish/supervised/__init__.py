"""What comes before and beside reinforcement learning: fine-tuning on examples, and preference optimisation."""
