"""Where text comes from: files, directories, patterns, Hub data sets and two named texts. All of it is streamed."""

from __future__ import annotations

import glob
import io
import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune.common.errors import UsageError
from finetune.common.files import read_chunks
from finetune.common.network import reach
from finetune.data import named_texts
from finetune.data.documents import CHUNK_CHARACTERS, Chunk, cut
from finetune.data.tables import TABLES, Columns, read_hub, read_table
from finetune.data.text_files import COMPRESSED_SUFFIXES, TEXT_SUFFIXES, Digest, read_document, read_file, suffix_of

NAMED = ("shakespeare", "python_docs")
NO_TEXT = "no text given; name a text file, a directory, a jsonl, csv or parquet file, or python_docs (no download)"


@dataclass
class Source:
    """One source as the user named it: files in order, bytes in memory, or a Hub data set."""

    name: str
    files: list[Path] = field(default_factory=list)
    content: bytes | None = None
    hub: dict[str, Any] | None = None  # arguments of datasets.load_dataset
    columns: Columns = field(default_factory=dict)  # of tables

    @property
    def is_one_text(self) -> bool:
        """Whether this is a single running text, not a collection of documents."""
        return self.content is not None or (len(self.files) == 1 and not is_table(self.files[0]))

    def size(self) -> int | None:
        """Length in bytes; None for a Hub data set."""
        if self.content is not None:
            return len(self.content)
        return sum(path.stat().st_size for path in self.files) if self.files else None

    def chunks(self, digest: Digest = None) -> Iterator[Chunk]:
        """Its documents in Chunks of some megabytes, line ends as \\n: one per text file, one per row of a table.

        `digest` is fed the bytes of the files, of a Hub data set the texts. Raises UsageError with file and place."""
        if self.content is not None:
            yield from read_document(self.name, io.BytesIO(self.content), digest)
        if self.hub:
            for chunk in read_hub(self.name, self.hub, self.columns):
                if digest:
                    digest.update(chunk.text.encode("utf-8", "surrogatepass"))
                yield chunk
        for path in self.files:
            if is_table(path):
                if digest:
                    for data in read_chunks(path):
                        digest.update(data)
                yield from read_table(path, self.columns)
            else:
                yield from read_file(path, digest)


def find(
    names: Iterable[str | Path], columns: Columns | None = None, split: str = "train", revision: str | None = None
) -> list[Source]:
    """A Source for each name: a file, a directory, a pattern with *, a Hub data set (owner/name, owner/name:config),
    `shakespeare` or `python_docs`.

    `columns` are those of tables, `split` and `revision` those of Hub data sets. Raises UsageError."""
    sources = [_find(str(name), columns or {}, split, revision) for name in names]
    if not sources:
        raise UsageError(NO_TEXT)
    return sources


def documents_of(sources: Iterable[Source]) -> Iterator[Chunk]:
    """The documents of some sources, in their order."""
    return cut(itertools.chain.from_iterable(source.chunks() for source in sources), CHUNK_CHARACTERS)


def _find(name: str, columns: Columns, split: str, revision: str | None) -> Source:
    path = Path(name)
    if path.is_file():
        if path.stat().st_size == 0:
            raise UsageError(f"{name}: is empty, there is no text in it")
        return Source(name, [path], columns=columns)
    if path.is_dir() or glob.has_magic(name):
        return Source(name, _find_files(name), columns=columns)
    if name == "python_docs":
        return Source(name, content=named_texts.python_docs())
    if name == "shakespeare":
        return Source(name, [named_texts.shakespeare()])
    hub_name = re.fullmatch(r"([\w.-]+/[\w.-]+)(?::([\w.-]+))?", name)
    if hub_name and not is_readable(path):
        _check_hub(name)
        arguments = {"path": hub_name[1], "name": hub_name[2], "split": split, "revision": revision}
        return Source(name, hub=arguments, columns=columns)
    raise UsageError(f"{name}: no such file or directory, and not one of the named texts {', '.join(NAMED)}")


def _find_files(name: str) -> list[Path]:
    """The files with text in a directory or of a pattern, sorted; without hidden and empty ones."""
    path = Path(name)
    found = path.rglob("*") if path.is_dir() else map(Path, glob.glob(name, recursive=True))
    files = [file for file in sorted(found) if file.is_file() and file.stat().st_size and not _is_hidden(file, path)]
    # a pattern with a suffix, such as src/**/*.py, takes every file that it matches
    if path.is_dir() or glob.has_magic(path.suffix) or not path.suffix:
        files = [file for file in files if is_readable(file)]
    if not files:
        known, compressed = ", ".join([*TEXT_SUFFIXES, *TABLES]), ", ".join(COMPRESSED_SUFFIXES)
        raise UsageError(f"{name}: no text there; {known} are read, each also with {compressed}")
    return files


def _is_hidden(file: Path, directory: Path) -> bool:
    parts = file.relative_to(directory).parts if directory.is_dir() else [file.name]
    return any(part.startswith(".") for part in parts)


def is_table(path: Path) -> bool:
    return suffix_of(path) in TABLES


def is_readable(path: Path) -> bool:
    """Whether its suffix is that of a text or a table."""
    return is_table(path) or suffix_of(path) in TEXT_SUFFIXES


def _check_hub(name: str) -> None:
    """Raise UsageError within seconds if the Hub cannot be reached; datasets would try for minutes."""
    from huggingface_hub import constants

    try:
        if constants.HF_HUB_OFFLINE:
            raise OSError("HF_HUB_OFFLINE is set")
        reach(constants.ENDPOINT)
    except OSError as error:
        message = "no such file or directory, and the Hub cannot be asked for a data set of this name"
        raise UsageError(f"{name}: {message} ({error})") from None
