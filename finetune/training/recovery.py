"""Resume a run, and roll it back after it diverged."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from finetune.common.errors import Failure, UsageError
from finetune.config.recipe import Recipe
from finetune.gpt import GPT, GPTConfig, convert, lora
from finetune.runs import checkpoints
from finetune.runs.logger import RunLogger
from finetune.runtime import fsdp
from finetune.runtime.device import Device
from finetune.training.monitor import Diverged, LossMonitor
from finetune.training.optimizer import fill_optimizer
from finetune.training.saving import save_state
from finetune.training.state import Setup, TrainState

# weights, moments and state.json, as `checkpoints.load_state` returns them
Saved = tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, Any]]


def roll_back(setup: Setup, state: TrainState, logger: RunLogger, problem: str) -> None:
    """Go back to the last good state with half the learning rate. Raises Failure after max_rollbacks."""
    recipe, accelerator, reached = setup.recipe, setup.device.accelerator, state.step
    logger.print(problem)
    logger.record("diverged", step=reached, problem=problem)
    states = checkpoints.states(recipe.out_dir)
    newest = int(states[0].name.removeprefix("step-")) if states else -1
    if len(set(accelerator.gather(torch.tensor([newest], device=setup.device.torch_device)).tolist())) > 1:
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
    setup.optimizer.zero_grad(set_to_none=True)
    accelerator.wait_for_everyone()
    # a rollback that led straight back to here: that state was saved after the harm was done, and before it showed
    if len(states) > 1 and state.last_rollback is not None and state.last_rollback == state.last_saved:
        if accelerator.is_main_process:
            checkpoints.delete_state(recipe.out_dir, state.last_rollback)
        accelerator.wait_for_everyone()
        states = states[1:]
    if states:
        restore_state(setup, state, checkpoints.load_state(recipe.out_dir, logger.print))
    else:
        reset_to_initial(setup, state)
    state.last_rollback = state.step
    state.rollbacks, state.lr_scale = state.rollbacks + 1, state.lr_scale / 2
    logger.print(
        f"rollback {state.rollbacks} of {recipe.max_rollbacks}: back to step {state.step}, learning rates times"
        f" {state.lr_scale:g}"
    )
    logger.record("rollback", step=state.step, reached=reached, lr_scale=state.lr_scale, problem=problem)
    if accelerator.is_main_process:
        with contextlib.suppress(OSError):  # on a full disk the lines of the failed try stay
            logger.rewrite(state.step, state.evaluations)
    # saved at once, so that a kill does not make the run forget its rollbacks; non-finite weights are found by the
    # next update
    with contextlib.suppress(Diverged):
        save_state(setup, state, logger, must_succeed=False)


def restore_state(setup: Setup, state: TrainState, saved: Saved) -> None:
    """Put weights, optimizer and state where a saved run was. What has happened to the run since then is kept."""
    tensors, moments, values = saved
    if setup.recipe.lora_rank:
        lora.load(setup.model, tensors)
    else:
        fsdp.load(setup.model, convert.with_padding(tensors, setup.model.config))
    fill_optimizer(setup.optimizer, setup.parameter_names, moments, values["updates"])
    state.step, state.evaluations = values["iteration"], values["evaluations"]
    state.monitor = LossMonitor(**values["watch"])
    state.last_saved, state.save_pending = values["iteration"], False
    if state.scaler and values["scaler"]:
        state.scaler.load_state_dict(values["scaler"])


def resume(setup: Setup, state: TrainState, saved: Saved, say: Callable[[str], None]) -> None:
    """Go on with a saved run in a new process."""
    restore_state(setup, state, saved)
    recipe, values = setup.recipe, saved[2]
    state.lr_scale, state.rollbacks = values["lr_scale"], values["rollbacks"]
    if recipe.learning_rate != values["recipe"]["learning_rate"]:
        state.lr_scale = 1.0
    if state.lr_scale != 1.0:
        say(
            f"learning rates are times {state.lr_scale:g} after {state.rollbacks} rollbacks; another learning_rate"
            " would start afresh"
        )
    state.best = checkpoints.read_best(recipe.out_dir)
    if not state.best:
        say(f"{recipe.out_dir}/best: there is none, or it is damaged; the next evaluation writes it")


def has_found_batch_size(saved: Saved | None, device: Device) -> bool:
    """Whether a saved state holds micro-batches that so many processes can share."""
    if saved is None:
        return False
    return saved[2]["recipe"]["gradient_accumulation_steps"] % device.accelerator.num_processes == 0


def reset_to_initial(setup: Setup, state: TrainState) -> None:
    """Put a run back to its start, before the first state was saved. Its rollbacks are kept."""
    recipe, config = setup.recipe, dataclasses.replace(setup.model.config)
    fresh = load_weights(recipe, config, setup.train.block_size, None, lambda line: None)
    if recipe.lora_rank:
        lora.add_adapters(fresh, recipe)
    fsdp.load(setup.model, fresh.state_dict())
    fill_optimizer(setup.optimizer, setup.parameter_names)
    state.step, state.evaluations, state.monitor = 0, [], LossMonitor()
    state.last_saved, state.save_pending = None, False


def check_resumed(recipe: Recipe, identity: dict[str, Any], values: dict[str, Any], say: Callable[[str], None]) -> None:
    """Refuse to resume as another run than the state's `values` are of; print which other keys have changed."""
    if values.get("format") != checkpoints.STATE_FORMAT:
        raise UsageError(
            f"{recipe.out_dir}: its state has format {values.get('format')!r}, not {checkpoints.STATE_FORMAT}"
        )
    shape = ("n_layer", "n_head", "n_embd")
    newer = {"isolate_documents": False, "dataset_weights": None, "lora_rank": 0}  # keys that older states lack
    before = {**newer, **values["identity"], **{name: values["config"][name] for name in shape}}
    given = {name: getattr(recipe, name) for name in shape if getattr(recipe, name) is not None}
    changed = [
        f"  {name}: {before.get(name)} in the run, {value} now"
        for name, value in {**identity, **given}.items()
        if before.get(name) != value
    ]
    if changed:
        refused = (
            f"{recipe.out_dir}: cannot be resumed as another run; give these back or start with another init_from:"
        )
        raise UsageError("\n".join([refused, *changed]))
    for field in dataclasses.fields(recipe):
        old, new = values["recipe"].get(field.name, field.default), getattr(recipe, field.name)
        if field.metadata["resume"] == "schedule" and old != new:
            say(f"resuming with {field.name} {old} -> {new} from iteration {values['iteration']}")


def load_weights(
    recipe: Recipe, config: GPTConfig, block_size: int, saved: Saved | None, say: Callable[[str], None]
) -> GPT:
    """The model that a run starts from, without adapters."""
    if saved:
        say(f"resuming {recipe.out_dir} at iteration {saved[2]['iteration']}")
        if not recipe.lora_rank:
            return GPT.from_state(config, saved[0], dropout=recipe.dropout)
        try:
            return GPT.from_pretrained(saved[2]["init_from"], block_size, recipe.dropout)
        except UsageError as error:
            raise UsageError(
                f"{recipe.out_dir}: holds adapters and not the weights they were trained over: {error}"
            ) from None
    if recipe.init_from == "scratch":
        say("initializing a new model from scratch")
        model = GPT.from_scratch(config, recipe.seed)
        model.set_dropout(recipe.dropout)
        return model
    say(f"initializing from {recipe.init_from}")
    return GPT.from_pretrained(recipe.init_from, block_size, recipe.dropout)
