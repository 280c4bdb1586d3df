"""Which rows an update reads: a function of the seed and the iteration, never of what was read before."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class BlockSampler:
    """The rows of every iteration: epoch after epoch without a gap, each in its own random order."""

    def __init__(self, num_rows: int, rows_per_iteration: int, seed: int) -> None:
        self.rows_per_iteration = rows_per_iteration
        self.epochs = EpochPermutations(num_rows, seed)

    def rows(self, iteration: int) -> np.ndarray:
        """Row numbers of an iteration, int64 (rows_per_iteration,)."""
        first = iteration * self.rows_per_iteration
        return self.epochs.rows(np.arange(first, first + self.rows_per_iteration))


class MixtureSampler:
    """The rows of every iteration of a `ConcatBlocks` whose parts are drawn in proportion to `weights`.

    Each CYCLE of rows holds its exact share of every part, in random order. A part's rows come epoch by epoch."""

    CYCLE = 1000

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], rows_per_iteration: int, seed: int) -> None:
        self.counts = self._rows_per_cycle(np.asarray(weights))
        self.first_rows = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        self.epochs = [EpochPermutations(size, seed, part) for part, size in enumerate(sizes)]
        self.rows_per_iteration, self.seed = rows_per_iteration, seed

    def rows(self, iteration: int) -> np.ndarray:
        """Row numbers of an iteration, int64 (rows_per_iteration,)."""
        first = iteration * self.rows_per_iteration
        end = first + self.rows_per_iteration
        first_cycle, end_cycle = first // self.CYCLE, -(-end // self.CYCLE)
        parts = np.concatenate([self._parts(cycle) for cycle in range(first_cycle, end_cycle)])
        offset = first - first_cycle * self.CYCLE
        before, parts = parts[:offset], parts[offset : offset + self.rows_per_iteration]
        rows = np.empty(len(parts), dtype=np.int64)
        for part in np.unique(parts):
            mine = parts == part
            drawn = first_cycle * self.counts[part] + np.count_nonzero(before == part)  # rows of this part so far
            rows[mine] = self.first_rows[part] + self.epochs[part].rows(drawn + np.arange(mine.sum()))
        return rows

    def _rows_per_cycle(self, weights: np.ndarray) -> np.ndarray:
        """How many of CYCLE rows each part gets, int64: its share rounded, at least one, CYCLE in all."""
        exact = weights / sum(weights) * self.CYCLE
        counts = np.maximum(1, exact.astype(np.int64))
        most_lost_first = np.argsort(counts - exact, kind="stable")  # by rounding down
        counts[most_lost_first[: max(0, self.CYCLE - counts.sum())]] += 1
        counts[np.argmax(counts)] += self.CYCLE - counts.sum()
        return counts

    def _parts(self, cycle: int) -> np.ndarray:
        """The part of each row of a cycle, (CYCLE,)."""
        generator = np.random.Generator(np.random.PCG64([self.seed, cycle]))
        return generator.permutation(np.repeat(np.arange(len(self.counts)), self.counts))


class EpochPermutations:
    """Epoch after epoch over `num_rows` rows. The order within an epoch depends on the seeds and its number."""

    def __init__(self, num_rows: int, *seeds: int) -> None:
        self.num_rows, self.seeds = num_rows, seeds
        self._permutations: dict[int, np.ndarray] = {}

    def rows(self, places: np.ndarray) -> np.ndarray:
        """The rows at ascending places, counted from the start of the first epoch, int64 (len(places),)."""
        epochs = places // self.num_rows
        rows = []
        for epoch in np.unique(epochs).tolist():
            rows.append(self._permutation(epoch)[places[epochs == epoch] % self.num_rows])
        return np.concatenate(rows)

    def _permutation(self, epoch: int) -> np.ndarray:
        if epoch not in self._permutations:
            generator = np.random.Generator(np.random.PCG64([*self.seeds, epoch]))
            # an iteration can straddle two epochs
            recent = {number: rows for number, rows in self._permutations.items() if number >= epoch - 1}
            self._permutations = {**recent, epoch: generator.permutation(self.num_rows)}
        return self._permutations[epoch]
