"""A learning rate found by trial: short runs from the same start, each with its own rate, compared by the validation
loss at their end."""

from __future__ import annotations

import dataclasses
import math
import sys
import tempfile
from dataclasses import dataclass

import numpy as np

from finetune.common.errors import UsageError
from finetune.common.formatting import duration
from finetune.config import schedule as schedules
from finetune.config.recipe import Recipe
from finetune.evaluation.split_loss import split_loss
from finetune.runtime import device as devices
from finetune.tools.plan.estimate import Plan, Timing
from finetune.training import step
from finetune.training.recovery import reset_to_initial
from finetune.training.setup import setup_run
from finetune.training.state import Setup, TrainState

STEP = 3.0  # factor between neighbouring rates
RUNS = 5  # at most
UPDATES = (5, 100)  # of a run: fewer say nothing, more are not needed to see which rate is ahead
ROWS = 64  # of val that are evaluated
NOISE = 0.005  # nats; if it is that close to the best, the recipe's own rate stays


@dataclass
class Trial:
    results: dict[float, float]  # {learning rate: validation loss, inf where training diverged}
    before: float  # validation loss of the model they all began with
    updates: int
    given: float  # the recipe's own rate

    @property
    def best(self) -> float:
        best = min(self.results, key=self.results.__getitem__)
        return self.given if self.results[self.given] < self.results[best] + NOISE else best

    def report(self) -> str:
        lines = [f"{'learning rate':<15}val loss after {self.updates} updates (before: {self.before:.4f})"]
        for rate, loss in sorted(self.results.items()):
            mark = "  <- best" if rate == self.best else ""
            lines.append(f"{rate:<15g}{f'{loss:.4f}' if math.isfinite(loss) else 'diverged'}{mark}")
        line = f"suggestion: --learning_rate={self.best:g}"
        if self.best in (min(self.results), max(self.results)):
            line += "; it is at the edge of what was tried, so a further one may be better still"
        return "\n".join(
            [
                *lines,
                line,
                "Short runs favour high rates a little: when in doubt, take the lower of two that are close.",
            ]
        )


def find_lr(plan: Plan, minutes: float) -> Trial:
    """Try rates around the recipe's own for at most so many minutes. Prints first how long it will take. Raises
    UsageError when that time is too short, and when the plan was not timed."""
    if plan.timing is None:
        raise UsageError(f"--find_lr: cannot be tried, because {plan.untimed}")
    updates, seconds = _affordable(plan, plan.timing, minutes * 60)
    print(f"\ntrying at most {RUNS} learning rates, {updates} updates each: at most {duration(seconds)}", flush=True)
    short = {"max_iters": updates, "epochs": None, "warmup_iters": None, "lr_decay_iters": None, "min_lr": None}
    with tempfile.TemporaryDirectory() as out_dir:
        recipe = dataclasses.replace(plan.recipe, out_dir=out_dir, num_samples=0, overwrite=False, **short)
        setup, state = setup_run(recipe, devices.start(recipe), lambda line: None)
        rows = np.linspace(0, setup.val.num_rows - 1, min(ROWS, setup.val.num_rows)).round().astype(np.int64)
        given, results = recipe.learning_rate, {}

        def try_rate(rate: float) -> None:
            reset_to_initial(setup, state)
            results[rate] = _loss(setup, state, dataclasses.replace(recipe, learning_rate=rate), rows)
            shown = f"{results[rate]:.4f}" if math.isfinite(results[rate]) else "diverged"
            print(f"  {rate:g}: {shown}", file=sys.stderr, flush=True)

        before = split_loss(setup.device, setup.model, setup.val, rows)
        for rate in (given, _rounded(given * STEP), _rounded(given / STEP)):
            try_rate(rate)
        while len(results) < RUNS:  # go on in the direction that gets better
            rates = sorted(results)
            best = min(results, key=results.__getitem__)
            if best not in (rates[0], rates[-1]):
                break
            try_rate(_rounded(best * STEP if best == rates[-1] else best / STEP))
    return Trial(results, before, updates, given)


def _rounded(rate: float) -> float:
    """To two digits, as people write rates."""
    return float(f"{rate:.2g}")


def _affordable(plan: Plan, timing: Timing, seconds: float) -> tuple[int, float]:
    """`(updates of a run, seconds of all runs)`."""
    recipe = plan.recipe
    update = timing.update + (recipe.gradient_accumulation_steps - 1) * timing.micro_batch
    evaluation = min(ROWS, plan.data.rows["val"]) * timing.row
    fixed = 2 * timing.start + (RUNS + 1) * evaluation  # weights are read again for every run
    updates = min(UPDATES[1], max(1, plan.schedule.length), int((seconds - fixed) / RUNS / update))
    least = min(UPDATES[0], max(1, plan.schedule.length))
    if updates < least:
        raise UsageError(
            f"--find_lr: {RUNS} runs of {least} updates take {duration(fixed + RUNS * least * update)} here; allow that"
            f" with --trial_minutes={math.ceil((fixed + RUNS * least * update) / 60)}, or make updates smaller"
        )
    return updates, fixed + RUNS * updates * update


def _loss(setup: Setup, state: TrainState, recipe: Recipe, rows: np.ndarray) -> float:
    """Validation loss at the end of a run of this recipe; inf when a loss on the way is not finite."""
    schedule = schedules.schedule(recipe, setup.train.num_rows)
    for state.step in range(schedule.length):
        lr = schedules.learning_rate(state.step, recipe, schedule)
        loss, norm, _ = step.update(setup, state, lr).read()
        if not math.isfinite(loss) or (not math.isfinite(norm) and state.scaler is None):
            return math.inf
    loss = split_loss(setup.device, setup.model, setup.val, rows)
    return loss if math.isfinite(loss) else math.inf
