"""Rows of tokens to batches. `sampler` says which rows an update reads.

Shapes: B rows of a batch, T tokens of a block."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from finetune.common.mapped import check_mapped, map_file
from finetune.data import arrow_cache

if TYPE_CHECKING:
    from datasets import Dataset as ArrowDataset

IGNORE_INDEX = -100  # targets that cross entropy skips; the same in gpt.loss, which data may not import

RowIndices = Sequence[int] | np.ndarray
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]  # idx, targets, position_ids


class Blocks:
    """A split as rows of T + 1 tokens: a block of T inputs and, shifted by one, its T targets.

    `columns` are memory-mapped arrays (rows, T + 1), each list together all rows of the split,
    and all columns are cut into arrays at the same rows:
        input_ids     uint16 or uint32
        targets       uint8 mask, 1 where a token is a target; absent if all are
        position_ids  uint16 or uint32, from 0 in each document; present only if documents are isolated
    Without isolation the rows are consecutive, and the last one ends with `padding` tokens that are no targets.
    The padding of isolated rows is 0 in the mask."""

    def __init__(self, columns: dict[str, list[np.ndarray]], num_tokens: int, path: str | None = None) -> None:
        chunks = columns["input_ids"]
        self.mapped = map_file(path) if path else None  # what the columns are parts of
        self.columns, self.num_tokens = columns, num_tokens
        self.block_size = chunks[0].shape[1] - 1
        self.row_offsets = [0, *itertools.accumulate(len(chunk) for chunk in chunks)]  # of each chunk, and the end
        self.num_rows = self.row_offsets[-1]
        self.padding = 0 if self.is_isolated else self.num_rows * self.block_size - (num_tokens - 1)
        self.targets_per_row = None  # with a mask, which is scanned once here
        if "targets" in columns:
            self.targets_per_row = np.concatenate([chunk[:, 1:].sum(1, dtype=np.int64) for chunk in columns["targets"]])
        self.device_copy: Batch | None = None  # the batch of all rows in int32

    @property
    def is_isolated(self) -> bool:
        return "position_ids" in self.columns

    @classmethod
    def from_arrow(cls, cache: ArrowDataset, num_tokens: int) -> Blocks:
        """The blocks of an Arrow cache (`arrow_cache.open_cache`), read without copying."""
        columns = {}
        for name in cache.column_names:
            chunks = [chunk for chunk in cache.data.column(name).chunks if len(chunk)]
            columns[name] = [chunk.flatten().to_numpy(zero_copy_only=True).reshape(len(chunk), -1) for chunk in chunks]
        return cls(columns, num_tokens, cache.cache_files[0]["filename"])

    @classmethod
    def from_tokens(cls, ids: np.ndarray, block_size: int, target_mask: np.ndarray | None = None) -> Blocks:
        """The same blocks from arrays in memory, without a cache."""
        columns: dict[str, np.ndarray] = {"input_ids": np.asarray(ids)}
        if target_mask is not None:
            columns["targets"] = np.asarray(target_mask, dtype=np.uint8)
        rows = arrow_cache.num_rows(len(ids), block_size)
        # (num_rows, T + 1), overlapping by one
        cut = {name: [arrow_cache.consecutive_rows(values, rows, block_size)] for name, values in columns.items()}
        return cls(cut, len(ids))

    def cache_on_device(self, device: torch.device | str) -> None:
        """Copy all rows to `device`, where batches are gathered from then on: 8 bytes a token, 12 with position_ids."""
        batches = []
        for first in range(0, self.num_rows, 1024):
            batch = self.batch(range(first, min(first + 1024, self.num_rows)))
            batches.append(_map(torch.Tensor.int, batch))
        self.device_copy = _map(lambda column: column.to(device), _concatenate(batches))

    def batch(self, rows: RowIndices, device: torch.device | str = "cpu") -> Batch:
        """`(idx, targets, position_ids)` on `device`, int64 (B, T) each. Targets are the next tokens, or IGNORE_INDEX;
        position_ids are None unless documents are isolated. A copy to a GPU does not block the host."""
        rows = np.asarray(rows)
        if self.device_copy is not None:
            chosen = to_device(torch.from_numpy(rows), device)
            return _map(lambda column: column[chosen].long(), self.device_copy)
        if self.mapped is not None:
            check_mapped(self.mapped, "the Arrow cache")
        ids = self._gather("input_ids", rows)
        idx, targets, position_ids = ids[:, :-1], ids[:, 1:].clone(), None  # idx shares memory
        if "targets" in self.columns:
            targets[self._gather("targets", rows)[:, 1:] == 0] = IGNORE_INDEX
        if self.padding:
            is_last_row = torch.from_numpy(rows == self.num_rows - 1)
            targets[is_last_row, -self.padding :] = IGNORE_INDEX
        if self.is_isolated:
            position_ids = self._gather("position_ids", rows)[:, :-1]
        return _map(lambda column: to_device(column, device), (idx, targets, position_ids))

    def _gather(self, name: str, rows: np.ndarray) -> torch.Tensor:
        """Rows of a column, int64 (B, T + 1)."""
        gathered = np.empty((len(rows), self.block_size + 1), dtype=np.int64)
        for i, row in enumerate(rows.tolist()):
            chunk = bisect.bisect_right(self.row_offsets, row) - 1
            gathered[i] = self.columns[name][chunk][row - self.row_offsets[chunk]]
        return torch.from_numpy(gathered)

    def rows_with_targets(self) -> np.ndarray:
        """Indices of the rows that predict any token, int64."""
        if self.targets_per_row is None:
            return np.arange(self.num_rows)
        return np.flatnonzero(self.targets_per_row)

    def num_targets(self, rows: RowIndices) -> int:
        """How many tokens these rows predict."""
        rows = np.asarray(rows)
        if self.targets_per_row is not None:
            return int(self.targets_per_row[rows].sum())
        return int(rows.size * self.block_size - np.count_nonzero(rows == self.num_rows - 1) * self.padding)


class ConcatBlocks:
    """Several `Blocks` as one: the rows of the first part, then those of the second, and so on."""

    def __init__(self, parts: list[Blocks]) -> None:
        self.parts = parts
        self.block_size, self.is_isolated = parts[0].block_size, parts[0].is_isolated
        self.row_offsets = [0, *itertools.accumulate(part.num_rows for part in parts)]  # of each part, and the end
        self.num_rows = self.row_offsets[-1]
        self.num_tokens = sum(part.num_tokens for part in parts)

    def cache_on_device(self, device: torch.device | str) -> None:
        for part in self.parts:
            part.cache_on_device(device)

    def batch(self, rows: RowIndices, device: torch.device | str = "cpu") -> Batch:
        """As `Blocks.batch`."""
        rows_by_part = self.rows_by_part(rows)
        batches = [self.parts[part].batch(rows_of_part, device) for part, _, rows_of_part in rows_by_part]
        # back to the order of `rows`
        order = np.argsort(np.concatenate([positions for _, positions, _ in rows_by_part]))
        order = to_device(torch.from_numpy(order), device)
        return _map(lambda column: column[order], _concatenate(batches))

    def rows_with_targets(self) -> np.ndarray:
        """As `Blocks.rows_with_targets`."""
        return np.concatenate([part.rows_with_targets() + first for part, first in zip(self.parts, self.row_offsets)])

    def num_targets(self, rows: RowIndices) -> int:
        """As `Blocks.num_targets`."""
        return sum(self.parts[part].num_targets(rows_of_part) for part, _, rows_of_part in self.rows_by_part(rows))

    def rows_by_part(self, rows: RowIndices) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """`rows` by part: (index of the part, positions of its rows in `rows`, their indices within the part);
        parts without any are left out."""
        rows = np.asarray(rows)
        owners = np.searchsorted(self.row_offsets, rows, side="right") - 1
        rows_by_part = []
        for part in np.unique(owners).tolist():
            positions = np.flatnonzero(owners == part)
            rows_by_part.append((part, positions, rows[positions] - self.row_offsets[part]))
        return rows_by_part


def to_device(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """The tensor on `device`; to a GPU through pinned memory, which does not block the host."""
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.contiguous().pin_memory().to(device, non_blocking=True)


def _map(function: Callable[[torch.Tensor], torch.Tensor], batch: Batch) -> Batch:
    idx, targets, position_ids = batch
    return function(idx), function(targets), None if position_ids is None else function(position_ids)


def _concatenate(batches: list[Batch]) -> Batch:
    idx, targets, position_ids = zip(*batches)
    return torch.cat(idx), torch.cat(targets), None if position_ids[0] is None else torch.cat(position_ids)
