"""Blocks to batches. Which rows an iteration reads is a function of (seed, iteration), never of what was read before."""

import bisect
import itertools

import numpy as np
import torch

from finetune.data import cache

IGNORE = -100  # the target that cross entropy does not count


class Blocks:
    """One split as rows of T + 1 tokens, read without copying from the memory-mapped Arrow buffers.

    `chunks` are uint16 arrays (rows, T + 1), together all rows in order; `tokens` is the number of tokens of the split, which says
    how much of the last row is filling. `masks`, of the same shapes, are 1 where a token is a target; None is everywhere.
    """

    def __init__(self, chunks, tokens, masks=None):
        self.chunks, self.masks = chunks, masks
        self.block_size = chunks[0].shape[1] - 1
        self.starts = [0, *itertools.accumulate(len(chunk) for chunk in chunks)]
        self.num_rows = self.starts[-1]
        self.num_tokens = tokens
        self.filling = self.num_rows * self.block_size - (tokens - 1)  # targets of the last row that are not there
        self.counts = None if masks is None else np.concatenate([mask[:, 1:].sum(1, dtype=np.int64) for mask in masks])  # targets of each row
        self.resident = self.resident_mask = None  # all of the split on a device

    @classmethod
    def from_arrow(cls, opened, tokens):
        """The blocks of an Arrow cache (`cache.open_cache`) of a split of so many tokens."""
        columns = {}
        for name in opened.column_names:
            chunks = opened.data.column(name).chunks
            columns[name] = [chunk.flatten().to_numpy(zero_copy_only=True).reshape(len(chunk), -1) for chunk in chunks if len(chunk)]
        return cls(columns["input_ids"], tokens, columns.get("targets"))

    @classmethod
    def from_tokens(cls, ids, block_size, mask=None):
        """The same blocks straight from an array of ids, without a cache."""

        def rows(values):
            filled = np.zeros(cache.num_rows(len(ids), block_size) * block_size + 1, dtype=values.dtype)
            filled[: len(values)] = values
            return [np.lib.stride_tricks.sliding_window_view(filled, block_size + 1)[::block_size]]

        return cls(rows(np.asarray(ids, dtype=np.uint16)), len(ids), None if mask is None else rows(np.asarray(mask, dtype=np.uint8)))

    def keep_on(self, device):
        """Copy the split to a device, 4 bytes a token, which from then on gathers its batches itself."""

        def all_of(chunks):
            return np.concatenate([chunk[:, :-1].reshape(-1) for chunk in chunks] + [chunks[-1][-1, -1:]])

        self.resident = torch.from_numpy(all_of(self.chunks).astype(np.int32)).to(device)
        if self.masks is not None:
            self.resident_mask = torch.from_numpy(all_of(self.masks)).to(device)

    def batch(self, rows, device="cpu"):
        """`(idx, targets)` on the device, int64 (B, T) each; targets are the next tokens, -100 where none is to be learned. A GPU is
        given its batch without anybody waiting for it."""
        if self.resident is not None:
            first = sent(torch.as_tensor(np.asarray(rows) * self.block_size), device)
            places = first[:, None] + torch.arange(self.block_size + 1, device=device)
            ids, ignored = self.resident[places].long(), places[:, 1:] >= self.num_tokens
            if self.resident_mask is not None:
                ignored |= self.resident_mask[places[:, 1:]] == 0
            return ids[:, :-1], ids[:, 1:].masked_fill(ignored, IGNORE)
        out = torch.empty(len(rows), self.block_size + 1, dtype=torch.int64)
        rows_out = out.numpy()
        places = [(bisect.bisect_right(self.starts, row) - 1, row) for row in rows]
        for i, (chunk, row) in enumerate(places):
            rows_out[i] = self.chunks[chunk][row - self.starts[chunk]]
        idx, targets = out[:, :-1], out[:, 1:]
        if self.masks is not None:
            learned = np.stack([self.masks[chunk][row - self.starts[chunk], 1:] for chunk, row in places])
            targets = targets.masked_fill(torch.from_numpy(learned) == 0, IGNORE)
        if self.filling and (last := [i for i, row in enumerate(rows) if row == self.num_rows - 1]):
            targets = targets.clone()
            targets[last, -self.filling :] = IGNORE
        return sent(idx, device), sent(targets, device)

    def num_targets(self, rows):
        """How many tokens these rows predict."""
        rows = np.asarray(rows)
        if self.counts is not None:
            return int(self.counts[rows].sum())
        return int(rows.size * self.block_size - (rows == self.num_rows - 1).sum() * self.filling)


class Order:
    """The rows of every iteration: each pass over the data is a permutation of its own, and passes follow each other without a gap."""

    def __init__(self, num_rows, rows_per_iteration, seed):
        self.num_rows, self.rows_per_iteration, self.seed = num_rows, rows_per_iteration, seed
        self._permutations = {}

    def rows(self, iteration):
        """Row numbers of an iteration, (rows_per_iteration,)."""
        first = iteration * self.rows_per_iteration
        places = np.arange(first, first + self.rows_per_iteration)
        return np.concatenate(
            [self._permutation(p)[places[places // self.num_rows == p] % self.num_rows] for p in np.unique(places // self.num_rows)]
        )

    def _permutation(self, number):
        if number not in self._permutations:
            generator = np.random.Generator(np.random.PCG64([self.seed, number]))
            kept = {n: order for n, order in self._permutations.items() if n >= number - 1}  # an iteration can straddle two passes
            self._permutations = {**kept, number: generator.permutation(self.num_rows)}
        return self._permutations[number]


def sent(tensor, device):
    """A copy on the device; on a GPU without waiting for it."""
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.contiguous().pin_memory().to(device, non_blocking=True)  # a copy of anything else waits for what the GPU does
