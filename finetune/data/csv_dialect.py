"""The dialect of a csv or tsv file: what makes its rows alike."""

from __future__ import annotations

import csv
import itertools
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from finetune.common.errors import UsageError

SEPARATORS = {",": ",", ";": ";", "\t": "tab", "|": "|"}
SAMPLE_ROWS, SAMPLE_CHARACTERS = 200, 1 << 20
SEP_LINE = re.compile(r'^"?sep=(.)"?\s*$', re.IGNORECASE)  # Excel's
ESCAPED = re.compile(r'(?<!\\)\\"')  # a quote behind a backslash
MARKDOWN_RULE = re.compile(r"\|[\s:|-]+\|\s*$")
BACKSLASH = re.compile(r"\\([\s\S])")  # what stands behind each


@dataclass
class Dialect:
    """How a file is written."""

    separator: str = ","
    quotes: bool = True  # a cell may stand in double quotes
    escape: Literal["", "quotes", "all"] = ""  # \" is a quote within a cell, instead of ""; also \\ is \
    has_sep_line: bool = False
    skipped: int = 0  # lines above the header

    def arguments(self) -> dict[str, Any]:
        """Those of csv.reader."""
        if not self.quotes:
            return {"delimiter": self.separator, "quoting": csv.QUOTE_NONE, "strict": True}
        escape = {"escapechar": "\\", "doublequote": False} if self.escape == "all" else {}
        return {"delimiter": self.separator, "strict": True, **escape}

    def reader(self, lines: Iterable[str]) -> Any:
        """csv.reader of some lines."""
        # other backslashes are characters
        readable = (ESCAPED.sub('""', line) for line in lines) if self.escape == "quotes" else lines
        return csv.reader(readable, **self.arguments())


def find_dialect(sample: list[str], name: str, is_tab: bool, separator: str | None) -> Dialect:
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
        filled = [number for number, line in enumerate(sample) if line.strip()]
        if len(filled) > 2 and filled[1] - filled[0] > 1 == filled[2] - filled[1]:  # a blank line below the first
            if " " not in sample[filled[0]].strip():
                raise UsageError(f"{name}: line 1 is a title or a header, with a blank line below; delete one of them")
            filled = filled[1:]
        dialect.skipped = filled[0]
    dialect.has_sep_line = bool(has_sep_line)
    return dialect


def _with_quotes(separator: str, sample: list[str]) -> Dialect:
    """How quotes are written, in a file with that separator. Between tabs they are characters, unless they enclose
    cells throughout."""
    standard = Dialect(separator)
    if separator != "\t":
        backslashes = [match for line in sample for match in BACKSLASH.findall(line)]
        # a writer that escapes backslashes too leaves none before another character
        escapes_all = "\\" in backslashes and {*backslashes} <= {"\\", '"', separator, "\n"}
        escaped = Dialect(separator, escape="all" if escapes_all else "quotes")
        is_escaped = '"' in backslashes and _is_better(_widths(sample, escaped), _widths(sample, standard))
        return escaped if is_escaped else standard
    plain = Dialect(separator, quotes=False)
    if _is_better(_widths(sample, standard), _widths(sample, plain)):
        return standard
    rows = [line.rstrip("\r\n").split(separator) for line in sample if line.strip()]
    opened = [cell for row in rows for cell in row if cell.startswith('"')]
    whole_columns = [all(map(_is_quoted, column)) for column in zip(*rows[1:])]
    has_doubled = any('""' in cell[1:-1] for cell in opened)
    return standard if opened and all(map(_is_quoted, opened)) and (has_doubled or any(whole_columns)) else plain


def _is_quoted(cell: str) -> bool:
    """Whether a cell stands in double quotes, and those within it are doubled."""
    return len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in cell[1:-1].replace('""', "")


def _is_better(one: tuple[list[int], int], other: tuple[list[int], int]) -> bool:
    """Whether rows are more alike: fewer cannot be read, then fewer different widths."""
    return (one[1], len(set(one[0]))) < (other[1], len(set(other[0])))


def _widths(lines: list[str], dialect: Dialect) -> tuple[list[int], int]:
    """(number of cells of each row, rows that cannot be read)"""
    reader = dialect.reader(lines)
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
    comments = sum(1 for _ in itertools.takewhile(lambda line: line.startswith("# "), lines))
    reader = dialect.reader(lines[comments:])
    title, previous = "", 0
    for row in reader:
        filled = [cell.strip() for cell in row if cell.strip()]
        if len(filled) > 1 or (len(row) >= width and filled):
            break
        title, previous = "".join(filled) or title, reader.line_num
    previous += comments
    if len(title.split()) == 1 and "".join(lines[previous - 1 : previous]).strip():
        separator = SEPARATORS.get(dialect.separator, dialect.separator)
        cells = f"line 1 is the one name {title!r}, and rows have {width} cells between {separator!r}"
        raise UsageError(
            f"{name}: {cells}; a cell with {separator!r} in it must stand in double quotes, or name another separator:"
            " --separator="
        )
    return previous
