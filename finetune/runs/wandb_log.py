"""Weights & Biases, offline when it cannot be reached."""

import os
from pathlib import Path

from finetune.common.network import reach


def start_wandb(accelerator, recipe, config):
    """Begin logging to Weights & Biases through accelerate; return `log(numbers, step)`, or None. Never stops a run:
    without a login or a network it logs offline, without the package not at all."""
    from accelerate.utils import LoggerType

    os.environ.setdefault("WANDB_SILENT", "true")
    try:
        mode = _wandb_mode()
        accelerator.log_with = [LoggerType.WANDB]
        options = {"name": recipe.wandb_run_name or Path(recipe.out_dir).name, "mode": mode, "dir": str(recipe.out_dir)}
        accelerator.init_trackers(recipe.wandb_project, config=config, init_kwargs={"wandb": options})
        if mode == "offline":
            print(f"wandb: logging offline into {recipe.out_dir}/wandb; `wandb sync` uploads it later")
        return lambda numbers, step: accelerator.log(numbers, step=step)
    except Exception as error:  # whatever a tracker does, training goes on
        accelerator.log_with = []
        accelerator.trackers = []
        print(f"wandb: not logging ({type(error).__name__}: {(str(error).splitlines() or [''])[0]})")
        return None


def _wandb_mode():
    """online when there is a login and the server answers, else offline; wandb itself would try for a minute and a
    half."""
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
