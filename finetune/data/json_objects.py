"""The rows of a JSON file that is one object: a list in it, its lists as columns, or the object itself."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any

from finetune.common.errors import UsageError
from finetune.data.column_names import ABOUT, CODE, MESSAGES
from finetune.data.json_scan import Scanner
from finetune.data.nested import is_noted, texts_within
from finetune.data.row_shape import jq_path
from finetune.data.rows import SENTENCE_END, Row
from finetune.data.split_names import SPLITS
from finetune.data.turns import ROLE_KEYS, ROLE_OF

TEXTS = ("text", "content", "body", "article", "document")  # keys of one document, beside its lists
# what a list of documents is called, and a text about it
DATA = re.compile(r"(data|rows|examples|samples|items|records|entries|documents|docs|texts|corpus)", re.IGNORECASE)
NOTE = re.compile(
    r"(.*_)?(description|notes?|info|about|comments?|message|copyright|citation|credits?|disclaimer|generator"
    r"|homepage|schema)(_.*)?",
    re.IGNORECASE,
)
# a list or an object about the rows, or of what they refer to
BESIDE = re.compile(
    r"includes|(.*_)?change_?log|((version|edit|revision)_)?history|terms.*|rules|versions?|errata", re.IGNORECASE
)
OF_ONE = ("title", "headline", "name", "author", "artist", "composer", "subtitle")  # which one document has
LONG = 100  # characters of a text that is more than a word about the rows beside it
SHARE = 10  # rows for each text of a list, at most, if its texts are short
SENTENCE = 40  # characters that the texts of a list have on average, and names of classes have not
KEY = re.compile(r"[^\W\d][\w-]*( [\w-]+){0,2}(?<!\d)")  # that may be the name of a column
MANY = 30  # more columns than an object of one document has
RECORDS = "pandas writes rows with to_json(FILE, orient='records', lines=True)"


def read_object(scanner: Scanner, facts: dict[str, Any]) -> Iterator[Row]:
    """The rows of a file that is one object. `facts` gets the name of the list that holds them, and how jq
    finds them."""
    scanner.expect("{")
    values: dict[str, Any] = {}
    rows_of = conversation = example = None
    count = 0
    while scanner.peek() != "}":
        key = scanner.value()
        scanner.expect(":")
        if not isinstance(key, str):
            raise scanner.error("expected a key in double quotes")
        if conversation is None and scanner.peek() == "[" and scanner.peek_within() in ("{", "["):
            elements = scanner.elements(f"row of {key!r}")
            first = next(elements)
            if key.lower() in MESSAGES and not rows_of and _is_message(first):
                conversation, values[key] = key, [first, *elements]
            elif rows_of:
                raise _lists_of_rows(scanner, {rows_of: example, key: first}, elements)
            else:
                rows_of, example = key, first
                facts["rows_of"] = key
                facts["jq"] = f"{jq_path(key)}[]" if "columns" not in values else None
                rows = _named(itertools.chain([first], elements), values.get("columns"))
                for row in numbered(rows, scanner):
                    count = row.number
                    yield row
        elif key in values:
            raise scanner.error(f"the key {key!r} stands twice in the object; keep one of them")
        else:
            values[key] = scanner.value()
        scanner.comma("}")
    scanner.expect("}")
    if scanner.peek():
        raise scanner.error("something follows the object")
    if rows_of:
        _check_beside(values, rows_of, count, scanner.name)
    elif conversation:
        yield Row(1, values)
    else:
        facts["jq"] = None  # columns
        yield from _rows_of_values(values, scanner.name)


def is_of_pandas(value: dict[str, Any]) -> bool:
    """Whether one object can be a table of pandas: its to_json without lines=True."""
    is_table = isinstance(value.get("data"), list) and not {"columns", "schema"}.isdisjoint(value)
    return is_table or (bool(value) and all(isinstance(one, dict) for one in value.values()))


def numbered(elements: Iterator[Any], scanner: Scanner) -> Iterator[Row]:
    """A Row for each value."""
    for number, value in enumerate(elements, 1):
        yield Row(number, value, scanner.line)


def _is_message(value: Any) -> bool:
    """Whether a value is a message of a user, an assistant or a system, and not a row."""
    role = next((value[key] for key in ROLE_KEYS if key in value), None) if isinstance(value, dict) else None
    return isinstance(role, str) and role.strip().lower() in ROLE_OF


def _lists_of_rows(scanner: Scanner, found: dict[str, Any], rest: Iterator[Any]) -> UsageError:
    """The error of several lists of rows. `found` has the first row of those that are known, `rest` are the rows of the
    last of them."""
    keys, examples = [*found], [*found.values()]
    if all(key.lower() in SPLITS for key in keys):
        return UsageError(f"{scanner.name}: {_ways_of_splits([*keys, *_further_splits(scanner, rest)])}")
    both = " and ".join(map(repr, keys))
    if all(map(_is_message, examples)):
        way = "each is a conversation; jq -c '.[] | arrays' FILE > out.jsonl writes them as rows"
        return UsageError(f"{scanner.name}: holds lists of messages under {both}; {way}")
    one = next((key for key in keys if DATA.fullmatch(key)), keys[-1])
    way = f"one of them to a file of its own, for example with jq -c '{jq_path(one)}[]' FILE > out.jsonl"
    if all(isinstance(row, dict) and row.keys() == examples[0].keys() for row in examples):
        way = f"the rows of all to one file, with jq -c '.[] | arrays | .[]' FILE > out.jsonl, or {way}"
    return UsageError(f"{scanner.name}: holds lists of rows under {both}; write {way}")


def _further_splits(scanner: Scanner, rest: Iterator[Any]) -> list[str]:
    """The keys of splits behind a list whose rest is read too."""
    keys = []
    for _ in rest:
        pass
    scanner.comma("}")
    while scanner.peek() != "}":
        key = scanner.value()
        scanner.expect(":")
        if isinstance(scanner.value(), list) and str(key).lower() in SPLITS:
            keys.append(key)
        scanner.comma("}")
    return keys


def _ways_of_splits(keys: list[str]) -> str:
    """How jq writes lists that are splits."""
    ways = ", ".join(f"jq -c '{jq_path(key)}[]' FILE > {key}.jsonl" for key in keys)
    return f"its lists are splits; write each to a file of its own in one directory: {ways}"


def _check_beside(values: dict[str, Any], rows_of: str, rows: int, name: str) -> None:
    """Raise UsageError for a text beside rows, or texts in a list or an object, which would be lost."""
    found = [key for key in _texts(values) if key in TEXTS or (len(values[key]) >= LONG and not NOTE.fullmatch(key))]
    if found:
        raise UsageError(
            f"{name}: holds a text under {found[0]!r} beside rows under {rows_of!r}; keep one of them: the rows are"
            f" written with jq -c '{jq_path(rows_of)}[]' FILE > out.jsonl"
        )
    _check_within(values, rows_of, rows, name)


def _check_within(values: dict[str, Any], rows_of: str, rows: int, name: str) -> None:
    """Raise UsageError for texts in a list or an object beside rows, or beside the columns of rows."""
    found = next((key for key, value in values.items() if _holds_texts(key, value, rows)), None)
    if found:
        elements = _elements(found, values[found])
        raise UsageError(
            f"{name}: holds texts under {found!r} beside rows under {rows_of!r}; write each to a file of its own:"
            f" jq -c '{jq_path(rows_of)}[]' FILE > rows.jsonl, jq -c '{elements}' FILE > texts.jsonl"
        )


def _elements(key: str, value: Any) -> str:
    """The texts under a key as jq takes them: a row each, or strings if they stand deep in an object."""
    is_row = isinstance(value, dict) and any(isinstance(value.get(one), str) for one in TEXTS)
    return jq_path(key) + ("[]" if isinstance(value, list) else "" if is_row else " | .. | strings")


def _holds_texts(key: str, value: Any, rows: int) -> bool:
    """Whether a list or an object holds texts, and not names or what is known of the rows beside it."""
    if not isinstance(value, list | dict) or any(known(key) for known in (is_noted, NOTE.fullmatch, BESIDE.fullmatch)):
        return False
    found = [(one, text) for one, text in texts_within(value) if not NOTE.fullmatch(one)]
    size = sum(len(text) for _, text in found)
    are_many = len(found) > 1 and (size >= LONG or SHARE * len(found) >= rows)
    is_said = isinstance(value, list) and are_many and all(SENTENCE_END.search(text) for _, text in found)
    return is_said or any(one in TEXTS for one, _ in found) or (size >= LONG and size >= SENTENCE * len(found))


def _texts(values: dict[str, Any]) -> list[str]:
    """The keys of texts that are no codes, and not about another text."""
    texts = [key for key, value in values.items() if isinstance(value, str)]
    return [key for key in texts if key in TEXTS or not (CODE.fullmatch(values[key].strip()) or ABOUT.fullmatch(key))]


def _rows_of_values(values: dict[str, Any], name: str) -> Iterator[Row]:
    columns = {key: value for key, value in values.items() if isinstance(value, list)}
    is_data = any(map(DATA.fullmatch, columns))
    texts = [key for key in _texts(values) if key.lower() not in OF_ONE and not (is_data and NOTE.fullmatch(key))]
    if not columns and is_of_pandas(values):
        yield from (Row(number, row) for number, row in enumerate(_rows_of_objects(values, name), 1))
    elif not columns or texts:
        _check_keys(values, name)
        noted = "".join(values[key] for key in texts)
        if not is_data and all(map(NOTE.fullmatch, texts)) and _holds_more(columns, noted):
            raise _document_or_rows(name, columns, texts[0])
        yield Row(1, values)
    else:
        _check_columns(values, columns, is_data, name)
        rest = {key: value for key, value in values.items() if key not in columns}
        longest = _longest(columns)
        _check_within(rest, longest, len(columns[longest]), name)
        _check_below(rest, longest, columns[longest], name)
        for number, row in enumerate(zip(*columns.values()), 1):
            yield Row(number, dict(zip(columns, row)))


def _check_keys(values: dict[str, Any], name: str) -> None:
    """Raise UsageError for an object whose keys are not the names of columns, such as a dictionary."""
    if len(values) > MANY and all(isinstance(value, int | float) for value in values.values()):
        raise UsageError(
            f"{name}: is one object of {len(values):,} numbers; jq -c 'keys_unsorted[]' FILE > out.jsonl writes its"
            f" keys, such as {next(iter(values))[:40]!r}, as rows"
        )
    is_of_texts = len(values) > 2 and all(isinstance(value, str) for value in values.values())
    odd = sum(not KEY.fullmatch(key) for key in values)
    if is_of_texts and not {*TEXTS} & {*values} and (2 * odd > len(values) or len(values) > MANY):
        raise UsageError(
            f"{name}: is one object of {len(values):,} texts, whose keys, such as {next(iter(values))[:40]!r}, are no"
            " columns; jq -c 'to_entries[]' FILE > out.jsonl writes rows to read with --text_column=value, or with"
            " --prompt_column=key --completion_column=value"
        )


def _check_columns(values: dict[str, Any], columns: dict[str, list[Any]], is_data: bool, name: str) -> None:
    """Raise UsageError for lists that are not the columns of a table."""
    splits = [key for key in columns if key.lower() in SPLITS]
    if len(splits) == len(columns):
        raise UsageError(f"{name}: {_ways_of_splits(splits)}")
    title = next((key for key in values if key.lower() in OF_ONE and isinstance(values[key], str)), None)
    if title and not is_data:
        raise _document_or_rows(name, columns, title)
    if len({len(value) for value in columns.values()}) > 1:
        sizes = ", ".join(f"{key} ({len(value):,})" for key, value in columns.items())
        raise UsageError(
            f"{name}: an object of lists of different lengths: {sizes}; give rows, or columns of one length"
        )


def _document_or_rows(name: str, columns: dict[str, list[Any]], beside: str) -> UsageError:
    """The error of a list that may be the paragraphs of one document, or a document each."""
    key = _longest(columns)
    elements = f"'{jq_path(key)}[]' FILE > out"
    return UsageError(
        f"{name}: has the list {key!r} beside {beside!r}, so it may be one document or many; jq -r {elements}.txt"
        f" writes the list as one text, jq -c {elements}.jsonl as rows"
    )


def _longest(columns: dict[str, list[Any]]) -> str:
    return max(columns, key=lambda one: len(str(columns[one])))


def _holds_more(columns: dict[str, list[Any]], text: str) -> bool:
    """Whether a list of strings is longer than the text beside it."""
    lists = [value for value in columns.values() if len(value) > 1 and all(isinstance(one, str) for one in value)]
    return any(sum(map(len, value)) > len(text) for value in lists)


def _check_below(rest: dict[str, Any], column: str, rows: list[Any], name: str) -> None:
    """Raise UsageError for objects with more strings in their lists than the list that was taken for the rows."""
    count, objects = 0, {key: value for key, value in rest.items() if isinstance(value, dict) and not is_noted(key)}
    stack = [*objects.values()]
    while stack:
        one = stack.pop()
        stack += [below for below in (one.values() if isinstance(one, dict) else one) if isinstance(below, dict | list)]
        count += sum(isinstance(below, str) for below in one) if isinstance(one, list) else 0
    if count > len(rows):
        raise UsageError(
            f"{name}: holds {count:,} texts in the lists of {next(iter(objects))!r} and others beside the list"
            f" {column!r}; jq -c '.. | strings' FILE > out.jsonl writes all as rows"
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
