"""Where text comes from: files and directories of any common kind, data sets of the Hub, and two named texts. All of it
is streamed."""

import codecs
import csv
import glob
import hashlib
import io
import re
from dataclasses import dataclass, field
from pathlib import Path

from finetune.common.errors import UsageError
from finetune.common.network import reach
from finetune.data import chat
from finetune.data.documents import Chunk

KINDS = ("text", "messages", "prompt", "completion")


def chosen_columns(options):
    """{kind: name} of the columns that were named."""
    named = {kind: getattr(options, f"{kind}_column") for kind in KINDS}
    return {kind: name for kind, name in named.items() if name is not None}


def problems_of_columns(options):
    """(key, message) for each contradiction among them."""
    named = chosen_columns(options)
    if ("prompt" in named) != ("completion" in named):
        yield "prompt_column", "--prompt_column and --completion_column go together"
    if len(named.keys() - {"completion"}) > 1:
        yield (
            "text_column",
            "a table is read as text, as prompts and completions, or as messages: name the columns of one of them",
        )


CHUNK_BYTES = 1 << 22
SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
NAMED = ("shakespeare", "python_docs")
TEXTS = (".txt", ".md", ".text", ".markdown")
TABLES = {".jsonl": "json", ".json": "json", ".ndjson": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
COMPRESSED = (".gz", ".xz", ".bz2", ".zst")


@dataclass
class Source:
    """What the user named: files in their order, bytes in memory, or a data set of the Hub."""

    name: str
    files: list = field(default_factory=list)
    content: bytes | None = None
    hub: dict | None = None  # arguments of datasets.load_dataset
    columns: dict = field(default_factory=dict)  # of tables, as in `find`

    @property
    def is_one_text(self):
        """Whether this is a single running text rather than a collection of documents."""
        return self.content is not None or (len(self.files) == 1 and _kind(self.files[0]) == "text")

    def size(self):
        """Length in bytes; None where nobody knows it before reading."""
        if self.content is not None:
            return len(self.content)
        return sum(path.stat().st_size for path in self.files) if self.files else None

    def pieces(self, digest=None):
        """Its documents as Pieces, in pieces of some megabytes: every file of text is one, and so is every row of a
        table.

        Line ends become \\n. `digest`, a hashlib object, is fed the bytes of the files (of the Hub: the texts). Raises
        UsageError with file and place for what is not UTF-8 or not text."""
        if self.content is not None:
            yield from _text(self.name, lambda: io.BytesIO(self.content), digest)
        elif self.hub:
            for piece in self._rows(self.name, "a data set", **self.hub):
                if digest:
                    digest.update(piece.text.encode("utf-8", "surrogatepass"))
                yield piece
        for path in self.files:
            kind = _kind(path)
            if kind == "text":
                yield from _text(str(path), lambda path=path: _opened(path), digest)
                continue
            if digest:
                _feed(path, digest)
            options = {"path": kind, "data_files": glob.escape(str(path)), "split": "train"}
            if kind == "csv":
                options["sep"] = "\t" if _suffix(path) == ".tsv" else ","
            yield from self._rows(str(path), kind, **options)

    def _rows(self, place, kind, **options):
        """The documents of a table, one a row."""
        import datasets

        datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # it would print what is raised as well
        columns, number = None, 0
        try:
            if kind == "csv":  # every cell as the text it is: pandas would read NA as nothing and 007 as a number
                columns = _columns(_first_row(Path(place), options["sep"]), self.columns, place)
                options |= {"keep_default_na": False, "converters": dict.fromkeys(columns.values(), str)}
            for number, row in enumerate(datasets.load_dataset(**options, streaming=True), 1):  # noqa: B007  told below
                columns = columns or _columns(row, self.columns, place)
                yield from _document(row, columns)
        except UsageError:
            raise
        except NoText as error:
            raise UsageError(f"{place}: row {number:,}: {error}") from None
        except Exception as error:  # whatever the readers of datasets, pyarrow and pandas raise for a bad file
            if isinstance(error, UnicodeDecodeError):
                for _ in _text(place, lambda: _opened(Path(place)), None):
                    pass  # says where
            lines = str(error).strip().splitlines()
            raise UsageError(
                f"{place}: cannot be read as {kind}: {lines[0] if lines else type(error).__name__}"
            ) from None


class NoText(ValueError):
    """A row that is no document, in words."""


def _document(row, columns):
    """The Pieces of a row: of its text, or of its conversation."""
    if "text" not in columns:
        try:
            return chat.pieces(chat.messages_of(row, list(columns.values())))
        except ValueError as error:
            raise NoText(error) from None
    text = row.get(columns["text"])
    if not isinstance(text, str):
        raise NoText(
            f"column {columns['text']!r} holds"
            f" {'nothing' if text is None else f'a value of type {type(text).__name__}'}, not text"
        )
    return [Chunk(text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text, is_last=True)]


def find(names, columns=None, split="train", revision=None):
    """A Source for each name: a file, a directory, a pattern with *, a data set of the Hub (owner/name,
    owner/name:config), `shakespeare` or `python_docs`.

    `columns` names those of tables: {"text": name}, {"messages": name} or {"prompt": name, "completion": name}; `split`
    and `revision` are of the Hub. Raises UsageError."""
    columns = columns or {}
    if not names:
        raise UsageError(
            "no text given; name a text file, a directory, a jsonl, csv or parquet file, or python_docs, which needs no"
            " download"
        )
    found = []
    for name in map(str, names):
        path = Path(name)
        if path.is_file():
            if path.stat().st_size == 0:
                raise UsageError(f"{name}: is empty, there is no text in it")
            found.append(Source(name, [path], columns=columns))
        elif path.is_dir() or glob.has_magic(name):
            files = sorted(path.rglob("*")) if path.is_dir() else sorted(map(Path, glob.glob(name, recursive=True)))
            files = [file for file in files if file.is_file() and file.stat().st_size and not _is_hidden(file, path)]
            if path.is_dir() or glob.has_magic(path.suffix) or not path.suffix:  # src/**/*.py says itself what is text
                files = [file for file in files if _kind(file) != "text" or _is_text(file)]
            if not files:
                raise UsageError(
                    f"{name}: no text there; {', '.join([*TEXTS, *TABLES])} are read, each also with"
                    f" {', '.join(COMPRESSED)}"
                )
            found.append(Source(name, files, columns=columns))
        elif name == "python_docs":
            found.append(Source(name, content=_python_docs()))
        elif name == "shakespeare":
            found.append(Source(name, [_shakespeare()]))
        elif (
            (match := re.fullmatch(r"([\w.-]+/[\w.-]+)(?::([\w.-]+))?", name))
            and _kind(path) == "text"
            and not _is_text(path)
        ):
            _check_hub(name)
            found.append(
                Source(
                    name,
                    hub={"path": match[1], "name": match[2], "split": split, "revision": revision},
                    columns=columns,
                )
            )
        else:
            raise UsageError(f"{name}: no such file or directory, and not one of the named texts {', '.join(NAMED)}")
    return found


def _kind(path):
    """text, json, csv or parquet, by the file's name."""
    return TABLES.get(_suffix(path), "text")


def _is_text(path):
    return _suffix(path) in TEXTS


def _suffix(path):
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _is_hidden(file, directory):
    parts = file.relative_to(directory).parts if directory.is_dir() else [file.name]
    return any(part.startswith(".") for part in parts)


def _opened(path):
    """The bytes of a file, uncompressed."""
    import fsspec

    return (
        fsspec.open(str(path), "rb", compression="infer").open()
        if path.suffix.lower() in COMPRESSED
        else open(path, "rb")
    )


def _feed(path, digest):
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)


def _text(name, opened, digest):
    """A file of text as the Pieces of one document: UTF-8, without a leading byte order mark, every line end as \\n."""
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8-sig")(), translate=True)
    done = 0
    with opened() as file:
        while True:
            try:
                chunk = file.read(CHUNK_BYTES)
            except (OSError, EOFError) as error:
                raise UsageError(f"{name}: cannot be read: {error}") from None
            if done == 0 and chunk[:2] in (b"\xff\xfe", b"\xfe\xff"):
                raise UsageError(
                    f"{name}: looks like UTF-16; convert it to UTF-8, for example with iconv -f UTF-16 -t UTF-8"
                )
            if digest:
                digest.update(chunk)
            try:
                text = decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                # error.object is what was left over from before, then this chunk
                error.start += done - (len(error.object) - len(chunk))
                raise UsageError(f"{name}: {_bad_byte(opened, error)}") from None
            done += len(chunk)
            if text:
                yield Chunk(text)
            if not chunk:
                break
    yield Chunk("", is_last=True)


def _bad_byte(opened, error):
    """`byte 0xE9 at offset 6 (line 2) is not UTF-8`."""
    lines, left = 1, error.start
    with opened() as file:
        while left > 0 and (chunk := file.read(min(left, CHUNK_BYTES))):
            lines += chunk.count(b"\n")
            left -= len(chunk)
        byte = file.read(1)
    return f"byte 0x{byte[0] if byte else 0:02X} at offset {error.start:,} (line {lines:,}) is not UTF-8"


def _first_row(path, separator):
    """The first row of a csv file, numbers as numbers."""
    csv.field_size_limit(1 << 30)  # 128 KB otherwise
    with io.TextIOWrapper(_opened(path), encoding="utf-8-sig", newline="") as file:
        row = next(csv.DictReader(file, delimiter=separator), {})
    return {name: _number(value) for name, value in row.items()}


def _number(text):
    try:
        return float(text)
    except (TypeError, ValueError):
        return text


def _columns(row, wanted, place):
    """What the columns are: {"text": name}, {"messages": name} or {"prompt": name, "completion": name}. Raises
    UsageError naming those there are."""
    there = ", ".join(row)
    if missing := [name for name in wanted.values() if name not in row]:
        raise UsageError(f"{place}: has no column {missing[0]!r}; its columns are {there}")
    if wanted:
        return wanted
    for kinds in (("messages",), ("prompt", "completion"), ("text",)):
        if all(kind in row for kind in kinds):
            return {kind: kind for kind in kinds}
    texts = [name for name, value in row.items() if isinstance(value, str)]
    if len(texts) == 1:
        return {"text": texts[0]}
    raise UsageError(
        f"{place}: which column is the text? Its columns are {there}; name it with --text_column=, or --prompt_column="
        " and --completion_column="
    )


def _check_hub(name):
    """Raise UsageError in seconds where the Hub cannot be reached; datasets would try for minutes."""
    from huggingface_hub import constants

    try:
        if constants.HF_HUB_OFFLINE:
            raise OSError("HF_HUB_OFFLINE is set")
        reach(constants.ENDPOINT)
    except OSError as error:
        raise UsageError(
            f"{name}: no such file or directory, and the Hub cannot be asked for a data set of this name ({error})"
        ) from None


def _python_docs():
    """Python's language reference as plain text, which every CPython carries for its help(): 465,048 characters in
    3.11."""
    from pydoc_data.topics import topics

    return "\n".join(topics.values()).encode("utf-8")


def _shakespeare():
    """Tiny Shakespeare (1,115,394 characters), at data/shakespeare/input.txt or downloaded to there."""
    import urllib.request

    path = Path("data/shakespeare/input.txt")
    if path.is_file():
        return path
    try:
        with urllib.request.urlopen(SHAKESPEARE_URL, timeout=10) as response:
            content = response.read(1 << 22)
    except OSError as error:
        raise UsageError(
            f"shakespeare: cannot be downloaded ({error}). Put the file {SHAKESPEARE_URL} at {path} by hand, or use"
            " python_docs, which needs no download"
        ) from None
    if hashlib.sha256(content).hexdigest() != SHAKESPEARE_SHA256:
        raise UsageError(
            f"shakespeare: what {SHAKESPEARE_URL} sent is not tiny Shakespeare (its sha256 differs); nothing was kept"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    partial.write_bytes(content)
    partial.rename(path)
    return path
