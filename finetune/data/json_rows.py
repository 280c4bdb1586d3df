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
from finetune.data.json_scan import CHUNK_CHARACTERS, DECODER, MARKS, Scanner, explain_line
from finetune.data.rows import Row

LOOK_CHARACTERS = 1 << 16  # of the first line
CONVERSATION = re.compile(r'\s*\[\s*\{\s*"(role|from|content|value)"')
TEXTS = ("text", "content", "body", "article", "document")  # keys of one document, beside its lists
RECORDS = "pandas writes rows with to_json(FILE, orient='records', lines=True)"


def read(open_text: Callable[[], TextIO], name: str, is_lines: bool, facts: dict[str, Any]) -> Iterator[Row]:
    """The rows of a JSON file. `is_lines` says that its name promises one value a line; `facts` gets the name of the
    list, if one object holds the rows.

    A line that is not JSON is a Row with a problem. Raises UsageError where reading cannot go on."""
    first, has_more = _first_line(open_text)
    begins = first.lstrip()[:1]
    if begins not in ("[", "{") and not is_lines:
        raise UsageError(f"{name}: cannot be read as json: line 1: expected an array [...] or objects {{...}}")
    with open_text() as file:
        if begins == "{" and _is_sequence(open_text):
            yield from _read_sequence(Scanner(file, name))
        elif begins not in ("[", "{") or _is_value_of_lines(first, has_more, is_lines):
            yield from _read_lines(file)
        elif begins == "[":
            yield from _read_array(Scanner(file, name))
        else:
            yield from _read_object(Scanner(file, name), facts)


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
    is_row = isinstance(value, dict) and not _is_of_pandas(value)
    return has_more or (is_lines and (is_row or is_conversation))


def _is_of_pandas(value: dict[str, Any]) -> bool:
    """Whether one object can be a table of pandas: its to_json without lines=True."""
    is_table = "data" in value and not {"columns", "schema"}.isdisjoint(value)
    return is_table or (bool(value) and all(isinstance(one, dict) for one in value.values()))


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
    yield from _numbered(_values_of(scanner), scanner)


def _values_of(scanner: Scanner) -> Iterator[Any]:
    while scanner.peek():
        yield scanner.value()


def _read_array(scanner: Scanner) -> Iterator[Row]:
    yield from _numbered(scanner.elements("row"), scanner)
    if scanner.peek():
        raise scanner.error("something follows the array; JSON lines have no [ around them")


def _read_object(scanner: Scanner, facts: dict[str, Any]) -> Iterator[Row]:
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
            yield from _numbered(_named(scanner.elements(f"row of {key!r}"), values.get("columns")), scanner)
        elif key in values:
            raise scanner.error(f"the key {key!r} stands twice in the object; keep one of them")
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
        rows = _rows_of_objects(values, name) if _is_of_pandas(values) else [values]
        yield from (Row(number, row) for number, row in enumerate(rows, 1))
    elif len(lengths) == 1:
        for number, row in enumerate(zip(*columns.values()), 1):
            yield Row(number, dict(zip(columns, row)))
    else:
        sizes = ", ".join(f"{key} ({len(value):,})" for key, value in columns.items())
        raise UsageError(
            f"{name}: an object of lists of different lengths: {sizes}; give rows, or columns of one length"
        )


def _rows_of_objects(values: dict[str, dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """The rows of pandas' to_json: an object of columns by their names, or of rows by their numbers."""
    inner = [list(one) for one in values.values()]
    has_rows = all(key.isdecimal() for key in values)
    has_columns = inner[0] and all(keys == inner[0] for keys in inner) and all(key.isdecimal() for key in inner[0])
    if has_rows == bool(has_columns):
        raise UsageError(
            f"{name}: an object of objects, which may be rows or columns; if each is a row, write them as lines with"
            f" jq -c '.[]' FILE > out.jsonl; {RECORDS}"
        )
    if has_rows:
        return list(values.values())
    return [dict(zip(values, row)) for row in zip(*(column.values() for column in values.values()))]


def _named(rows: Iterator[Any], columns: object) -> Iterator[Any]:
    """The rows; lists of cells become objects if `columns` are their names (pandas: to_json(orient="split"))."""
    if not isinstance(columns, list) or not all(isinstance(column, str) for column in columns):
        return rows
    has_names = len({*columns}) == len(columns)
    return (
        dict(zip(columns, row)) if has_names and isinstance(row, list) and len(row) == len(columns) else row
        for row in rows
    )


def _numbered(elements: Iterator[Any], scanner: Scanner) -> Iterator[Row]:
    for number, value in enumerate(elements, 1):
        yield Row(number, value, scanner.line)
