"""Losses of a model, their comparison with a baseline, metrics of its answers, and what it copies."""
