"""Which documents go to train and which to val, and what happens to documents that are too long."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from finetune.common.errors import UsageError
from finetune.common.progress import progress
from finetune.data.documents import Chunk, Encoded
from finetune.data.sources import Source

SplitBy = Literal[
    "text",  # one running text, at a character, or one for each split
    "documents",  # whole documents
    "characters",  # too few documents: at a character of them all
    "sources",  # validation sources were given
]
Stream = Iterator[tuple[str, Chunk]]  # (split, chunk)


@dataclass
class Survey:
    """What a first pass over some sources counts. Documents without text are not counted."""

    sources: list[dict] = field(default_factory=list)  # name, bytes, sha256, and documents if it is a collection
    characters: int = 0
    documents: int = 0
    alphabet: set[str] = field(default_factory=set)


def survey_documents(sources: list[Source], collect_alphabet: bool) -> Survey:
    """Read all sources once; their characters are collected only on request. Raises UsageError if there is no text."""
    hidden = None if sources else True  # None shows it on a terminal
    with progress(desc="reading", unit="char", unit_scale=True, leave=False, disable=hidden) as bar:
        survey = _survey(sources, collect_alphabet, bar.update)
    if sources and not survey.characters:
        raise UsageError(f"{', '.join(source.name for source in sources)}: no text in it")
    return survey


def _survey(sources: list[Source], collect_alphabet: bool, watch: Callable[[int], object]) -> Survey:
    """`survey_documents`; `watch` is called with the characters of each chunk."""
    survey = Survey()
    for source in sources:
        digest, documents, is_empty = hashlib.sha256(), 0, True
        for chunk in source.chunks(digest):
            watch(len(chunk.text))
            survey.characters += len(chunk.text)
            is_empty = is_empty and not chunk.text
            if chunk.is_last:
                documents, is_empty = documents + (not is_empty), True
            if collect_alphabet:
                survey.alphabet.update(chunk.text)
        name = Path(source.name).name if source.files else source.name
        described = {"name": name, "bytes": source.size(), "sha256": digest.hexdigest()}
        if not source.is_one_text:
            described["documents"] = documents
        survey.sources.append(described)
        survey.documents += documents
    return survey


def split_documents(
    sources: list[Source],
    survey: Survey,
    val_sources: list[Source],
    val_fraction: float,
    seed: int,
    val_numbers: set[int] | None = None,
) -> tuple[Stream, SplitBy]:
    """`(stream, split_by)`: all documents that are not empty, each chunk with its split; and what was split: "text",
    "documents", "characters" of documents, or "sources". `val_numbers` are the documents that go to val if that is
    decided already. Raises UsageError if the text is too short."""
    given = [sources, val_sources] if val_sources else [sources]
    is_one_text = all(len(found) == 1 and found[0].is_one_text for found in given)
    chunks = documents_with_text(sources)
    if val_numbers is not None:
        return _split_by_documents(chunks, val_numbers), "documents"
    if val_sources:
        train = (("train", chunk) for chunk in chunks)
        val = (("val", chunk) for chunk in documents_with_text(val_sources))
        return itertools.chain(train, val), "text" if is_one_text else "sources"
    num_val = round(survey.documents * val_fraction)
    if num_val and not is_one_text:
        chosen = np.random.default_rng(seed).choice(survey.documents, num_val, replace=False)
        return _split_by_documents(chunks, set(chosen.tolist())), "documents"
    num_train = int(survey.characters * (1 - val_fraction))
    if num_train in (0, survey.characters):
        raise UsageError(
            f"{survey.characters:,} characters are too few to keep val_fraction={val_fraction} of them for validation"
        )
    return _split_by_characters(chunks, num_train), "text" if is_one_text else "characters"


def documents_with_text(sources: list[Source]) -> Iterator[Chunk]:
    """The documents that have any text."""
    has_text = False
    for chunk in itertools.chain.from_iterable(source.chunks() for source in sources):
        has_text = has_text or bool(chunk.text)
        if has_text:
            yield chunk
        if chunk.is_last:
            has_text = False


def _split_by_documents(chunks: Iterable[Chunk], val_numbers: set[int]) -> Stream:
    number = 0
    for chunk in chunks:
        yield ("val" if number in val_numbers else "train"), chunk
        number += chunk.is_last


def _split_by_characters(chunks: Iterable[Chunk], num_train: int) -> Stream:
    """The first `num_train` characters train; a chunk across the border is cut there."""
    left = num_train
    for chunk in chunks:
        if 0 < left < len(chunk.text):
            before, chunk = chunk.cut(left)
            yield "train", before
            left = 0
        yield ("train" if left else "val"), chunk
        left = max(0, left - len(chunk.text))


class OverflowFilter:
    """Keeps or drops documents of more than `max_tokens` tokens, or raises UsageError, and counts them.

    `policy` is "split" (keep, training cuts them), "drop" or "error"."""

    def __init__(self, policy: str, max_tokens: int) -> None:
        self.policy, self.max_tokens, self.count = policy, max_tokens, 0
        # of the document of each split that has not ended yet
        self.lengths: Counter[str] = Counter()
        self.waiting: dict[str, list[Encoded]] = {"train": [], "val": []}

    def filter(self, split: str, encoded: list[Encoded]) -> list[Encoded]:
        """The chunks that stay. Under "drop" and "error", those of an unfinished document wait for its end."""
        kept, waiting = [], self.waiting[split]
        for chunk, ids in encoded:
            waiting.append((chunk, ids))
            self.lengths[split] += len(ids)
            is_too_long = self.lengths[split] > self.max_tokens
            if is_too_long and self.policy == "error":
                raise UsageError(
                    f"a document has more than {self.max_tokens:,} tokens; --overflow=split keeps such, --overflow=drop"
                    f" leaves them out. It begins {waiting[0][0].text[:60]!r}"
                )
            if is_too_long and self.policy == "drop":
                waiting.clear()
            if chunk.is_last or self.policy == "split":
                kept += waiting
                waiting.clear()
            if chunk.is_last:
                self.count += is_too_long
                self.lengths[split] = 0
        return kept

    def flush(self) -> Iterator[tuple[str, list[Encoded]]]:
        """(split, chunks) of a document that has no end in its split, because val begins within it."""
        for split, waiting in self.waiting.items():
            self.count += self.lengths[split] > self.max_tokens
            if waiting:
                yield split, waiting

    def facts(self) -> dict[str, int]:
        """The entry of meta.json."""
        return {"kept" if self.policy == "split" else "dropped": self.count, "max_tokens": self.max_tokens}
