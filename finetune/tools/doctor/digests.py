"""Digests of documents and the numbers of the documents, 20 bytes each."""

from __future__ import annotations

import numpy as np

RECENT = 1 << 17  # kept in a dictionary, some 150 bytes each


class Run:
    """Digests in their order."""

    def __init__(self, high: np.ndarray, low: np.ndarray, numbers: np.ndarray) -> None:
        order = np.argsort(high)
        self.high, self.low, self.numbers = high[order], low[order], numbers[order]

    def find(self, high: np.ndarray, low: np.ndarray) -> np.ndarray:
        """The number of the document of each digest, 0 if it is not here."""
        places = np.searchsorted(self.high, high).clip(max=len(self.high) - 1)
        is_equal = (self.high[places] == high) & (self.low[places] == low)
        return np.where(is_equal, self.numbers[places], 0)


class Digests:
    """A number for each digest of 16 bytes."""

    def __init__(self, recent: int = RECENT) -> None:
        self.max_recent, self.recent = recent, dict[bytes, int]()
        self.runs: list[Run] = []  # each at least twice as long as the next

    def find(self, digests: list[bytes]) -> np.ndarray:
        """The number of each digest, 0 if there is none. Sorts the recent ones when they are many."""
        if len(self.recent) >= self.max_recent:
            self._sort_recent()
        found = np.fromiter((self.recent.get(digest, 0) for digest in digests), np.uint32, len(digests))
        if self.runs:
            halves = _halves(digests)
            for run in self.runs:
                found |= run.find(*halves)
        return found

    def _sort_recent(self) -> None:
        numbers = np.fromiter(self.recent.values(), np.uint32, len(self.recent))
        new = Run(*_halves(list(self.recent)), numbers)
        while self.runs and len(self.runs[-1].high) < 2 * len(new.high):
            old = self.runs.pop()
            both = [
                np.concatenate(pair) for pair in zip((old.high, old.low, old.numbers), (new.high, new.low, new.numbers))
            ]
            new = Run(*both)
        self.runs.append(new)
        self.recent.clear()


def _halves(digests: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    pairs = np.frombuffer(b"".join(digests), "<u8").reshape(-1, 2)
    return pairs[:, 0].copy(), pairs[:, 1].copy()
