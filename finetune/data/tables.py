"""Tables of text: every row of a json, csv or parquet file, or of a Hub data set, is a document.

A row is plain text (one column), a list of messages (one column), or a prompt and a completion (two columns)."""

from __future__ import annotations

import contextlib
import csv
import glob
import io
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.common.errors import UsageError
from finetune.config.options import option
from finetune.data import chat
from finetune.data.documents import Chunk
from finetune.data.text_files import open_decompressed, read_file, suffix_of

TABLES = {".jsonl": "json", ".json": "json", ".ndjson": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}

Columns = dict[str, str]  # {"text": name}, {"messages": name} or {"prompt": name, "completion": name}
Row = dict[str, Any]


@dataclass
class ColumnOptions:
    """The options of a command that reads tables."""

    text_column: str | None = option(None, "column of texts in a table [text, or the only one]", derived=True)
    prompt_column: str | None = option(None, "column of prompts [prompt]", derived=True)
    completion_column: str | None = option(None, "column of answers, the only targets [completion]", derived=True)
    messages_column: str | None = option(None, "column of lists of {role, content} [messages]", derived=True)

    def columns(self) -> Columns:
        """The columns that are named."""
        names = {kind: getattr(self, f"{kind}_column") for kind in ("text", "prompt", "completion", "messages")}
        return {kind: name for kind, name in names.items() if name is not None}

    def problems(self) -> Iterator[tuple[str, str]]:
        """(key, message) of each contradiction."""
        columns = self.columns()
        if ("prompt" in columns) != ("completion" in columns):
            yield "prompt_column", "--prompt_column and --completion_column go together"
        if len(columns.keys() - {"completion"}) > 1:
            message = "a table holds text, prompts with completions, or messages: name the columns of one of them"
            yield "text_column", message


def read_table(path: Path, columns: Columns) -> Iterator[Chunk]:
    """The documents of a table file. Empty `columns` are found in the first row. Raises UsageError."""
    kind = TABLES[suffix_of(path)]
    with _one_line_errors(str(path), kind, path):
        yield from READERS[kind](path, columns)


def read_hub(name: str, arguments: dict[str, Any], columns: Columns) -> Iterator[Chunk]:
    """The documents of a Hub data set; `arguments` are those of datasets.load_dataset. Raises UsageError."""
    with _one_line_errors(name, "a data set"):
        yield from _documents(_stream(**arguments), name, columns)


def _read_json(path: Path, columns: Columns) -> Iterator[Chunk]:
    return _documents(_stream_file("json", path), str(path), columns)


def _read_parquet(path: Path, columns: Columns) -> Iterator[Chunk]:
    return _documents(_stream_file("parquet", path), str(path), columns)


def _read_csv(path: Path, columns: Columns) -> Iterator[Chunk]:
    separator = "\t" if suffix_of(path) == ".tsv" else ","
    columns = find_columns(_first_csv_row(path, separator), columns, str(path))
    # cells stay text: pandas would read NA as missing and 007 as a number
    as_text = {"keep_default_na": False, "converters": dict.fromkeys(columns.values(), str)}
    return _documents(_stream_file("csv", path, sep=separator, **as_text), str(path), columns)


READERS: dict[str, Callable[[Path, Columns], Iterator[Chunk]]] = {
    "json": _read_json,
    "csv": _read_csv,
    "parquet": _read_parquet,
}


def _stream_file(kind: str, path: Path, **arguments: Any) -> Iterable[Row]:
    # in data_files *, ? and [ would be a pattern
    return _stream(kind, data_files=glob.escape(str(path)), split="train", **arguments)


def _stream(path: str, **arguments: Any) -> Iterable[Row]:
    import datasets

    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # it also logs each error that it raises
    return datasets.load_dataset(path=path, **arguments, streaming=True)


def _documents(rows: Iterable[Row], place: str, columns: Columns) -> Iterator[Chunk]:
    for number, row in enumerate(rows, 1):
        if number == 1:
            columns = find_columns(row, columns, place)
        try:
            yield from _document(row, columns)
        except ValueError as error:
            raise UsageError(f"{place}: row {number:,}: {error}") from None


def _document(row: Row, columns: Columns) -> Iterable[Chunk]:
    if "text" not in columns:
        return chat.chunks(chat.messages_of(row, list(columns.values())))
    text = row.get(columns["text"])
    if not isinstance(text, str):
        raise ValueError(f"column {columns['text']!r} must be text, not {chat.name_of_type(text)}")
    return [Chunk(text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text, is_last=True)]


def find_columns(row: Row, columns: Columns, place: str) -> Columns:
    """`columns` if named, else those named after a kind, else the only column of text. Raises UsageError."""
    names = ", ".join(row)
    if missing := [name for name in columns.values() if name not in row]:
        raise UsageError(f"{place}: has no column {missing[0]!r}; its columns are {names}")
    if columns:
        return columns
    for kinds in (("messages",), ("prompt", "completion"), ("text",)):
        if all(kind in row for kind in kinds):
            return {kind: kind for kind in kinds}
    texts = [name for name, value in row.items() if isinstance(value, str)]
    if len(texts) == 1:
        return {"text": texts[0]}
    flags = "--text_column=, or --prompt_column= and --completion_column="
    raise UsageError(f"{place}: which column is the text? Its columns are {names}; name it with {flags}")


def _first_csv_row(path: Path, separator: str) -> Row:
    """The first row of a csv file, numbers as numbers."""
    csv.field_size_limit(1 << 30)  # the default is 128 KB
    with io.TextIOWrapper(open_decompressed(path), encoding="utf-8-sig", newline="") as file:
        row = next(csv.DictReader(file, delimiter=separator), {})
    return {name: _number(value) for name, value in row.items()}


def _number(text: Any) -> Any:
    try:
        return float(text)
    except (TypeError, ValueError):
        return text


@contextlib.contextmanager
def _one_line_errors(place: str, kind: str, path: Path | None = None) -> Generator[None, None, None]:
    """Any error of datasets, pyarrow or pandas as a UsageError of one line."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        if isinstance(error, UnicodeDecodeError) and path:
            for _ in read_file(path):
                pass  # raises with offset and line
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UsageError(f"{place}: cannot be read as {kind}: {lines[0]}") from None
