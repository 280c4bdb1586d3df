"""Random numbers of sampling. Each is a hash of the seed, the number of the row, the step and the id that it is for,
so what a row draws does not depend on the rows beside it.

Shapes: B rows, K ids.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# odd multipliers and shifts of SplitMix64 (Steele, Lea, Flood 2014, doi.org/10.1145/2660193.2660195), as int64
GAMMA, MULTIPLIERS, SHIFTS = -0x61C8864680B583EB, (-0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15), (30, 27, 31)
BITS = 23  # of a random number; with half a step more it is exact in float32 and never 0 or 1


def step_keys(generator: torch.Generator | None, rows: Sequence[int], steps: int, device: torch.device) -> Tensor:
    """Keys (B, steps) for `exponential`: what `draw` returns decides, the row's number, and the step's."""
    seed, numbers = draw(generator).to(device), torch.tensor(rows, dtype=torch.long, device=device)
    row_keys = _mix(_mix(seed) + GAMMA * numbers[:, None])
    return _mix(row_keys + GAMMA * torch.arange(steps, device=device))


def draw(generator: torch.Generator | None) -> Tensor:
    """An int64 number (1, 1). The upper half of the seed is added, which a generator on the CPU ignores."""
    generator = generator or torch.default_generator
    drawn = torch.randint(-(2**63), 2**63 - 1, (1, 1), generator=generator, device=generator.device)
    return drawn + (generator.initial_seed() >> 32)


def exponential(keys: Tensor, ids: Tensor) -> Tensor:
    """Exponentially distributed float32 numbers (B, K), each for one of the `ids` (B, K) or (K) of a row with one of
    the `keys` (B, 1)."""
    bits = _mix(keys + GAMMA * ids) >> (64 - BITS) & (2**BITS - 1)
    return -(((bits.float() + 0.5) * 2.0**-BITS).log())


def _mix(z: Tensor) -> Tensor:
    """The bits of each int64 number, well mixed."""
    for shift, multiplier in zip(SHIFTS, (*MULTIPLIERS, 1)):
        z = (z ^ (z >> shift & (2 ** (64 - shift) - 1))) * multiplier  # the mask makes it a logical shift
    return z
