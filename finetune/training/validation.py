"""Evaluations while training, warning signs and early stopping."""

from __future__ import annotations

import math
from typing import Any

from finetune.common.formatting import perplexity
from finetune.data.batches import ConcatBlocks
from finetune.evaluation.split_loss import TRAIN_PROBE, OnProgress, eval_rows, split_loss
from finetune.runs import warning_signs
from finetune.runs.logger import RunLogger
from finetune.runs.model_card import hub_id
from finetune.training.callbacks import Evaluation
from finetune.training.monitor import Diverged
from finetune.training.saving import finish_saves, publish_model
from finetune.training.state import Setup, TrainState


def validate(setup: Setup, state: TrainState, logger: RunLogger) -> None:
    """Measure both splits at this step; publish the model if it is the best so far, or if all are kept. Raises
    Diverged when a loss is not finite."""
    recipe, step = setup.recipe, state.step
    with logger.evaluating() as on_progress:
        val_loss, by_dataset = val_losses(setup, on_progress)
    rows = eval_rows(setup.train, setup.max_eval_rows or max(1, TRAIN_PROBE // setup.train.block_size))
    with logger.evaluating() as on_progress:
        train_loss = split_loss(setup.device, setup.model, setup.train, rows, on_progress)
    evaluation: dict[str, Any] = {"step": step, "train_loss": train_loss, "val_loss": val_loss}
    line, more = f"step {step}: train loss {train_loss:.4f}, val loss {val_loss:.4f}", {}
    if by_dataset:
        line += f" ({', '.join(f'{name} {loss:.4f}' for name, loss in by_dataset.items())})"
        more = {"val_losses": by_dataset}
    logger.record("eval", **evaluation, **more)
    logger.print(line)
    if recipe.eval_only:
        return
    if not math.isfinite(val_loss + train_loss):
        raise Diverged(f"step {step}: val loss is {val_loss}, train loss is {train_loss}")
    state.evaluations.append(evaluation)
    facts = {**evaluation, "init_from": setup.init_from, "base_model": hub_id(setup.init_from)}
    facts |= setup.provenance
    finish_saves(setup, logger)  # which tells what best/ holds
    lowest = state.best.get("val_loss", math.inf)
    # equal at the same step: published before a crash that lost the state of this step
    is_best = val_loss < lowest or (val_loss == lowest and step == state.best["step"])

    def published() -> None:
        state.best = dict(evaluation)
        logger.record("best", step=step, val_loss=val_loss)
        logger.print(f"saving checkpoint to {recipe.out_dir}")

    if is_best:
        publish_model(setup, state, logger, "best", facts, published)
    if recipe.always_save_checkpoint:
        publish_model(setup, state, logger, f"iter_{step:06d}", facts)
    warn(setup, state, logger)
    # with callbacks it is on disk by now
    setup.notify(Evaluation(step, train_loss, val_loss, best=is_best and state.best.get("step") == step))


def val_losses(setup: Setup, on_progress: OnProgress) -> tuple[float, dict[str, float]]:
    """Validation loss over all targets, and {name: loss} of each dataset if there are several."""
    rows = eval_rows(setup.val, setup.max_eval_rows)
    if not isinstance(setup.val, ConcatBlocks):
        return split_loss(setup.device, setup.model, setup.val, rows, on_progress), {}
    total, losses, names = 0.0, {}, setup.dataset_names
    for number, _, rows_of_part in setup.val.rows_by_part(rows):
        part, name = setup.val.parts[number], names[number]
        loss = split_loss(setup.device, setup.model, part, rows_of_part, on_progress)
        losses[name if names.count(name) == 1 else f"{name} {number + 1}"] = loss
        total += loss * part.num_targets(rows_of_part)
    return total / setup.val.num_targets(rows), losses


def warn(setup: Setup, state: TrainState, logger: RunLogger) -> None:
    """Print each warning sign once."""
    pretrained, vocab_size = setup.init_from != "scratch", setup.model.config.vocab_size
    passes = state.step * setup.recipe.blocks_per_update / setup.train.num_rows
    for name, line in warning_signs.warning_signs(state.evaluations, vocab_size, pretrained, passes).items():
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


def figures(state: TrainState) -> dict[str, float | None]:
    """What `require` may name: figures of the best model; its improvement over the model before the first update."""
    val_loss = state.best.get("val_loss", math.nan)
    first = [evaluation["val_loss"] for evaluation in state.evaluations[:1] if evaluation["step"] == 0]
    return {
        "val_loss": val_loss,
        "train_loss": state.best.get("train_loss"),
        "perplexity": perplexity(val_loss),
        "improvement": first[0] - val_loss if first else None,
    }


def worse_than_at_start(state: TrainState) -> str | None:
    """A line if the last evaluation is worse than that before the first update."""
    first, last = state.evaluations[0], state.evaluations[-1]
    if first["step"] != 0 or last["val_loss"] <= first["val_loss"]:
        return None
    losses = f"val loss {last['val_loss']:.4f} after {last['step']:,} updates, {first['val_loss']:.4f} before"
    return f"this run ended worse than it began: {losses}; best/ holds step {state.best['step']:,}"
