"""The rows of JSON: one value a line, an array, or an object that holds the rows.

Rows are parsed one by one by the json of the standard library, in constant memory. So no value changes its type
because of another. (A reader of events such as ijson has another meaning: its yajl makes half a surrogate pair "?".)"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from json import JSONDecodeError
from typing import Any, TextIO

from finetune.common.errors import UsageError
from finetune.data.json_objects import is_of_pandas, numbered, read_object
from finetune.data.json_scan import CHUNK_CHARACTERS, DECODER, MARKS, Scanner, explain_line
from finetune.data.rows import Row

LOOK_CHARACTERS = 1 << 16  # of the first line
BRACKET = re.compile(r'\\.|["\[\]{}]', re.DOTALL)  # or a quote, or what a backslash stands before
CONVERSATION = re.compile(r'\s*\[\s*\{\s*"(role|from|content|value)"')


def read(open_text: Callable[[], TextIO], name: str, is_lines: bool, facts: dict[str, Any]) -> Iterator[Row]:
    """The rows of a JSON file. `is_lines` says that its name promises one value a line; `facts` gets how jq finds the
    rows, and the name of the list, if one object holds them.

    A line that is not JSON is a Row with a problem. Raises UsageError where reading cannot go on."""
    first, below = _first_line(open_text)
    begins = first.lstrip()[:1]
    if begins not in ("[", "{") and not is_lines:
        raise UsageError(f"{name}: cannot be read as json: line 1: expected an array [...] or objects {{...}}")
    facts["jq"] = ""
    with open_text() as file:
        if begins == "{" and _is_sequence(open_text):
            yield from _read_sequence(Scanner(file, name))
        elif begins not in ("[", "{") or _is_value_of_lines(first, below, is_lines, open_text):
            yield from _read_lines(file)
        elif begins == "[":
            facts["jq"] = ".[]"
            yield from _read_array(Scanner(file, name))
        else:
            yield from read_object(Scanner(file, name), facts)


def _first_line(open_text: Callable[[], TextIO]) -> tuple[str, str]:
    """The first line that is not blank and the next one, "" if there is none; of long ones the beginning."""
    first = ""
    with open_text() as file:
        while line := file.readline(LOOK_CHARACTERS):
            if not first.strip():
                first = line
            elif first.endswith("\n") and line.strip():
                return first, line
            elif line.endswith("\n"):  # the end of a long first line
                first += "" if first.endswith("\n") else "\n"
    return first, ""


def _is_value_of_lines(first: str, below: str, is_lines: bool, open_text: Callable[[], TextIO]) -> bool:
    """Whether each line is a value. `first` is the first line that is not blank, `below` the next one."""
    if len(first) >= LOOK_CHARACTERS:
        if not below:
            return is_lines and (first.lstrip()[0] == "{" or bool(CONVERSATION.match(first)))
        depth, last = _end_of_first(open_text)
        return not depth or (is_lines and not _is_open(last, below))
    first = first.strip()
    try:
        value = json.loads(first)
    except (ValueError, RecursionError) as error:
        # a value over several lines begins with an open bracket or a member, and the error is at the end of the line
        is_at_end = isinstance(error, JSONDecodeError) and error.pos >= len(first)
        return is_lines and not (first[-1] in "{[" or (is_at_end and _is_open(first[-1], below)))
    # a list of objects in one line can be one conversation
    is_conversation = isinstance(value, list) and all(
        isinstance(one, dict) and {"role", "from"} & {*one} for one in value
    )
    is_row = isinstance(value, dict) and not is_of_pandas(value)
    is_array = isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)
    if is_array and not is_lines and not is_conversation:
        return False
    return bool(below) or (is_lines and (is_row or is_conversation))


def _is_open(last: str, below: str) -> bool:
    """Whether a value goes on below the first line, by its last character and the line below it."""
    return last in ("{", "[", ",") or below.lstrip()[:1] in (",", "]", "}")


def _end_of_first(open_text: Callable[[], TextIO]) -> tuple[int, str]:
    """The number of brackets that are open at the end of the first line that is not blank, and its last character, ""
    within a text. It is read in parts, since it can hold nearly the whole file."""
    depth, is_text, last, rest = 0, False, "", ""
    with open_text() as file:
        while part := file.readline(LOOK_CHARACTERS):
            part = rest + part
            is_cut = (len(part) - len(part.rstrip("\\"))) % 2  # the next character belongs to the backslash
            rest = part[len(part) - is_cut :]
            for mark in BRACKET.findall(part[: len(part) - is_cut]):
                if mark == '"':
                    is_text = not is_text
                elif len(mark) == 1 and not is_text:
                    depth += 1 if mark in "[{" else -1
            last = (part.rstrip() or last)[-1:]
            if last and part.endswith("\n"):
                break
    return depth, "" if is_text else last


def _is_sequence(open_text: Callable[[], TextIO]) -> bool:
    """Whether a file begins with an object over several lines, or with two in a line, and goes on with objects."""
    with open_text() as file:
        head = file.read(CHUNK_CHARACTERS).lstrip()
    try:
        _, end = DECODER.raw_decode(head)
    except (ValueError, RecursionError):
        return False
    rest = head[end:].lstrip(" \t" + MARKS)
    return rest[:1] == "{" or ("\n" in head[:end] and rest.lstrip()[:1] == "{")


def _read_lines(file: TextIO) -> Iterator[Row]:
    number = 0
    for line_number, line in enumerate(file, 1):
        if not line.strip():
            continue
        line = line.rstrip("\r\n")
        try:
            values = [DECODER.decode(line)]
        except (ValueError, RecursionError) as error:
            values = _objects_of(line)
            if not values:
                number += 1
                yield Row(number, None, line_number, explain_line(line, error))
        for value in values:
            number += 1
            yield Row(number, value, line_number)


def _objects_of(line: str) -> list[Any]:
    """The objects in a line that is not one value, [] if it holds anything else."""
    with io.StringIO(line) as file:
        scanner = Scanner(file, "")
        try:
            found = list(_values_of(scanner))
        except UsageError:
            return []
    return found if len(found) == 1 or all(isinstance(one, dict) for one in found) else []


def _read_sequence(scanner: Scanner) -> Iterator[Row]:
    yield from numbered(_values_of(scanner), scanner)


def _values_of(scanner: Scanner) -> Iterator[Any]:
    while scanner.peek():
        yield scanner.value()


def _elements_of_arrays(scanner: Scanner) -> Iterator[Any]:
    """The rows of arrays that were joined, such as the pages of an answer."""
    while scanner.peek() == "[":
        yield from scanner.elements("row")


def _read_array(scanner: Scanner) -> Iterator[Row]:
    yield from numbered(_elements_of_arrays(scanner), scanner)
    if scanner.peek():
        raise scanner.error("something follows the array; JSON lines have no [ around them")
