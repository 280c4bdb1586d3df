"""The rows of JSON: one value a line, an array, or an object that holds the rows.

Rows are parsed one by one by the json of the standard library, in constant memory. So no value changes its type
because of another. (A reader of events such as ijson has another meaning: its yajl makes half a surrogate pair "?".)"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from json import JSONDecodeError
from typing import Any, TextIO

from finetune.common.errors import UsageError
from finetune.data.rows import Row

CHUNK_CHARACTERS = 1 << 20
LITERAL = 16  # characters; an error so near to the end can be that of a value that goes on
LOOK_CHARACTERS = 1 << 16  # of the first line
SPACE = re.compile(r"[ \t\r\n]*")
CONVERSATION = re.compile(r'\s*\[\s*\{\s*"(role|from|content|value)"')
TEXTS = ("text", "content", "body", "article", "document")  # keys of one document, beside its lists
DECODER = json.JSONDecoder()


def read(open_text: Callable[[], TextIO], name: str, is_lines: bool, facts: dict[str, Any]) -> Iterator[Row]:
    """The rows of a JSON file. `is_lines` says that its name promises one value a line; `facts` gets the name of the
    list, if one object holds the rows.

    A line that is not JSON is a Row with a problem. Raises UsageError where reading cannot go on."""
    first, has_more = _first_line(open_text)
    begins = first.lstrip()[:1]
    if begins not in ("[", "{") and not is_lines:
        raise UsageError(f"{name}: cannot be read as json: line 1: expected an array [...] or objects {{...}}")
    with open_text() as file:
        if begins not in ("[", "{") or _is_value_of_lines(first, has_more, is_lines):
            yield from _read_lines(file)
        elif begins == "[":
            yield from _read_array(_Scanner(file, name))
        else:
            yield from _read_object(_Scanner(file, name), facts)


def _first_line(open_text: Callable[[], TextIO]) -> tuple[str, bool]:
    """The first line that is not blank, of a long one the beginning, and whether there are more."""
    first = ""
    with open_text() as file:
        while line := file.readline(LOOK_CHARACTERS):
            if not first.strip():
                first = line
            elif first.endswith("\n") and line.strip():
                return first, True
            elif line.endswith("\n"):  # the end of a long first line
                first += "" if first.endswith("\n") else "\n"
    return first, False


def _is_value_of_lines(first: str, has_more: bool, is_lines: bool) -> bool:
    """Whether each line is a value. `first` is the first line that is not blank."""
    if len(first) >= LOOK_CHARACTERS:
        return has_more or (is_lines and (first.lstrip()[0] == "{" or bool(CONVERSATION.match(first))))
    first = first.strip()
    try:
        value = json.loads(first)
    except (ValueError, RecursionError) as error:
        # a value over several lines begins with an open bracket or a member, and the error is at the end of the line
        is_open = first[-1] in "{[" or (
            first[-1] == "," and isinstance(error, JSONDecodeError) and error.pos >= len(first)
        )
        return is_lines and not is_open
    # a list of objects in one line can be one conversation
    is_conversation = isinstance(value, list) and all(
        isinstance(one, dict) and {"role", "from"} & {*one} for one in value
    )
    return has_more or (is_lines and (isinstance(value, dict) or is_conversation))


def _read_lines(file: TextIO) -> Iterator[Row]:
    number = 0
    for line_number, line in enumerate(file, 1):
        if not line.strip():
            continue
        number, line = number + 1, line.rstrip("\r\n")
        try:
            yield Row(number, json.loads(line), line_number)
        except (ValueError, RecursionError) as error:
            where = f" at column {error.pos + 1:,}" if isinstance(error, JSONDecodeError) else ""
            yield Row(number, None, line_number, explain(line, error, where))


def explain(text: str, error: Exception, where: str = "") -> str:
    """What is wrong with a JSON text, in words."""
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
        return f"single quotes{where}, as Python writes them; JSON has double quotes"
    found = f"found {rest[:20]!r}" if rest else "it ends there"
    wanted = {"Expecting ',' delimiter": "a comma or the end", "Expecting ':' delimiter": "a colon"}
    expected = wanted.get(message, "a key in double quotes" if "double quotes" in message else "a value")
    return f"not JSON{where}: expected {expected}, {found}"


def _read_array(scanner: _Scanner) -> Iterator[Row]:
    yield from _numbered(scanner.elements("row"), scanner)
    if scanner.peek():
        raise scanner.error("something follows the array; JSON lines have no [ around them")


def _read_object(scanner: _Scanner, facts: dict[str, Any]) -> Iterator[Row]:
    """The rows of a file that is one object: the list of objects in it, its lists as columns, or the object itself."""
    scanner.expect("{")
    values: dict[str, Any] = {}
    rows_of = None
    while scanner.peek() != "}":
        key = scanner.value()
        scanner.expect(":")
        if not isinstance(key, str):
            raise scanner.error("expected a key in double quotes")
        if scanner.peek() == "[" and scanner.peek_within() in ("{", "["):
            if rows_of:
                raise UsageError(
                    f"{scanner.name}: holds lists of rows under {rows_of!r} and {key!r}; write one of them to a file of"
                    f" its own, for example with jq -c '.{key}[]'"
                )
            rows_of = facts["rows_of"] = key
            yield from _numbered(scanner.elements(f"row of {key!r}"), scanner)
        else:
            values[key] = scanner.value()
        scanner.comma("}")
    scanner.expect("}")
    if scanner.peek():
        raise scanner.error("something follows the object")
    texts = [key for key in TEXTS if isinstance(values.get(key), str)]
    if rows_of and texts:
        beside = f"holds a text under {texts[0]!r} beside rows under {rows_of!r}"
        raise UsageError(f"{scanner.name}: {beside}; keep one of them")
    if texts:
        yield Row(1, values)
    elif rows_of is None:
        yield from _rows_of_columns(values, scanner.name)


def _rows_of_columns(values: dict[str, Any], name: str) -> Iterator[Row]:
    columns = {key: value for key, value in values.items() if isinstance(value, list)}
    lengths = {len(value) for value in columns.values()}
    if not columns:
        yield Row(1, values)
    elif len(lengths) == 1:
        for number, row in enumerate(zip(*columns.values()), 1):
            yield Row(number, dict(zip(columns, row)))
    else:
        sizes = ", ".join(f"{key} ({len(value):,})" for key, value in columns.items())
        raise UsageError(
            f"{name}: an object of lists of different lengths: {sizes}; give rows, or columns of one length"
        )


def _numbered(elements: Iterator[Any], scanner: _Scanner) -> Iterator[Row]:
    for number, value in enumerate(elements, 1):
        yield Row(number, value, scanner.line)


class _Scanner:
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
