"""Byte-level BPE of many texts at a time: each piece is encoded once by tiktoken and then looked up, whole, not by a
hash alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np

from finetune.data.gpt2_pieces import Pieces, cut_texts

MAX_BYTES = 16  # of a piece that is kept: two uint64
SLOTS, WAYS = 1 << 18, 4  # places for pieces; those where a piece may lie
MULTIPLIERS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F], np.uint64)
# the bytes of an uint64 that belong to a piece of 0 to 8 bytes
MASKS = np.array([(1 << 8 * size) - 1 for size in range(9)], np.uint64)
PROBE = "The king's  2024 plans,\n\n they'll say: \t'tis naïve—東京! \r\n x_1'S we've\u00a0gone  "

Encode = Callable[[str], Sequence[int]]


class FastEncoder:
    """Gives the ids that `encode`, of GPT-2's pre-tokenizer, gives. Each thread keeps pieces of its own."""

    def __init__(self, encode: Encode, dtype: np.dtype) -> None:
        self.encode, self.dtype, self.of_thread = encode, dtype, threading.local()

    def encode_many(self, texts: Sequence[str]) -> list[np.ndarray] | None:
        """The ids of each text; None if one has characters that are not known well enough."""
        pieces = cut_texts(texts)
        if pieces is None or not texts:
            return None if texts else []
        if not hasattr(self.of_thread, "table"):
            self.of_thread.table = _Table(self.encode, self.dtype)
        ids, piece_ends = self.of_thread.table.ids_of(pieces)
        return np.split(ids, np.append(0, piece_ends)[pieces.ends[:-1]])

    def is_exact(self) -> bool:
        """Whether a text with every kind of piece gets the ids that it should."""
        found = self.encode_many([PROBE])
        return found is not None and found[0].tolist() == list(self.encode(PROBE))


class _Table:
    """Pieces and their ids."""

    def __init__(self, encode: Encode, dtype: np.dtype) -> None:
        self.encode = encode
        self.low, self.high = np.zeros(SLOTS, np.uint64), np.zeros(SLOTS, np.uint64)  # the bytes of a piece
        self.sizes = np.zeros(SLOTS, np.uint8)  # its bytes; 0 is none
        self.starts, self.counts = np.zeros(SLOTS, np.int32), np.zeros(SLOTS, np.uint8)  # of its ids among `ids`
        self.ids, self.used = np.zeros(2 * SLOTS, dtype), 0

    def ids_of(self, pieces: Pieces) -> tuple[np.ndarray, np.ndarray]:
        """The ids of all pieces, and where those of each end."""
        words = np.ndarray(len(pieces.data) - 7, "<u8", pieces.data, strides=(1,))
        sizes = pieces.sizes
        low = words[pieces.starts] & np.take(MASKS, sizes, mode="clip")
        high = words[pieces.starts + 8] & np.take(MASKS, (sizes - 8).clip(0), mode="clip")
        slots = self._find(low, high, sizes)
        if len(unknown := np.flatnonzero(slots < 0)):
            self._learn(pieces, unknown, low, high)
            slots[unknown] = self._find(low[unknown], high[unknown], sizes[unknown])
        counts, starts = self.counts[slots].astype(np.int64), self.starts[slots].astype(np.int64)
        pool, unknown = self.ids, np.flatnonzero(slots < 0)
        if len(unknown):
            each = [np.array(self._encode(pieces, i), pool.dtype) for i in unknown.tolist()]
            counts[unknown] = [len(ids) for ids in each]
            starts[unknown] = len(pool) + counts[unknown].cumsum() - counts[unknown]
            pool = np.concatenate([pool, *each])
        ends = counts.cumsum()
        places = np.repeat(starts - (ends - counts), counts)
        places += np.arange(len(places))
        return np.take(pool, places, mode="clip"), ends

    def _find(self, low: np.ndarray, high: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """The slot of each piece, -1 if it is not here."""
        first = _first_slots(low, high)
        slots = np.where(self._holds(first, low, high, sizes), first, -1)
        for way in range(1, WAYS):
            left = np.flatnonzero(slots < 0)
            if not len(left):
                break
            tried = first[left] ^ way
            is_here = self._holds(tried, low[left], high[left], sizes[left])
            slots[left[is_here]] = tried[is_here]
        return slots

    def _holds(self, slots: np.ndarray, low: np.ndarray, high: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        return (self.low[slots] == low) & (self.high[slots] == high) & (self.sizes[slots] == sizes)

    def _learn(self, pieces: Pieces, unknown: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
        """Add pieces that are not too long, as far as their slots are free."""
        unknown = unknown[pieces.sizes[unknown] <= MAX_BYTES]
        _, first_of_each = np.unique(np.stack([low[unknown], high[unknown]]), axis=1, return_index=True)
        unknown = unknown[first_of_each]
        for i, first in zip(unknown.tolist(), _first_slots(low[unknown], high[unknown]).tolist()):
            free = next((first ^ way for way in range(WAYS) if not self.sizes[first ^ way]), None)
            ids = self._encode(pieces, i)
            if free is None or self.used + len(ids) > len(self.ids):
                continue
            self.ids[self.used : self.used + len(ids)] = ids
            self.low[free], self.high[free], self.sizes[free] = low[i], high[i], pieces.sizes[i]
            self.starts[free], self.counts[free] = self.used, len(ids)
            self.used += len(ids)

    def _encode(self, pieces: Pieces, i: int) -> Sequence[int]:
        start = pieces.starts[i]
        return self.encode(pieces.data[start : start + pieces.sizes[i]].decode())


def _first_slots(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    mixed = (low * MULTIPLIERS[0]) ^ (high * MULTIPLIERS[1])
    mixed ^= mixed >> np.uint64(32)
    mixed *= MULTIPLIERS[0]
    return (mixed >> np.uint64(64 - SLOTS.bit_length() + 1)).astype(np.int64)
