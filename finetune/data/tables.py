"""Tables of text: every row of a JSON, csv, parquet or Arrow file, or of a Hub dataset, is a document.

A row is plain text (one column), a conversation (a list of messages), or a prompt and a completion (two columns)."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from finetune.common import hub_client
from finetune.common.errors import UsageError
from finetune.config.options import option
from finetune.data import arrow_rows, csv_cells, csv_rows, json_rows, utterances
from finetune.data.chat_template import ChatTemplate
from finetune.data.column_choice import find_shape
from finetune.data.documents import Chunk
from finetune.data.later_rows import LaterRows
from finetune.data.row_documents import document_of
from finetune.data.row_shape import FIELD, Shape, fields_of, sample_of, shortened
from finetune.data.rows import LeftOut, Row, with_texts
from finetune.data.text_files import TextOptions, open_text, suffix_of, unescape

TABLES = {
    ".jsonl": "json",
    ".ndjson": "json",
    ".jsonlines": "json",
    ".geojsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".tab": "csv",
    ".psv": "csv",
    ".parquet": "arrow",
    ".arrow": "arrow",
    ".feather": "arrow",
}
LINES = (".jsonl", ".ndjson", ".jsonlines", ".geojsonl")
TABS = (".tsv", ".tab")
SAMPLE_ROWS, SAMPLE_CHARACTERS = 1000, 4 << 20  # that show which columns are the text
KINDS = ("text", "prompt", "completion", "messages")


@dataclass
class ReadOptions:
    """The options of a command that reads texts and tables."""

    text_column: str | None = option(None, "column of texts in a table [text, or the only one]", derived=True)
    prompt_column: str | None = option(None, "column of prompts [prompt]", derived=True)
    completion_column: str | None = option(None, "column of answers, the only targets [completion]", derived=True)
    messages_column: str | None = option(None, "column of lists of {role, content} [messages]", derived=True)
    prompt_template: str | None = option(None, 'prompt made of columns, such as "{context}\\n{question}"')
    separator: str | None = option(None, "separator of a csv file: , ; | or tab [found]", derived=True)
    header: Literal["auto", "true", "false"] = option(
        "auto", "whether a csv file has a header; without one, columns are 1, 2, ..."
    )
    documents: str = option(
        "auto",
        'a text file is one document ("file"; auto refuses tables named .txt) or many: "lines", or a separator such as'
        ' "\\n\\n\\n"',
    )
    special: Literal["text", "token"] = option(
        "text", "<|endoftext|> spelled in a text: stays text, or ends a document"
    )
    encoding: str | None = option(None, "encoding of text, json and csv files, such as cp1252 [utf-8]", derived=True)
    on_bad_row: Literal["error", "skip"] = option(
        "error", "a row that cannot be used: refused, or left out and counted"
    )

    def columns(self) -> dict[str, str]:
        """The columns that are named."""
        names = {kind: getattr(self, f"{kind}_column") for kind in KINDS}
        return {kind: name for kind, name in names.items() if name is not None}

    def flags(self) -> list[str]:
        """The options that are not the default, as they are typed."""
        known = {field.name: field.default for field in dataclasses.fields(ReadOptions)}
        return [f"--{name}={getattr(self, name)}" for name, default in known.items() if getattr(self, name) != default]

    def updated(self, other: ReadOptions | None, columns: dict[str, str] | None) -> ReadOptions:
        """These options with those of another, then with `columns`, names by kind."""
        for known in dataclasses.fields(ReadOptions) if other else ():
            setattr(self, known.name, getattr(other, known.name))
        for kind, name in (columns or {}).items():
            setattr(self, f"{kind}_column", name)
        return self

    def text_options(self) -> TextOptions:
        """The options of text files."""
        documents = "file" if self.documents == "auto" else self.documents
        return TextOptions(documents=documents, encoding=self.encoding)

    def problems(self) -> Iterator[tuple[str, str]]:
        """(key, message) of each contradiction."""
        columns = self.columns()
        if "completion" in columns and "prompt" not in columns and not self.prompt_template:
            yield "prompt_column", "--prompt_column and --completion_column go together"
        if "prompt" in columns and self.prompt_template:
            yield "prompt_column", "--prompt_column and --prompt_template both make the prompt: give one of them"
        elif "prompt" in columns and "completion" not in columns:
            yield "prompt_column", "--prompt_column and --completion_column go together"
        if "completion" in columns and columns["completion"] in (
            columns.get("prompt"),
            *fields_of(self.prompt_template or ""),
        ):
            yield "completion_column", f"{columns['completion']!r} is also the column of questions"
        if len(columns.keys() - {"completion"}) > 1 or (self.prompt_template and columns.keys() & {"text", "messages"}):
            message = "a table holds text, prompts with completions, or messages: name the columns of one of them"
            yield "text_column", message
        if self.prompt_template and (
            not fields_of(self.prompt_template) or FIELD.sub("", self.prompt_template).count("{")
        ):
            yield (
                "prompt_template",
                f'{self.prompt_template!r} must name columns in braces, as "{{context}}\\n{{question}}"',
            )
        if self.separator is not None and len(self.separator_character() or "") != 1:
            yield "separator", f"{self.separator!r} is not one character; a tab is written tab"
        if not self.documents:
            yield "documents", "the separator is empty"

    def separator_character(self) -> str | None:
        """The separator, a tab for its name."""
        if code := re.fullmatch(r"\\x([0-9a-fA-F]{2})", self.separator or ""):
            return chr(int(code[1], 16))
        return {"tab": "\t", "\\t": "\t"}.get(self.separator or "", self.separator)


@dataclass
class Taken:
    """What was read of a file: for the line that says so, and for meta.json."""

    name: str
    kind: str  # json, csv, arrow or a dataset
    rows: int = 0
    shape: Shape | None = None
    facts: dict[str, Any] = field(default_factory=dict)  # separator, header, quotes, encoding
    left_out: Counter[str] = field(default_factory=Counter)  # why: how many
    said: Counter[str] = field(default_factory=Counter)  # of rows that are used: how many
    first_bad: str = ""  # the first row that cannot be used

    def describe(self) -> str:
        """`articles.csv: 2,400 rows, column 'body', separator ';'`"""
        of = f" of {self.facts['rows_of']!r}" if "rows_of" in self.facts else ""
        parts = [plural(self.rows, "row") + of]
        if self.shape:
            parts.append(self.shape.describe())
        if separator := self.facts.get("separator"):
            parts.append(f"separator {csv_rows.SEPARATORS.get(separator, separator)!r}")
        if self.facts.get("header") is False:
            parts.append("no header")
        count, line = self.facts.get("kept", (0, 0))
        if self.facts.get("quotes") == "characters" or count:
            cells = f": {plural(count, 'cell')} begin{'s' * (count == 1)} with one (line {line:,})" if count else ""
            parts.append(f"quotes are characters{cells}")
        for key, what in (("nothing", "without text"), ("words", "of a word that can mean no text")):
            if words := self.facts.get(key):
                parts.append(f"{plural(sum(words.values()), 'cell')} {what}: {', '.join(map(repr, words))}")
        if "escaped" in self.facts:
            parts.append(f"escapes such as \\n read in {plural(self.facts['escaped'], 'cell')}")
        if "unread" in self.facts:
            parts.append(f"backslashes are kept in {plural(self.facts['unread'], 'cell')}")
        if "encoding" in self.facts:
            parts.append(self.facts["encoding"])
        parts += [f"left out {plural(count, *why.split(' ', 1))}" for why, count in self.left_out.items()]
        parts += [f"the first is {self.first_bad}"] if self.first_bad else []
        parts += [plural(count, *what.split(" ", 1)) for what, count in self.said.items()]
        if self.shape and self.shape.left_out:
            parts.append(f"not read: {shortened(self.shape.left_out, 6)}")
        return f"{self.name}: {', '.join(parts)}"


def plural(count: int, noun: str, rest: str = "") -> str:
    """`1 row`, `2,400 rows without an answer`."""
    return f"{count:,} {noun}{'s' * (count != 1)}{rest and ' '}{rest}"


def read_table(
    path: Path, name: str, options: ReadOptions, template: ChatTemplate | None = None
) -> tuple[Iterator[Chunk], Taken]:
    """The documents of a table file, and what is taken of it, complete when they are read. Raises UsageError."""
    taken = Taken(name, TABLES[suffix_of(path)])
    if options.encoding and TABLES[suffix_of(path)] != "arrow":
        taken.facts["encoding"] = options.encoding
    return documents(_rows(path, name, options, taken), taken, options, template), taken


def _rows(path: Path, name: str, options: ReadOptions, taken: Taken) -> Iterator[Row]:
    suffix = suffix_of(path)
    if TABLES[suffix] == "arrow":
        return arrow_rows.read(path, name)
    opened = functools.partial(open_text, path, options.encoding)
    if TABLES[suffix] == "json":
        return json_rows.read(opened, name, suffix in LINES, taken.facts)
    separator = options.separator_character() or ("|" if suffix == ".psv" else None)
    return csv_rows.read(opened, name, suffix in TABS, separator, options.header, taken.facts)


def read_hub(
    name: str, arguments: dict[str, Any], options: ReadOptions, template: ChatTemplate | None = None
) -> tuple[Iterator[Chunk], Taken]:
    """The same of a Hub dataset; `arguments` are those of datasets.load_dataset."""
    taken = Taken(name, "a dataset")
    return documents(_hub_rows(name, arguments), taken, options, template), taken


def _hub_rows(name: str, arguments: dict[str, Any]) -> Iterator[Row]:
    import datasets

    hub_client.bound()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # it also logs each error that it raises
    try:
        for number, value in enumerate(datasets.load_dataset(**arguments, streaming=True), 1):
            yield Row(number, with_texts(value))
    except UsageError:
        raise
    except Exception as error:
        lines = str(hub_client.plainer(error, arguments["path"])).strip().splitlines() or [type(error).__name__]
        raise UsageError(f"{name}: cannot be read as a dataset: {lines[0]}") from None


def documents(
    rows: Iterator[Row], taken: Taken, options: ReadOptions, template: ChatTemplate | None
) -> Iterator[Chunk]:
    """The documents of some rows. Columns are found in the first of them. Raises UsageError with the row."""
    sample = sample_of(rows, SAMPLE_ROWS, SAMPLE_CHARACTERS)
    prompt = unescape(options.prompt_template) if options.prompt_template else None
    bad = next((row for row in sample if row.problem), None)
    if bad and options.on_bad_row == "error":
        raise _refused(bad, str(bad.problem), taken)
    place = f"{taken.name}: {taken.facts['rows_of']!r}" if "rows_of" in taken.facts else taken.name
    is_found, values = not options.columns() and not prompt, []
    if is_found:
        values = [row.value for row in sample if isinstance(row.value, dict)]
        utterances.check(values, taken.facts.get("rows_of"), taken.name, taken.kind == "json")
    taken.shape = find_shape(sample, options.columns(), prompt, place, taken.facts.get("jq"))
    watch = LaterRows(values, taken.shape, place, taken.kind, taken.facts.get("jq")) if is_found else None
    rows = itertools.chain(sample, rows)
    if taken.kind == "csv":
        columns = {name: [row.value[name] for row in sample if row.value] for name in taken.shape.used()}
        has_sentences = {name: csv_cells.are_sentences(cells) for name, cells in columns.items()}
        rows = csv_cells.checked(rows, has_sentences, taken.facts)
    for row in rows:
        taken.rows += 1
        if watch and isinstance(row.value, dict):
            watch.check(row.value)
        try:
            if row.problem:
                raise ValueError(row.problem)
            yield from document_of(row.value, taken.shape, template, taken.said)
        except LeftOut as reason:
            taken.left_out[str(reason)] += 1
        except ValueError as error:
            if options.on_bad_row == "error":
                raise _refused(row, str(error), taken) from None
            taken.left_out["row that cannot be used"] += 1
            taken.first_bad = taken.first_bad or f"row {row.number:,}: {error}{row.suffix()}"
    if watch:
        watch.end()
        taken.shape = watch.shape
    if taken.shape.kind == "pair" and taken.rows == taken.left_out["row without a question"] > 0:
        answer = f"the answers as texts: --text_column={taken.shape.completion}"
        raise UsageError(f"{place}: no row has a question in {taken.shape.prompt!r}; to learn {answer}")
    taken.left_out.update(taken.facts.pop("left_out", {}))


def _refused(row: Row, problem: str, taken: Taken) -> UsageError:
    skip = "; --on_bad_row=skip leaves such rows out"
    if row.problem:
        return UsageError(f"{taken.name}: cannot be read as {taken.kind}: line {row.line:,}: {problem}{skip}")
    return UsageError(f"{taken.name}: row {row.number:,}: {problem}{row.suffix()}{skip}")
