"""Documents into rows of a fixed length: whole where they fit, as full as can be, and never the same token twice.

A row of T + 1 tokens predicts T of them. A longer document is cut into pieces of T + 1 that share one token, so that
every token but a document's first is predicted exactly once."""

import numpy as np

TOGETHER = 1 << 16  # pieces that are packed with each other; what is packed lies near each other in the bin


def pack(ends, room, learned=None):
    """`(first, length, row)` of all pieces, int64 arrays in the order of rows and of the bin within a row.

    `ends` are where documents end in a bin (behind their last token), `room` is T + 1. Best fit decreasing among each
    TOGETHER pieces. Pieces without a target, where `learned` says what is one, are left out: nobody else sees them."""
    first, length = _pieces(ends, room)
    if learned is not None:
        some = np.array([learned[a + 1 : a + n].any() for a, n in zip(first.tolist(), length.tolist())], dtype=bool)
        first, length = first[some], length[some]
    row, rows = np.empty(len(first), dtype=np.int64), 0
    for begin in range(0, len(first), TOGETHER):
        chosen = _best_fit(length[begin : begin + TOGETHER].tolist(), room)
        row[begin : begin + TOGETHER] = np.asarray(chosen, dtype=np.int64) + rows
        rows += 1 + max(chosen)
    order = np.lexsort((first, row))
    return first[order], length[order], row[order]


def _pieces(ends, room):
    """Where the pieces of documents begin and how long they are. One token alone predicts nothing and is left out."""
    begins = np.concatenate([[0], ends[:-1]]).astype(np.int64)
    lengths = ends - begins
    pieces = np.maximum(1, -(-(lengths - 1) // (room - 1)))  # of each document
    within = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    first = np.repeat(begins, pieces) + within * (room - 1)
    length = np.minimum(room, np.repeat(ends, pieces) - first)
    return first[length > 1], length[length > 1]


def _best_fit(lengths, room):
    """The row of each length: longest first, each into the row where it leaves least."""
    chosen, rows, waiting, spaces = (
        [0] * len(lengths),
        0,
        [[] for _ in range(room + 1)],
        0,
    )  # bit n of spaces: some row has n left
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[i]
        if enough := spaces >> length:
            space = length + (enough & -enough).bit_length() - 1
            row = waiting[space].pop()
            spaces ^= (not waiting[space]) << space
        else:
            row, space, rows = rows, room, rows + 1
        chosen[i] = row
        waiting[space - length].append(row)
        spaces |= 1 << (space - length)
    return chosen
