"""The rows of csv and tsv files as spreadsheets and databases write them.

The dialect is found on the first rows: the separator, the escape of quotes, lines above the header. Each cell stays
the text that it is."""

from __future__ import annotations

import csv
import functools
import io
import itertools
import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO

from finetune.common.errors import UsageError
from finetune.data import csv_header
from finetune.data.csv_dialect import SAMPLE_CHARACTERS, SAMPLE_ROWS, SEPARATORS, WORD, Dialect, find_dialect
from finetune.data.csv_escapes import find_escapes
from finetune.data.rows import Row
from finetune.data.text_files import MOST_CHARACTERS

FOOTER = re.compile(
    r"(\(\d[\d,]* rows?( affected)?\)|\d[\d,]* rows? (in set|selected|affected).{0,20}|\[\d+ rows x \d+ columns\]"
    r"|\\\.|\x1a+)\s*$"
)  # of psql, mysql, SQL Server, pandas, COPY and DOS
NOTE = re.compile(
    r"\*+[\s\d]|[\u2020\u2021]|((source|note|quelle|hinweis|fuente|remarque|generated|exported|downloaded)s?\s*:"
    r"|(generated|exported|downloaded) (on|by|from|at)\b).{0,60}$",
    re.I,
)  # below a table
SUM = re.compile(
    r"((grand|sub|overall)?[ -]?totals?|sums?|averages?|avg|mean|median|count|summe|gesamt(summe)?|insgesamt|mittelwert"
    r"|durchschnitt|somme|moyenne|suma|soma|promedio|m[eé]dia|totale|somma|totaal|итого|всего|合计|总计|合計|総計|합계)"
    r"\s*[:=]?",
    re.I,
)  # in the first cell of a row of sums below a table
SUMS = re.compile(SUM.pattern + r"\s*[-+]?\d[\d.,]*%?$", re.I)  # in a single cell
FOOTER_STARTS = frozenset("([\\\x1a0123456789")
LINE_END = re.compile(r"\r\n|\r|\n")
SWALLOWED = 3  # lines in a cell that are rows: a quote was not closed
SWALLOWED_TEXTS = 20  # the same of a single column, where a line can be anything

Cells = tuple[int, list[str], int]  # (line, cells, lines)


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
    csv.field_size_limit(MOST_CHARACTERS)  # the default is 128 KB
    with open_text() as file:
        sample = _sample(file)
    if not "".join(sample).strip():
        raise UsageError(f"{name}: no rows in it")
    csv_header.check_lines(sample, name)
    dialect = find_dialect(sample, name, is_tab, separator)
    in_comment = header != "false" and csv_header.stands_in_comment(sample[dialect.has_sep_line :], name, dialect)
    dialect.skipped = dialect.comments - 1 if in_comment else dialect.skipped
    facts["separator"] = dialect.separator
    if not dialect.quotes:
        facts["quotes"] = "characters" if any('"' in line for line in sample) else "unseen"
        facts["escapes"] = find_escapes(sample)
    left_out = facts["left_out"] = Counter({"line above the header": dialect.skipped} if dialect.skipped else {})
    with open_text() as file:
        rows = _cells(file, name, dialect)
        header_row = next(rows, None)
        if header_row is None:
            raise UsageError(f"{name}: no rows in it")
        line, names, lines = header_row
        names[0] = names[0].removeprefix("# " if in_comment else "")
        first = list(itertools.islice(rows, SAMPLE_ROWS))
        rows = itertools.chain(first, rows)
        beside = [(line, cells) for line, cells, _ in first]
        found = csv_header.check_names(names, beside, f"{name}: line {line:,}", header, dialect, bool(separator))
        if header == "false":
            rows = itertools.chain([(line, names, lines)], rows)
            full, found = len(names), [str(number) for number in range(1, len(names) + 1)]
            facts["header"] = False
        else:
            full = max(len(names), min((len(cells) for _, cells, _ in first), default=0))
        yield from _rows(rows, found, full, dialect, _Swallowed(first, dialect.separator), left_out)


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
        next(file, None)
    reader = dialect.reader(file)
    line = above + 1
    try:
        for row in reader:
            end = above + reader.line_num
            if row:
                yield line, row, end - line + 1
            line = end + 1
    except csv.Error as error:
        problem = _explain(str(error), above + reader.line_num, line)
        raise UsageError(f"{name}: cannot be read as csv: line {line:,}: {problem}") from None


def _explain(message: str, end: int, start: int) -> str:
    """What csv says of the lines from `start` to `end`, in words."""
    if "unexpected end" in message:
        return "the quote that opens a cell here is never closed"
    if "expected after" in message and end > start:
        return f"a quote opens a cell here, and text follows the next quote, in line {end:,}; is the first not closed?"
    if "expected after" in message:
        return (
            'text follows a closing quote; a quote within a cell is written twice: "", and a separator other than'
            " , ; | and tab is named: --separator="
        )
    if "field larger" in message:
        return f"a cell of more than {MOST_CHARACTERS:,} characters; is a quote not closed?"
    if "NUL" in message:
        return "a NUL character"
    return message


class _Swallowed:
    """Finds rows that ended up within a cell because a quote before them was not closed."""

    def __init__(self, first: list[Cells], separator: str) -> None:
        self.separator = separator
        self.rows = [cells for _, cells, lines in first if lines == 1]
        self.usual = statistics.median([lines for _, _, lines in first] or [1])

    @functools.cached_property
    def kinds(self) -> list[set[tuple[str, str]]]:
        """What the cells of each column are."""
        return [set(map(_kind_of, column)) for column in itertools.zip_longest(*self.rows, fillvalue="")]

    @functools.cached_property
    def least(self) -> float:
        """The number of rows in a cell that are too many."""
        has_numbers = len(self.kinds) > 2 and any(kinds - {("", "")} == {("", "number")} for kinds in self.kinds)
        return 1 if has_numbers else SWALLOWED if len(self.kinds) > 1 else SWALLOWED_TEXTS * self.usual

    def problem(self, line: int, cells: list[str]) -> str | None:
        """What is wrong with a row whose cell holds lines like the first rows; None if nothing is."""
        for cell in cells:
            inner = cell.count("\n") - 1 if "\n" in cell else 0
            least = self.least if 0.9 * inner < self.least else 0.9 * inner
            if inner < least or cell.count(self.separator) < least * (len(cells) - 1):
                continue
            lines = [*io.StringIO(cell, newline=None)][1:-1]  # str.splitlines cuts at U+2028 too
            alike = sum(self._is_row(one.split(self.separator), len(cells)) for one in lines)
            if alike >= least:
                return (
                    f"the cell that a quote opens here goes on to line {line + len(LINE_END.findall(cell)):,}, and"
                    f" {alike:,} lines in it look like rows; close the quote, or write the rows as jsonl if they are"
                    " one text"
                )
        return None

    def _is_row(self, cells: list[str], width: int) -> bool:
        return len(cells) == width and all(_kind_of(cell) in kinds for cell, kinds in zip(cells, self.kinds))


def _kind_of(cell: str) -> tuple[str, str]:
    """(the space before it, what it is): what tells the cells of one column from those of another."""
    text = cell.strip()
    kind = "words" if " " in text else "number" if csv_header.NUMBER.match(text) else "word" if text else ""
    return cell[: 1 if cell[:1] == " " else 0], kind


class _Blocks:
    """Finds a second table below an empty line."""

    def __init__(self) -> None:
        self.next_line = self.rows = 0
        self.has_gaps = False  # between the rows of one table
        self.kinds: list[set[str]] = []  # of the cells of each column

    def begins_another(self, line: int, cells: list[str], lines: int, following: list[str]) -> bool:
        """Whether cells are names, below the first empty line, in columns that held other things, and head what
        follows: numbers in columns that held other things, capital letters below names without, or words where all
        else is numbers."""
        is_apart, self.next_line = 0 < self.next_line < line and not self.has_gaps, line + lines
        self.has_gaps |= is_apart
        if is_apart and self.rows > 1:
            are_names = all(map(WORD.match, cells)) and len({*cells}) == len(cells) and self._are_other(cells)
            has_capitals = any(cell[:1].isupper() for cell in following)
            has_numbers = any(map(csv_header.NUMBER.match, map(str.strip, following))) and self._are_other(following)
            has_words = self._are_for_numbers(cells) and self._are_for_numbers(following)
            return are_names and (has_numbers or has_words or (has_capitals and all(map(str.islower, cells))))
        if not self.has_gaps and self.rows < SAMPLE_ROWS:
            self.kinds = self.kinds or [set() for _ in cells]
            for cell, seen in zip(cells, self.kinds):
                seen.add(_kind_of(cell)[1])
            self.rows += 1
        return False

    def _are_for_numbers(self, cells: list[str]) -> bool:
        """Whether one of some cells is a word, in a column that held numbers alone."""
        kinds = (_kind_of(cell)[1] for cell in cells)
        return any(kind.startswith("word") and seen == {"number"} for kind, seen in zip(kinds, self.kinds))

    def _are_other(self, cells: list[str]) -> bool:
        return any(_kind_of(cell)[1] not in seen for cell, seen in zip(cells, self.kinds))


class _Below:
    """Holds rows that are none of the rows if they are the last: the only one that begins as a note does, and sums."""

    def __init__(self) -> None:
        self.held: list[Row] = []
        self.has_notes = False  # among the rows

    def pass_on(self, row: Row, cells: list[str]) -> Iterator[Row]:
        filled = [cell.strip() for cell in cells if cell.strip()] if row.value and row.number > 1 else []
        is_sum = len(filled) > 1 and bool(SUM.fullmatch(filled[0])) and all(map(csv_header.NUMBER.match, filled[1:]))
        if is_sum:
            self.held.append(row)
            return
        yield from self.held
        self.has_notes, self.held = self.has_notes or bool(self.held), []
        if len(filled) == 1 and cells[0] and not self.has_notes and (NOTE.match(cells[0]) or SUMS.match(cells[0])):
            self.held = [row]
        else:
            yield row


def _rows(
    rows: Iterable[Cells], names: list[str], full: int, dialect: Dialect, swallowed: _Swallowed, left_out: Counter[str]
) -> Iterator[Row]:
    """The rows by name. All rows have `full` cells; those behind the last name must be empty."""
    width, number = len(names), 0
    columns = csv_header.shown(names)
    starts = {start for one in names for start in (one, "\ufeff" + one) if one}
    blocks, below = _Blocks(), _Below()
    for (line, cells, lines), (_, following, _) in itertools.pairwise(itertools.chain(rows, [(0, [], 0)])):
        while full >= len(cells) > width and not cells[-1].strip():
            cells.pop()
        if width > 1 and not cells[0].strip() and not any(cell.strip() for cell in cells):
            continue  # separators alone
        if len(cells) == 1 and cells[0][:1] in FOOTER_STARTS and FOOTER.match(cells[0]):
            left_out["line below the rows"] += 1
            continue
        number += 1
        problem = swallowed.problem(line, cells) if lines > swallowed.usual else None
        if cells[0] in starts and csv_header.is_header(cells, names):
            problem = "repeats the header; delete it"
        elif len(cells) != width:
            problem = _wrong_width(cells, width, dialect, full)
        elif width > 1 and blocks.begins_another(line, cells, lines, following):
            problem = f"another table begins here, below an empty line: {cells[0]!r}; write it to a file of its own"
        row = Row(number, None if problem else dict(zip(columns, cells)), line, problem)
        yield from below.pass_on(row, cells)
    if below.held:
        left_out["line below the rows"] += len(below.held)


def _wrong_width(cells: list[str], width: int, dialect: Dialect, full: int) -> str:
    separator = SEPARATORS.get(dialect.separator, dialect.separator)
    counts = f"{len(cells):,} cell{'s' * (len(cells) != 1)} where the header has {width:,}"
    if len(cells) < width:
        return f"{counts}; is a line end within a cell that is not in quotes?"
    if any("\\" in cell for cell in cells):
        return f'{counts}; a quote within a cell is written twice (""), not with a backslash'
    quote = (
        f"{counts}; a cell with {separator!r} in it must stand in double quotes, or name the separator: --separator="
    )
    return quote + (" (R writes row names without a header: row.names=FALSE)" if full == width + 1 else "")
