"""Whether a value of JSON is what it should be, by the annotation of a type."""

from __future__ import annotations

import types
import typing
from typing import Any

from finetune.common.formatting import is_number

MOST = 1 << 63  # whole numbers are below it, as those of torch and Arrow


def fits(value: Any, kind: Any) -> bool:
    """Whether a value has the type of an annotation, or, of {name: annotation}, is an object with these keys. A key
    that is missing is None."""
    if isinstance(kind, dict):
        return isinstance(value, dict) and all(fits(value.get(name), one) for name, one in kind.items())
    choices, origin = typing.get_args(kind), typing.get_origin(kind) or kind
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, choice) for choice in choices)
    if origin is typing.Literal:
        return isinstance(value, str) and value in choices
    if origin is float:
        return is_number(value)
    if origin is int:
        return type(value) is int and abs(value) < MOST
    if origin is list and choices:
        return isinstance(value, list) and all(fits(one, choices[0]) for one in value)
    if origin is dict and choices:
        return isinstance(value, dict) and all(fits(one, choices[1]) for one in value.values())
    return kind is Any or (value is None if kind in (None, type(None)) else isinstance(value, origin))
