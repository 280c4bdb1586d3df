"""Evaluations while training, warning signs and early stopping."""

from __future__ import annotations

import math

from finetune.data.batches import Mixture
from finetune.evaluation.split_loss import TRAIN_PROBE, eval_rows, split_loss
from finetune.runs import warning_signs
from finetune.runs.logger import RunLogger
from finetune.runs.model_card import hub_id
from finetune.training.monitor import Diverged
from finetune.training.saving import publish_model
from finetune.training.state import Setup, TrainState


def validate(setup: Setup, state: TrainState, logger: RunLogger) -> None:
    """Measure both splits at this step; publish the model if it is the best so far, or if all are kept. Raises
    Diverged when a loss is not finite."""
    recipe, step = setup.recipe, state.step
    logger.status("evaluating")
    probe = max(1, TRAIN_PROBE // setup.train.block_size)
    val_loss, by_dataset = val_losses(setup)
    rows = eval_rows(setup.train, setup.max_eval_rows or probe)
    train_loss = split_loss(setup.device, setup.model, setup.train, rows)
    each = ", ".join(f"{name} {loss:.4f}" for name, loss in by_dataset.items())
    logger.print(f"step {step}: train loss {train_loss:.4f}, val loss {val_loss:.4f}{f' ({each})' if each else ''}")
    more = {"val_losses": by_dataset} if by_dataset else {}
    logger.record("eval", step=step, train_loss=train_loss, val_loss=val_loss, **more)
    if recipe.eval_only:
        return
    if not math.isfinite(val_loss + train_loss):
        raise Diverged(f"step {step}: val loss is {val_loss}, train loss is {train_loss}")
    state.evaluations.append({"step": step, "train_loss": train_loss, "val_loss": val_loss})
    facts = {**state.evaluations[-1], "init_from": setup.init_from, "base_model": hub_id(setup.init_from)}
    again = step == state.best.get("step")  # published before a crash that lost the state of this step
    is_best = again or val_loss < state.best.get("val_loss", math.inf)
    if is_best and publish_model(setup, state, logger, "best", facts):
        state.best = {"val_loss": val_loss, "step": step}
        logger.print(f"saving checkpoint to {recipe.out_dir}")
        logger.record("best", step=step, val_loss=val_loss)
    if recipe.always_save_checkpoint:
        publish_model(setup, state, logger, f"iter_{step:06d}", facts)
    warn(setup, state, logger)


def val_losses(setup: Setup) -> tuple[float, dict[str, float]]:
    """Validation loss over all targets, and {name: loss} of each dataset if there are several."""
    rows = eval_rows(setup.val, setup.max_eval_rows)
    names = setup.dataset_names
    if not isinstance(setup.val, Mixture):
        return split_loss(setup.device, setup.model, setup.val, rows), {}
    total, count, losses = 0.0, 0, {}
    for number, _, rows_there in setup.val.shares(rows):
        part = setup.val.parts[number]
        loss, targets = split_loss(setup.device, setup.model, part, rows_there), part.num_targets(rows_there)
        name = names[number]
        losses[name if names.count(name) == 1 else f"{name} {number + 1}"] = loss
        total, count = total + loss * targets, count + targets
    return total / count, losses


def warn(setup: Setup, state: TrainState, logger: RunLogger) -> None:
    """Print each warning sign once."""
    pretrained, vocab_size = setup.init_from != "scratch", setup.model.config.vocab_size
    for name, line in warning_signs.warning_signs(state.evaluations, vocab_size, pretrained).items():
        if name not in state.warned:
            state.warned.add(name)
            logger.print(f"warning: {line}")
            logger.record("warning", step=state.step, name=name, line=line)


def is_out_of_patience(setup: Setup, state: TrainState) -> bool:
    """Early stopping: the last `patience` evaluations brought no new best."""
    if setup.recipe.patience is None or not state.evaluations:
        return False
    losses = [evaluation["val_loss"] for evaluation in state.evaluations]
    return len(losses) - 1 - losses.index(min(losses)) >= setup.recipe.patience
