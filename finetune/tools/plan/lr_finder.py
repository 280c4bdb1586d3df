"""Learning rates tried in short runs from the same weights, compared by their last validation loss."""

from __future__ import annotations

import dataclasses
import math
import sys
import tempfile
from dataclasses import dataclass

import numpy as np

from finetune.common.errors import UsageError
from finetune.common.formatting import duration, two_digits
from finetune.config import schedule as schedules
from finetune.config.recipe import Recipe
from finetune.evaluation.split_loss import eval_rows, split_loss
from finetune.runtime import device as devices
from finetune.tools.plan.estimate import Plan, Timing
from finetune.training import step
from finetune.training.recovery import reset_to_initial
from finetune.training.setup import setup_run
from finetune.training.state import Setup, TrainState

STEP = 3.0  # factor between neighbouring rates
RUNS = 5  # at most
MIN_UPDATES, MAX_UPDATES = 5, 100  # of a run: fewer show nothing, more are not needed to compare rates
ROWS = 64  # of val that are evaluated
TIE = 0.005  # nats; the recipe's own rate stays if it is that close to the best


@dataclass
class Trial:
    results: dict[float, float]  # {learning rate: validation loss, inf where training diverged}
    before: float  # validation loss before training
    updates: int
    given: float  # the recipe's own rate

    @property
    def best(self) -> float:
        best = min(self.results, key=self.results.__getitem__)
        return self.given if self.results[self.given] < self.results[best] + TIE else best

    def report(self) -> str:
        lines = [f"{'learning rate':<15}val loss after {self.updates} updates (before: {self.before:.4f})"]
        for rate, loss in sorted(self.results.items()):
            mark = "  <- best" if rate == self.best else ""
            lines.append(f"{rate:<15g}{_loss_text(loss)}{mark}")
        lines.append(f"suggestion: --learning_rate={self.best:g}")
        if self.best in (min(self.results), max(self.results)):
            lines[-1] += "; it is at the edge of what was tried, so a further one may be better still"
        lines.append("Short runs favour high rates a little: when in doubt, take the lower of two that are close.")
        return "\n".join(lines)


def find_lr(plan: Plan, minutes: float) -> Trial:
    """Try rates around the recipe's own for at most so many minutes, after printing how long that will take. Raises
    UsageError if the time is too short or the plan was not timed."""
    if plan.timing is None:
        raise UsageError(f"--find_lr: cannot be tried, because {plan.untimed}")
    updates, seconds = _affordable(plan, plan.timing, minutes * 60)
    print(f"\ntrying at most {RUNS} learning rates, {updates} updates each: at most {duration(seconds)}", flush=True)
    short = {"max_iters": updates, "epochs": None, "warmup_iters": None, "lr_decay_iters": None, "min_lr": None}
    with tempfile.TemporaryDirectory() as out_dir:
        recipe = dataclasses.replace(plan.recipe, out_dir=out_dir, num_samples=0, overwrite=False, **short)
        setup, state = setup_run(recipe, devices.start(recipe), lambda line: None)
        rows = eval_rows(setup.val, ROWS)
        given, results = recipe.learning_rate, {}

        def try_rate(rate: float) -> None:
            reset_to_initial(setup, state)
            results[rate] = _train(setup, state, dataclasses.replace(recipe, learning_rate=rate), rows)
            print(f"  {rate:g}: {_loss_text(results[rate])}", file=sys.stderr, flush=True)

        before = split_loss(setup.device, setup.model, setup.val, rows)
        for rate in (given, two_digits(given * STEP), two_digits(given / STEP)):
            try_rate(rate)
        while len(results) < RUNS:  # go on in the direction that gets better
            best = min(results, key=results.__getitem__)
            if best not in (min(results), max(results)):
                break
            try_rate(two_digits(best * STEP if best == max(results) else best / STEP))
    return Trial(results, before, updates, given)


def _loss_text(loss: float) -> str:
    return f"{loss:.4f}" if math.isfinite(loss) else "diverged"


def _affordable(plan: Plan, timing: Timing, seconds: float) -> tuple[int, float]:
    """`(updates of a run, seconds of all runs)`."""
    recipe = plan.recipe
    update = timing.update + (recipe.gradient_accumulation_steps - 1) * timing.micro_batch
    evaluation = min(ROWS, plan.data.rows["val"]) * timing.row
    fixed = 2 * timing.start + (RUNS + 1) * evaluation  # weights are read again for every run
    length = max(1, plan.schedule.length)
    updates, least = min(MAX_UPDATES, length, int((seconds - fixed) / RUNS / update)), min(MIN_UPDATES, length)
    if updates < least:
        needed = fixed + RUNS * least * update
        raise UsageError(
            f"--find_lr: {RUNS} runs of {least} updates take {duration(needed)} here; allow that with"
            f" --trial_minutes={math.ceil(needed / 60)}, or make updates smaller"
        )
    return updates, fixed + RUNS * updates * update


def _train(setup: Setup, state: TrainState, recipe: Recipe, rows: np.ndarray) -> float:
    """Train with this recipe and return the validation loss on these rows; inf if training diverges."""
    schedule = schedules.schedule(recipe, setup.train.num_rows)
    for state.step in range(schedule.length):
        lr = schedules.learning_rate(state.step, recipe, schedule)
        loss, norm, _ = step.update(setup, state, lr).read()
        if not math.isfinite(loss) or (not math.isfinite(norm) and state.scaler is None):
            return math.inf
    loss = split_loss(setup.device, setup.model, setup.val, rows)
    return loss if math.isfinite(loss) else math.inf
