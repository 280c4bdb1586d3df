"""Many texts as one array of code points, with the class and the lower case of each."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

# Chinese, Japanese, Thai, Lao and Khmer are written without spaces: each character is a word
UNSPACED_RANGES = [(0x0E00, 0x0EFF), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x9FFF), (0xF900, 0xFAFF)]
ALL = 0x110000
# what follows the first byte of a character in UTF-8, as Latin-1 or Windows-1252 shows it
FOLLOWING = [*range(0x80, 0xC0), *map(ord, "€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ")]
# classes: bits of a byte
SPACE, UNSPACED, FAULT, LEAD, SHORT_LEAD, FOLLOWER = 1, 2, 4, 8, 16, 32


@cache
def _classes() -> np.ndarray:
    """The classes of each code point."""
    classes = np.zeros(ALL, np.uint8)
    classes[[point for point in range(0x3001) if chr(point).isspace()]] = SPACE
    for first, last in UNSPACED_RANGES:
        classes[first : last + 1] |= UNSPACED
    classes[[point for point in (*range(0x20), *range(0x7F, 0xA0), 0xFEFF, 0xFFFD) if point not in (9, 10)]] |= FAULT
    classes[0xC2:0xF5] |= LEAD
    classes[0xC2:0xC4] |= SHORT_LEAD
    classes[FOLLOWING] |= FOLLOWER
    return classes


@cache
def _lower_case() -> np.ndarray:
    """The lower case of each code point, as far as it is one code point."""
    every = np.arange(ALL, dtype="<u4").tobytes().decode("utf-32-le", "surrogatepass").replace("İ", "i")
    return np.frombuffer(every.lower().encode("utf-32-le", "surrogatepass"), "<u4")


class Characters(NamedTuple):
    """Texts one after the other, a line end before, between and behind them."""

    points: np.ndarray  # uint8 if all are ASCII, else uint32
    lowered: np.ndarray  # the same in lower case
    classes: np.ndarray  # uint8
    lengths: np.ndarray  # of the texts, int64

    @property
    def ends(self) -> np.ndarray:
        return (self.lengths + 1).cumsum()

    @property
    def are_ascii(self) -> bool:
        return self.points.itemsize == 1


def characters_of(texts: Sequence[str]) -> Characters:
    joined = "\n".join(["", *texts, ""])
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    if joined.isascii():
        points = np.frombuffer(joined.encode(), np.uint8)
        classes = (points <= ord(" ")).view(np.uint8)  # SPACE is 1
        return Characters(points, np.frombuffer(joined.lower().encode(), np.uint8), classes, lengths)
    points = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), "<u4")
    lowered, classes = (np.take(table, points, mode="clip") for table in (_lower_case(), _classes()))
    return Characters(points, lowered, classes, lengths)


def texts_with_faults(characters: Characters) -> list[int]:
    """The texts that `repair` may change, by their numbers; it has nothing to do in the others."""
    points, classes = characters.points, characters.classes
    if characters.are_ascii:
        is_fault = ((points < 0x20) & (points != 9) & (points != 10)) | (points == 0x7F)
    else:
        is_fault = (classes & FAULT) != 0
        is_fault[:-1] |= ((classes[:-1] & LEAD) != 0) & ((classes[1:] & FOLLOWER) != 0)
        is_fault[:-1] |= ((classes[:-1] & SHORT_LEAD) != 0) & (points[1:] == ord(" "))
    if not is_fault.any():
        return []
    return np.unique(np.searchsorted(characters.ends, np.flatnonzero(is_fault), side="right")).tolist()
