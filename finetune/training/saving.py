"""Models and resumable states that a run writes. Called on every process, written by rank 0; shards by all ranks.

A save is begun, written in the background (`training.background`), and then acknowledged by the loop on all ranks: an
update's all-reduce tells them how many saves are written. Nothing is recorded or printed before it is on disk."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import torch

from finetune.common import files
from finetune.common.errors import Failure
from finetune.common.lock import check_held
from finetune.gpt import lora, pretrained
from finetune.gpt.size import num_parameters
from finetune.runs import checkpoints
from finetune.runs.events import read_metrics
from finetune.runs.logger import RunLogger
from finetune.runs.model_card import model_card
from finetune.runtime import fsdp, memory, process_group, shards
from finetune.training import background
from finetune.training.background import Tensors
from finetune.training.callbacks import Save
from finetune.training.monitor import Diverged
from finetune.training.optimizer import optimizer_tensors
from finetune.training.state import Hooks, Setup, TrainState, to_json

MAX_SHARE = 0.5  # of the free memory, for the copies that are written in the background
SMALL = 1 << 24  # bytes of a model that is written at once: it takes no longer than to begin a thread and tell of it


def publish_model(
    setup: Setup,
    state: TrainState,
    logger: RunLogger,
    name: str,
    facts: dict[str, Any],
    published: Callable[[], None] = lambda: None,
) -> None:
    """Make out_dir/NAME a complete Hugging Face directory: weights, configuration, tokenizer and card. Adapters are
    merged into the weights, and also written by themselves. `published` is called when it is on disk."""
    target, step = Path(setup.recipe.out_dir) / name, state.step

    def write(tensors: Tensors) -> None:
        sums: dict[str, str] = {}
        check_held(target.parent)
        files.write_directory(target, lambda directory: fill(directory, tensors, sums), sums)

    def fill(directory: Path, tensors: Tensors, sums: dict[str, str]) -> None:
        config = dataclasses.replace(setup.model.config, dropout=0.0)
        sums["model.safetensors"] = pretrained.save(directory, tensors, config)
        if setup.recipe.lora_rank:
            lora.save(directory / "adapter", setup.model, setup.recipe, setup.init_from)
        if setup.tokenizer:
            setup.tokenizer.save(directory, config.block_size)
        new_tokens = {"new_tokens": config.new_tokens} if config.new_tokens else {}
        recorded = facts | new_tokens
        files.write_json(directory / "finetune.json", recorded)
        title = target.parent.resolve().name
        card = model_card(title, f"{title}/{name}", config, recorded, read_metrics(logger.path), setup.tokenizer)
        (directory / "README.md").write_text(card, encoding="utf-8")

    def acknowledge(is_on_disk: bool) -> None:
        if is_on_disk:
            setup.notify(Save(step, target))
            published()

    save = background.PendingSave(name, step, acknowledge)
    # adapters are read from the model while they are written; at the end of a run there is nothing to go on with;
    # a copy of the first model would be there when the first update asks for most memory
    is_first = step == 0 and setup.device.torch_device.type == "cpu"
    at_once = bool(setup.recipe.lora_rank) or step >= setup.schedule.length or is_first
    _start_save(setup, logger, save, model_weights(setup), write, at_once)


def model_weights(setup: Setup) -> dict[str, torch.Tensor]:
    """{name: tensor} of the whole model with merged adapters on rank 0, {} on the others. All processes must call."""
    main = setup.device.accelerator.is_main_process
    if setup.recipe.lora_rank:
        return lora.merged(setup.model) if main else {}
    return fsdp.gather_state_dict(setup.model.state_dict(), keep=main)


def save_state(setup: Setup, state: TrainState, logger: RunLogger, must_succeed: bool) -> None:
    """Write a resumable state; if it `must_succeed`, before this returns. Raises Diverged when the weights are not
    finite; such weights are never written."""
    accelerator, model, step = setup.device.accelerator, setup.model, state.step
    if any(save.step != step for save in setup.saves.begun):
        finish_saves(setup, logger)
    finite = torch.stack([_is_finite(fsdp.local_shard(weight.detach())) for weight in model.parameters()]).all()
    if accelerator.reduce(finite.to(setup.device.torch_device, torch.float32)) < accelerator.num_processes:
        raise Diverged(f"step {step}: the weights are not finite")
    keep = accelerator.is_main_process
    values = copy.deepcopy(to_json(setup, state))
    in_shards = setup.saves.group is not None
    tensors, write = (_shards if in_shards else _full_tensors)(setup, values)
    last_saved = state.last_saved

    def acknowledge(is_on_disk: bool) -> None:
        if is_on_disk:
            setup.notify(Save(step, checkpoints.state_directory(setup.recipe.out_dir, step)))
        elif state.last_saved == step:
            state.last_saved = last_saved

    state.save_pending = False  # after a failure the next try is the next save, since each writes gigabytes
    state.last_saved = step
    if keep:
        with contextlib.suppress(OSError):  # told when it is written
            checkpoints.make_folder(setup.recipe.out_dir)
    save = background.PendingSave("last", step, acknowledge, in_shards)
    _start_save(setup, logger, save, tensors, write, at_once=must_succeed)
    if must_succeed and state.last_saved != step:
        out_dir = setup.recipe.out_dir
        before = "the previous one is complete" if checkpoints.states(out_dir) else "there is no previous one"
        raise Failure(f"out_dir {out_dir}: the state after {step} updates could not be saved; {before}", 1)


def _full_tensors(setup: Setup, values: dict[str, Any]) -> tuple[Tensors, Callable[[Tensors], None]]:
    """The weights and moments on rank 0, and a function that writes a state of copies of them."""
    keep = setup.device.accelerator.is_main_process
    weights = fsdp.gather_state_dict(lora.trained(setup.model), keep)
    moments = fsdp.gather_state_dict(optimizer_tensors(setup.optimizer, setup.parameter_names), keep)
    # without the padding of the embedding and its moments
    V = setup.model.config.vocab_size
    tensors = {name: each[:V] if name.endswith("wte.weight") else each for name, each in (weights | moments).items()}

    def write(tensors: Tensors) -> None:
        of_model, of_optimizer = ({name: tensors[name] for name in part} for part in (weights, moments))
        checkpoints.save_state(setup.recipe.out_dir, of_model, of_optimizer, values)

    return tensors, write


def _shards(setup: Setup, values: dict[str, Any]) -> tuple[Tensors, Callable[[Tensors], None]]:
    """This rank's rows of the weights and moments, and a function that writes a state of copies of them with all other
    ranks."""
    group = setup.saves.group
    assert group, "made when the run began"
    whole = lora.trained(setup.model) | optimizer_tensors(setup.optimizer, setup.parameter_names)

    def write(rows: Tensors) -> None:
        if not setup.device.accelerator.is_main_process:
            shards.write(None, whole, rows, group)
            return
        is_begun = False

        def fill(directory: Path) -> dict[str, str]:
            nonlocal is_begun
            is_begun = True
            return shards.write(directory, whole, rows, group)

        try:
            checkpoints.seal_state(setup.recipe.out_dir, values, fill)
        finally:
            if not is_begun:  # the other ranks wait for a directory
                with contextlib.suppress(OSError):
                    shards.write(None, whole, rows, group)

    return {name: fsdp.local_shard(tensor.detach()) for name, tensor in whole.items()}, write


def _is_finite(tensor: torch.Tensor) -> torch.Tensor:
    """Whether all values are. Their sum, which reads them once, says so unless it overflows."""
    is_finite = tensor.sum().isfinite()
    return is_finite if is_finite else tensor.isfinite().all()


def _start_save(
    setup: Setup,
    logger: RunLogger,
    save: background.PendingSave,
    tensors: Tensors,
    write: Callable[[Tensors], object],
    at_once: bool,
) -> None:
    """Begin a save; finish it too if it is to be made `at_once`, or if callbacks of the user may want its files."""
    saves, device = setup.saves, setup.device
    are_shared = device.torch_device.type == "cpu" and not (device.sharding and device.accelerator.num_processes > 1)
    copies = sum(tensor.nbytes for tensor in tensors.values()) if are_shared else 0
    if save.is_sharded:  # copied by every rank of the machine, and once more by the writer
        copies = 2 * process_group.local_size() * sum(tensor.nbytes for tensor in tensors.values())
        are_shared = any(tensor.device.type == "cpu" for tensor in tensors.values())
        tensors = {name: tensor.cpu() for name, tensor in tensors.items()}
    # of any rank: rank 0 may be the only one with callbacks
    reasons = setup.hooks.notify is not Hooks.notify, copies > MAX_SHARE * memory.available_bytes("cpu")
    asked, too_large = device.accelerator.reduce(torch.tensor(reasons, device=device.torch_device).float()).bool()
    at_once = at_once or bool(asked) or 4 * num_parameters(setup.model.config) < SMALL
    if not (save.is_sharded or device.accelerator.is_main_process):
        saves.skip(save)
    elif at_once or too_large:
        saves.write(save, tensors, write)
    else:
        saves.begin(save, tensors, write, are_shared)
    if at_once:
        finish_saves(setup, logger)


def finish_saves(setup: Setup, logger: RunLogger) -> None:
    """Wait for all saves that were begun, and acknowledge them. All processes must call."""
    setup.saves.wait()
    acknowledge_saves(setup, logger, setup.saves.num_written())


def acknowledge_saves(setup: Setup, logger: RunLogger, num_written: int) -> None:
    """Tell of the saves up to this number, each once. All processes must call."""
    accelerator, saves = setup.device.accelerator, setup.saves
    while saves.num_acknowledged < num_written:
        save = saves.take()
        failed = torch.tensor(float(not _is_on_disk(save, logger)), device=setup.device.torch_device)
        save.acknowledge(not accelerator.reduce(failed).item())


def _is_on_disk(save: background.PendingSave, logger: RunLogger) -> bool:
    """Whether a save that was tried is on disk; tell why not. Training goes on after an error of the disk, because it
    may have space again at the next try, and what was there before is untouched."""
    if save.error is None:
        return True
    if not isinstance(save.error, OSError):
        raise save.error
    problem = (
        f"{save.name} at step {save.step} could not be saved: {save.error.strerror or save.error}; the previous files"
        " are unchanged"
    )
    logger.print(f"warning: {problem}")
    logger.record("save_failed", step=save.step, problem=problem)
    return False


@contextlib.contextmanager
def finishing_saves(setup: Setup, logger: RunLogger) -> Generator[None]:
    """Wait for what is being written if the block ends with an error, which other processes may not have."""
    try:
        yield
    except BaseException:
        setup.saves.wait()
        while setup.saves.begun:
            save = setup.saves.take()
            with contextlib.suppress(BaseException):  # of the save: the one that ended the block is told
                save.acknowledge(_is_on_disk(save, logger))
        raise
