"""The confidence interval of the difference between two losses on the same text."""

from __future__ import annotations

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95
MAX_GROUPS = 4096  # more units are drawn in that many groups of neighbours
CHUNK = 1 << 20  # units drawn at a time


def paired_bootstrap(
    nats: np.ndarray, other: np.ndarray, targets: np.ndarray, seed: int = 1337
) -> dict[str, float | None]:
    """`{"mean", "low", "high"}` of the first loss minus the other, in nats per token; the arrays (U,) hold sums over
    units.

    A percentile bootstrap of a ratio: whole units are drawn with replacement, the same for both models, and each draw
    is divided once. `low` and `high` are None for a single unit."""
    difference = (nats - other)[targets > 0]
    targets = targets[targets > 0]
    mean = float(difference.sum() / targets.sum())
    if len(targets) < 2:
        return {"mean": mean, "low": None, "high": None}
    if len(targets) > MAX_GROUPS:
        first = np.linspace(0, len(targets), MAX_GROUPS, endpoint=False).astype(np.int64)
        difference, targets = np.add.reduceat(difference, first), np.add.reduceat(targets, first)
    rng, units, draws = np.random.default_rng(seed), len(targets), []
    while len(draws) < RESAMPLES:
        drawn = rng.integers(0, units, (min(RESAMPLES - len(draws), max(1, CHUNK // units)), units))
        draws += (difference[drawn].sum(1) / targets[drawn].sum(1)).tolist()
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"mean": mean, "low": float(low), "high": float(high)}
