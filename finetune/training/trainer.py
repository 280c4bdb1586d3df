"""The training loop."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections import deque
from collections.abc import Generator
from typing import Any, NamedTuple

from finetune.common.errors import Failure
from finetune.common.lock import lock
from finetune.config import schedule as schedules
from finetune.config.recipe import Recipe
from finetune.config.run_directory import resume_command
from finetune.gpt import lora
from finetune.gpt.size import flops_per_token
from finetune.runs.logger import RunLogger
from finetune.runtime import alike, process_group
from finetune.runtime import device as devices
from finetune.runtime.heartbeat import beating
from finetune.training.callbacks import Update
from finetune.training.micro_batch import check_oom, fit_micro_batch, reduce_micro_batch
from finetune.training.monitor import EXIT_CODES, Diverged
from finetune.training.recovery import check_all_resume, roll_back
from finetune.training.run_samples import sample, sample_base
from finetune.training.saving import acknowledge_saves, finish_saves, finishing_saves, save_state
from finetune.training.session import check_out_dir, finish_run, log_setup, open_run, record_failure
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
    is_main = device.accelerator.is_main_process
    writes_run = is_main and not recipe.eval_only
    with beating(device.group, recipe.timeout), lock(recipe.out_dir) if writes_run else contextlib.nullcontext():
        alike.check_recipe(recipe, device)
        check_all_resume(recipe, device)
        if is_main:
            check_out_dir(recipe)
        logger = RunLogger(recipe.out_dir, write=is_main)
        setup, state = setup_run(recipe, device, logger.print, hooks)
        peak_flops, peak_flops_source = math.inf, ""
        if writes_run:  # only the main process logs MFU
            peak_flops, peak_flops_source = devices.peak_flops(device.torch_device, device.dtype)
        log_setup(setup, state, logger, peak_flops_source)
        with record_failure(setup, state, logger):
            if recipe.eval_only:
                validate(setup, state, logger)
            else:
                open_run(setup, state, logger, reasons)
                with setup.signals.caught(), finishing_saves(setup, logger):
                    fit_micro_batch(setup, state, logger)  # nothing to do on one process with a given batch_size
                    sample_base(setup, state, logger)
                    run_updates(setup, state, logger, Clock(setup, state.step, peak_flops))
                finish_run(setup, state, logger)
        device.accelerator.wait_for_everyone()
    if device.group:
        process_group.leave_at_exit()
    return setup, state


def run_updates(setup: Setup, state: TrainState, logger: RunLogger, clock: Clock) -> None:
    """Update until max_iters or early stopping. Raises Failure when a signal or repeated divergence ends the run."""
    in_flight: deque[UpdateResult] = deque()  # updates whose loss has not been read: one on a GPU, none elsewhere
    signals: list[signal.Signals] = []  # received and not acted on yet; kept across a rollback or an OOM
    while True:
        due = what_is_due(setup, state)
        state.save_pending = due.save  # until it is tried
        try:  # read_update, validate and save_state raise Diverged
            # keep at most max_in_flight losses unread; read all if something is due or a signal came, also just now
            while len(in_flight) > (0 if any(due) or signals else setup.device.max_in_flight):
                signals += read_update(setup, state, logger, clock, in_flight.popleft())
            stop_signal = next((received for received in signals if received in EXIT_CODES), None)
            # evaluate the loss on train/val and write the best model
            if due.evaluate and (due.finished or not stop_signal):
                with clock.timing_evaluation():
                    validate(setup, state, logger)
            # sample from the model
            if due.sample and not stop_signal:
                sample(setup, state, logger)
            # save a resumable state: at once at the end or after a signal, else not before the end of a loss spike
            is_over = due.finished or is_out_of_patience(setup, state)  # patience may end a resumed run at once
            save_now = is_over or signals or (due.save and not state.monitor.in_spike)
            if is_over or stop_signal:  # the last state is tried again if it is the one that fails now
                finish_saves(setup, logger)
            if save_now and state.step != state.last_saved:
                save_state(setup, state, logger, must_succeed=is_over or stop_signal is not None)
        except Diverged as problem:
            in_flight.clear()
            roll_back(setup, state, logger, str(problem))
            clock.restart(state.step)
            continue
        if is_over:  # complete, even if a signal came
            return
        if stop_signal:
            by = "callback" if setup.signals.requested else stop_signal.name
            logger.record("stop", step=state.step, signal=by)
            told = f"stopped by {by} after {state.step} updates; to go on: {resume_command(setup.recipe.out_dir)}"
            raise Failure(told, EXIT_CODES[stop_signal])
        if any(due) or signals:
            clock.restart(state.step)
            signals = []
        # forward backward update; after OOM try again with a smaller micro-batch
        lr = schedules.learning_rate(state.step, setup.recipe, setup.schedule) * state.lr_scale
        try:
            in_flight.append(update(setup, state, lr))
            state.step += 1
            continue
        except (RuntimeError, MemoryError) as error:
            check_oom(setup, state, error)  # raises any other error again
        reduce_micro_batch(setup, state, logger)  # only now: the error's traceback holds the tensors of the update


class Due(NamedTuple):
    """What to do before the next update."""

    finished: bool  # all updates are made, there is no next one
    evaluate: bool
    sample: bool
    save: bool


def what_is_due(setup: Setup, state: TrainState) -> Due:
    step, schedule, sample_interval = state.step, setup.schedule, setup.recipe.sample_interval
    finished = step >= schedule.length
    # done before: by the run that was resumed, or before an OOM
    evaluated = bool(state.evaluations) and step == state.evaluations[-1]["step"]
    sampled = step <= state.last_sampled
    saved = step == state.last_saved
    at_sample = bool(sample_interval) and step % sample_interval == 0 and not finished  # finish_run samples at the end
    at_save = step > 0 and step % schedule.save_interval == 0
    return Due(
        finished=finished,
        evaluate=(finished or step % schedule.eval_interval == 0) and not evaluated,
        sample=at_sample and not sampled,
        save=(at_save or state.save_pending) and not saved,
    )


def read_update(
    setup: Setup, state: TrainState, logger: RunLogger, clock: Clock, result: UpdateResult
) -> list[signal.Signals]:
    """Wait for an update, check its loss and gradient norm, and log it. Returns the signals that came meanwhile.
    Raises Diverged."""
    step, (loss, grad_norm, signal_counts) = result.step, result.read()
    if problem := state.monitor.check(loss, grad_norm, may_overflow=state.scaler is not None):
        state.step = step  # later updates may have been made already; the rollback records this one
        raise Diverged(f"iter {step}: {problem}, learning rate {result.lr:.3g}")
    # timing and logging
    if step % setup.recipe.log_interval == 0 or step + 1 == setup.schedule.length:
        pace = clock.lap(step + 1)
        event = {
            "iter": step,
            "loss": loss,
            "lr": result.lr,
            "grad_norm": grad_norm,
            "seconds": pace.seconds,
            "tokens_per_second": pace.tokens_per_second,
            "mfu": pace.mfu,
            "memory": setup.device.memory()[0],
        }
        logger.iteration(event, pace.eta)
    logger.update_bar(step, loss)
    acknowledge_saves(setup, logger, result.num_saves)
    setup.notify(Update(step + 1, setup.schedule.length, loss, result.lr, grad_norm))
    return setup.signals.from_counts(signal_counts)


class Pace(NamedTuple):
    seconds: float  # per update
    tokens_per_second: float
    mfu: float
    eta: float  # seconds until the run ends


class Clock:
    """Measures the pace of updates since the last lap or restart, and the seconds of the last evaluation."""

    def __init__(self, setup: Setup, step: int, peak_flops: float) -> None:
        recipe, config, self.schedule = setup.recipe, setup.model.config, setup.schedule
        adapters = lora.num_adapter_parameters(config, recipe.lora_rank)
        self.tokens_per_update = setup.train.block_size * recipe.blocks_per_update
        self.flops_per_update = flops_per_token(config, adapters) * self.tokens_per_update
        self.peak_flops = peak_flops * setup.device.accelerator.num_processes
        self.evaluation_seconds = 0.0
        self.restart(step)

    def restart(self, step: int) -> None:
        """Count from this step on."""
        self.first_step, self.started_at = step, time.perf_counter()

    @contextlib.contextmanager
    def timing_evaluation(self) -> Generator[None]:
        started_at = time.perf_counter()
        yield
        self.evaluation_seconds = time.perf_counter() - started_at

    def lap(self, done: int) -> Pace:
        """The pace after `done` updates; then restart."""
        seconds = (time.perf_counter() - self.started_at) / max(1, done - self.first_step)
        self.restart(done)
        length, interval = self.schedule.length, self.schedule.eval_interval
        evaluations = -(-length // interval) - (done - 1) // interval  # at multiples from here on, and at the end
        return Pace(
            seconds=seconds,
            tokens_per_second=self.tokens_per_update / seconds,
            mfu=self.flops_per_update / seconds / self.peak_flops,
            eta=seconds * (length - done) + self.evaluation_seconds * evaluations,
        )
