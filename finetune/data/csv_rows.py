"""The rows of csv and tsv files as spreadsheets and databases write them.

The dialect is found on the first rows: the separator, the escape of quotes, lines above the header. Each cell stays
the text that it is."""

from __future__ import annotations

import csv
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TextIO

from finetune.common.errors import UsageError
from finetune.data.rows import Row

SEPARATORS = {",": ",", ";": ";", "\t": "tab", "|": "|"}
SAMPLE_ROWS, SAMPLE_CHARACTERS = 200, 1 << 20
SEP_LINE = re.compile(r'^"?sep=(.)"?\s*$', re.IGNORECASE)  # Excel's
MARKDOWN_RULE = re.compile(r"\|[\s:|-]+\|\s*$")
LONGEST_NAME = 60  # characters of a column's name; a longer cell is data
NUMBER = re.compile(r"[-+]?[\d.,]*\d%?$")

Cells = tuple[int, list[str]]  # (line, cells)


@dataclass
class Dialect:
    """How a file is written."""

    separator: str = ","
    quotes: bool = True  # a cell may stand in double quotes
    escape: bool = False  # \\" is a quote within a cell, instead of ""
    has_sep_line: bool = False
    skipped: int = 0  # lines above the header

    def arguments(self) -> dict[str, Any]:
        """Those of csv.reader."""
        if not self.quotes:
            return {"delimiter": self.separator, "quoting": csv.QUOTE_NONE, "strict": True}
        escape = {"escapechar": "\\", "doublequote": False} if self.escape else {}
        return {"delimiter": self.separator, "strict": True, **escape}


def read(
    open_text: Callable[[], TextIO], name: str, is_tab: bool, separator: str | None, header: str, facts: dict[str, Any]
) -> Iterator[Row]:
    """The rows of a csv file, by column; of a file without a header the columns are "1", "2", ....

    Args:
        is_tab: whether the suffix is .tsv.
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
    dialect = _find_dialect(sample, name, is_tab, separator)
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
            names = [str(number) for number in range(1, len(names) + 1)]
            facts["header"] = False
        else:
            first = list(itertools.islice(rows, SAMPLE_ROWS))
            rows = itertools.chain(first, rows)
            names = _check_names(names, [cells for _, cells in first], f"{name}: line {line:,}", header)
        yield from _rows(rows, names, name, dialect)


def _sample(file: TextIO) -> list[str]:
    """The first lines of a file."""
    lines, size = [], 0
    for line in file:
        lines.append(line)
        size += len(line)
        if len(lines) >= SAMPLE_ROWS or size > SAMPLE_CHARACTERS:
            break
    return lines


def _find_dialect(sample: list[str], name: str, is_tab: bool, separator: str | None) -> Dialect:
    """The dialect that gives most rows the same number of cells, more than one. Raises UsageError if two do."""
    has_sep_line = SEP_LINE.match(sample[0])
    if has_sep_line:
        separator, sample = separator or has_sep_line[1], sample[1:]
    found: list[tuple[float, int, Dialect]] = []
    has_tabs = is_tab and any("\t" in line for line in sample)
    for candidate in [separator] if separator else ["\t"] if has_tabs else SEPARATORS:
        dialect = _with_quotes(candidate, sample)
        widths, broken = _widths(sample, dialect)
        width, count = max(
            Counter(width for width in widths if width > 1).items(), key=lambda item: item[1], default=(1, 0)
        )
        if count > len(widths) / 2:
            found.append((count / (len(widths) + broken), width, dialect))
    found.sort(key=lambda item: item[0], reverse=True)
    if len(found) > 1 and found[0][0] == found[1][0]:
        one, other = (SEPARATORS[dialect.separator] for _, _, dialect in found[:2])
        raise UsageError(f"{name}: {one!r} and {other!r} both separate cells; name the separator: --separator={one!r}")
    if found:
        _, width, dialect = found[0]
        dialect.skipped = _lines_above(sample, name, dialect, width)
    else:
        dialect = _with_quotes(separator or ("\t" if is_tab else ","), sample)
        dialect.skipped = next((number for number, line in enumerate(sample) if line.strip()), 0)
    dialect.has_sep_line = bool(has_sep_line)
    return dialect


def _with_quotes(separator: str, sample: list[str]) -> Dialect:
    """How quotes are written, in a file with that separator. Between tabs they are characters, unless they enclose
    cells throughout."""
    standard, escaped = Dialect(separator), Dialect(separator, escape=True)
    if separator != "\t":
        is_escaped = any('\\"' in line for line in sample) and _is_better(
            _widths(sample, escaped), _widths(sample, standard)
        )
        return escaped if is_escaped else standard
    plain = Dialect(separator, quotes=False)
    if _is_better(_widths(sample, standard), _widths(sample, plain)):
        return standard
    cells = [cell for line in sample for cell in line.rstrip("\r\n").split(separator) if cell.startswith('"')]
    is_quoted = [len(cell) > 1 and cell.endswith('"') and '"' not in cell[1:-1].replace('""', "") for cell in cells]
    return standard if cells and all(is_quoted) and any('""' in cell[1:-1] for cell in cells) else plain


def _is_better(one: tuple[list[int], int], other: tuple[list[int], int]) -> bool:
    """Whether rows are more alike: fewer cannot be read, then fewer different widths."""
    return (one[1], len(set(one[0]))) < (other[1], len(set(other[0])))


def _widths(lines: list[str], dialect: Dialect) -> tuple[list[int], int]:
    """(number of cells of each row, rows that cannot be read)"""
    reader = csv.reader(lines, **dialect.arguments())
    widths, broken = [], 0
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            is_cut = "unexpected end" in str(error) and len(lines) == SAMPLE_ROWS  # the sample ends within a cell
            broken += not is_cut
            continue
        if row is None:
            return widths, broken
        if row:
            widths.append(len(row))


def _lines_above(lines: list[str], name: str, dialect: Dialect, width: int) -> int:
    """The number of lines above the header, which are blank or a title. Raises UsageError if the title looks like the
    header of one column."""
    reader = csv.reader(lines, **dialect.arguments())
    title, previous = "", 0
    for row in reader:
        filled = [cell.strip() for cell in row if cell.strip()]
        if len(filled) > 1 or (len(row) >= width and filled):
            break
        title, previous = "".join(filled) or title, reader.line_num
    if len(title.split()) == 1 and "".join(lines[previous - 1 : previous]).strip():
        separator = SEPARATORS.get(dialect.separator, dialect.separator)
        cells = f"line 1 is the one name {title!r}, and rows have {width} cells between {separator!r}"
        raise UsageError(
            f"{name}: {cells}; a cell with {separator!r} in it must stand in double quotes, or name another separator:"
            " --separator="
        )
    return previous


def _cells(file: TextIO, name: str, dialect: Dialect) -> Iterator[Cells]:
    """(line, cells) of each row that is not blank."""
    above = dialect.has_sep_line + dialect.skipped
    for _ in range(above):
        next(file)
    reader = csv.reader(file, **dialect.arguments())
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
        cells = {row[number].strip() for row in first if number < len(row)}
        if one and (_looks_like_data(one) or one in cells or (len(names) == 1 and " " in one)):
            problem = f"{one[:40]!r} looks like data, not like the name of a column"
    if twice := [one for one, count in Counter(names).items() if count > 1]:
        problem = problem or f"two columns are named {twice[0]!r}"
    if problem:
        raise UsageError(
            f"{place}: {problem}; without a header give --header=false (columns are then 1, 2, ...), with one"
            " --header=true"
        )
    return names


def _looks_like_data(cell: str) -> bool:
    """Whether a cell of the first row is a number or a sentence."""
    is_sentence = len(cell.split()) >= 4 or bool(re.search(r"[.!?,;]\s|[.!?]$", cell))
    return bool(NUMBER.match(cell)) or is_sentence or len(cell) > LONGEST_NAME or "\n" in cell


def _rows(rows: Iterable[Cells], names: list[str], name: str, dialect: Dialect) -> Iterator[Row]:
    width, number = len(names), 0
    for line, cells in rows:
        while len(cells) > width and not cells[-1].strip():
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
