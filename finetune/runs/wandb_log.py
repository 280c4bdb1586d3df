"""Logging to Weights & Biases, offline if it cannot be reached."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.common.errors import describe_error
from finetune.common.network import reach
from finetune.config.recipe import Recipe

if TYPE_CHECKING:
    from accelerate import Accelerator

Tracker = Callable[[Mapping[str, float], int], None]  # log(values, step)


def start_wandb(accelerator: Accelerator, recipe: Recipe, config: dict[str, Any]) -> Tracker | None:
    """Start logging through accelerate, offline without a login or a network. None after any error: the run goes on
    without it."""
    from accelerate.utils import LoggerType

    os.environ.setdefault("WANDB_SILENT", "true")
    try:
        mode = _wandb_mode()
        accelerator.log_with = [LoggerType.WANDB]
        options = {"name": recipe.wandb_run_name or Path(recipe.out_dir).name, "mode": mode, "dir": recipe.out_dir}
        accelerator.init_trackers(recipe.wandb_project, config=config, init_kwargs={"wandb": options})
        if mode == "offline":
            print(f"wandb: logging offline into {recipe.out_dir}/wandb; `wandb sync` uploads it later")
        return lambda values, step: accelerator.log(dict(values), step=step)
    except Exception as error:  # a tracker may raise anything, and training goes on
        accelerator.log_with = []
        accelerator.trackers = []
        print(f"wandb: not logging ({describe_error(error)})")
        return None


def _wandb_mode() -> str:
    """`online` if there is a login and the server answers, else `offline`; wandb itself would retry for 90 seconds."""
    import wandb

    if mode := os.environ.get("WANDB_MODE"):
        return mode
    if not wandb.api.api_key:
        return "offline"
    try:
        reach(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    except OSError:
        return "offline"
    return "online"
