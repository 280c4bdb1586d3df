"""A row of a table, with its place for error messages."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from finetune.data.encodings import is_binary

BLANK = re.compile(r"[\s\u200b\u2060\ufeff]*")  # white space, and characters without width
SENTENCE_END = re.compile(r"[.!?…。！？][\"'”’»)]*\s*$")


class NoValue:
    """A cell of Arrow that Python has no value for."""


class FromBytes(str):
    """A text that a table holds as bytes, and so perhaps none, such as a picture in SVG or base64."""


class LeftOut(Exception):
    """A row without text, a question or an answer: it is counted, not learned."""


class Row(NamedTuple):
    """A row. `problem` says why it could not be read; `number` counts rows from 1, `line` is that of the file."""

    number: int
    value: Any = None  # a dict by column, a text, or a list of messages
    line: int | None = None
    problem: str | None = None

    def suffix(self) -> str:
        return "" if self.line is None else f" (line {self.line:,})"


def with_texts(row: dict[str, Any]) -> dict[str, Any]:
    """A row, with texts for bytes that are text in UTF-8: Hive, Impala and older Spark do not say in parquet which are.
    Small numbers are UTF-8 too, but full of NULs."""
    return {name: _text_of(cell) if isinstance(cell, bytes) else cell for name, cell in row.items()}


def _text_of(cell: bytes) -> str | bytes:
    try:
        return cell if is_binary(cell) else FromBytes(cell, "utf-8")
    except UnicodeDecodeError:
        return cell


def is_blank(text: str) -> bool:
    """Whether a text shows nothing."""
    return BLANK.fullmatch(text) is not None


def has_words(text: str) -> bool:
    """Whether a text has several words, or is in another script, which can do without spaces."""
    return " " in text or "\n" in text or not text.isascii()


def name_of_value(value: object) -> str:
    """`the number 3`, `null`, `an object`: a value of JSON in words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"the value {str(value).lower()}"
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, str):
        return "text"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    if isinstance(value, bytes):
        return "bytes that are no text in UTF-8"
    if isinstance(value, NoValue):
        return "a value that Python has not, such as a date behind the year 9999"
    return f"a value of type {type(value).__name__}"
