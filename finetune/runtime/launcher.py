"""`finetune train` on all GPUs: which processes a run needs, and accelerate launch to start them."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from finetune.common.errors import UsageError, first_line
from finetune.common.files import read_text
from finetune.config.recipe import Recipe
from finetune.config.recipe_file import MAX_RECIPE_BYTES
from finetune.config.recipe_names import find_launch_file, recipes_directory
from finetune.runtime.device import check_accumulation_divides
from finetune.runtime.process_group import SIZES, check_variables

# variables of accelerate launch and torchrun
LAUNCHERS = ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID", "RANK", "LOCAL_RANK")


@dataclass(frozen=True)
class Launch:
    config: Path  # a configuration of accelerate launch
    processes: int
    message: str


def count_gpus() -> int:
    return torch.cuda.device_count()


def is_launched() -> bool:
    """Whether a launcher has started this process."""
    return any(name in os.environ for name in LAUNCHERS) or any(int(os.environ.get(name) or 1) > 1 for name in SIZES)


def choose(recipe: Recipe, num_processes: int | None, launch: str | None) -> Launch | None:
    """What to start for a run; None if this process trains by itself. Raises UsageError."""
    check_variables()
    if is_launched():
        for name, value in (("launch", launch), ("num_processes", num_processes)):
            if value is not None:
                how = "give it to the launcher, as accelerate launch --config_file=FILE --num_processes=N"
                raise UsageError(f"--{name}: a launcher has started this process already; {how}")
        return None
    gpus = count_gpus() if recipe.device in ("auto", "cuda") else 0
    if launch is not None:
        chosen = _as_configured(find_launch_file(launch), num_processes, gpus)
    else:
        processes = num_processes or _usable(recipe, gpus)
        config = find_launch_file("multi_gpu" if gpus else "cpu")
        chosen = Launch(config, processes, _message(processes, gpus, num_processes)) if processes > 1 else None
        if processes < gpus and num_processes is None:
            print(f"one of {gpus} GPUs: {_why_fewer(recipe, gpus)}")
    if chosen:
        check_accumulation_divides(recipe, chosen.processes)
        if chosen.processes > gpus > 0:
            raise UsageError(f"{chosen.processes} processes need as many GPUs; here are {gpus}: --num_processes={gpus}")
    return chosen


def start(chosen: Launch, argv: list[str]) -> int:
    """Run `finetune train` with `argv` in the processes of `chosen`; return the exit code of the run."""
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    print(chosen.message, flush=True)
    place = argv.index("--") if "--" in argv else len(argv)
    argv = [*argv[:place], "--num_processes=none", "--launch=none", *argv[place:]]
    flags = [f"--config_file={chosen.config}", f"--num_processes={chosen.processes}", "-m", "finetune.train"]
    logging.disable(logging.ERROR)  # the launcher would repeat what the processes have printed
    try:
        arguments = launch_command_parser().parse_args([*flags, *argv])
        if signal.getsignal(getattr(signal, "SIGHUP", signal.SIGTERM)) == signal.SIG_IGN:  # nohup
            arguments.signals_to_handle = "SIGTERM,SIGINT,SIGQUIT"  # torchrun's default has SIGHUP
        launch_command(arguments)
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        return code if code > 0 else 128 - code
    except SignalException as error:
        return 128 + error.sigval
    except subprocess.CalledProcessError as error:
        return error.returncode if error.returncode > 0 else 128 - error.returncode
    except ValueError as error:
        raise UsageError(f"{chosen.config}: accelerate launch refuses it: {error}") from None
    return 0


def _usable(recipe: Recipe, gpus: int) -> int:
    """The most processes that can share the micro-batches of an update, at most one for each GPU."""
    steps = recipe.gradient_accumulation_steps
    return next((count for count in range(gpus, 1, -1) if recipe.eval_only or steps % count == 0), 1)


def _why_fewer(recipe: Recipe, gpus: int) -> str:
    """Why a run does not use all GPUs, with flags that would."""
    try:
        check_accumulation_divides(recipe, gpus)
    except UsageError as error:
        return str(error)
    return ""


def _message(processes: int, gpus: int, num_processes: int | None) -> str:
    kind = "GPU" if gpus else "CPU process"
    alone = "; --num_processes=1 uses one" if num_processes is None else ""
    return f"accelerate launch starts {processes} {kind}{'s' if gpus else 'es'}{alone}"


def _as_configured(path: Path, num_processes: int | None, gpus: int) -> Launch | None:
    """The Launch of a file. The files that come with finetune are for one process per GPU of this machine."""
    settings = _read(path)
    machines, rank = _count(path, settings, "num_machines"), settings.get("machine_rank")
    if machines > 1 and (rank is None or settings.get("main_process_ip") is None):
        flags = f"--config_file={path} --machine_rank=0 --main_process_ip=ADDRESS"
        raise UsageError(
            f"{path}: is for {machines} machines; run on each: accelerate launch {flags} -m finetune.train"
        )
    is_ours = path.resolve().parent.parent == recipes_directory().resolve() and machines == 1
    processes = num_processes or (gpus if is_ours and gpus else 0) or _count(path, settings, "num_processes")
    sharded = settings["distributed_type"] not in ("NO", "MULTI_GPU")
    if processes == 1 and not sharded:
        return None
    return Launch(path, processes, f"accelerate launch starts {processes} processes, as {path} says")


def _count(path: Path, settings: dict[str, Any], name: str) -> int:
    """A number in a launch file, 1 without it. Raises UsageError."""
    try:
        return int(settings.get(name) or 1)
    except (TypeError, ValueError):
        raise UsageError(f"{path}: {name}: expected a whole number, got {settings[name]!r}") from None


def _read(path: Path) -> dict[str, Any]:
    """The settings of a launch file. Raises UsageError."""
    import yaml

    try:
        settings = yaml.safe_load(read_text(path, MAX_RECIPE_BYTES))
    except (yaml.YAMLError, RecursionError) as error:
        raise UsageError(f"{path}: not YAML: {first_line(error)}") from None
    if not isinstance(settings, dict) or "distributed_type" not in settings:
        raise UsageError(f"{path}: is no configuration of accelerate launch; it has no distributed_type")
    return settings
