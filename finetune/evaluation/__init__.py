"""What can be believed of a model: its losses, what they are compared with, its completions and what it copies."""
