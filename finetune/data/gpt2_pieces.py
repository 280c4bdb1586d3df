"""Texts cut into the pieces of GPT-2's pre-tokenizer, many at a time by numpy.

Byte-level BPE encodes each piece by itself: a word, a number or other characters with the space before them, white
space, or the end of a word like 's."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

SPACE, OTHER_SPACE, LETTER, NUMBER, OTHER, END, UNKNOWN = range(7)
WHITE_SPACE = [*range(9, 14), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000]
SINGLE, DOUBLE = "sdmt", ("ll", "ve", "re")  # what may follow an apostrophe


class Pieces(NamedTuple):
    """Pieces of texts: `data` is the UTF-8 of all texts, with 16 bytes behind them."""

    data: bytes
    starts: np.ndarray  # of each piece in `data`, int64
    sizes: np.ndarray  # its bytes, int64
    ends: np.ndarray  # number of pieces up to the end of each text, int64


@cache
def _classes() -> np.ndarray:
    """The class of each code point. UNKNOWN are those without a meaning yet, which another Unicode may give them."""
    names = "".join(map(unicodedata.category, map(chr, range(sys.maxunicode + 1))))
    first, second = np.frombuffer(names.encode(), np.uint8).reshape(-1, 2).T
    classes = np.full(len(first), OTHER, np.uint8)
    classes[first == ord("L")] = LETTER
    classes[first == ord("N")] = NUMBER
    classes[(first == ord("C")) & ((second == ord("n")) | (second == ord("s")))] = UNKNOWN
    classes[WHITE_SPACE] = OTHER_SPACE
    classes[0x20] = SPACE
    return classes


def cut_texts(texts: Sequence[str]) -> Pieces | None:
    """The Pieces of texts, None if a character is UNKNOWN."""
    joined = "\n".join(["", *texts, ""])
    borders = np.cumsum([0, *(len(text) + 1 for text in texts)])  # the line ends around the texts
    is_ascii = joined.isascii()
    encoded = joined.encode("ascii" if is_ascii else "utf-32-le", "surrogatepass")
    points = np.frombuffer(encoded, np.uint8 if is_ascii else "<u4")
    classes = np.take(_classes(), points, mode="clip")
    if not is_ascii and (classes == UNKNOWN).any():
        return None
    classes[borders] = END
    places = np.flatnonzero(_starts(points, classes))
    ends = np.searchsorted(places, borders)
    if not is_ascii:  # from characters to bytes
        sizes = 1 + (points >= 0x80) + (points >= 0x800).view(np.uint8) + (points >= 0x10000).view(np.uint8)
        places = (np.cumsum(sizes) - sizes)[places]
    is_piece = np.ones(len(places) - 1, bool)
    is_piece[ends[:-1]] = False
    numbers = ends[1:] - np.arange(1, len(ends))
    return Pieces(joined.encode() + bytes(16), places[:-1][is_piece], np.diff(places)[is_piece], numbers)


def _starts(points: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Whether each character begins a piece, or is an END."""
    is_space, is_end = classes <= OTHER_SPACE, classes == END
    before, after = classes[:-1], classes[1:]
    starts = is_end.copy()
    # characters of a class, if no space before belongs to them
    starts[1:] |= ~is_space[1:] & (before != after) & (before != SPACE)
    # white space, and its last character again if something follows it
    starts[1:] |= is_space[1:] & ~is_space[:-1]
    starts[:-1] |= is_space[:-1] & ~is_space[1:] & ~is_end[1:]
    quotes = np.flatnonzero((points == ord("'")) & starts)
    if len(quotes):
        padded = np.append(points, np.zeros(3, points.dtype))
        first, second = padded[quotes + 1], padded[quotes + 2]
        is_single = np.isin(first, [ord(letter) for letter in SINGLE])
        is_double = np.zeros(len(quotes), bool)
        for one, two in DOUBLE:
            is_double |= (first == ord(one)) & (second == ord(two))
        starts[quotes[is_single | is_double] + 1] = False
        starts[quotes[is_single] + 2] = True
        starts[quotes[is_double] + 3] = True
    return starts
