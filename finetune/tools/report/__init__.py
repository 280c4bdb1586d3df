"""A finished run, judged and shown."""
