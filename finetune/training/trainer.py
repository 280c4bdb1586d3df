"""The training loop."""

import contextlib
import time
from collections import deque

from finetune.common import files
from finetune.common.errors import Failure
from finetune.config import schedule as schedules
from finetune.gpt import lora
from finetune.gpt.size import flops_per_token
from finetune.runs.logger import RunLogger, iteration_line
from finetune.runtime import device
from finetune.training import monitor
from finetune.training.micro_batch import choose_batch_size, fits_in_memory, handle_oom, reduce_micro_batch
from finetune.training.recovery import roll_back
from finetune.training.saving import save_state
from finetune.training.session import check_out_dir, close_run, log_setup, open_run, sample
from finetune.training.setup import setup_run
from finetune.training.step import update, warm_up_ddp
from finetune.training.validation import out_of_patience, validate, warn


def train(recipe, reasons=None):
    """Train as the recipe says; return the finished Run. `reasons`, of `cli.reasons`, say in the record where its
    values are from.

    Raises UsageError before anything is written when it cannot be done, and Failure when it ends otherwise than by
    being done."""
    machine = device.start(recipe)
    main = machine.accelerator.is_main_process
    with files.lock(recipe.out_dir) if main and not recipe.eval_only else contextlib.nullcontext():
        if main:
            check_out_dir(recipe)
        logger = RunLogger(recipe.out_dir, write=main)
        run = setup_run(recipe, machine, logger.print)
        log_setup(run, logger)
        try:
            if recipe.eval_only:
                validate(run, logger)
            else:
                open_run(run, logger, reasons)
                with run.signals.caught():
                    _loop(run, logger)
                close_run(run, logger)
        except KeyboardInterrupt:
            logger.record("stop", step=run.iteration, signal="SIGINT")
            raise
        except Exception as error:  # so that whoever looks later can tell it from a kill
            code, rank = getattr(error, "code", 1), machine.accelerator.process_index
            if (
                rank and getattr(error, "alone", False) and not recipe.eval_only
            ):  # the main one will only see that this one is gone
                logger.join()
            if code not in monitor.STOPPING.values():
                problem = str(error) or type(error).__name__
                logger.record(
                    "failed", step=run.iteration, problem=problem, code=code, **({"rank": rank} if rank else {})
                )
            raise
        finally:
            logger.close()
        machine.accelerator.wait_for_everyone()
    return run


def _loop(run, logger):
    schedule, clock, warned = run.schedule, Clock(run), set()
    if run.recipe.auto_batch_size:
        choose_batch_size(run, logger)
    if (
        run.machine.accelerator.num_processes > 1 and not run.machine.sharding
    ):  # then no process can try alone, and nothing settles
        while not fits_in_memory(run):
            reduce_micro_batch(run, logger)
        warm_up_ddp(run)
    sampled = 0  # the step of the newest samples
    pending, signals = (
        deque(),
        [],
    )  # updates that nobody has looked at yet: (step, lr, Outcome); signals that wait for an answer
    while True:
        step = run.iteration
        last = step >= schedule.length
        evaluation_due = last or step % schedule.eval_interval == 0
        sample_due = (
            bool(run.recipe.sample_interval) and not last and step > sampled and step % run.recipe.sample_interval == 0
        )
        run.save_due = run.save_due or (step > 0 and step % schedule.save_interval == 0)
        try:
            # nothing is measured, saved or ended while an update has not been looked at
            while len(pending) > (
                0 if evaluation_due or sample_due or run.save_due or signals else run.machine.max_in_flight
            ):
                signals += read_update(run, logger, clock, *pending.popleft())
            stop = next((name for name in signals if name in monitor.STOPPING), None)
            evaluated = bool(run.evaluations) and run.evaluations[-1]["step"] == step
            if evaluation_due and not evaluated and (last or not stop):
                with clock.evaluating():
                    validate(run, logger)
                warn(run, logger, warned)
                clock.restart()
            if sample_due and not stop:
                sample(run, logger)
                sampled = step
                clock.restart()
            ended = last or out_of_patience(run)
            calm = (
                run.watch.high == 0
            )  # a state is not saved over a good one while it looks as if training were going wrong
            if (ended or signals or (run.save_due and calm)) and step != run.saved_at:
                save_state(run, logger, must_succeed=ended or stop is not None)
                clock.restart()
        except monitor.Diverged as problem:
            pending.clear()
            roll_back(run, logger, str(problem))
            clock.restart()
            continue
        if ended:
            return
        if stop:
            logger.record("stop", step=step, signal=stop.name)
            raise Failure(
                f"stopped by {stop.name} after {step} updates; --init_from=resume goes on from here",
                monitor.STOPPING[stop],
            )
        signals = []

        lr = schedules.learning_rate(step, run.recipe, schedule) * run.lr_scale
        try:
            outcome = update(run, step, lr)
        except (RuntimeError, MemoryError) as error:
            handle_oom(run, logger, error)
            continue
        pending.append((step, lr, outcome))
        run.iteration += 1


def read_update(run, logger, clock, step, lr, outcome):
    """Judge an update that was begun, and tell of it. Returns the signals that came meanwhile; raises Diverged."""
    loss, grad_norm, counts = outcome.read()
    if problem := run.watch.check(loss, grad_norm, scaled=run.scaler is not None):
        run.iteration = step
        raise monitor.Diverged(f"iter {step}: {problem}, learning rate {lr:.3g}")
    if step % run.recipe.log_interval == 0 or step + 1 == run.schedule.length:
        seconds, tokens, mfu, left = clock.read(step + 1)
        memory, _ = run.machine.memory()
        logger.iteration(iteration_line(step, loss, seconds, tokens, mfu, left), tokens / seconds, mfu, left, memory)
        logger.record(
            "iter",
            iter=step,
            loss=loss,
            lr=lr,
            grad_norm=grad_norm,
            seconds=seconds,
            tokens_per_second=tokens / seconds,
            mfu=mfu,
            memory=memory,
        )
    logger.update_bar(step, loss)
    return run.signals.agree(counts)


class Clock:
    """Time of an update, averaged since the clock was last read or restarted, and of the last evaluation."""

    def __init__(self, run):
        recipe = run.recipe
        self.run = run
        self.tokens = run.train.block_size * recipe.batch_size * recipe.gradient_accumulation_steps
        self.flops = (
            flops_per_token(run.network.config, lora.num_parameters(run.network.config, recipe.lora_rank)) * self.tokens
        )
        self.evaluation = 0.0
        self.restart()

    def restart(self, done=None):
        """Count from `done` updates on, by default from those the run has made."""
        self.since, self.began = self.run.iteration if done is None else done, time.perf_counter()

    @contextlib.contextmanager
    def evaluating(self):
        began = time.perf_counter()
        yield
        self.evaluation = time.perf_counter() - began

    def read(self, done):
        """(seconds an update, tokens an update, mfu, seconds left) when `done` updates are made."""
        run = self.run
        seconds = (time.perf_counter() - self.began) / max(1, done - self.since)
        self.restart(done)
        mfu = self.flops / seconds / (run.peak[0] * run.machine.accelerator.num_processes)
        length, interval = run.schedule.length, run.schedule.eval_interval
        evaluations = (
            -(-length // interval) - (done - 1) // interval
        )  # at every multiple, from this step on, and at the end
        return seconds, self.tokens, mfu, seconds * (length - done) + self.evaluation * evaluations
