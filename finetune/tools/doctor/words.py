"""The words of many texts as hashes."""

from __future__ import annotations

import re
import zlib

import numpy as np

from finetune.data.verbatim import PrefixHash
from finetune.tools.doctor.characters import SPACE, UNSPACED, UNSPACED_RANGES, Characters

PIECE = 1 << 16  # characters hashed at a time, so that the products stay in the cache
HASHING = PrefixHash(PIECE)
_UNSPACED = "".join(f"{chr(first)}-{chr(last)}" for first, last in UNSPACED_RANGES)
WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")


def split_words(text: str) -> list[str]:
    return text.split() if text.isascii() else WORD.findall(text)


def word_hashes(characters: Characters) -> tuple[np.ndarray, np.ndarray]:
    """A hash of each word whatever its case, uint32, and where each word starts, int64."""
    starts, ends = _bounds(characters)
    points = characters.lowered
    hashes = np.empty(len(starts), np.uint32)
    first = 0
    while first < len(starts):
        begin = int(starts[first])
        last = int(np.searchsorted(ends, begin + PIECE, side="right"))
        if last == first:  # a word longer than a piece
            hashes[first] = zlib.crc32(points[begin : ends[first]].astype("<u4").tobytes())
            first += 1
            continue
        prefix = HASHING.prefix(points[begin : ends[last - 1]])
        places, lengths = starts[first:last] - begin, ends[first:last] - starts[first:last]
        hashes[first:last] = HASHING.runs(prefix, places, lengths) >> np.uint64(32)
        first = last
    return hashes, starts


def _bounds(characters: Characters) -> tuple[np.ndarray, np.ndarray]:
    """Where each word starts and ends."""
    classes = characters.classes
    is_word = (classes & SPACE) == 0
    is_bound = is_word[1:] != is_word[:-1]
    if not characters.are_ascii:
        is_alone = (classes & UNSPACED) != 0
        is_bound |= is_alone[1:]
        is_bound |= is_alone[:-1]
    return np.flatnonzero(is_bound & is_word[1:]) + 1, np.flatnonzero(is_bound & is_word[:-1]) + 1
