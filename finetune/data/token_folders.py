"""A folder of datatrove's tokens as a dataset.

NAME.ds holds ids, NAME.ds.index the end of each document (uint64), NAME.ds.loss a byte for each token, 1 if it is
learned, and NAME.ds.metadata the tokenizer. The bins have the same documents in the same order."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetune.common import files
from finetune.common.commands import command
from finetune.common.errors import UsageError
from finetune.common.formatting import shown
from finetune.config.paths import stem_of
from finetune.data import dataset as datasets
from finetune.data import target
from finetune.data.dataset import Dataset
from finetune.data.documents import Chunk, Encoded
from finetune.data.run_notes import check_unused
from finetune.data.split import OverflowFilter
from finetune.data.tokenizer import Tokenizer, from_directory, gpt2
from finetune.data.write_bins import write_bins

GPT2 = ("gpt2", "openai-community/gpt2")  # names of one tokenizer
STEP = re.compile(r"(.*?\d{5})(?:_\d{5})?_(unshuffled|doc_shuffled|chunk_shuffled)\.ds")  # rank, and what it wrote
GROUP = 1 << 20  # tokens that are copied at a time


@dataclass
class TokenFile:
    """A file of ids. `ends` are those of its documents, `loss` is None where every token is learned."""

    path: Path
    ids: np.ndarray
    ends: np.ndarray
    loss: np.ndarray | None

    def groups(self) -> Iterator[np.ndarray]:
        """The borders of some documents at a time: the first one's start, and the end of each."""
        borders = np.concatenate([np.zeros(1, np.int64), self.ends])
        first = 0
        while first < len(self.ends):
            last = max(int(np.searchsorted(borders, borders[first] + GROUP, side="right")) - 1, first + 1)
            yield borders[first : last + 1]
            first = last

    def documents(self) -> Iterator[list[Encoded]]:
        """The documents, some at a time, without those that have no token. Their chunks have no text."""
        for borders in self.groups():
            found = [each for first, end in zip(borders, borders[1:]) if end > first for each in self._runs(first, end)]
            if found:
                yield found

    def _runs(self, first: int, end: int) -> Iterator[Encoded]:
        """A document in runs of tokens that are learned, or not."""
        cuts = [] if self.loss is None else np.flatnonzero(np.diff(self.loss[first:end])) + first + 1
        borders = [first, *cuts, end]
        for start, stop in zip(borders, borders[1:]):
            is_target = self.loss is None or bool(self.loss[start])
            yield Chunk("", stop == end, is_target), self.ids[start:stop]


def token_paths(directory: str | Path) -> list[Path]:
    """The .ds files in a directory, in order."""
    return sorted(path for path in Path(directory).glob("*.ds") if not path.is_dir())


def open_files(directory: str | Path) -> list[TokenFile]:
    """The files of a folder. Raises UsageError for one that is not whole."""
    paths = token_paths(directory)
    seen: dict[str, tuple[str, str]] = {}
    for path in paths:
        if match := STEP.fullmatch(path.name):
            step, other = seen.setdefault(match[1], (match[2], path.name))
            if step != match[2]:
                raise UsageError(f"{path}: holds the same documents as {other}; remove one of them")
    return [open_file(path) for path in paths]


def open_file(path: Path) -> TokenFile:
    """One file with what lies beside it. Raises UsageError if it is not whole."""
    index, loss, size = _beside(path, "index"), _beside(path, "loss"), path.stat().st_size
    if not index.is_file():
        raise UsageError(f"{path}: there is no {index.name} that says where its documents end (datatrove: save_index)")
    if index.stat().st_size % 8:
        raise UsageError(f"{index}: is no list of 64-bit numbers, so it was probably cut short; copy it again")
    listed = np.fromfile(index, "<u8")
    if len(listed) and (listed.max() >= 1 << 62 or (np.diff(listed.astype(np.int64)) < 0).any()):
        raise UsageError(f"{index}: its document ends do not rise, so it is no index of datatrove")
    ends = listed.astype(np.int64)
    tokens = int(ends[-1]) if len(ends) else 0
    if size not in (2 * tokens, 4 * tokens):
        problem = f"{size:,} bytes are not the {tokens:,} tokens of {index.name}"
        raise UsageError(f"{path}: {problem}, so one of them was probably cut short; copy it again")
    dtype = np.dtype("<u2" if size == 2 * tokens else "<u4")
    if loss.is_file() and loss.stat().st_size != tokens:
        problem = f"{loss.stat().st_size:,} bytes for {tokens:,} tokens, and it has one a token"
        raise UsageError(f"{loss}: {problem}; copy it again")
    if not tokens:
        return TokenFile(path, np.zeros(0, dtype), ends, None)
    mask = np.memmap(loss, np.uint8, "r") if loss.is_file() else None
    return TokenFile(path, np.memmap(path, dtype, "r"), ends, mask)


def known_tokenizer(directory: str | Path) -> Tokenizer:
    """The tokenizer that the metadata name, or whose files lie in the folder. Raises UsageError."""
    lines = set()
    for path in token_paths(directory):
        metadata = _beside(path, "metadata")
        line = files.read_text(metadata).partition("\n")[0] if metadata.is_file() else ""
        lines.add(line.rpartition("|")[0] or line)
    names = sorted(shown(name, 200) for name in lines if name and not name.startswith("Unknown Tokenizer"))
    if len(names) > 1:
        raise UsageError(f"{directory}: its files have ids of different tokenizers, {names[0]} and {names[1]}")
    if found := from_directory(directory):
        return found
    name = names[0] if names else ""
    if name in GPT2:
        return gpt2()
    place = Path(name).parent if Path(name).name == "tokenizer.json" else Path(name)
    if name and place.is_dir() and (found := from_directory(place)):
        return found
    problem = f"their tokenizer {name} is not here" if name else "nothing says which tokenizer made the ids"
    way = command("prepare", directory, tokenizer="DIR", out_dir=f"data/{stem_of(str(directory))}")
    raise UsageError(f"{directory}: {problem}; name it: {way}")


def check_tokenizer(directory: str | Path, given: Tokenizer) -> None:
    """Raise UsageError if the ids of a folder are known to be another tokenizer's."""
    try:
        known = known_tokenizer(directory)
    except UsageError:
        return
    if not given.extends(known):
        names = [tokenizer.describe()["name"] for tokenizer in (known, given)]
        raise UsageError(f"{directory}: holds ids of {names[0]}, and --tokenizer names {names[1]}; leave it out")


def prepare_tokens(
    directory: str | Path,
    out_dir: str | Path,
    tokenizer: Tokenizer,
    val_fraction: float = 0.1,
    seed: int = 1337,
    overflow: OverflowFilter | None = None,
    overwrite: bool = False,
) -> Dataset:
    """Write the documents of a folder into `out_dir`, split as `prepare` splits the same texts. An end-of-text is
    added to each document if none has one. Raises UsageError."""
    found, overflow = open_files(directory), overflow or OverflowFilter("split", 1024)
    source = describe(directory)
    documents = source["documents"]
    num_val = round(documents * val_fraction)
    if not 0 < num_val < documents:
        raise UsageError(f"{directory}: {documents:,} documents are too few to keep {val_fraction} of them for val")
    chosen = np.random.default_rng(seed).choice(documents, num_val, replace=False)
    adds_end = tokenizer.eot is not None and not any(_ends_with(file, tokenizer.eot) for file in found)
    groups = _split(found, tokenizer, set(chosen.tolist()), adds_end)
    with target.held(out_dir, overwrite), files.temporary_directory(out_dir) as work:
        check_unused(Path(out_dir), {"sources": [source]}, overwrite)
        splits = write_bins(groups, tokenizer, tokenizer.eot, overflow, work)
        read = f"{directory}: {len(found):,} files of tokens, {documents:,} documents"
        facts: dict[str, Any] = {
            "splits": splits,
            "split_by": "documents",
            "val_fraction": val_fraction,
            "seed": seed,
            "end_of_text": tokenizer.eot,
            "overflow": overflow.facts(),
            "read": [read, *[f"{directory}: no document ended with {tokenizer.eot_text}, now each does"] * adds_end],
            "sources": [source],
        }
        target.publish(work, Path(out_dir), facts, tokenizer, overwrite)
    return datasets.load(out_dir)


def _split(
    found: list[TokenFile], tokenizer: Tokenizer, in_val: set[int], adds_end: bool
) -> Iterator[tuple[str, list[Encoded]]]:
    """(split, chunks of documents), with their text. Raises UsageError for an id that the tokenizer lacks."""
    end, number = np.array([tokenizer.eot], tokenizer.dtype) if adds_end else None, 0
    for file, group in ((each, group) for each in found for group in each.documents()):
        largest = max(int(ids.max()) for _, ids in group)
        if largest >= tokenizer.vocab_size:
            problem = f"token {largest:,}, but {tokenizer.describe()['name']} has {tokenizer.vocab_size:,} ids"
            raise UsageError(f"{file.path}: holds {problem}; name its own with --tokenizer=DIR")
        parts: dict[str, list[Encoded]] = {"train": [], "val": []}
        for chunk, ids in group:
            text = tokenizer.decode(ids[ids != tokenizer.eot])
            if chunk.is_last and end is not None:
                ids = np.concatenate([ids, end])
            parts["val" if number in in_val else "train"].append((chunk._replace(text=text), ids))
            number += chunk.is_last
        yield from ((split, part) for split, part in parts.items() if part)


def _ends_with(file: TokenFile, eot: int) -> bool:
    """Whether any document of a file ends with an end-of-text."""
    ends = file.ends[np.diff(file.ends, prepend=0) > 0]
    return bool((file.ids[ends - 1] == eot).any())


def describe(directory: str | Path) -> dict[str, Any]:
    """The entry of meta.json's `sources`."""
    digest, size, documents = hashlib.sha256(), 0, 0
    for file in open_files(directory):
        beside = [path for path in (_beside(file.path, "index"), _beside(file.path, "loss")) if path.is_file()]
        for data in itertools.chain.from_iterable(map(files.read_chunks, [file.path, *beside])):
            digest.update(data)
        size += file.path.stat().st_size
        documents += int(np.count_nonzero(np.diff(file.ends, prepend=0)))
    return {"name": Path(directory).name, "bytes": size, "sha256": digest.hexdigest(), "documents": documents}


def _beside(path: Path, kind: str) -> Path:
    return path.with_name(f"{path.name}.{kind}")
