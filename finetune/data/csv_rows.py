"""The rows of csv and tsv files as spreadsheets and databases write them.

The dialect is found on the first rows: the separator, the escape of quotes, lines above the header. Each cell stays
the text that it is."""

from __future__ import annotations

import csv
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO

from finetune.common.errors import UsageError
from finetune.data.csv_dialect import MARKDOWN_RULE, SAMPLE_CHARACTERS, SAMPLE_ROWS, SEPARATORS, Dialect, find_dialect
from finetune.data.rows import Row

LONGEST_NAME = 60  # characters of a column's name; a longer cell is data
NUMBER = re.compile(r"[-+]?[\d.,]*\d%?$")

Cells = tuple[int, list[str]]  # (line, cells)


def read(
    open_text: Callable[[], TextIO], name: str, is_tab: bool, separator: str | None, header: str, facts: dict[str, Any]
) -> Iterator[Row]:
    """The rows of a csv file, by column; of a file without a header the columns are "1", "2", ....

    Args:
        is_tab: whether the suffix promises tabs.
        separator: None to find it.
        header: "true", "false", or "auto": the first row must look like names.
        facts: gets `separator`, `header` and what was left out above it.
    Raises UsageError with the line.
    """
    csv.field_size_limit(1 << 30)  # the default is 128 KB
    with open_text() as file:
        sample = _sample(file)
    if not "".join(sample).strip():
        raise UsageError(f"{name}: no rows in it")
    if sample[0].startswith("|") and any(MARKDOWN_RULE.match(line) for line in sample[1:2]):
        raise UsageError(
            f"{name}: is a table of Markdown, not csv; save it as csv, or read it as text under the suffix .md"
        )
    dialect = find_dialect(sample, name, is_tab, separator)
    facts["separator"] = dialect.separator
    if not dialect.quotes and any('"' in line for line in sample):
        facts["quotes"] = "characters"
    if dialect.skipped:
        facts["left_out"] = Counter({"line above the header": dialect.skipped})
    with open_text() as file:
        rows = _cells(file, name, dialect)
        line, names = next(rows)
        if header == "false":
            rows = itertools.chain([(line, names)], rows)
            full, names = len(names), [str(number) for number in range(1, len(names) + 1)]
            facts["header"] = False
        else:
            first = list(itertools.islice(rows, SAMPLE_ROWS))
            rows = itertools.chain(first, rows)
            full = max(len(names), min((len(cells) for _, cells in first), default=0))
            names = _check_names(names, [cells for _, cells in first], f"{name}: line {line:,}", header)
        yield from _rows(rows, names, full, dialect)


def _sample(file: TextIO) -> list[str]:
    """The first lines of a file."""
    lines, size = [], 0
    for line in file:
        lines.append(line)
        size += len(line)
        if len(lines) >= SAMPLE_ROWS or size > SAMPLE_CHARACTERS:
            break
    return lines


def _cells(file: TextIO, name: str, dialect: Dialect) -> Iterator[Cells]:
    """(line, cells) of each row that is not blank."""
    above = dialect.has_sep_line + dialect.skipped
    for _ in range(above):
        next(file)
    reader = dialect.reader(file)
    while True:
        line = above + reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise UsageError(f"{name}: cannot be read as csv: line {line:,}: {_explain(str(error))}") from None
        if row is None:
            return
        if row:
            yield line, row


def _explain(message: str) -> str:
    """What csv says, in words."""
    if "unexpected end" in message:
        return "the quote that opens a cell here is never closed"
    if "expected after" in message:
        return 'text follows a closing quote; a quote within a cell is written twice: ""'
    if "field larger" in message:
        return "a cell of more than 1 GB; is a quote not closed?"
    if "NUL" in message:
        return "a NUL character"
    return message


def _check_names(names: list[str], first: list[list[str]], place: str, header: str) -> list[str]:
    """The names of the columns. Raises UsageError where they look like data, beside the `first` rows."""
    names = [one.strip() for one in names]
    while len(names) > 1 and not names[-1]:  # a comma at the end of each line
        names.pop()
    if header == "true":
        return names
    problem = ""
    for number, one in enumerate(names):
        cells = {_pattern(row[number]) for row in first if number < len(row)}
        is_word_list = len(names) == 1 and not any(" " in cell for cell in cells)
        is_alike = _pattern(one) in cells or is_word_list or (len(names) == 1 and " " in one)
        if one and (_looks_like_data(one) or is_alike):
            problem = f"{one[:40]!r} looks like data, not like the name of a column"
    if len(names) == 1 and re.search(r"\w[^\w\s.()-]\w", names[0]):
        problem = f"{names[0][:40]!r} is one column; name the separator with --separator="
    if twice := [one for one, count in Counter(names).items() if count > 1]:
        problem = problem or f"two columns are named {twice[0]!r}"
    if problem:
        raise UsageError(
            f"{place}: {problem}; without a header give --header=false (columns are then 1, 2, ...), with one"
            " --header=true"
        )
    return names


def _pattern(cell: str) -> str:
    """A cell with every number as 0, so that `row 1` and `row 2` are alike."""
    return re.sub(r"\d+", "0", cell.strip())


def _looks_like_data(cell: str) -> bool:
    """Whether a cell of the first row is a number or a sentence."""
    is_sentence = len(cell.split()) >= 4 or bool(re.search(r"[.!?,;]\s|[.!?]$", cell))
    return bool(NUMBER.match(cell)) or is_sentence or len(cell) > LONGEST_NAME or "\n" in cell


def _rows(rows: Iterable[Cells], names: list[str], full: int, dialect: Dialect) -> Iterator[Row]:
    """The rows by name. All rows have `full` cells; those behind the last name must be empty."""
    width, number = len(names), 0
    for line, cells in rows:
        while full >= len(cells) > width and not cells[-1].strip():
            cells.pop()
        if not any(cell.strip() for cell in cells) and width > 1:
            continue  # separators alone
        number += 1
        if len(cells) == width:
            yield Row(number, dict(zip(names, cells)), line)
        else:
            yield Row(number, None, line, _wrong_width(cells, width, dialect))


def _wrong_width(cells: list[str], width: int, dialect: Dialect) -> str:
    separator = SEPARATORS.get(dialect.separator, dialect.separator)
    counts = f"{len(cells):,} cell{'s' * (len(cells) != 1)} where the header has {width:,}"
    if len(cells) < width:
        return f"{counts}; is a line end within a cell that is not in quotes?"
    if any("\\" in cell for cell in cells):
        return f'{counts}; a quote within a cell is written twice (""), not with a backslash'
    return f"{counts}; a cell with {separator!r} in it must stand in double quotes, or name the separator: --separator="
