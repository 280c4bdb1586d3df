"""The training loop."""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Generator
from signal import Signals
from typing import Any, NamedTuple

from finetune.common import files
from finetune.common.errors import Failure
from finetune.config import schedule as schedules
from finetune.config.recipe import Recipe
from finetune.gpt import lora
from finetune.gpt.size import flops_per_token
from finetune.runs.logger import RunLogger
from finetune.runtime import device as devices
from finetune.training.micro_batch import fit_micro_batch, handle_oom
from finetune.training.monitor import STOPPING, Diverged
from finetune.training.recovery import roll_back
from finetune.training.saving import save_state
from finetune.training.session import check_out_dir, close_run, log_setup, open_run, record_failure, sample
from finetune.training.setup import setup_run
from finetune.training.state import Hooks, Setup, TrainState
from finetune.training.step import UpdateResult, update
from finetune.training.validation import is_out_of_patience, validate


def train(
    recipe: Recipe, reasons: dict[str, Any] | None = None, hooks: Hooks | None = None
) -> tuple[Setup, TrainState]:
    """Train as the recipe says; return the run's Setup and last state. `reasons`, from `comments_by_key`, are recorded
    with the recipe. Raises UsageError before anything is written, and Failure when the run ends early."""
    device = devices.start(recipe)
    main = device.accelerator.is_main_process
    with files.lock(recipe.out_dir) if main and not recipe.eval_only else contextlib.nullcontext():
        if main:
            check_out_dir(recipe)
        logger = RunLogger(recipe.out_dir, write=main)
        setup, state = setup_run(recipe, device, logger.print, hooks)
        peak_flops, source = math.inf, ""
        if main and not recipe.eval_only:
            peak_flops, source = devices.peak_flops(device.torch_device, device.dtype)
        log_setup(setup, state, logger, source)
        with record_failure(setup, state, logger):
            if recipe.eval_only:
                validate(setup, state, logger)
            else:
                open_run(setup, state, logger, reasons)
                with setup.signals.caught():
                    fit_micro_batch(setup, state, logger)
                    run_updates(setup, state, logger, Clock(setup, state.step, peak_flops))
                close_run(setup, state, logger)
        device.accelerator.wait_for_everyone()
    return setup, state


def run_updates(setup: Setup, state: TrainState, logger: RunLogger, clock: Clock) -> None:
    """Update until max_iters or early stopping. Raises Failure when a signal or repeated divergence ends the run."""
    in_flight: deque[UpdateResult] = deque()  # updates whose loss has not been read: one on a GPU, none elsewhere
    signals: list[Signals] = []  # received and not acted on yet
    while True:
        due = what_is_due(setup, state)
        state.save_pending = due.save  # until a save succeeds
        try:
            # read the loss of earlier updates, of all of them before anything is measured, saved or ended
            while len(in_flight) > (0 if any(due) or signals else setup.device.max_in_flight):
                signals += read_update(setup, state, logger, clock, in_flight.popleft())
            stop = next((signal for signal in signals if signal in STOPPING), None)
            # evaluate the loss on train/val and write the best model
            if due.evaluate and (due.last or not stop):
                with clock.evaluating():
                    validate(setup, state, logger)
            # sample from the model
            if due.sample and not stop:
                sample(setup, state, logger)
            # save a resumable state, but never replace a good one during a loss spike
            ended = due.last or is_out_of_patience(setup, state)
            save_now = ended or signals or (due.save and not state.monitor.in_spike)
            if save_now and state.step != state.last_saved:
                save_state(setup, state, logger, must_succeed=ended or stop is not None)
        except Diverged as problem:
            in_flight.clear()
            roll_back(setup, state, logger, str(problem))
            clock.restart(state.step)
            continue
        if ended:
            return
        if stop:
            logger.record("stop", step=state.step, signal=stop.name)
            problem = f"stopped by {stop.name} after {state.step} updates; --init_from=resume goes on from here"
            raise Failure(problem, STOPPING[stop])
        if any(due) or signals:
            clock.restart(state.step)
            signals = []
        # forward backward update; after OOM try again with a smaller micro-batch
        lr = schedules.learning_rate(state.step, setup.recipe, setup.schedule) * state.lr_scale
        try:
            in_flight.append(update(setup, state, lr))
        except (RuntimeError, MemoryError) as error:
            handle_oom(setup, state, logger, error)
            continue
        state.step += 1


class Due(NamedTuple):
    """What to do before the next update."""

    last: bool  # there is no next update
    evaluate: bool
    sample: bool
    save: bool


def what_is_due(setup: Setup, state: TrainState) -> Due:
    step, schedule, sample_interval = state.step, setup.schedule, setup.recipe.sample_interval
    last = step >= schedule.length
    evaluated = bool(state.evaluations) and state.evaluations[-1]["step"] == step
    return Due(
        last=last,
        evaluate=(last or step % schedule.eval_interval == 0) and not evaluated,
        sample=bool(sample_interval) and not last and step > state.last_sampled and step % sample_interval == 0,
        save=state.save_pending or (step > 0 and step % schedule.save_interval == 0),
    )


def read_update(
    setup: Setup, state: TrainState, logger: RunLogger, clock: Clock, result: UpdateResult
) -> list[Signals]:
    """Wait for an update, check its loss and gradient norm, and log it. Returns the signals that came meanwhile.
    Raises Diverged."""
    step, (loss, grad_norm, counts) = result.step, result.read()
    if problem := state.monitor.check(loss, grad_norm, scaled=state.scaler is not None):
        state.step = step
        raise Diverged(f"iter {step}: {problem}, learning rate {result.lr:.3g}")
    # timing and logging
    if step % setup.recipe.log_interval == 0 or step + 1 == setup.schedule.length:
        seconds, mfu, left = clock.read(step + 1)
        event = {
            "iter": step,
            "loss": loss,
            "lr": result.lr,
            "grad_norm": grad_norm,
            "seconds": seconds,
            "tokens_per_second": clock.tokens / seconds,
            "mfu": mfu,
            "memory": setup.device.memory()[0],
        }
        logger.iteration(event, left)
    logger.update_bar(step, loss)
    return setup.signals.agree(counts)


class Clock:
    """Seconds an update, averaged since the clock was last read or restarted, and seconds of the last evaluation."""

    def __init__(self, setup: Setup, step: int, peak_flops: float) -> None:
        recipe, config, self.schedule = setup.recipe, setup.model.config, setup.schedule
        self.tokens = setup.train.block_size * recipe.blocks_per_update  # of an update
        self.flops = flops_per_token(config, lora.num_parameters(config, recipe.lora_rank)) * self.tokens
        self.peak_flops = peak_flops * setup.device.accelerator.num_processes
        self.evaluation = 0.0  # seconds
        self.restart(step)

    def restart(self, step: int) -> None:
        """Count from this step on."""
        self.since, self.began = step, time.perf_counter()

    @contextlib.contextmanager
    def evaluating(self) -> Generator[None]:
        """Time an evaluation."""
        began = time.perf_counter()
        yield
        self.evaluation = time.perf_counter() - began

    def read(self, done: int) -> tuple[float, float, float]:
        """`(seconds an update, mfu, seconds left)` after `done` updates."""
        seconds = (time.perf_counter() - self.began) / max(1, done - self.since)
        self.restart(done)
        mfu = self.flops / seconds / self.peak_flops
        length, interval = self.schedule.length, self.schedule.eval_interval
        evaluations = -(-length // interval) - (done - 1) // interval  # at multiples from here on, and at the end
        return seconds, mfu, seconds * (length - done) + self.evaluation * evaluations
