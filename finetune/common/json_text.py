"""JSON that comes from elsewhere."""

import json
from typing import Any

MAX_DEPTH = 64  # levels


def parse_json(content: bytes) -> Any:
    """The value of some JSON. Raises ValueError, also for one of more than MAX_DEPTH levels."""
    try:
        value = json.loads(content.decode("utf-8"))
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    level, depth = [value], 0
    while level := [one for one in level if isinstance(one, dict | list)]:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError("is nested too deeply")
        level = [one for each in level for one in (each.values() if isinstance(each, dict) else each)]
    return value
