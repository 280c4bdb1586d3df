"""A training run: what it starts from, one update, what survives a crash, what is shown."""
