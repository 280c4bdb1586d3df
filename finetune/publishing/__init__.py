"""A model for others: a verified directory, and a repository on the Hub that was compared with it."""
