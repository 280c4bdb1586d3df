"""Documents packed into rows of T + 1 tokens, which predict T of them.

Documents that fit stay whole. A longer one is cut into pieces that share one token, so that every token but a
document's first is predicted exactly once."""

from __future__ import annotations

import numpy as np

GROUP_SIZE = 1 << 16  # pieces that are packed with each other, so that a row's tokens lie near each other in the bin


def pack(
    ends: np.ndarray, row_tokens: int, is_target: np.ndarray | None = None, group_size: int = GROUP_SIZE
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`(first, length, row)` of all pieces, int64 arrays, ordered by row and within a row as in the bin.

    `ends` are the document ends in a bin (behind their last token), `row_tokens` is T + 1. Best fit decreasing within
    each group of pieces. Pieces without a target, according to the mask `is_target`, are left out."""
    first, length = _pieces(ends, row_tokens)
    if is_target is not None:
        spans = zip(first.tolist(), length.tolist())
        has_target = np.array([is_target[start + 1 : start + size].any() for start, size in spans], dtype=bool)
        first, length = first[has_target], length[has_target]
    row, num_rows = np.empty(len(first), dtype=np.int64), 0
    for start in range(0, len(first), group_size):
        group = slice(start, start + group_size)
        rows_of_group = _best_fit(length[group].tolist(), row_tokens)
        row[group] = np.asarray(rows_of_group, dtype=np.int64) + num_rows
        num_rows += 1 + max(rows_of_group)
    order = np.lexsort((first, row))
    return first[order], length[order], row[order]


def _pieces(ends: np.ndarray, row_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """`(first, length)` of the pieces of all documents. A single token predicts nothing and is left out."""
    starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)
    predicted = ends - starts - 1
    count = np.maximum(1, -(-predicted // (row_tokens - 1)))  # pieces of each document
    index = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)  # of a piece within its document
    first = np.repeat(starts, count) + index * (row_tokens - 1)
    length = np.minimum(row_tokens, np.repeat(ends, count) - first)
    return first[length > 1], length[length > 1]


def _best_fit(lengths: list[int], row_tokens: int) -> list[int]:
    """The row of each length: longest first, each into the row where it leaves the least space."""
    chosen, num_rows = [0] * len(lengths), 0
    rows_by_space: list[list[int]] = [[] for _ in range(row_tokens + 1)]
    spaces = 0  # bit n is set if some row has space for exactly n more tokens
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[i]
        if fitting := spaces >> length:
            space = length + (fitting & -fitting).bit_length() - 1  # the lowest bit that is set
            row = rows_by_space[space].pop()
            if not rows_by_space[space]:
                spaces ^= 1 << space
        else:
            row, space, num_rows = num_rows, row_tokens, num_rows + 1
        chosen[i] = row
        rows_by_space[space - length].append(row)
        spaces |= 1 << (space - length)
    return chosen
