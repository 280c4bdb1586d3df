"""Which blocks an update reads: a function of the seed and the step."""

import numpy as np


class BlockSampler:
    """The rows of every iteration: each pass over the data is a permutation of its own, and passes follow each other
    without a gap."""

    def __init__(self, num_rows, rows_per_iteration, seed):
        self.rows_per_iteration = rows_per_iteration
        self.passes = EpochPermutations(num_rows, seed)

    def rows(self, iteration):
        """Row numbers of an iteration, (rows_per_iteration,)."""
        first = iteration * self.rows_per_iteration
        return self.passes.rows(np.arange(first, first + self.rows_per_iteration))


class MixtureSampler:
    """The rows of every iteration of a Mixture whose parts are drawn in proportion to `weights`, each part pass by
    pass.

    Of every CYCLE rows each part has its share exactly, in an order of their own.
    """

    CYCLE = 1000

    def __init__(self, sizes, weights, rows_per_iteration, seed):
        exact = np.asarray(weights) / sum(weights) * self.CYCLE
        self.counts = np.maximum(1, exact.astype(np.int64))
        lost = np.argsort(self.counts - exact, kind="stable")  # by rounding down, most first
        self.counts[lost[: max(0, self.CYCLE - self.counts.sum())]] += 1
        self.counts[np.argmax(self.counts)] += self.CYCLE - self.counts.sum()
        self.starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        self.passes = [EpochPermutations(size, seed, part) for part, size in enumerate(sizes)]
        self.rows_per_iteration, self.seed = rows_per_iteration, seed

    def rows(self, iteration):
        """Row numbers of an iteration, (rows_per_iteration,)."""
        first = iteration * self.rows_per_iteration
        end = first + self.rows_per_iteration
        cycles = range(first // self.CYCLE, -(-end // self.CYCLE))
        parts = np.concatenate([self._parts(cycle) for cycle in cycles])[first - cycles[0] * self.CYCLE :][
            : end - first
        ]
        begun = np.concatenate([self._parts(cycles[0])[: first % self.CYCLE]])
        rows = np.empty(len(parts), dtype=np.int64)
        for part in np.unique(parts):
            mine = parts == part
            drawn = cycles[0] * self.counts[part] + np.count_nonzero(begun == part)  # rows of this part so far
            rows[mine] = self.starts[part] + self.passes[part].rows(drawn + np.arange(mine.sum()))
        return rows

    def _parts(self, cycle):
        """Which part each row of a cycle is from, (CYCLE,)."""
        return np.random.Generator(np.random.PCG64([self.seed, cycle])).permutation(
            np.repeat(np.arange(len(self.counts)), self.counts)
        )


class EpochPermutations:
    """Pass after pass over `num_rows` rows, each in an order of its own that the seeds and its number decide."""

    def __init__(self, num_rows, *seeds):
        self.num_rows, self.seeds = num_rows, seeds
        self._permutations = {}

    def rows(self, places):
        """The rows at some ascending places, counted from the beginning of the first pass."""
        passes = places // self.num_rows
        return np.concatenate(
            [self._permutation(number)[places[passes == number] % self.num_rows] for number in np.unique(passes)]
        )

    def _permutation(self, number):
        if number not in self._permutations:
            generator = np.random.Generator(np.random.PCG64([*self.seeds, number]))
            kept = {
                n: order for n, order in self._permutations.items() if n >= number - 1
            }  # an iteration can straddle two passes
            self._permutations = {**kept, number: generator.permutation(self.num_rows)}
        return self._permutations[number]
