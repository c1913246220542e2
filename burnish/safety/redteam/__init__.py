"""Red team: attack prompts, a judge of the answers, success by family, and data to train on."""
