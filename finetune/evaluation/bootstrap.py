"""Two models on the same text: the difference of their losses, and how far another text of its kind might move it."""

import numpy as np

RESAMPLES = 2000
MOST_GROUPS = 4096  # what is drawn; of a longer text neighbours are drawn together
DRAWN = 1 << 20  # units that are drawn at a time


def paired_bootstrap(nats, other, targets, seed=1337, level=0.95):
    """`{"mean", "low", "high"}` of the loss less the other's, in nats per token; `nats`, `other` and `targets` (U,) are
    sums of units.

    Whole units are drawn with replacement, the same for both models, and nats are divided by targets once for each
    draw: a percentile bootstrap of a ratio. `low` and `high` are None where there is but one unit to draw."""
    difference = (nats - other)[targets > 0]
    targets = targets[targets > 0]
    mean = float(difference.sum() / targets.sum())
    if len(targets) < 2:
        return {"mean": mean, "low": None, "high": None}
    if len(targets) > MOST_GROUPS:
        first = np.linspace(0, len(targets), MOST_GROUPS, endpoint=False).astype(np.int64)
        difference, targets = np.add.reduceat(difference, first), np.add.reduceat(targets, first)
    rng, units, draws = np.random.default_rng(seed), len(targets), []
    while len(draws) < RESAMPLES:
        drawn = rng.integers(0, units, (min(RESAMPLES - len(draws), max(1, DRAWN // units)), units))
        draws += (difference[drawn].sum(1) / targets[drawn].sum(1)).tolist()
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return {"mean": mean, "low": float(low), "high": float(high)}
