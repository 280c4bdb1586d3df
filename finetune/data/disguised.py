"""Files under the name of a text that surely hold something else: a table, JSON, or a web page."""

from __future__ import annotations

import ast
import csv
import json
import operator
import re
import warnings
from json import JSONDecodeError
from typing import Any

from finetune.common.errors import UsageError
from finetune.data import transfer
from finetune.data.column_names import ANSWERS, MESSAGES, QUESTIONS
from finetune.data.csv_dialect import SEP_LINE
from finetune.data.text_suffixes import KNOWN, PAGES, SHEETS

PLAIN = re.compile(r"(\.(txt|text|dat|data|log|out|bak|old|\d+))?")  # suffixes of any text
YAML = (".yaml", ".yml")
YAML_ITEM = re.compile(r"^- ", re.MULTILINE)
# what rows and conversations need: most files of a program's repository have none, and YAML is slow to read
YAML_KEY = re.compile(rf"""^[-{{ ]*["']?({"|".join(["text", *MESSAGES, *QUESTIONS])})["']?\s*:""", re.M | re.I)
JULIA = ".jl"  # programs, and JSON lines of Scrapy
LOOK_CHARACTERS, LOOK_ROWS = 1 << 16, 50  # at the start of a text
MIN_ROWS = 3  # of a table, with the header
SHARE = 0.8  # of the rows that are as wide as the first
LONG_SEPARATORS = (" +++$+++ ", " ||| ")  # of films' lines, and of sentences beside their translation
SEPARATORS = {"\t": "tsv", ",": "csv", ";": "csv", "|": "csv"}
NAME = re.compile(r"[^\W\d][\w .()/#-]{0,39}(?<!\.)$")  # of a column
NUMBER = re.compile(r"[-+]?\d+(\.\d+)?$")
# the name of a speaker, or the number of an element of a list, a section or a verse
LABEL = re.compile(
    r"(\S+ ){0,3}\S+:|[(\[]?(\d[\d.]*|[A-Za-z]|[ivxlcIVXLC]+)[.)\]]|\d+(\.\d+)+|(\d )?[^\W\d][\w .]* \d+:\d+"
)
WEB_PAGE = re.compile(r"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?<(!doctype\s+html|html)\b", re.IGNORECASE | re.DOTALL)
END_OF_PAGE = re.compile(r"</html>\s*(?:<!--[^>]*-->\s*){0,3}$", re.IGNORECASE)
TEMPLATE = re.compile(r"<\?(?!xml)|<%|\{\{|\{%")  # marks of what makes pages
COMMENTS = re.compile(r"(?:[ \t]*(?:#.*)?\n)+")
ANKI = re.compile(r"^#separator:[ \t]*(\S+)", re.IGNORECASE | re.MULTILINE)
ANKI_NAMES = {"tab": "\t", "comma": ",", "semicolon": ";", "pipe": "|", "colon": ":", "space": " "}
SPLIT_OFF = re.compile(r"\.(jsonl|ndjson|jsonlines|ldjson|jl)\.[^./]+$", re.IGNORECASE)  # of a file that was split
JSON_START = re.compile(r'\s*(\{\s*"|\[\s*[\[{"])')
AS_TEXT = "or take it as the text that it is with --documents=file"

Rows = list[list[str]]


def check(text: str, name: str, suffix: str) -> None:
    """Raise UsageError if a text, of which the beginning is given, is surely no plain text: what it is and the ways
    out. A suffix such as .py promises some kind of text."""
    transfer.check(text, name, AS_TEXT)
    is_cut = len(text) > LOOK_CHARACTERS
    head = text[:LOOK_CHARACTERS]
    if suffix in SHEETS and head.lstrip()[:1] == "<":
        raise UsageError(f"{name}: is a web page or XML, not a spreadsheet; save its sheet as csv, {AS_TEXT}")
    if WEB_PAGE.match(head) and _is_saved_page(text, suffix):
        raise UsageError(
            f"{name}: is a web page, not plain text; name it with the suffix .html to convert it, {AS_TEXT}"
        )
    if suffix in YAML:
        _check_yaml(head, name)
    if suffix in KNOWN:
        return
    # a comment can stand above rows
    heads = [head] if head.startswith("#!") else list(dict.fromkeys((head, head[_end_of_comments(head) :])))
    _check_json(heads, name, is_cut)
    if suffix != JULIA:
        _check_rows(heads, name, suffix, is_cut)


def _check_yaml(head: str, name: str) -> None:
    """Raise UsageError for YAML with rows or with ChatterBot's conversations, of which the beginning is given."""
    import yaml

    ends = [end.start() for end in YAML_ITEM.finditer(head)]
    if len(ends) <= MIN_ROWS or not YAML_KEY.search(head):
        return
    try:
        found = yaml.safe_load(head[: ends[-1]])
    except (yaml.YAMLError, ValueError, RecursionError):
        return
    talks = found.get("conversations") if isinstance(found, dict) else None
    rows = talks if isinstance(talks, list) else found
    are_talks = rows is talks and all(isinstance(row, list) for row in rows or [])
    if not are_talks and not (isinstance(rows, list) and all(isinstance(row, dict) and _is_row(row) for row in rows)):
        return
    place, row = ("['conversations']", "{'turns': row}") if are_talks else ("", "row")
    dump = f"print(json.dumps({row}, default=str))"  # dates
    program = f"import json, sys, yaml; [{dump} for row in yaml.safe_load(sys.stdin){place}]"
    flags = " (to be read with --messages_column=turns)" if are_talks else ""
    raise UsageError(
        f'{name}: holds rows as YAML, not plain text; python -c "{program}" < FILE > out.jsonl writes them{flags},'
        f" {AS_TEXT}"
    )


def _is_row(row: dict[Any, Any]) -> bool:
    """Whether an object has the columns of a text, of a prompt and its completion, or of messages."""
    names = {str(key).lower() for key in row}
    return bool(names & {"text", *MESSAGES}) or bool(names & {*QUESTIONS} and names & {*ANSWERS})


def _is_saved_page(text: str, suffix: str) -> bool:
    """Whether a text that begins as a web page is one, and not a program or a template that makes pages."""
    if PLAIN.fullmatch(suffix):
        return True
    if suffix in KNOWN and not (suffix in PAGES and END_OF_PAGE.search(text[-LOOK_CHARACTERS:])):
        return False
    return not TEMPLATE.search(text)


def _end_of_comments(head: str) -> int:
    found = COMMENTS.match(head)
    return found.end() if found else 0


def _check_json(heads: list[str], name: str, is_cut: bool) -> None:
    if kind := next(filter(None, (_json_kind(head, is_cut) for head in heads)), None):
        what = "JSON lines" if kind == ".jsonl" else "JSON"
        raise UsageError(f"{name}: holds {what}, not plain text; name it with the suffix {kind}, {AS_TEXT}")
    if SPLIT_OFF.search(name) and _json_kind(heads[0].partition("\n")[2], is_cut=True) == ".jsonl":
        raise UsageError(
            f"{name}: holds JSON lines from its second line on, so it is a part of a file; join the parts with cat"
            f" to a file with the suffix .jsonl, {AS_TEXT}"
        )


def _check_rows(heads: list[str], name: str, suffix: str, is_cut: bool) -> None:
    if any(map(_is_python, heads)):
        raise UsageError(
            f"{name}: holds rows as Python prints them, not plain text; write them with json.dumps to a file with the"
            f" suffix .jsonl, {AS_TEXT}"
        )
    is_plain = PLAIN.fullmatch(suffix) is not None
    for longer in LONG_SEPARATORS:
        counts = [line.count(longer) for line in heads[-1].split("\n")[: LOOK_ROWS + 1][:-1]]
        if is_plain and len(counts) > MIN_ROWS and min(counts) == max(counts) > 0:
            raise UsageError(
                f"{name}: is a table with {longer!r} between its cells, not plain text;"
                f" sed 's/{longer.replace('|', '[|]')}/\\t/g' FILE > out.tsv writes them between tabs, {AS_TEXT}"
            )
    found = (table_separator(head, is_cut, has_names=head != heads[0] or not is_plain) for head in heads)
    separator = _said_separator(heads) or next(filter(None, found), None)
    if suffix in SHEETS and "\t" in heads[-1].partition("\n")[0]:
        separator = "\t"
    if separator:
        kind = SEPARATORS.get(separator, "csv")
        shown = "tabs" if separator == "\t" else repr(separator)
        raise UsageError(
            f"{name}: is a table with {shown} between its cells, not plain text; name it with the suffix .{kind}"
            f" (standard input: --separator={'tab' if kind == 'tsv' else shown}), {AS_TEXT}"
        )


def _said_separator(heads: list[str]) -> str | None:
    """The separator that Anki writes above its notes."""
    found = ANKI.search(heads[0], 0, len(heads[0]) - len(heads[-1]))
    return ANKI_NAMES.get(found[1].lower(), found[1][0]) if found else None


def _json_kind(head: str, is_cut: bool) -> str | None:
    """.jsonl or .json, if a text is that."""
    lines = [line for line in head.split("\n", 3)[:3] if line.strip()]
    try:
        if len(lines) > 1 and all(_holds_rows(json.loads(line)) for line in lines):
            return ".jsonl"
    except (ValueError, RecursionError):
        pass
    if not JSON_START.match(head):
        return None
    try:
        return ".json" if _holds_rows(json.loads(head)) else None
    except JSONDecodeError as error:
        return ".json" if is_cut and (error.pos >= len(head) - 100 or error.msg.startswith("Unterminated")) else None
    except (ValueError, RecursionError):
        return None


def _is_python(head: str) -> bool:
    """Whether the first lines are dicts that Python printed."""
    lines = [line for line in head.split("\n", 3)[:3] if line.strip()]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a backslash in a text
            return len(lines) > 1 and all(line[0] == "{" and isinstance(ast.literal_eval(line), dict) for line in lines)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return False


def _holds_rows(value: object) -> bool:
    """Whether it is an object, or a list of objects or texts."""
    return isinstance(value, dict) or (
        isinstance(value, list) and bool(value) and all(isinstance(one, dict | str) for one in value)
    )


def table_separator(head: str, is_cut: bool, has_names: bool) -> str | None:
    """The separator of the table that a text surely is: its rows are alike, below a header, or with cells in quotes or
    numbers beside sentences. `has_names`: only below a header."""
    first, _, rest = head.lstrip("\n").partition("\n")
    if found := SEP_LINE.match(first):
        return found[1] if found[1] in SEPARATORS else ","
    for separator in SEPARATORS:
        if separator in first and rest:
            rows = _rows(head, separator, is_cut)
            if _is_table(rows, separator, f'"{separator}"' in first, has_names):
                return separator
    return None


def _rows(head: str, separator: str, is_cut: bool) -> Rows:
    """The first rows, without the last if it may be cut; none if quotes are not those of csv."""
    rows: Rows = []
    lines = head.split("\n")[: -1 if is_cut else None]
    try:
        for row in csv.reader((line + "\n" for line in lines), delimiter=separator, strict=True):
            rows += [row] if row else []
            if len(rows) >= LOOK_ROWS:
                break
    except csv.Error as error:
        if separator == "\t":  # where quotes can be characters
            return [line.split(separator) for line in lines[:LOOK_ROWS] if line]
        return rows if is_cut and "unexpected end" in str(error) else []
    return rows


def _is_table(rows: Rows, separator: str, is_quoted: bool, has_names: bool) -> bool:
    first, *others = rows or [[]]
    width = len(first)
    alike = [row for row in others if len(row) == width]
    if width < 2 or len(others) < MIN_ROWS - 1 or len(alike) < SHARE * len(others):
        return False
    columns = [[cell.strip() for cell in column] for column in zip(*alike)]
    numbers = [number for number, column in enumerate(columns) if all(map(NUMBER.match, column))]
    has_spaces = sum(any(cell.startswith(" ") for cell in row[1:]) for row in [first, *alike]) > (1 - SHARE) * len(rows)
    if (has_spaces and separator != "\t" and not numbers) or not any(map(_holds_sentences, columns)):
        return False  # separators with a space behind them are those of sentences
    names, below = (
        (first[1:], columns[1:]) if numbers[:1] == [0] and not first[0] else (first, columns)
    )  # pandas' index
    if has_names or _is_header(names, below):
        return _is_header(names, below)
    is_plain = len(alike) == len(others) > MIN_ROWS and bool(first[0].strip())  # perhaps without a header
    has_numbers = any(NUMBER.match(first[number].strip()) for number in numbers)
    if separator == "\t":
        return is_plain and not _is_list(columns, numbers) and (has_numbers or is_quoted or _has_cells(columns))
    return is_plain and (is_quoted or has_numbers)


def _is_header(cells: list[str], columns: list[list[str]]) -> bool:
    """Whether cells are the names of the columns below them."""
    names = [cell.strip() for cell in cells]
    is_row = any(map(operator.contains, columns, names)) or not any(
        name.isascii() or not min(map(len, column)) <= len(name) <= max(map(len, column))
        for name, column in zip(names, columns)
    )  # in a script without spaces a name is as short as a line of a poem
    are_names = all(NAME.match(name) and len(name.split()) <= 3 for name in names) and len({*names}) == len(names)
    return are_names and not is_row


def _is_list(columns: list[list[str]], numbers: list[int]) -> bool:
    """Whether tabs follow the names of speakers, the numbers of a list or of verses, or precede those of pages."""
    has_labels = any(all(map(LABEL.fullmatch, column)) for column in columns[:-1])
    pages = [float(cell) for cell in columns[-1]] if [len(columns) - 1] == numbers and len(columns) == 2 else []
    return has_labels or (len({*pages}) > 2 and pages == sorted(pages))


def _has_cells(columns: list[list[str]]) -> bool:
    """Whether cells between tabs are sentences beside others, and not one sentence behind the name of a speaker."""
    sentences = [column for column in columns if sum(len(cell.split()) for cell in column) >= 3 * len(column)]
    is_labelled = all(map(str.islower, columns[0]))
    other = any(not cell.isascii() for column in columns for cell in column)
    return len(sentences) > 1 or (bool(sentences) and (len(columns) > 2 or is_labelled)) or other


def _holds_sentences(column: list[str]) -> bool:
    """Whether most cells have several words, or another script, which can do without spaces."""
    return 2 * sum(" " in cell or not cell.isascii() for cell in column) > len(column)
