"""The dialect of a csv or tsv file: what makes its rows alike."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from finetune.common.errors import UsageError
from finetune.data.column_names import has_heading

SEPARATORS = {",": ",", ";": ";", "\t": "tab", "|": "|"}
SAMPLE_ROWS, SAMPLE_CHARACTERS = 200, 1 << 20
SEP_LINE = re.compile(r'^"?sep=(.)"?\s*$', re.IGNORECASE)  # Excel's
ESCAPED = re.compile(r'(?<!\\)\\"')  # a quote behind a backslash
SPACED_QUOTE = re.compile(' +"(?!")')  # that opens a cell; within one it is doubled
# above the header, such as what Anki writes of its notes
COMMENT = re.compile(r"# |#(separator|html|columns|if matches|(tags|notetype|deck|guid)( column)?):", re.IGNORECASE)
WORD = re.compile(r"[^\W\d]\w*$")
QUOTED = re.compile(' "(?:[^"]|"")*"')
NUMBER = re.compile(r"[-+$€£(]?\d")  # the start of one
BACKSLASH = re.compile(r"\\([\s\S])")  # what stands behind each


@dataclass
class Dialect:
    """How a file is written."""

    separator: str = ","
    quotes: bool = True  # a cell may stand in quotes
    quote: str = '"'
    escape: Literal["", "quotes", "all"] = ""  # \" is a quote within a cell, instead of ""; also \\ is \
    skips_spaces: Literal["", "quotes", "all"] = ""  # those behind a separator: before a quote, or all
    has_sep_line: bool = False
    skipped: int = 0  # lines above the header
    comments: int = 0  # the first of them, that begin with "# "

    def arguments(self) -> dict[str, Any]:
        """Those of csv.reader."""
        if not self.quotes:
            return {"delimiter": self.separator, "quoting": csv.QUOTE_NONE, "strict": True}
        escape = {"escapechar": "\\", "doublequote": False} if self.escape == "all" else {}
        spaces = {"skipinitialspace": self.skips_spaces == "all"}
        return {"delimiter": self.separator, "strict": True, "quotechar": self.quote, **spaces, **escape}

    def reader(self, lines: Iterable[str]) -> Any:
        """csv.reader of some lines."""
        if self.escape == "quotes":  # other backslashes are characters
            lines = (ESCAPED.sub('""', line) for line in lines)
        if self.escape == "all":  # \N is a cell without a value
            null = re.compile(r"(?:^|(?<=SEP))\\N(?=SEP|\s*$)".replace("SEP", re.escape(self.separator)))
            lines = (null.sub("", line) for line in lines)
        if self.skips_spaces == "quotes":
            lines = _before_quotes(lines, self)
        return csv.reader(lines, **self.arguments())


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
        dialect.skipped = filled[0] if filled else 0
    dialect.has_sep_line = bool(has_sep_line)
    return dialect


def _with_quotes(separator: str, sample: list[str]) -> Dialect:
    """How quotes are written, in a file with that separator. Between tabs they are characters, unless they enclose
    cells throughout."""
    rows = [line.rstrip("\r\n").split(separator) for line in sample if line.strip()]
    dialect = _with_double_quotes(separator, sample, rows)
    single = dataclasses.replace(dialect, quotes=True, quote="'", escape="")
    starts = {cell[:1] for row in rows for cell in row}
    is_single = "'" in starts and '"' not in starts
    if is_single and (_has_whole_column(rows, "'") or _is_better(_widths(sample, single), _widths(sample, dialect))):
        return single
    spaced = dataclasses.replace(dialect, skips_spaces="all")
    if not (dialect.quotes and any(SPACED_QUOTE.match(cell) for row in rows for cell in row)):
        return spaced if _are_spaced(rows) else dialect
    before_quotes = dataclasses.replace(dialect, skips_spaces="quotes")
    if _is_better(_widths(sample, dialect), _widths(sample, before_quotes)):
        return dialect
    lines = io.StringIO(QUOTED.sub(" ", "".join(sample)), newline=None)  # str.splitlines cuts at U+2028 too
    below = [line.rstrip("\n").split(separator) for line in lines if line.strip()][1:]
    return spaced if _are_spaced(below) else before_quotes


def _are_spaced(rows: list[list[str]]) -> bool:
    """Whether a space follows each separator."""
    return all(len(row) > 1 and all(cell[:1] in ("", " ") for cell in row[1:]) for row in rows)


def _before_quotes(lines: Iterable[str], dialect: Dialect) -> Iterator[str]:
    """The lines without the spaces before a quote that opens a cell."""
    inner = r'[^"\\]*(?:(?:""|\\[\s\S])[^"\\]*)*' if dialect.escape == "all" else r'[^"]*(?:""[^"]*)*'
    cell = re.compile(rf'(^|{re.escape(dialect.separator)}) *("{inner}(?:(")|\Z))')
    rest = re.compile(rf'{inner}"')
    is_open = False  # a quote, at the end of a line
    for line in lines:
        end = rest.match(line) if is_open else None
        start = end.end() if end else len(line) if is_open else 0
        within, behind = line[:start], line[start:]
        if behind:
            cells = list(cell.finditer(behind))
            is_open = bool(cells) and cells[-1][3] is None
        yield within + cell.sub(r"\1\2", behind)


def _with_double_quotes(separator: str, sample: list[str], rows: list[list[str]]) -> Dialect:
    standard = Dialect(separator)
    if separator != "\t":
        backslashes = [match for line in sample for match in BACKSLASH.findall(line)]
        # a writer that escapes backslashes or line ends too leaves none before another character
        escapes_all = {"\\", "\n"} & {*backslashes} and {*backslashes} <= {"\\", '"', separator, "\n", "N"}
        escaped = Dialect(separator, escape="all" if escapes_all else "quotes")
        is_escaped = '"' in backslashes and _is_better(_widths(sample, escaped), _widths(sample, standard))
        return escaped if is_escaped else standard
    plain = Dialect(separator, quotes=False)
    if _is_better(_widths(sample, standard), _widths(sample, plain)):
        return standard
    opened = [cell for row in rows for cell in row if cell.startswith('"')]
    others = [cell for row in rows for cell in row if not cell.startswith('"')]
    has_doubled = any(map(has_doubled_quotes, opened))
    # a spreadsheet encloses each cell with a comma
    of_commas = len(opened) > 1 and all("," in cell for cell in opened) and not any("," in cell for cell in others)
    is_csv = has_doubled or of_commas or _has_whole_column(rows, '"')
    return standard if opened and all(map(_is_quoted, opened)) and is_csv else plain


def _has_whole_column(rows: list[list[str]], quote: str) -> bool:
    """Whether each cell of a column, but perhaps its name, stands in quotes."""
    return any(all(_is_quoted(cell, quote) for cell in column) for column in zip(*rows[1:]))


def _is_quoted(cell: str, quote: str = '"') -> bool:
    """Whether a cell stands in quotes, and those within it are doubled."""
    return len(cell) > 1 and cell[0] == cell[-1] == quote and quote not in cell[1:-1].replace(2 * quote, "")


def has_doubled_quotes(cell: str) -> bool:
    """Whether a cell stands in double quotes, and holds one: only csv writes it so."""
    return '""' in cell[1:-1] and _is_quoted(cell)


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
    comments = sum(1 for _ in itertools.takewhile(COMMENT.match, lines))
    dialect.comments = comments = comments if comments < len(lines) else 0
    reader = dialect.reader(lines[comments:])
    title, previous, rows = "", 0, []
    with contextlib.suppress(csv.Error):  # told where rows are read
        for row in reader:
            filled = [cell.strip() for cell in row if cell.strip()]
            if len(filled) > 1 or (len(row) >= width and filled):
                rows = [row]
                break
            title, previous = "".join(filled) or title, reader.line_num
        rows += reader
    previous += comments
    is_above = "".join(lines[previous - 1 : previous]).strip()  # no blank line is between
    if title and is_above and (len(title.split()) == 1 or _are_sentences(rows)):
        separator = SEPARATORS.get(dialect.separator, dialect.separator)
        cells = f"line 1 is the one name {title!r}, and rows have {width} cells between {separator!r}"
        way = "delete line 1 if it is a title, else " if " " in title else ""
        raise UsageError(
            f"{name}: {cells}; {way}a cell with {separator!r} in it must stand in double quotes, or name another"
            " separator with --separator="
        )
    return previous


def _are_sentences(rows: list[list[str]]) -> bool:
    """Whether all separators are those of sentences: a space follows, no column holds numbers, and no names of columns
    stand above rows of as many cells."""
    names = [cell.strip() for cell in rows[0]] if rows else []
    if len({len(row) for row in rows if row}) == 1 and all(map(WORD.match, names)) and has_heading(names, rows[1:]):
        return False
    rows = [row for row in rows if len(row) > 1]
    return (
        not any(map(_are_numbers, zip(*rows[1:])))
        and len(rows) > 1
        and all(cell[:1] in ("", " ") for row in rows for cell in row[1:])
    )


def _are_numbers(column: Iterable[str]) -> bool:
    """Whether most cells of a column are filled, all with what begins with a number."""
    cells = [cell.strip() for cell in column]
    filled = [cell for cell in cells if cell]
    return 2 * len(filled) > len(cells) and all(map(NUMBER.match, filled))
