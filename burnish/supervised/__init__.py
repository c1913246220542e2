"""What comes before and beside reinforcement learning: fine-tuning on examples, reward models, preference optimisation."""
