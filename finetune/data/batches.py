"""Blocks to batches. Which rows an iteration reads is a function of (seed, iteration), never of what was read
before."""

import bisect
import itertools

import numpy as np
import torch

from finetune.data import arrow_cache

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
            filled = np.zeros(arrow_cache.num_rows(len(ids), block_size) * block_size + 1, dtype=values.dtype)
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
            chosen = to_device(torch.as_tensor(np.asarray(rows)), device)
            return tuple(None if column is None else column[chosen].long() for column in self.resident)
        ids = self._gathered("input_ids", rows)
        idx, targets = ids[:, :-1], ids[:, 1:]
        if "targets" in self.columns:
            targets = targets.masked_fill(self._gathered("targets", rows)[:, 1:] == 0, IGNORE)
        if self.filling and (last := [i for i, row in enumerate(rows) if row == self.num_rows - 1]):
            targets = targets.clone()
            targets[last, -self.filling :] = IGNORE
        position_ids = to_device(self._gathered("position_ids", rows)[:, :-1], device) if self.is_isolated else None
        return to_device(idx, device), to_device(targets, device), position_ids

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
        order = to_device(torch.from_numpy(np.argsort(np.concatenate([places for _, places, _ in shares]))), device)
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


def to_device(tensor, device):
    """A copy on the device; on a GPU without waiting for it."""
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return (
        tensor.contiguous().pin_memory().to(device, non_blocking=True)
    )  # a copy of anything else waits for what the GPU does
