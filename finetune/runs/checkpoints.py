"""What survives a crash. A directory is published whole or not at all.

`publish` fills a temporary directory, syncs every file, writes a manifest of sizes and sha256 sums last, and renames. A
state whose manifest does not check is never loaded. safetensors and JSON only; nothing here can run code.

    out_dir/last/step-00000250/   model.safetensors, optimizer.safetensors, state.json, manifest.json: all that a run
    needs to go on
    out_dir/best/                 the model with the lowest validation loss, a Hugging Face directory
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from finetune.common import files
from finetune.common.errors import UsageError
from finetune.common.files import MANIFEST, find_damage, remove, sync, write_directory
from finetune.gpt import lora, size
from finetune.gpt.pretrained import write_tensors

KEEP = 2  # resumable states: should the newest turn out damaged, there is one before it


def save_state(out_dir, weights, optimizer, state):
    """Publish a resumable state and then remove all but the newest KEEP. `state` is plain data with its `iteration`."""

    def fill(directory):
        write_tensors(directory / "model.safetensors", weights)
        write_tensors(directory / "optimizer.safetensors", optimizer)
        files.write_json(directory / "state.json", state)

    folder = Path(out_dir) / "last"
    if not folder.is_dir():
        folder.mkdir()
        sync(folder.parent)
    target = folder / _name(state["iteration"])
    write_directory(target, fill)
    found = states(out_dir)
    # newer ones are damaged, or of a future that was rolled back
    for path in [path for path in found if path.name > target.name] + [
        path for path in found if path.name <= target.name
    ][KEEP:]:
        remove(path)


def _name(iteration):
    return f"step-{iteration:08d}"


def read_best(out_dir):
    """{"val_loss", "step"} of the model in best/, or {} when there is none or it is damaged."""
    directory = Path(out_dir) / "best"
    if not directory.is_dir() or find_damage(directory):
        return {}
    facts = files.read_json(directory / "finetune.json")
    return {"val_loss": facts["val_loss"], "step": facts["step"]}


def delete_state(out_dir, iteration):
    """Remove the state of an iteration that has turned out to be bad."""
    remove(Path(out_dir) / "last" / _name(iteration))


def states(out_dir):
    """The directories of all resumable states, newest first; whether they are whole is for `load_state` to find out."""
    return sorted((path for path in (Path(out_dir) / "last").glob("step-*") if path.is_dir()), reverse=True)


def load_state(out_dir, say=print):
    """`(weights, optimizer, state)` of the newest state that is whole; what is skipped is said. Raises UsageError when
    there is none."""
    found = states(out_dir)
    problems = []
    for directory in found:
        problem = find_damage(directory)
        if problem is None:
            try:
                state = files.read_json(directory / "state.json")
                loaded = (
                    load_file(directory / "model.safetensors"),
                    load_file(directory / "optimizer.safetensors"),
                    state,
                )
                if problems:
                    say(f"using {directory}")
                return loaded
            except (SafetensorError, ValueError) as error:
                problem = str(error)
        problems.append(f"{directory}: {problem}")
        say(f"skipping {problems[-1]}")
    if problems:
        raise UsageError("\n".join(["no state to resume from is whole:", *problems]))
    raise UsageError(f"{out_dir}: nothing to resume; it has no last/step-*. Start a run with another init_from")


def remove_run(out_dir):
    """Remove what an earlier run wrote into `out_dir`, and nothing else: directories with a manifest of ours, and the
    records."""
    out_dir = Path(out_dir)
    for path in [out_dir / "best", out_dir / "export", *sorted(out_dir.glob("iter_*")), *states(out_dir)]:
        if (path / MANIFEST).is_file() and not path.is_symlink():
            remove(path)
    for name in ("metrics.jsonl", "loss.png", "report.html"):
        (out_dir / name).unlink(missing_ok=True)


def check_disk(recipe, schedule, config):
    """Raise UsageError when the checkpoints of this run will not fit."""
    if recipe.eval_only:
        return
    needed = sum(checkpoint_bytes(recipe, schedule, config).values())
    free = files.free_bytes(recipe.out_dir) + files.used_bytes(recipe.out_dir)
    if free < needed:
        raise UsageError(
            f"out_dir {recipe.out_dir}: {free / 1e9:.1f} GB free for them, and the checkpoints of this run need"
            f" {needed / 1e9:.1f} GB"
        )


def checkpoint_bytes(recipe, schedule, config):
    """{what: bytes} that the checkpoints of a run take at most, with the one more of each that there is while it is
    written."""
    parameters, adapters = size.num_parameters(config), lora.num_parameters(config, recipe.lora_rank)
    states = KEEP + 1
    models = 2 + (schedule.length // schedule.eval_interval if recipe.always_save_checkpoint else 0)
    return {"last/": states * state_bytes(recipe, config), "best/": 4 * models * (parameters + adapters)}


def state_bytes(recipe, config):
    """Bytes of a resumable state: what is trained, and its two moments."""
    trained = lora.num_parameters(config, recipe.lora_rank) or size.num_parameters(config)
    return (4 + 2 * getattr(torch, recipe.optimizer_dtype).itemsize) * trained
