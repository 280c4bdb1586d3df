"""Evaluations while training, and early stopping."""

import math

from finetune.evaluation.split_loss import TRAIN_PROBE, eval_rows, split_loss
from finetune.runs import warning_signs
from finetune.runs.model_card import hub_id
from finetune.training import monitor
from finetune.training.saving import publish_model


def validate(run, logger):
    """Measure both splits at this step; publish the model when it is the best so far, or when all are kept. Raises
    Diverged when a loss is no number."""
    recipe, step = run.recipe, run.iteration
    logger.status("evaluating")
    probe = max(1, TRAIN_PROBE // run.train.block_size)
    val_loss, by_dataset = val_losses(run)
    train_loss = split_loss(run, run.train, eval_rows(run.train, run.eval_rows or probe))
    each = ", ".join(f"{name} {loss:.4f}" for name, loss in by_dataset.items())
    logger.print(f"step {step}: train loss {train_loss:.4f}, val loss {val_loss:.4f}{f' ({each})' if each else ''}")
    logger.record(
        "eval",
        step=step,
        train_loss=train_loss,
        val_loss=val_loss,
        **({"val_losses": by_dataset} if by_dataset else {}),
    )
    if recipe.eval_only:
        return
    if not math.isfinite(val_loss + train_loss):
        raise monitor.Diverged(f"step {step}: val loss is {val_loss}, train loss is {train_loss}")
    run.evaluations.append({"step": step, "train_loss": train_loss, "val_loss": val_loss})
    facts = {**run.evaluations[-1], "init_from": run.init_from, "base_model": hub_id(run.init_from)}
    again = step == run.best.get("step")  # published before a crash that lost the state of this step
    if (again or val_loss < run.best.get("val_loss", math.inf)) and publish_model(run, logger, "best", facts):
        run.best = {"val_loss": val_loss, "step": step}
        logger.print(f"saving checkpoint to {recipe.out_dir}")
        logger.record("best", step=step, val_loss=val_loss)
    if recipe.always_save_checkpoint:
        publish_model(run, logger, f"iter_{step:06d}", facts)


def val_losses(run):
    """Validation loss over all targets, and of each dataset where there are several."""
    rows = eval_rows(run.val, run.eval_rows)
    if len(run.names_of_data) == 1:
        return split_loss(run, run.val, rows), {}
    total, count, losses = 0.0, 0, {}
    for number, _, there in run.val.shares(rows):
        part, name = run.val.parts[number], run.names_of_data[number]
        loss, targets = split_loss(run, part, there), part.num_targets(there)
        losses[name if run.names_of_data.count(name) == 1 else f"{name} {number + 1}"] = loss
        total, count = total + loss * targets, count + targets
    return total / count, losses


def warn(run, logger, warned):
    """Say each of the guide's warning signs once."""
    for name, line in warning_signs.warning_signs(
        run.evaluations, run.network.config.vocab_size, run.init_from != "scratch"
    ).items():
        if name not in warned:
            warned.add(name)
            logger.print(f"warning: {line}")
            logger.record("warning", step=run.iteration, name=name, line=line)


def out_of_patience(run):
    if run.recipe.patience is None or not run.evaluations:
        return False
    losses = [evaluation["val_loss"] for evaluation in run.evaluations]
    return len(losses) - 1 - losses.index(min(losses)) >= run.recipe.patience
