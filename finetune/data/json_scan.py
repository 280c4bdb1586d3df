"""Values of JSON, one after the other, and what is wrong with a text that is not JSON, in words."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from json import JSONDecodeError
from typing import Any, TextIO

from finetune.common.errors import UsageError
from finetune.data.text_files import MOST_CHARACTERS

CHUNK_CHARACTERS = 1 << 20
LITERAL = 16  # characters; an error so near to the end can be that of a value that goes on
MARKS = "\ufeff\x1e"  # before a value: a byte order mark where files were joined, and the record separator of RFC 7464
SPACE = re.compile(f"[ \t\r\n{MARKS}]*")
PYTHON_WORD = re.compile(r"None|True|False|nan\b|inf\b")
TO_JSON = (
    "python -c 'import ast, json, sys; [print(json.dumps(ast.literal_eval(line))) for line in sys.stdin]'"
    " < FILE > out.jsonl writes lines of Python as JSON"
)


class RepeatedKey(ValueError):
    """A key that stands twice in an object, with two values."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Raises RepeatedKey."""
    found = dict(pairs)
    if len(found) < len(pairs):
        for key, value in pairs:
            if value != found[key]:
                raise RepeatedKey(f"the key {key!r} stands twice in an object; keep one of them")
    return found


DECODER = json.JSONDecoder(object_pairs_hook=_object)


def explain(text: str, error: Exception, where: str = "") -> str:
    """What is wrong with a JSON text, in words."""
    if isinstance(error, RepeatedKey):
        return str(error)
    if not isinstance(error, JSONDecodeError):
        return "nested too deeply" if isinstance(error, RecursionError) else "a number is too long"
    message, rest = error.msg, text[error.pos :].strip()
    if message == "Extra data" and rest == ",":
        return "a comma after the object; JSON lines have nothing between their objects"
    if message == "Extra data":
        return f"{rest[:20]!r} follows the value{where}; JSON lines have one value a line"
    if message.startswith("Unterminated string"):
        return f"the text that begins with {rest[:20]!r} is not closed"
    if message.startswith("Invalid control character"):
        return f"a control character within a text{where}; JSON writes a line end as \\n"
    if message.startswith("Invalid"):
        return f"an invalid escape within a text{where}: {rest[:10]!r}"
    if "double quotes" in message and rest.startswith("'"):
        return f"single quotes{where}, as Python writes them; JSON has double quotes; {TO_JSON}"
    if "trailing comma" in message or ("double quotes" in message and rest.startswith("}")):
        return f"a comma before the end{where}"
    if rest.startswith(("//", "/*", "#")):
        return f"a comment{where}; JSON has none, so take it out"
    if word := PYTHON_WORD.match(rest):
        return f"{word[0]}{where}, as Python writes it; JSON has null, true and false"
    found = f"found {rest[:20]!r}" if rest else "it ends there"
    wanted = {"Expecting ',' delimiter": "a comma or the end", "Expecting ':' delimiter": "a colon"}
    expected = wanted.get(message, "a key in double quotes" if "double quotes" in message else "a value")
    return f"not JSON{where}: expected {expected}, {found}"


def explain_line(line: str, error: Exception) -> str:
    """The same with the column."""
    return explain(line, error, f" at column {error.pos + 1:,}" if isinstance(error, JSONDecodeError) else "")


class Scanner:
    """Values of a JSON text, one after the other, from a buffer that holds little more than one of them."""

    def __init__(self, file: TextIO, name: str) -> None:
        self.file, self.name = file, name
        self.buffer, self.position, self.is_ended = "", 0, False
        self.line, self.counted = 1, 0  # of `position`; up to where lines are counted

    def _more(self) -> None:
        """Read on: as much again as waits, so that a long value costs no more than twice its length."""
        self._count()
        self.buffer = self.buffer[self.position :]
        self.position = self.counted = 0
        if len(self.buffer) > MOST_CHARACTERS:
            raise self.error(f"a value of more than {MOST_CHARACTERS:,} characters")
        text = self.file.read(max(CHUNK_CHARACTERS, len(self.buffer)))
        self.buffer, self.is_ended = self.buffer + text, not text

    def peek(self) -> str:
        """The next character that is no white space, "" at the end."""
        while True:
            self.position = self._behind_space(self.position)
            if self.position < len(self.buffer) or self.is_ended:
                self._count()
                return self.buffer[self.position : self.position + 1]
            self._more()

    def peek_within(self) -> str:
        """The next character but one that is no white space, within a bracket."""
        self.peek()
        while True:
            place = self._behind_space(self.position + 1)
            if place < len(self.buffer) or self.is_ended:
                return self.buffer[place : place + 1]
            self._more()

    def _behind_space(self, place: int) -> int:
        found = SPACE.match(self.buffer, place)
        return found.end() if found else place

    def _count(self) -> None:
        self.line += self.buffer.count("\n", self.counted, self.position)
        self.counted = self.position

    def expect(self, character: str) -> None:
        if self.peek() != character:
            raise self.error(f"expected {character}")
        self.position += 1

    def comma(self, end: str) -> None:
        """A comma, or the `end` of the list or object, which is left."""
        if self.peek() == ",":
            self.position += 1
            if self.peek() == end:
                raise self.error("a comma before the end")
        elif self.peek() != end:
            raise self.error(f"expected a comma or {end}")

    def value(self) -> Any:
        self.peek()
        while True:
            try:
                value, end = DECODER.raw_decode(self.buffer, self.position)
                if end < len(self.buffer) or self.is_ended:  # else a number could go on
                    self.position = end
                    return value
            except JSONDecodeError as error:
                goes_on = error.msg.startswith("Unterminated") or error.pos >= len(self.buffer) - LITERAL
                if self.is_ended or not goes_on:
                    self._count()
                    line = self.line + self.buffer.count("\n", self.position, error.pos)
                    raise self.error(explain(self.buffer[: error.pos + 40], error), line) from None
            except (ValueError, RecursionError) as error:
                raise self.error(explain("", error)) from None
            self._more()

    def elements(self, what: str) -> Iterator[Any]:
        """The values of a list."""
        self.expect("[")
        number = 0
        while self.peek() != "]":
            number += 1
            try:
                yield self.value()
                self.comma("]")
            except UsageError as error:
                raise UsageError(f"{error} ({what} {number:,})") from None
        self.expect("]")

    def error(self, problem: str, line: int | None = None) -> UsageError:
        is_short = self.is_ended and not self.buffer[self.position :].strip()
        ends = "; the file ends there, so it was cut short" if is_short else ""
        return UsageError(f"{self.name}: cannot be read as json: line {line or self.line:,}: {problem}{ends}")
