"""Blocks to batches. Which rows an iteration reads is a function of (seed, iteration), never of what was read
before."""

import bisect
import itertools

import numpy as np
import torch

from finetune.data import cache

IGNORE = -100  # the target that cross entropy does not count


class Blocks:
    """One split as rows of T + 1 tokens, read without copying from the memory-mapped Arrow buffers.

    `columns` are lists of arrays (rows, T + 1), each list together all rows in order: "input_ids" in uint16; "targets",
    1 where a token is one, without which all are; "position_ids", which begin again with each document, where documents
    are isolated. `tokens` is the number of tokens of the split; in rows that were not packed it says how much of the
    last one is filling."""

    def __init__(self, columns, tokens):
        self.columns = columns
        ids, targets = columns["input_ids"], columns.get("targets")
        self.block_size = ids[0].shape[1] - 1
        self.starts = [0, *itertools.accumulate(len(chunk) for chunk in ids)]
        self.num_rows = self.starts[-1]
        self.num_tokens = tokens
        # targets of the last row that are not there
        self.filling = 0 if self.is_isolated else self.num_rows * self.block_size - (tokens - 1)
        self.counts = (
            None if targets is None else np.concatenate([chunk[:, 1:].sum(1, dtype=np.int64) for chunk in targets])
        )  # of each row
        self.resident = None  # all batches there can be, on a device

    @property
    def is_isolated(self):
        return "position_ids" in self.columns

    @classmethod
    def from_arrow(cls, opened, tokens):
        """The blocks of an Arrow cache (`cache.open_cache`) of a split of so many tokens."""
        columns = {}
        for name in opened.column_names:
            chunks = opened.data.column(name).chunks
            columns[name] = [
                chunk.flatten().to_numpy(zero_copy_only=True).reshape(len(chunk), -1) for chunk in chunks if len(chunk)
            ]
        return cls(columns, tokens)

    @classmethod
    def from_tokens(cls, ids, block_size, mask=None):
        """The same blocks straight from an array of ids, without a cache."""

        def rows(values):
            filled = np.zeros(cache.num_rows(len(ids), block_size) * block_size + 1, dtype=values.dtype)
            filled[: len(values)] = values
            return [np.lib.stride_tricks.sliding_window_view(filled, block_size + 1)[::block_size]]

        columns = {"input_ids": rows(np.asarray(ids, dtype=np.uint16))}
        return cls(columns | ({} if mask is None else {"targets": rows(np.asarray(mask, dtype=np.uint8))}), len(ids))

    def keep_on(self, device):
        """Copy the split to a device, 8 bytes a token and 12 where documents are isolated, which from then on gathers
        its batches itself."""
        parts = [self.batch(range(first, min(first + 1024, self.num_rows))) for first in range(0, self.num_rows, 1024)]
        self.resident = [
            None if column[0] is None else torch.cat([part.int() for part in column]).to(device)
            for column in zip(*parts)
        ]

    def batch(self, rows, device="cpu"):
        """`(idx, targets, position_ids)` on the device, int64 (B, T) each. Targets are the next tokens, -100 where none
        is to be learned; position_ids are None unless documents are isolated. A GPU is given its batch without anybody
        waiting for it."""
        if self.resident is not None:
            chosen = sent(torch.as_tensor(np.asarray(rows)), device)
            return tuple(None if column is None else column[chosen].long() for column in self.resident)
        ids = self._gathered("input_ids", rows)
        idx, targets = ids[:, :-1], ids[:, 1:]
        if "targets" in self.columns:
            targets = targets.masked_fill(self._gathered("targets", rows)[:, 1:] == 0, IGNORE)
        if self.filling and (last := [i for i, row in enumerate(rows) if row == self.num_rows - 1]):
            targets = targets.clone()
            targets[last, -self.filling :] = IGNORE
        position_ids = sent(self._gathered("position_ids", rows)[:, :-1], device) if self.is_isolated else None
        return sent(idx, device), sent(targets, device), position_ids

    def _gathered(self, name, rows):
        """Some rows of a column, int64 (B, T + 1)."""
        out = torch.empty(len(rows), self.block_size + 1, dtype=torch.int64)
        rows_out, chunks = out.numpy(), self.columns[name]
        for i, row in enumerate(rows):
            chunk = bisect.bisect_right(self.starts, row) - 1
            rows_out[i] = chunks[chunk][row - self.starts[chunk]]
        return out

    def rows_with_targets(self):
        """The numbers of the rows that predict any token."""
        return np.arange(self.num_rows) if self.counts is None else np.flatnonzero(self.counts)

    def num_targets(self, rows):
        """How many tokens these rows predict."""
        rows = np.asarray(rows)
        if self.counts is not None:
            return int(self.counts[rows].sum())
        return int(rows.size * self.block_size - (rows == self.num_rows - 1).sum() * self.filling)


class Mixture:
    """The rows of several splits, one after the other, as if they were one `Blocks`."""

    def __init__(self, parts):
        self.parts = parts
        self.block_size, self.is_isolated = parts[0].block_size, parts[0].is_isolated
        self.starts = [0, *itertools.accumulate(part.num_rows for part in parts)]
        self.num_rows, self.num_tokens = self.starts[-1], sum(part.num_tokens for part in parts)

    def keep_on(self, device):
        for part in self.parts:
            part.keep_on(device)

    def batch(self, rows, device="cpu"):
        """As `Blocks.batch`."""
        shares = self.shares(rows)
        batches = zip(*(self.parts[number].batch(there, device) for number, _, there in shares))
        order = sent(torch.from_numpy(np.argsort(np.concatenate([places for _, places, _ in shares]))), device)
        return tuple(None if column[0] is None else torch.cat(column)[order] for column in batches)

    def rows_with_targets(self):
        """As `Blocks.rows_with_targets`."""
        return np.concatenate([part.rows_with_targets() + first for part, first in zip(self.parts, self.starts)])

    def num_targets(self, rows):
        """As `Blocks.num_targets`."""
        return sum(self.parts[number].num_targets(there) for number, _, there in self.shares(rows))

    def shares(self, rows):
        """[(number of a part, which of `rows` are its own, their numbers there)] of the parts that have any."""
        rows = np.asarray(rows)
        owners = np.searchsorted(self.starts, rows, side="right") - 1
        return [
            (number, places, rows[places] - self.starts[number])
            for number in np.unique(owners)
            for places in [np.flatnonzero(owners == number)]
        ]


class Order:
    """The rows of every iteration: each pass over the data is a permutation of its own, and passes follow each other
    without a gap."""

    def __init__(self, num_rows, rows_per_iteration, seed):
        self.rows_per_iteration = rows_per_iteration
        self.passes = Passes(num_rows, seed)

    def rows(self, iteration):
        """Row numbers of an iteration, (rows_per_iteration,)."""
        first = iteration * self.rows_per_iteration
        return self.passes.rows(np.arange(first, first + self.rows_per_iteration))


class WeightedOrder:
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
        self.passes = [Passes(size, seed, part) for part, size in enumerate(sizes)]
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


class Passes:
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


def sent(tensor, device):
    """A copy on the device; on a GPU without waiting for it."""
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return (
        tensor.contiguous().pin_memory().to(device, non_blocking=True)
    )  # a copy of anything else waits for what the GPU does
