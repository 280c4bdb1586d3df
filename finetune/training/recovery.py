"""Resume a run, and roll it back after it diverged."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

import torch

from finetune.common.addresses import address_of
from finetune.common.errors import Failure, UsageError
from finetune.common.files import MANIFEST
from finetune.common.formatting import gigabytes
from finetune.config.recipe import Recipe
from finetune.gpt import GPT, GPTConfig, convert, lora, pretrained, size
from finetune.runs import checkpoints
from finetune.runs.checkpoints import SavedState
from finetune.runs.logger import RunLogger
from finetune.runtime import fsdp, memory
from finetune.runtime.device import Device
from finetune.training.monitor import Diverged, LossMonitor
from finetune.training.optimizer import MOMENTS, fill_optimizer
from finetune.training.saving import finish_saves, save_state
from finetune.training.state import Setup, TrainState


def roll_back(setup: Setup, state: TrainState, logger: RunLogger, problem: str) -> None:
    """Go back to the last good state with half the learning rate. Raises Failure after max_rollbacks."""
    recipe, accelerator, reached = setup.recipe, setup.device.accelerator, state.step
    finish_saves(setup, logger)
    logger.print(problem)
    logger.record("diverged", step=reached, problem=problem)
    states = checkpoints.states(recipe.out_dir)
    _check_rollback(setup, state, states, problem)
    setup.optimizer.zero_grad(set_to_none=True)
    accelerator.wait_for_everyone()
    # no state was saved since the last rollback: the one it led to already held the damage
    if len(states) > 1 and state.last_rollback is not None and state.last_rollback == state.last_saved:
        if accelerator.is_main_process:
            checkpoints.delete_state(recipe.out_dir, state.last_rollback)
        accelerator.wait_for_everyone()
        states = states[1:]
    if states:
        restore_state(setup, state, load_same_state(recipe, setup.device, logger.print))
    else:
        reset_to_initial(setup, state)
    state.last_rollback = state.step
    state.last_sampled = min(state.last_sampled, max(0, state.step - 1))  # later samples leave metrics.jsonl
    state.rollbacks, state.lr_scale = state.rollbacks + 1, state.lr_scale / 2
    logger.print(
        f"rollback {state.rollbacks} of {recipe.max_rollbacks}: back to step {state.step}, learning rates times"
        f" {state.lr_scale:g}"
    )
    logger.record("rollback", step=state.step, reached=reached, lr_scale=state.lr_scale, problem=problem)
    if accelerator.is_main_process:
        with contextlib.suppress(OSError):  # on a full disk the lines of the failed updates stay
            logger.rewrite(state.step, state.evaluations)
    # saved at once, so that a killed run remembers its rollbacks; the next update finds weights that are not finite
    with contextlib.suppress(Diverged):
        save_state(setup, state, logger, must_succeed=False)
    finish_saves(setup, logger)


def _check_rollback(setup: Setup, state: TrainState, states: list[Path], problem: str) -> None:
    """Raise Failure if max_rollbacks are used up, or if the processes see different states."""
    recipe = setup.recipe
    if _differs(_newest(states), setup.device):
        raise Failure(
            f"training diverged: {problem}; to go back all machines must see the states in out_dir {recipe.out_dir}, on"
            " a shared disk",
            3,
        )
    if state.rollbacks >= recipe.max_rollbacks:
        tried = f" after {state.rollbacks} rollbacks" if state.rollbacks else ""
        good = f"the last state is {states[0]}" if states else "no state had been saved yet"
        raise Failure(
            f"training diverged{tried}: {problem}; {good}. A lower learning_rate (now {recipe.learning_rate:g}) is the"
            " first thing to try",
            3,
        )


def restore_state(setup: Setup, state: TrainState, saved: SavedState) -> None:
    """Put weights, optimizer and state where a saved run was. Rollbacks and the learning rates' scale are kept."""
    values = saved.state
    if setup.recipe.lora_rank:
        lora.load(setup.model, convert.with_padding(saved.weights, setup.model.config))
    else:
        fsdp.load(setup.model, convert.with_padding(saved.weights, setup.model.config))
    fill_optimizer(setup.optimizer, setup.parameter_names, saved.optimizer, values["updates"])
    state.step, state.evaluations = values["iteration"], values["evaluations"]
    state.monitor = LossMonitor(**values["watch"])
    state.last_saved, state.save_pending = values["iteration"], False
    if state.scaler and values["scaler"]:
        state.scaler.load_state_dict(values["scaler"])


def resume(setup: Setup, state: TrainState, saved: SavedState, say: Callable[[str], None]) -> None:
    """Go on with a saved run in a new process."""
    restore_state(setup, state, saved)
    recipe, values = setup.recipe, saved.state
    state.lr_scale, state.rollbacks = values["lr_scale"], values["rollbacks"]
    if recipe.learning_rate != values["recipe"]["learning_rate"]:  # which is what a run that used them up advises
        state.lr_scale, state.rollbacks = 1.0, 0
    if state.lr_scale != 1.0:
        say(
            f"after {state.rollbacks} rollbacks learning rates are multiplied by {state.lr_scale:g}; a new"
            " learning_rate would undo that"
        )
    if state.micro_batch.keys().items() <= values["recipe"].items():
        state.asked = values["asked"]
    state.best = checkpoints.read_best(recipe.out_dir)
    before, now = (
        min(rows or setup.val.num_rows, setup.val.num_rows) for rows in (values["eval_rows"], setup.max_eval_rows)
    )
    if before != now and state.evaluations:
        state.evaluations, state.best = [], {}
        say(
            f"evaluations take {now:,} blocks, {before:,} before: their losses are not compared, so best/ and patience"
            " start afresh"
        )
    elif not state.evaluations:  # ended after such a change, before it was evaluated: best/ is of the blocks before
        state.best = {}
    elif not state.best:
        say(f"{Path(recipe.out_dir, 'best')}: there is none, or it is damaged; the next evaluation writes it")
        if state.evaluations and state.evaluations[-1]["step"] == state.step:
            state.evaluations.pop()  # measured again here, or a run that is done would never write it


def reset_to_initial(setup: Setup, state: TrainState) -> None:
    """Put a run back to its start, before the first state was saved. Its rollbacks are kept."""
    recipe, config = setup.recipe, dataclasses.replace(setup.model.config)
    fresh = load_weights(recipe, config, None, lambda line: None)
    if recipe.lora_rank:
        lora.add_adapters(fresh, recipe)
    fsdp.load(setup.model, fresh.state_dict())
    fill_optimizer(setup.optimizer, setup.parameter_names)
    state.step, state.evaluations, state.monitor = 0, [], LossMonitor()
    state.last_saved, state.save_pending = None, False


def check_all_resume(recipe: Recipe, device: Device) -> None:
    """Raise UsageError if processes resume from other states than others, or start anew, as init_from=auto chose."""
    states = checkpoints.states(recipe.out_dir) if recipe.init_from == "resume" else []
    if _differs(_newest(states), device):
        address = address_of(recipe.out_dir)
        way = f"delete it on each to go on from {address}" if address else "copy it, or share the disk"
        raise UsageError(f"out_dir {recipe.out_dir}: not all machines see a state in last/, and the same; {way}")


def load_same_state(recipe: Recipe, device: Device, say: Callable[[str], None]) -> SavedState:
    """The newest undamaged state. Raises UsageError if there is none, or if another process reads another one."""
    saved = checkpoints.load_state(recipe.out_dir, say)
    if _differs(_newest([checkpoints.state_directory(recipe.out_dir, int(saved.state["iteration"]))]), device):
        problem = "not all processes can read the newest state in last/, and the same"
        raise UsageError(f"out_dir {recipe.out_dir}: {problem}; start again, or delete that state")
    return saved


def _newest(states: list[Path]) -> int:
    """A number of the first of these states, by its name and the sums in its manifest; -1 without any."""
    if not states:
        return -1
    manifest = states[0] / MANIFEST
    content = states[0].name.encode() + (manifest.read_bytes() if manifest.is_file() else b"")
    return int.from_bytes(hashlib.sha256(content).digest()[:7], "big")


def _differs(number: int, device: Device) -> bool:
    """Whether processes have other numbers than others. All processes must call."""
    return len(device.accelerator.gather(torch.tensor([number], device=device.torch_device)).unique()) > 1


def check_resumed(recipe: Recipe, identity: dict[str, Any], values: dict[str, Any], say: Callable[[str], None]) -> None:
    """Raise UsageError if a state's `values` belong to another run than `identity`; print which other keys changed."""
    now = dict(identity)
    for name in ("n_layer", "n_head", "n_embd"):
        if getattr(recipe, name) is not None:
            now[name] = getattr(recipe, name)
    newer = {"isolate_documents": False, "dataset_weights": None, "lora_rank": 0}  # keys that older states lack
    before = {**newer, **values["config"], **values["identity"]}
    lines = [f"{recipe.out_dir}: cannot be resumed as another run; give these back or start with another init_from:"]
    for name, value in now.items():
        if before.get(name) != value:
            lines.append(f"  {name}: {before.get(name)} in the run, {value} now")
    if len(lines) > 1:
        raise UsageError("\n".join(lines))
    for field in dataclasses.fields(recipe):
        old, new = values["recipe"].get(field.name, field.default), getattr(recipe, field.name)
        if field.metadata["resume"] == "schedule" and old != new:
            say(f"resuming with {field.name} {old} -> {new} from iteration {values['iteration']}")


def begin_loading(
    recipe: Recipe, config: GPTConfig, saved: SavedState | None, ahead: bool
) -> Callable[[Callable[[str], None]], GPT]:
    """A function that returns the model that a run starts from. Those in files are read by a thread if `ahead`, while
    the splits are prepared; the function then prints and raises what the thread has met. memory=auto first asks how
    much memory is free without the weights."""
    if saved or recipe.init_from == "scratch" or not ahead:
        return lambda say: load_weights(recipe, config, saved, say)
    lines: list[str] = []
    loading: Future[GPT] = Future()

    def load() -> None:
        try:
            loading.set_result(load_weights(recipe, config, None, lines.append))
        except BaseException as error:
            loading.set_exception(error)

    def result(say: Callable[[str], None]) -> GPT:
        wait([loading])
        for line in lines:
            say(line)
        return loading.result()

    threading.Thread(target=load, name="weights").start()
    return result


def load_weights(recipe: Recipe, config: GPTConfig, saved: SavedState | None, say: Callable[[str], None]) -> GPT:
    """The model that a run starts from, without adapters."""
    if saved:
        say(f"resuming {recipe.out_dir} at iteration {saved.state['iteration']}")
        _check_tensors(saved, config, recipe)
        if not recipe.lora_rank:
            return GPT.from_state(config, saved.weights, dropout=recipe.dropout)
        try:
            return _load_source(saved.state["init_from"], config, recipe)
        except UsageError as error:
            raise UsageError(
                f"{recipe.out_dir}: holds adapters and not the weights they were trained over: {error}"
            ) from None
    if recipe.init_from == "scratch":
        needed, free = 4 * size.num_parameters(config), memory.available_bytes("cpu")
        if needed > free:
            sizes = f"the weights take {gigabytes(needed)}, and {gigabytes(free)} of memory are free"
            raise UsageError(f"n_layer, n_embd: {sizes}; take fewer layers or a smaller width")
        say("initializing a new model from scratch")
        model = GPT.from_scratch(config, recipe.seed)
        model.set_dropout(recipe.dropout)
        return model
    say(f"initializing from {recipe.init_from}")
    return _load_source(recipe.init_from, config, recipe)


def _check_tensors(saved: SavedState, config: GPTConfig, recipe: Recipe) -> None:
    """Raise UsageError unless a state holds the weights and moments of a run of this model."""
    weights = lora.shapes(config, recipe.lora_rank) if recipe.lora_rank else size.shapes(config)
    moments = {f"{kind}.{name}": shape for kind in MOMENTS for name, shape in weights.items()}
    parts = (
        ("model", "weights", saved.weights, weights, [torch.float32]),
        ("optimizer", "moments", saved.optimizer, moments, [torch.float32, torch.bfloat16]),
    )
    for name, what, tensors, shapes, dtypes in parts:
        try:
            for key, tensor in convert.check_shapes(tensors, shapes).items():
                if tensor.dtype not in dtypes:
                    raise ValueError(f"{key} is {str(tensor.dtype).removeprefix('torch.')}, which no run writes")
                if key.startswith("exp_avg_sq.") and tensor.min() < 0:
                    raise ValueError(f"{key} holds negative numbers, and it is of squares")
            pretrained.check_finite(tensors, what)
        except ValueError as error:
            directory = checkpoints.state_directory(recipe.out_dir, saved.state["iteration"])
            way = f"without {directory} the run resumes from the state before it"
            raise UsageError(f"{directory / name}.safetensors: {error}; {way}") from None


def _load_source(source: str, config: GPTConfig, recipe: Recipe) -> GPT:
    """The model in a directory or on the Hub, with the positions and the vocabulary of a run's `config`."""
    model = GPT.from_pretrained(source, config.block_size, recipe.dropout, config.vocab_size)
    model.config.new_tokens = config.new_tokens
    return model
