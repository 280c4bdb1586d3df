"""Numbers as people read them."""


def duration(seconds):
    """`3h 02m`, `3m 12s` or `12s`."""
    seconds = int(seconds + 0.5)
    if seconds >= 3600:
        return f"{seconds // 3600}h {seconds % 3600 // 60:02d}m"
    return f"{seconds // 60}m {seconds % 60:02d}s" if seconds >= 60 else f"{seconds}s"


def recipe_value(value: object) -> str:
    """The value of a key as a recipe file shows it: true, none, 3e-05, gpt2, ''."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return repr(value) if not value or value != value.strip() else value
    return f"{value:g}" if isinstance(value, float) else str(value)
