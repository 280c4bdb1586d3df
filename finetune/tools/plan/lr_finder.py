"""A learning rate found by trying: short real runs that begin alike, each with its own rate, judged by the validation
loss at their end."""

import dataclasses
import math
import sys
import tempfile
from dataclasses import dataclass

import numpy as np

from finetune.common.errors import UsageError
from finetune.common.formatting import duration
from finetune.config import schedule as schedules
from finetune.evaluation import split_loss
from finetune.runtime import device
from finetune.training import recovery, setup, step

STEP = 3.0  # between neighbouring rates
RUNS = 5  # at most
UPDATES = (5, 100)  # of a run: fewer tell nothing, more are not needed to see which rate is ahead
ROWS = 64  # of val that judge
NOISE = 0.005  # nats; nearer than that to the best, the recipe's own rate is as good


@dataclass
class Trial:
    results: dict  # {learning rate: validation loss, inf where training diverged}
    before: float  # validation loss of the model they all began with
    updates: int
    given: float  # the recipe's own rate

    @property
    def best(self):
        best = min(self.results, key=self.results.get)
        return self.given if self.results[self.given] < self.results[best] + NOISE else best

    def report(self):
        lines = [f"{'learning rate':<15}val loss after {self.updates} updates (before: {self.before:.4f})"]
        lines += [
            f"{rate:<15g}{f'{loss:.4f}' if math.isfinite(loss) else 'diverged'}"
            f"{'  <- best' if rate == self.best else ''}"
            for rate, loss in sorted(self.results.items())
        ]
        edge = self.best in (min(self.results), max(self.results))
        lines.append(
            f"suggestion: --learning_rate={self.best:g}"
            + ("; it is at the edge of what was tried, so a further one may be better still" if edge else "")
        )
        lines.append("Short runs favour high rates a little: when in doubt, take the lower of two that are close.")
        return "\n".join(lines)


def find_lr(plan, minutes):
    """Try rates around the recipe's own for at most so many minutes; return the Trial. Says first how long it will
    take. Raises UsageError when that time is too short, and when the plan was not timed."""
    if plan.timing is None:
        raise UsageError(f"--find_lr: cannot be tried, because {plan.untimed}")
    updates, seconds = _affordable(plan, minutes * 60)
    print(f"\ntrying at most {RUNS} learning rates, {updates} updates each: at most {duration(seconds)}", flush=True)
    with tempfile.TemporaryDirectory() as out_dir:
        recipe = dataclasses.replace(
            plan.recipe,
            out_dir=out_dir,
            max_iters=updates,
            epochs=None,
            warmup_iters=None,
            lr_decay_iters=None,
            min_lr=None,
        )
        recipe = dataclasses.replace(recipe, num_samples=0, overwrite=False)
        run = setup.setup_run(recipe, device.start(recipe), lambda line: None)
        rows = np.linspace(0, run.val.num_rows - 1, min(ROWS, run.val.num_rows)).round().astype(np.int64)
        given = plan.recipe.learning_rate
        results = {}

        def tried(rate):
            recovery.reset_to_initial(run)
            results[rate] = _loss(run, dataclasses.replace(recipe, learning_rate=rate), rows)
            told = f"{results[rate]:.4f}" if math.isfinite(results[rate]) else "diverged"
            print(f"  {rate:g}: {told}", file=sys.stderr, flush=True)

        before = split_loss.split_loss(run, run.val, rows)
        for rate in (given, _rounded(given * STEP), _rounded(given / STEP)):
            tried(rate)
        while len(results) < RUNS:  # go on where it gets better
            rates = sorted(results)
            best = min(results, key=results.get)
            if best not in (rates[0], rates[-1]):
                break
            tried(_rounded(best * STEP if best == rates[-1] else best / STEP))
    return Trial(results, before, updates, given)


def _rounded(rate):
    """To two digits, as people write rates."""
    return float(f"{rate:.2g}")


def _affordable(plan, seconds):
    """`(updates of a run, seconds of them all)`."""
    timing, recipe = plan.timing, plan.recipe
    update = timing.update + (recipe.gradient_accumulation_steps - 1) * timing.micro_batch
    judging = min(ROWS, plan.data.rows["val"]) * timing.row
    fixed = 2 * timing.start + (RUNS + 1) * judging  # weights are read and moved for every run
    updates = min(UPDATES[1], max(1, plan.schedule.length), int((seconds - fixed) / RUNS / update))
    least = min(UPDATES[0], max(1, plan.schedule.length))
    if updates < least:
        raise UsageError(
            f"--find_lr: {RUNS} runs of {least} updates take {duration(fixed + RUNS * least * update)} here; allow that"
            f" with --trial_minutes={math.ceil((fixed + RUNS * least * update) / 60)}, or make updates smaller"
        )
    return updates, fixed + RUNS * updates * update


def _loss(run, recipe, rows):
    """Validation loss at the end of a run, inf when a loss on the way is no number."""
    run.recipe = recipe
    schedule = schedules.schedule(recipe, run.train.num_rows)
    for iteration in range(schedule.length):
        loss, norm, _ = step.update(run, iteration, schedules.learning_rate(iteration, recipe, schedule)).read()
        if not math.isfinite(loss) or (not math.isfinite(norm) and run.scaler is None):
            return math.inf
    loss = split_loss.split_loss(run, run.val, rows)
    return loss if math.isfinite(loss) else math.inf
