"""What a run will take, before it is run: counted, measured and judged."""
