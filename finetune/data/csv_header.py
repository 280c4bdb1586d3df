"""Checks of a csv file's header: it holds names and no data, stands once, and is cut by the right separator."""

from __future__ import annotations

import contextlib
import csv
import re
from collections import Counter
from collections.abc import Iterator

from finetune.common.errors import UsageError
from finetune.data.column_names import has_heading
from finetune.data.csv_cells import NOTHING
from finetune.data.csv_dialect import WORD, Dialect

LONGEST_NAME = 60  # characters of a column's name; a longer cell is data
NUMBER = re.compile(r"[-+]?[\d.,]*\d%?$")
BRACKETS = re.compile(r"\(.*\)$|\[.*\]$")  # around a unit
RULE = re.compile(r"(?:\||(?=.*--))[-=+|:,;\s]*-[-=+|:,;\s]*$")  # of a printed table
BETWEEN = re.compile(r"\w([^\w .()'’\"-]+)(?=\w)")  # what may be a separator
LONGER = 4  # times the name of the one column: a text without spaces, and no word
FEW_ROWS = 5  # too few to tell a header from a row
KINDS = tuple(
    re.compile(kind)
    for kind in (
        r"[A-Za-z][\w+.-]*://\S+|www\.\S+",  # addresses
        r"\S+@[\w-]+(\.[\w-]+)+",  # of mail
        r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",  # UUIDs
        r"@\w+",  # people
        r"(~|\.{1,2})?/\S+|[A-Za-z]:[/\\]\S+",  # paths
        r"\{.*\}|\[(\s*[-\"'\d{\[].*|.*,.*)?\]",  # JSON
        r"\[[^\"'\d,{}\[\]]+\]",  # words in brackets
    )
)  # of cells that tell a row from a header where the column holds the same
FILE = re.compile(r"[^\s.][^\n]*(\.[A-Za-z]\w{1,4})$")
CODE = re.compile(r"(?=\D*\d)[A-Za-z0-9]{8,}$")
OF_LETTERS = re.compile(r"@?\[?[A-Za-z_ ]+(\.\w{2,5})?\]?$")  # can be a name beside others: @user, [tags], file.txt
EXPLAINED = re.compile(r"(an? |to )\S")  # the start of what a dictionary says of a word


def check_lines(lines: list[str], name: str) -> None:
    """Raise UsageError for a table as Markdown, psql and mysql print it."""
    for number, line in enumerate(lines[:3], 1):
        if RULE.match(line):
            raise UsageError(
                f"{name}: line {number} is the rule of a printed table (Markdown, psql, mysql), not csv; export the"
                " table as csv, delete the line if that is all, or read it as text under the suffix .md"
            )


def check_names(
    names: list[str], first: list[tuple[int, list[str]]], place: str, header: str, dialect: Dialect, is_named: bool
) -> list[str]:
    """The names of the columns. Raises UsageError where they look like data, beside the `first` rows, (line, cells).

    Args:
        header: "true" takes any for names; with "false" the names are a row, and only the separator is looked for.
        is_named: whether the separator was.
    """
    names, number = [one.strip() for one in names], len(names)
    first = [(line, cells) for line, cells in first if any(map(str.strip, cells))]
    rows = [cells for _, cells in first]
    if not is_named:
        _check_long_separator([names, *rows], place, dialect)
    if len(names) == 1 and not is_named:
        _check_separator(names[0], [cells[0] for cells in rows], place, header, dialect)
    while len(names) > 1 and not names[-1]:  # a comma at the end of each line
        names.pop()
    extra = next((cell for cells in rows for cell in cells[len(names) : number] if cell.strip()), "")
    if extra and header != "false":
        raise UsageError(
            f"{place}: the last columns have no name, and hold cells such as {extra[:40]!r}; name them, or delete the"
            " line if it is a title"
        )
    if header == "auto":
        repeated = [cells for cells in rows if not is_header(cells, names)]
        if problem := next(_problems(names, repeated), None):
            advice = "without a header give --header=false (columns are then 1, 2, ...), with one --header=true"
            raise UsageError(f"{place}: {problem}; {advice}")
        if rows and not is_header(rows[0], names) and (what := _second_header(names, rows)):
            line = f"{place.rpartition(':')[0]}: line {first[0][0]:,}"
            raise UsageError(f"{line}: looks like a second header ({what}); delete it, or read it with --header=true")
    return names


def stands_in_comment(lines: list[str], name: str, dialect: Dialect) -> bool:
    """Whether the line above the rows, which begins with `# `, is their header. Raises UsageError if it and the first
    of the rows can be."""
    above = dialect.comments
    is_last = above and not "".join(lines[above : dialect.skipped]).strip()
    if not is_last or not lines[above - 1].startswith("# "):
        return False
    rows: list[list[str]] = []
    with contextlib.suppress(csv.Error):  # told where rows are read
        rows += dialect.reader([lines[above - 1][2:], *lines[above:]])
    names, first, *others = [*filter(None, rows), [], []]
    has_spaces = any(cell[:1] == " " for cell in names[1:]) and not any(cell[:1] == " " for cell in first[1:])
    names, first = [one.strip() for one in names], [cell.strip() for cell in first]
    are_names = all(names) and not any(_looks_like_data(one) or re.search(": |=", one) for one in names)
    if has_spaces or not are_names or is_header(first, names) or not 1 < len({*names}) == len(names) == len(first):
        return False
    if has_heading(first, others) and not has_heading(names, [first, *others]) and all(map(_can_be_name, first)):
        return False
    columns = [[row[number].strip() for row in others if number < len(row)] for number in range(len(first))]
    if any(_looks_like_data(cell) or _is_of_kind(cell, column) for cell, column in zip(first, columns)):
        return True
    if any(any(column) and all(map(NUMBER.match, filter(None, column))) for column in columns):
        return False
    if all(map(WORD.match, first)):
        raise UsageError(
            f"{name}: line {dialect.has_sep_line + above:,} is a comment or the header, and the row below it can be the"
            " header too; delete the comment, or the '# ' before the header"
        )
    return True


def shown(names: list[str]) -> list[str]:
    """The names, with a name for columns without one, such as those of pandas' index, and numbers for those of one
    name, such as the comments of Jira."""
    total, seen, out = Counter(names), Counter[str](), []
    for one in names:
        seen[one] += 1
        number = f" {seen[one]}" * (seen[one] > 1)
        out.append(f"(no name{number})" if not one else one if total[one] == 1 else f"{one} ({seen[one]})")
    return out


def is_header(cells: list[str], names: list[str]) -> bool:
    """Whether a row is the header again, in any order."""
    return sorted(cell.strip().lstrip("\ufeff") for cell in cells) == sorted(names)


def _problems(names: list[str], rows: list[list[str]]) -> Iterator[str]:
    """What makes the names of columns look like data."""
    if len({*names}) == 1 < len(names):
        yield f"two columns are named {names[0]!r}"
    columns = [[row[number].strip() for row in rows if number < len(row)] for number in range(len(names))]
    is_header = any(map(_heads_numbers, names, columns))
    has_name = len(rows) >= FEW_ROWS and has_heading([one.strip("[]@") for one in names], rows)
    for one, cells in zip(names, columns):
        is_word_list = len(names) == 1 and not any(" " in cell or len(cell) > LONGER * len(one) for cell in cells)
        is_alike = _is_among(one, cells) or is_word_list or (len(names) == 1 and " " in one)
        is_question = one.endswith("?") and len(cells) >= FEW_ROWS and not any(cell.endswith("?") for cell in cells)
        is_name = (is_header or is_question) and "\n" not in one and not NUMBER.match(one)
        is_kind = not (has_name and OF_LETTERS.match(one)) and _is_of_kind(one, cells)
        if one and (is_alike or ((_looks_like_data(one) or is_kind) and not is_name)):
            yield f"{one[:40]!r} looks like data, not like the name of a column"


def _heads_numbers(name: str, cells: list[str]) -> bool:
    """Whether a word stands above nothing but numbers and dates, such as the time in the answers to a form."""
    is_word = bool(re.fullmatch(r"[^\W\d_][^\W\d]+", name)) and name not in NOTHING
    return is_word and len(cells) >= FEW_ROWS and all(cell[:1].isdigit() for cell in cells)


def _is_among(name: str, cells: list[str]) -> bool:
    """Whether a name is like one of the cells, but for its numbers."""
    start = re.split(r"\d", name, maxsplit=1)[0]
    return _pattern(name) in {_pattern(cell) for cell in cells if cell.startswith(start)}


def _is_of_kind(name: str, cells: list[str]) -> bool:
    """Whether a name is an address, a path, a code or an explanation, as most cells below it are."""
    filled = [cell for cell in cells if cell]
    if found := EXPLAINED.match(name):
        count = sum(cell.startswith(found[1]) for cell in filled)
        least = len(filled) / 2 if len(name.split()) == 2 else 0  # "a meaning" can be a name
        if count > least:
            return True
    if CODE.match(name) and len(filled) > 2:
        return all(CODE.match(cell) and len(cell) == len(name) for cell in filled)
    if (found := FILE.match(name)) and 2 * sum(cell.endswith(found[1]) for cell in filled) > len(filled):
        return True
    kinds = [kind for kind in KINDS if kind.fullmatch(name)]
    return any(2 * sum(bool(kind.fullmatch(cell)) for cell in filled) > len(filled) for kind in kinds)


def _check_long_separator(rows: list[list[str]], place: str, dialect: Dialect) -> None:
    """Raise UsageError for a separator such as ;; or ~|~, of which one character was taken."""
    is_doubled = len(rows[0]) > 2 and all(rows[0][::2]) and not any("".join(row[1::2]).strip() for row in rows)
    around = {end for row in rows for end in (*(one[-1:] for one in row[:-1]), *(one[:1] for one in row[1:]))}
    is_enclosed = len(around) == 1 and re.fullmatch(r"[^\w\s\"']", max(around))
    if is_doubled or is_enclosed:
        long = 2 * dialect.separator if is_doubled else dialect.separator.join(2 * max(around))
        way = f"--separator= takes one character: write one instead, or name {dialect.separator!r} if that is it"
        raise UsageError(f"{place}: {long!r} separates cells; {way}")


def _check_separator(name: str, cells: list[str], place: str, header: str, dialect: Dialect) -> None:
    """Raise UsageError for one column that another separator cuts into several."""
    for between in BETWEEN.findall(name):
        counts = {cell.count(between) for cell in [name, *cells]}
        if header != "auto" and (len(cells) < FEW_ROWS or len(counts) > 1 or between in ":/"):
            continue
        if between == dialect.separator:
            raise UsageError(f"{place}: {name[:40]!r} is one cell; whole lines are in quotes: remove these")
        if len(between) > 1:
            way = f"--separator= takes one character: write one instead of {between!r}"
        else:
            spelled = between if between.isprintable() else f"\\x{ord(between):02x}"
            way = f"name the separator with --separator='{spelled}', or with --separator=, if it is one"
        raise UsageError(f"{place}: {name[:40]!r} is one column; {way}")


def _second_header(names: list[str], rows: list[list[str]]) -> str:
    """What shows that row 1 is no row: units, types or labels of the columns. "" if it is one."""
    (one, *others) = rows
    if found := next((cell for row in rows[:3] for cell in row if cell.startswith('{"ImportId"')), ""):
        return f"{found[:20]!r} of Qualtrics, in this line or the next"
    if len(others) < FEW_ROWS:
        return ""
    filled = [cell.strip() for cell in one if cell.strip()]
    if any(map(NUMBER.match, filled)):
        return ""
    if len(filled) > 1 and _are_in_brackets(one) and not any(map(_are_in_brackets, others)):
        return f"units such as {filled[0]!r}"
    for name, cell, *column in zip(names, one, *others):
        numbers = [value.strip() for value in column if value.strip()]
        is_word = bool(re.match(r"[^\W\d_]{2}", cell.strip())) and cell.strip().lower() not in ("na", "nan", "null")
        if is_word and len(numbers) >= FEW_ROWS and all(map(NUMBER.match, numbers)):
            return f"{cell.strip()[:40]!r} where the column {name!r} holds numbers"
    return ""


def _are_in_brackets(row: list[str]) -> bool:
    """Whether all cells with text stand in brackets, as units do, or lists."""
    filled = [cell.strip() for cell in row if cell.strip()]
    return bool(filled) and all(map(BRACKETS.match, filled))


def _pattern(cell: str) -> str:
    """A cell with every number as 0, so that `row 1` and `row 2` are alike."""
    return re.sub(r"\d+", "0", cell.strip())


def _can_be_name(cell: str) -> bool:
    """Whether a cell is a word or a few."""
    return WORD.match(cell.replace(" ", "_")) is not None and not _looks_like_data(cell)


def _looks_like_data(cell: str) -> bool:
    """Whether a cell of the first row is a number or a sentence."""
    is_sentence = len(cell.split()) >= 4 or bool(re.search(r"[.!?,;]\s|[.!?]$", cell))
    return bool(NUMBER.match(cell)) or is_sentence or len(cell) > LONGEST_NAME or "\n" in cell
