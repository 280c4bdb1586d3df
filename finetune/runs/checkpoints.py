"""Crash-safe checkpoints: a directory appears complete or not at all.

`files.write_directory` fills a temporary directory, syncs every file, writes a manifest of sizes and sha256 sums, and
renames. A state that differs from its manifest is not loaded. Files are safetensors and JSON, which cannot run code.

    out_dir/last/step-00000250/   model.safetensors, optimizer.safetensors, state.json, manifest.json: a resumable state
                                  (with sharded_checkpoints, shard-*.safetensors in place of the first two)
    out_dir/best/                 the model with the lowest validation loss, a Hugging Face directory
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from finetune.common import disk_space, files
from finetune.common.commands import command, join
from finetune.common.errors import UsageError
from finetune.common.formatting import is_number, shown
from finetune.common.lock import check_held
from finetune.config.recipe import Recipe
from finetune.config.run_directory import LOSS_PLOT, RECIPE, REPORT, SHARE_PICTURE, is_run, out_dir_flag, states
from finetune.config.schedule import Schedule
from finetune.gpt import foreign, lora, size
from finetune.gpt.model import GPTConfig
from finetune.gpt.pretrained import write_tensors
from finetune.runs.events import read_metrics
from finetune.runtime import shards

PARTS = ("model.safetensors", "optimizer.safetensors", "state.json")  # of a state
KEEP = 2  # resumable states: if the newest is damaged, there is another


class SavedState(NamedTuple):
    weights: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    state: dict[str, Any]


def save_state(
    out_dir: str | Path,
    weights: Mapping[str, torch.Tensor],
    optimizer: Mapping[str, torch.Tensor],
    state: Mapping[str, Any],
) -> None:
    """Write a resumable state of full tensors. `state` is JSON data with its `iteration`."""
    parts = (PARTS[0], weights), (PARTS[1], optimizer)
    seal_state(out_dir, state, lambda place: {name: write_tensors(place / name, tensors) for name, tensors in parts})


def seal_state(out_dir: str | Path, state: Mapping[str, Any], write: Callable[[Path], Mapping[str, str]]) -> None:
    """Write a resumable state, then remove all but the newest KEEP. `write(directory)` writes its tensors and returns
    the sha256 of each file."""
    sums: dict[str, str] = {}

    def fill(directory: Path) -> None:
        sums.update(write(directory))
        files.write_json(directory / PARTS[2], state)

    target = state_directory(out_dir, state["iteration"])
    check_held(out_dir)
    make_folder(out_dir)
    files.write_directory(target, fill, sums)
    found = states(out_dir)
    newer = found[: found.index(target)]  # damaged, or rolled back
    for path in newer + found[len(newer) + KEEP :]:
        if files.files_in_manifest(path):
            files.remove(path)


def make_folder(out_dir: str | Path) -> None:
    """Make the directory of the states, if it is not there."""
    folder = state_directory(out_dir, 0).parent
    if not folder.is_dir():
        folder.mkdir()
        files.sync(out_dir)


def read_best(out_dir: str | Path) -> dict[str, Any]:
    """{"val_loss", "step"} of the model in best/, and "train_loss" if known; {} if there is none or it is damaged."""
    directory = Path(out_dir) / "best"
    if not directory.is_dir() or files.find_damage(directory):
        return {}
    facts = files.read_json_object(directory / "finetune.json")
    best = {name: facts.get(name) for name in ("val_loss", "step")}
    if not is_number(best["val_loss"]) or type(best["step"]) is not int or best["step"] < 0:
        return {}
    return best | ({"train_loss": facts["train_loss"]} if is_number(facts.get("train_loss")) else {})


def delete_state(out_dir: str | Path, iteration: int) -> None:
    files.remove(state_directory(out_dir, iteration))


def state_directory(out_dir: str | Path, iteration: int) -> Path:
    return Path(out_dir) / "last" / f"step-{iteration:08d}"


def load_state(out_dir: str | Path, log: Callable[[str], object] = print) -> SavedState:
    """The newest undamaged state; damaged ones are logged. Raises UsageError if there is none."""
    problems = []
    for directory in states(out_dir):
        problem = files.find_damage(directory)
        listed = files.files_in_manifest(directory)
        if lacking := sorted({*(PARTS[2:] if shards.are_in(listed) else PARTS)} - {*listed}):
            problem = problem or f"its {files.MANIFEST} does not list {lacking[0]}"
        if problem is None:
            try:
                state = files.read_json(directory / PARTS[2])
                weights, optimizer = _read_tensors(directory, state)
                step = state.get("iteration") if isinstance(state, dict) else None
                if directory.name != f"step-{str(step).zfill(8)}":
                    raise ValueError(f"it holds the state of step {shown(step)}")
                if problems:
                    log(f"using {directory}")
                return SavedState(weights, optimizer, state)
            except (SafetensorError, ValueError) as error:
                problem = str(error)
        problems.append(f"{directory}: {problem}")
        log(f"skipping {problems[-1]}")
    if problems:
        raise UsageError("\n".join(["every state to resume from is damaged:", *problems, way_without_states(out_dir)]))
    raise UsageError(nothing_to_resume(out_dir))


def _read_tensors(directory: Path, state: Any) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """(weights, moments) of a state, as full tensors. Raises SafetensorError and ValueError."""
    listed = files.files_in_manifest(directory)
    if not shards.are_in(listed):
        return load_file(directory / PARTS[0]), load_file(directory / PARTS[1])
    weights, optimizer = shards.read(directory, listed), {}
    try:
        vocab_size = int(state["config"]["vocab_size"])
    except (KeyError, TypeError):
        raise ValueError(f"its {PARTS[2]} has no vocab_size") from None
    for name in list(weights):
        if name.endswith("wte.weight"):  # without the padding
            weights[name] = weights[name][:vocab_size]
        if name.startswith(("exp_avg.", "exp_avg_sq.")):
            optimizer[name] = weights.pop(name)
    return weights, optimizer


def way_without_states(out_dir: str | Path) -> str:
    """The command that goes on from best/ in another directory, or starts anew if there is none that is whole."""
    recipe, best = Path(out_dir, RECIPE), read_best(out_dir)
    if not recipe.is_file():
        return f"there is no {recipe} either"
    if not best:
        way = command("train", recipe, **out_dir_flag(out_dir), overwrite="true")
        return f"there is no whole best/ either; from the start: {way}"
    another = next(name for number in itertools.count(2) if not Path(name := f"{Path(out_dir)}-{number}").exists())
    shape = dict.fromkeys(("n_layer", "n_head", "n_embd"), "none")  # best/ has its own
    way = command("train", recipe, init_from=Path(out_dir, "best"), out_dir=another, **shape)
    return f"best/ is whole, with the weights of step {best['step']:,}; another run from there: {way}"


def nothing_to_resume(out_dir: str | Path) -> str:
    way = "--init_from=auto starts a run there, and resumes it after a kill"
    if is_run(out_dir) and not is_unfinished(out_dir):
        way = way_without_states(out_dir)
    elif start := _model_of_others(Path(out_dir)):
        begin = join([f"--init_from={start}"])
        way = f"It holds a model of another program; {begin} and another out_dir begin with that"
    return f"{out_dir}: nothing to resume; it has no last/step-*. {way}"


def _model_of_others(directory: Path) -> Path | None:
    """What nanoGPT or Trainer wrote into an out_dir, the newest of it."""
    found = [foreign.newest_of_trainer(directory), directory / "ckpt.pt"]
    is_model = (directory / "config.json").is_file()
    return next((path for path in found if path and path.exists()), directory if is_model else None)


def is_unfinished(out_dir: str | Path) -> bool:
    """Whether a run was ended there before it saved its first state: what it made is made again by a new start."""
    out_dir = Path(out_dir)
    events = read_metrics(out_dir / "metrics.jsonl")
    started = next((event for event in events if event["event"] == "start"), {})
    if states(out_dir) or any(event["event"] in ("end", "resume") for event in events):
        return False
    if [event["event"] for event in events] == ["start"]:  # all that an address has until it has a state
        return True
    if not (out_dir / "best").exists():
        return bool(events) or (out_dir / "last").exists() or _is_cut_short(out_dir / "metrics.jsonl")
    first_save = started.get("recipe", {}).get("save_interval") or -1
    reached = [event["iter"] for event in events if event["event"] == "iter"] + [read_best(out_dir).get("step", 0)]
    # the first state is written while the updates up to the second go on
    return max(reached) <= (2 * first_save if (out_dir / "last").exists() else first_save)


def _is_cut_short(metrics: Path) -> bool:
    """Whether a run was killed before it had written its first event."""
    start = b'{"event": "start"'
    with contextlib.suppress(OSError), open(metrics, "rb") as file:
        line = file.read(1 << 20)
        return b"\n" not in line and line.startswith(start[: len(line)])
    return False


def directories_of_run(out_dir: str | Path) -> list[Path]:
    """The directories that a new run with overwrite removes, or that it writes anew."""
    out_dir = Path(out_dir)
    return [out_dir / "best", out_dir / "export", *out_dir.glob("iter_*"), *states(out_dir)]


def remove_run(out_dir: str | Path) -> None:
    """Remove what an earlier run wrote into `out_dir`, and nothing else: directories with a manifest, metrics, plot and
    report."""
    out_dir = Path(out_dir)
    for path in directories_of_run(out_dir):
        if files.files_in_manifest(path) and not path.is_symlink():
            files.remove(path)
    for name in ("metrics.jsonl", "trackers.json", LOSS_PLOT, REPORT, SHARE_PICTURE):
        (out_dir / name).unlink(missing_ok=True)


def check_disk(recipe: Recipe, schedule: Schedule, config: GPTConfig) -> None:
    """Raise UsageError if the checkpoints of this run do not fit on the disk."""
    if recipe.eval_only:
        return
    needed = sum(checkpoint_bytes(recipe, schedule, config).values())
    free = disk_space.free_bytes(recipe.out_dir) + disk_space.used_bytes(recipe.out_dir)
    if free < needed:
        sizes = f"need {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
        raise UsageError(f"out_dir {recipe.out_dir}: the checkpoints of this run {sizes}")


def checkpoint_bytes(recipe: Recipe, schedule: Schedule, config: GPTConfig) -> dict[str, int]:
    """{directory: bytes} of a run's checkpoints at most, including the temporary copy of each while it is written."""
    parameters, adapters = size.num_parameters(config), lora.num_adapter_parameters(config, recipe.lora_rank)
    models = 2 + (schedule.length // schedule.eval_interval if recipe.always_save_checkpoint else 0)
    return {"last/": (KEEP + 1) * state_bytes(recipe, config), "best/": 4 * models * (parameters + adapters)}


def state_bytes(recipe: Recipe, config: GPTConfig) -> int:
    """Bytes of a resumable state: the trained parameters and their two AdamW moments."""
    trained = lora.num_adapter_parameters(config, recipe.lora_rank) or size.num_parameters(config)
    return (4 + 2 * getattr(torch, recipe.optimizer_dtype).itemsize) * trained
