"""Passages that two texts share."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from finetune.data.verbatim import HashIndex
from finetune.tools.doctor.near_duplicates import Words, combine
from finetune.tools.doctor.words import split_words

PASSAGE = 50  # words
MAX_EXCERPTS = 100
WINDOW = 25  # every passage of 2 x 25 - 1 words contains one of the windows that begin at each 25th word
MAX_PASSAGE_WORDS = 10_000_000  # of the text whose passages are searched for, 4 bytes each

Windows = tuple[np.ndarray, np.ndarray]  # the places of shared windows in another text, and their places in the text


class Shared(NamedTuple):
    """A passage of `length` words at word `here` of the searched text, in its `document` (from 1), and at word `there`
    of another text."""

    document: int
    here: int
    there: int
    length: int


class Passages:
    """A text, and which of its passages of PASSAGE words or more stand in other texts. A passage that stands in it
    twice counts once."""

    def __init__(self) -> None:
        self.words = array("I")  # hashes
        self.starts = array("Q")  # of its documents
        self.skipped = self.excerpts = 0

    def add(self, hashes: np.ndarray, starts: np.ndarray) -> None:
        """Append words, given where documents start among them. Words beyond MAX_PASSAGE_WORDS are skipped."""
        self.starts.frombytes((starts + len(self.words)).astype(np.uint64).tobytes())
        fit = hashes[: MAX_PASSAGE_WORDS - len(self.words)]
        self.words.frombytes(fit.tobytes())
        self.skipped += len(hashes) - len(fit)

    @cached_property
    def text(self) -> np.ndarray:
        return np.frombuffer(self.words, np.uint32)

    @cached_property
    def is_shared(self) -> np.ndarray:
        return np.zeros(len(self.text), bool)

    @cached_property
    def windows(self) -> HashIndex:
        grid = self.text[: len(self.text) // WINDOW * WINDOW].reshape(-1, 5, 5)
        fives = combine([grid[:, :, k] for k in range(5)])
        return HashIndex(combine([fives[:, k] for k in range(5)]))

    def may_share(self, words: Words, ends: np.ndarray) -> np.ndarray:
        """The numbers of documents that perhaps share a passage, given their words and where those of each end."""
        places, _ = self.windows_in(words)
        documents = np.searchsorted(ends, places, side="right")
        return np.unique(documents[places + WINDOW <= ends[documents]]) if len(places) else documents

    def find(self, hashes: np.ndarray, windows: Windows | None = None) -> list[Shared]:
        """The passages shared with another text, given the hashes of its words, and its shared windows if known."""
        there, here = windows or self.windows_in(Words.of(hashes))
        is_new = ~self.is_shared[here[:, None] + np.arange(WINDOW)].all(1)
        passages, covered = [], set()
        for i, j in zip(there[is_new].tolist(), here[is_new].tolist()):
            if j in covered:
                continue
            before = _agreement(hashes[:i][::-1], self.text[:j][::-1])
            length = before + _agreement(hashes[i:], self.text[j:])
            if length >= PASSAGE:
                document = int(np.searchsorted(self.starts, j, side="right"))
                passages.append(Shared(document, j - before, i - before, length))
                covered.update(range(j, j - before + length - WINDOW + 1, WINDOW))
        return passages

    def windows_in(self, words: Words) -> Windows:
        """The shared windows of another text."""
        if len(words.hashes) < WINDOW or len(self.text) < PASSAGE:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        fives = words.fives
        windows = combine([fives[5 * k : len(fives) - 5 * (4 - k)] for k in range(5)])
        places, index = self.windows.find(windows)
        return places, WINDOW * self.windows.first[index]

    def excerpt(self, texts: Sequence[str], start: int) -> str:
        """Some words of a passage from word `start` of the texts on, for the first examples; then "" to save time."""
        if self.excerpts >= MAX_EXCERPTS:
            return ""
        self.excerpts += 1
        return " ".join(split_words("\n".join(texts))[start : start + 12])

    def mark(self, passage: Shared) -> None:
        self.is_shared[passage.here : passage.here + passage.length] = True

    def count(self) -> tuple[int, int]:
        """(number of passages marked, words in them)"""
        begins = self.is_shared.copy()
        begins[1:] &= ~self.is_shared[:-1]
        starts = np.frombuffer(self.starts, np.uint64).astype(np.int64)
        starts = starts[starts < len(begins)]
        begins[starts] |= self.is_shared[starts]
        return int(begins.sum()), int(self.is_shared.sum())


def _agreement(one: np.ndarray, other: np.ndarray) -> int:
    """How many values the two have in common at their beginning."""
    size = min(len(one), len(other))
    for start in range(0, size, 256):
        part = slice(start, min(start + 256, size))
        differs = one[part] != other[part]
        if differs.any():
            return start + int(differs.argmax())
    return size
