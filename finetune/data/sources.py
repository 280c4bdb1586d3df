"""Where text comes from: files, directories, archives, standard input, the Hub and two named texts; all is streamed."""

from __future__ import annotations

import glob
import io
import itertools
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune.common.commands import join
from finetune.common.errors import UsageError
from finetune.common.files import read_chunks
from finetune.common.network import reach
from finetune.data import archives, compressed, converted, directories, disguised, effects, named_texts, own_files
from finetune.data.bpe_files import END_OF_TEXT
from finetune.data.chat_template import ChatTemplate
from finetune.data.documents import CHUNK_CHARACTERS, Chunk, cut
from finetune.data.effects import WHOLE
from finetune.data.file_kinds import DOCUMENT_SUFFIXES, iconv_name
from finetune.data.literals import LiteralCounter, cut_at, end_lines
from finetune.data.split_names import check_apart
from finetune.data.tables import TABLES, ReadOptions, Taken, read_hub, read_table
from finetune.data.text_files import TEXT_SUFFIXES, Digest, TextOptions, read_document, read_file, suffix_of

NAMED = ("shakespeare", "python_docs")
NO_TEXT = "no text given; name a text file, a directory, a jsonl, csv or parquet file, or python_docs (no download)"
SUFFIXES = ", ".join([*TEXT_SUFFIXES, *TABLES])
READ = f"{SUFFIXES} are read, texts, json and csv also with {', '.join(compressed.SUFFIXES)}"
STANDARD_INPUT = "-"
MAX_LINES = 12  # of a report, for a source of many files


@dataclass
class Source:
    """One source as the user named it: files in order, bytes in memory, or a Hub dataset."""

    name: str
    files: list[Path] = field(default_factory=list)
    content: bytes | None = None
    hub: dict[str, Any] | None = None  # arguments of datasets.load_dataset
    options: ReadOptions = field(default_factory=ReadOptions)
    template: ChatTemplate | None = None  # of the tokenizer, for conversations
    eot: str | None = None  # the end-of-text token that a text may spell out
    root: Path | None = None  # the temporary directory of an archive's members
    ends_lines: bool = False  # each document ends with a line end
    left_out: str = ""  # files of a directory
    notes: list[str] = field(default_factory=list)  # what else should be said
    taken: list[Taken] = field(default_factory=list)  # of each table, complete when it is read
    num_texts: int = 0  # documents of text files
    literals: int = 0  # end-of-text tokens that are spelled out

    @property
    def is_one_text(self) -> bool:
        """Whether this is a single running text, not a collection of documents."""
        is_split = self.options.documents not in WHOLE or self.options.special == "token"
        return not is_split and (self.content is not None or [is_table(path) for path in self.files] == [False])

    def size(self) -> int | None:
        """Length in bytes; None for a Hub dataset."""
        if self.content is not None:
            return len(self.content)
        return sum(path.stat().st_size for path in self.files) if self.files else None

    def chunks(self, digest: Digest = None) -> Iterator[Chunk]:
        """Its documents in Chunks of some megabytes, line ends as \\n: one per text file, one per row of a table.

        `digest` is fed the bytes of the files, of a Hub dataset the texts. Raises UsageError with file and place."""
        self.taken, self.num_texts = [], 0
        counter = LiteralCounter(self.eot or END_OF_TEXT)
        chunks = counter.pass_on(self._chunks(digest))
        chunks = cut_at(chunks, counter.literal) if self.options.special == "token" else chunks
        yield from end_lines(chunks) if self.ends_lines else chunks
        self.literals = counter.count

    def _chunks(self, digest: Digest) -> Iterator[Chunk]:
        try:
            if self.content is not None:
                yield from self._read_content(self.name, self.content, digest)
            if self.hub:
                yield from self._read_hub(digest)
            for path in self.files:
                if is_table(path):
                    yield from self._read_table(path, digest)
                    continue
                for chunk in self._read_text(path, digest):
                    self.num_texts += chunk.is_last
                    yield chunk
        except UsageError as error:
            raise UsageError(self._named(str(error)) + self._way_around(str(error))) from None

    def _way_around(self, problem: str) -> str:
        """How to read the other files of a directory, if they have other suffixes than the one with a problem."""
        path = next((path for path in self.files if problem.startswith(f"{path}: ")), None)
        if path is None or self.root or len(self.files) < 2:
            return ""
        if found := re.search("probably .*--encoding=(\\S+)", problem):
            convert = f"iconv -f {iconv_name(found[1])} -t UTF-8 {join([str(path)])} > FILE"
            return f"; if only this file is, {convert} converts it"
        others = {suffix_of(other) for other in self.files if Path(self.name).is_dir()} - {suffix_of(path)}
        depth = "" if all(other.parent == Path(self.name) for other in self.files) else "**/"
        patterns = " ".join(f"'{Path(self.name, depth)}/*{suffix}'" for suffix in sorted(others))
        return f"; to leave it out, name the other files: {patterns}" if patterns else ""

    def _read_hub(self, digest: Digest) -> Iterator[Chunk]:
        chunks, taken = read_hub(self.name, self.hub or {}, self.options, self.template)
        self.taken.append(taken)
        for chunk in chunks:
            if digest:
                digest.update(chunk.text.encode("utf-8", "surrogatepass"))
            yield chunk

    def _read_table(self, path: Path, digest: Digest) -> Iterator[Chunk]:
        if digest:
            for data in read_chunks(path):
                digest.update(data)
        chunks, taken = read_table(path, str(path), self.options, self.template)
        self.taken.append(taken)
        yield from chunks

    def _read_content(self, name: str, content: bytes, digest: Digest) -> Iterator[Chunk]:
        """The documents of a text in UTF-8."""
        options = TextOptions(self.options.text_options().documents)
        yield from read_document(name, io.BytesIO(content), digest, options=options)

    def _read_text(self, path: Path, digest: Digest) -> Iterator[Chunk]:
        if converted.is_document(path):
            content = converted.to_text(path, self.options.encoding).encode("utf-8", "surrogatepass")
            yield from self._read_content(str(path), content, digest)
            return
        chunks = read_file(path, digest, options=self.options.text_options())
        if self.options.documents == "auto":
            first = next(chunks)
            disguised.check(first.text, str(path), suffix_of(path))
            yield first
        yield from chunks

    def report(self) -> list[str]:
        """What was taken of it, and what was left out, a line each."""
        lines = list(self.notes)
        texts = [path for path in self.files if not is_table(path)]
        hows = {**dict.fromkeys(WHOLE, ""), "lines": ", a document a line"}
        how = hows.get(self.options.documents, ", a document between separators")
        if self.options.documents not in hows and self.num_texts <= len(texts):
            how = f", a document {'each' if len(texts) > 1 else 'as a whole'}: no separator stands between two"
        if texts:
            count = f"{len(texts):,} text files" if len(texts) > 1 else "one text"
            lines.append(f"{self.name}: {count}{how}")
        described = [self._named(taken.describe()) for taken in self.taken]
        lines += described[:MAX_LINES]
        if len(described) > MAX_LINES:
            rows = sum(taken.rows for taken in self.taken[MAX_LINES:])
            lines.append(f"{self.name}: {len(described) - MAX_LINES:,} tables more, {rows:,} rows")
        if self.left_out:
            lines.append(f"{self.name}: left out: {self.left_out}")
        if self.literals and self.options.special == "text":
            eot = self.eot or END_OF_TEXT
            advice = "they stay text (--special=token: each ends a document)"
            lines.append(f"{self.name}: {self.literals:,} {eot} spelled out; {advice}")
        return lines

    def _named(self, text: str) -> str:
        return text if self.root is None else text.replace(str(self.root), self.name)


@dataclass
class Finder:
    """How names become sources."""

    options: ReadOptions = field(default_factory=ReadOptions)
    split: str = "train"  # of Hub datasets
    revision: str | None = None
    has_val: bool = False  # other sources validate

    def find(self, names: Iterable[str | Path]) -> dict[str, list[Source]]:
        """The sources of each split: {"train": [...], "val": [...]}. `val` has those files of directories that a split
        name puts there. Raises UsageError."""
        splits: dict[str, list[Source]] = {"train": [], "val": []}
        typed = [str(name) for name in names]
        if not self.has_val:
            check_apart(typed, is_readable)
        for name in typed:
            for split, source in self._find(name).items():
                splits[split].append(source)
        if not splits["train"]:
            raise UsageError(NO_TEXT)
        found = [source for each in splits.values() for source in each]
        has_hub, has_content = any(source.hub for source in found), any(source.content for source in found)
        files = [path for source in found for path in source.files]
        effects.check(self.options, [source.name for source in found], files, has_hub, has_content)
        return splits

    def _source(self, name: str, **content: Any) -> Source:
        return Source(name, options=self.options, **content)

    def _find(self, name: str) -> dict[str, Source]:
        path = Path(os.path.expanduser(name))
        if not name:  # such as a variable of the shell that is not set; Path takes it for this directory
            raise UsageError(NO_TEXT)
        if name == STANDARD_INPUT or path.is_fifo():
            said_csv = self.options.separator is not None or self.options.header != "auto"
            name, spooled = archives.from_stream(name, said_csv)
            return {"train": self._source(name, files=[spooled], root=spooled)}
        own_files.check_not_ours(name, path)
        if path.is_file():
            return self._find_file(name, path)
        if path.is_dir() or glob.has_magic(name):
            return self._find_files(name, str(path))
        if name == "python_docs":
            return {"train": self._source(name, content=named_texts.python_docs())}
        if name == "shakespeare":
            return {"train": self._source(name, files=[named_texts.shakespeare()])}
        if (hub_name := re.fullmatch(r"([\w.-]+/[\w.-]+)(?::([\w.-]+))?", name)) and not is_readable(path):
            _check_hub(name)
            path_and_name = {"path": hub_name[1], "name": hub_name[2]}
            return {"train": self._source(name, hub=path_and_name | {"split": self.split, "revision": self.revision})}
        raise UsageError(f"{name}: no such file or directory, and not one of the named texts {', '.join(NAMED)}")

    def _find_file(self, name: str, path: Path) -> dict[str, Source]:
        if path.stat().st_size == 0:
            raise UsageError(f"{name}: is empty, there is no text in it")
        if archives.is_archive(path):
            root = archives.unpack(path)
            return self._find_files(name, str(root), root)
        return {"train": self._source(name, files=[path])}

    def _find_files(self, name: str, place: str, root: Path | None = None) -> dict[str, Source]:
        try:
            found = directories.find_files(place, is_readable, root is not None)
        except UsageError as error:
            raise UsageError(str(error).replace(str(root), name)) if root else error from None
        splits = [split for split in ("train", "val") if found.files.get(split)]
        sources = {split: self._source(name, files=found.files[split], root=root) for split in splits}
        if (card := found.card_of_others(place)) or "train" not in sources:
            what = f" but {card}, which is about the others" if card else f"; {READ}"
            raise UsageError(f"{name}: no text there{what}{found.way_in(place, root is not None)}")
        train = sources["train"]
        train.left_out = found.describe_left_out()
        train.notes += [f"{name}: {said}" for said in [found.describe_outside()] if said]
        if "val" in sources or found.files.get("test"):
            each = {"train": "trains", "val": "is left out" if self.has_val else "validates", "test": "is left out"}
            said = [f"{directories.names(files, place)} {each[split]}" for split, files in found.files.items() if files]
            train.notes.append(f"{name}: {', '.join(said)}")
        return sources


def find(
    names: Iterable[str | Path],
    columns: dict[str, str] | None = None,
    split: str = "train",
    revision: str | None = None,
    read_options: ReadOptions | None = None,
) -> list[Source]:
    """A Source for each name: a file, a directory, a pattern with *, an archive, `-`, a Hub dataset (owner/name,
    owner/name:config), `shakespeare` or `python_docs`.

    `columns` are those of tables, `split` and `revision` those of Hub datasets. Raises UsageError."""
    return make_finder(columns, split, revision, read_options).find(names)["train"]


def make_finder(
    columns: dict[str, str] | None = None,
    split: str = "train",
    revision: str | None = None,
    read_options: ReadOptions | None = None,
) -> Finder:
    """A Finder; `columns` are names by kind."""
    return Finder(ReadOptions().updated(read_options, columns), split, revision)


def documents_of(sources: Iterable[Source]) -> Iterator[Chunk]:
    """The documents of some sources, in their order."""
    return cut(itertools.chain.from_iterable(source.chunks() for source in sources), CHUNK_CHARACTERS)


def is_table(path: Path) -> bool:
    return suffix_of(path) in TABLES


def is_readable(path: Path) -> bool:
    """Whether its suffix is that of a text, of a table, or of a document that can be converted here."""
    suffix = suffix_of(path)
    return suffix in TABLES or suffix in TEXT_SUFFIXES or (suffix in DOCUMENT_SUFFIXES and converted.is_installed())


def _check_hub(name: str) -> None:
    """Raise UsageError within seconds if the Hub cannot be reached; datasets would try for minutes."""
    from huggingface_hub import constants

    try:
        if constants.HF_HUB_OFFLINE:
            raise OSError("HF_HUB_OFFLINE is set")
        reach(constants.ENDPOINT)
    except OSError as error:
        message = "no such file or directory, and the Hub cannot be asked for a dataset of this name"
        raise UsageError(f"{name}: {message} ({error})") from None
