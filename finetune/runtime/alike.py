"""What all processes of a run must have alike: each reads its own command line, environment and files."""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Mapping
from typing import Any

import torch

from finetune.common.errors import UsageError
from finetune.common.formatting import shown
from finetune.config.recipe import Recipe
from finetune.runtime.device import Device

# keys of a recipe that may differ: where things lie, and what rank 0 alone does
OWN = frozenset(
    "dataset tokenizer init_from out_dir overwrite cpu_threads log_with wandb_log wandb_project wandb_run_name"
    " push_to_hub push require start max_new_tokens temperature top_k log_interval".split()
)


def check_recipe(recipe: Recipe, device: Device) -> None:
    """Raise UsageError if processes were given other recipes, flags or variables than rank 0."""
    values = {name: value for name, value in dataclasses.asdict(recipe).items() if name not in OWN}
    check(values, device, "give all processes the same recipe, flags and FINETUNE_ variables")


def check(values: Mapping[str, Any], device: Device, way: str) -> None:
    """Raise UsageError on all processes if one has other `values` than rank 0. All processes must call."""
    given: list[Any] = [None] * device.accelerator.num_processes
    if len(given) == 1:
        return
    torch.distributed.all_gather_object(given, (socket.gethostname(), dict(values)))
    host, first = given[0]
    for rank, (other_host, other) in enumerate(given):
        for name in sorted(first.keys() | other.keys()):
            if (expected := first.get(name)) != (found := other.get(name)):
                said = f"{shown(expected)} on rank 0 ({host}), {shown(found)} on rank {rank} ({other_host})"
                raise UsageError(f"{name}: {said}; {way}")
