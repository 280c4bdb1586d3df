"""Values of Python where a path, a name or a text is expected: what they are in one line, and the way into a file."""

from __future__ import annotations

import os

from finetune.common.errors import UsageError
from finetune.common.formatting import shown

MOST_CHARACTERS = 60  # of a value that a message shows
# a method of the objects that people give in place of their file
WAYS = {
    "save_pretrained": 'save_pretrained("mine") writes it, then give "mine"',  # a model or tokenizer of transformers
    "save_to_disk": 'save_to_disk("mine") writes it, then give "mine"',  # a Dataset or DatasetDict of datasets
    "to_json": 'to_json("mine.jsonl", orient="records", lines=True) writes it, then give "mine.jsonl"',  # of pandas
    "write_ndjson": 'write_ndjson("mine.jsonl") writes it, then give "mine.jsonl"',  # of polars
}


def described(value: object) -> str:
    """A value as Python writes it, or its kind if that is long."""
    text = shown(repr(value)) if isinstance(value, str) else repr(value)
    if isinstance(value, str) or len(text) <= MOST_CHARACTERS and text.isprintable() and " at 0x" not in text:
        return text
    name = type(value).__name__
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"


def way_out(value: object) -> str:
    """The end of a message about a value that has to be written to a file first."""
    if isinstance(value, type):
        return ""
    if isinstance(source := getattr(value, "source", None), str | os.PathLike):  # a GPT knows where it is from
        return f"; it is from {os.fspath(source)!r}, which can be given, or {WAYS['save_pretrained']}"
    return next((f"; {way}" for method, way in WAYS.items() if hasattr(value, method)), "")


def as_path(value: object, name: str) -> str:
    """A path or name as text. Raises UsageError, which begins with the `name` of the argument."""
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(text, str):
        raise UsageError(f"{name}: expected a path or a name, got {described(value)}{way_out(value)}")
    return text
