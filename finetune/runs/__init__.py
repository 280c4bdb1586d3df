"""A run directory: what it starts from, its events, checkpoints and model card."""
