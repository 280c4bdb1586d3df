"""Lengths, intervals and the learning rate of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass

from finetune.config.recipe import Recipe

EVALUATION_SHARE = 10  # evaluations take at most a tenth of the time,
EVALUATIONS = 10  # but there are so many after the first, or best/ and early stopping have no choice


@dataclass
class Schedule:
    """The lengths and rates that follow from a recipe and the size of the data."""

    length: int  # updates of the whole run
    warmup_iters: int
    lr_decay_iters: int
    min_lr: float
    eval_interval: int
    save_interval: int


def schedule(recipe: Recipe, num_rows: int, evaluated_rows: int = 0) -> Schedule:
    """The Schedule of a run over `num_rows` blocks, of which each evaluation reads `evaluated_rows`; derived values
    follow the real length of the run."""
    length = recipe.max_iters
    if recipe.epochs is not None:
        length = min(length, _updates_of_epochs(recipe, num_rows))
    tenth = length // 10
    warmup = recipe.warmup_iters if recipe.warmup_iters is not None else min(100, tenth)
    if warmup > length // 2:  # meant for a longer run
        warmup = tenth
    twentieth = max(1, min(250, math.ceil(length / 20)))
    longest = max(1, length // EVALUATIONS)
    affordable = min(_affordable_interval(recipe, length, evaluated_rows), longest)
    eval_interval = recipe.eval_interval or max(twentieth, affordable)
    return Schedule(
        length=length,
        warmup_iters=warmup,
        lr_decay_iters=recipe.lr_decay_iters or max(length, 1),
        min_lr=recipe.min_lr if recipe.min_lr is not None else recipe.learning_rate / 10,
        eval_interval=eval_interval,
        save_interval=recipe.save_interval or recipe.eval_interval or twentieth,
    )


def first_end(recipe: Recipe, num_rows: int) -> str:
    """Which of epochs and max_iters ends the run before the other; "" without epochs, or if both end it."""
    if recipe.epochs is None:
        return ""
    updates = _updates_of_epochs(recipe, num_rows)
    if updates < recipe.max_iters:
        return f"epochs={recipe.epochs:g} ends it before max_iters={recipe.max_iters:,}"
    cut = f"max_iters={recipe.max_iters:,} ends it before epochs={recipe.epochs:g}, which are {updates:,} updates"
    return cut if updates > recipe.max_iters else ""


def _updates_of_epochs(recipe: Recipe, num_rows: int) -> int:
    return math.ceil((recipe.epochs or 0) * num_rows / recipe.blocks_per_update)


def _affordable_interval(recipe: Recipe, length: int, evaluated_rows: int) -> int:
    """The smallest interval at which evaluations take at most their share of the time, with the first and the last,
    which every run has. A forward pass is a third of a row of training, half of one where the weights are frozen."""
    in_updates = evaluated_rows / recipe.blocks_per_update / (2 if recipe.lora_rank else 3)
    affordable = int(length / ((EVALUATION_SHARE - 1) * in_updates)) if in_updates else length + 1
    return math.ceil(length / max(1, affordable - 1))


def sizes_for(updates: int, recipe: Recipe, num_rows: int, processes: int) -> dict[str, int]:
    """batch_size and gradient_accumulation_steps with which the recipe's epochs make so many updates, or as many as one
    block for each process allows."""
    share = max(1, int((recipe.epochs or 1) * num_rows / updates) // processes)  # blocks of a process
    size = min(share, 8 if recipe.batch_size == "auto" else recipe.batch_size)
    return {"batch_size": size, "gradient_accumulation_steps": share // size * processes}


def learning_rate(iteration: int, recipe: Recipe, schedule: Schedule) -> float:
    """The learning rate of an update: linear warmup, then cosine decay to min_lr."""
    if iteration < schedule.warmup_iters:
        return recipe.learning_rate * (iteration + 1) / (schedule.warmup_iters + 1)
    if not recipe.decay_lr:
        return recipe.learning_rate
    if iteration >= schedule.lr_decay_iters:
        return schedule.min_lr
    progress = (iteration - schedule.warmup_iters) / (schedule.lr_decay_iters - schedule.warmup_iters)
    return schedule.min_lr + 0.5 * (1 + math.cos(math.pi * progress)) * (recipe.learning_rate - schedule.min_lr)
