"""Recipes and flags, typed and checked, and the schedule that follows from them."""
