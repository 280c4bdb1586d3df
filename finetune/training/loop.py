"""The training loop."""

import contextlib
import dataclasses
import math
import os
import time
from collections import deque
from pathlib import Path

import numpy as np

from finetune import recipe as recipes
from finetune.cli import Failure, UsageError
from finetune.gpt import GPT, convert
from finetune.training import checkpoint, guard, lora, optim
from finetune.training import machine as machines
from finetune.training.card import hub_id
from finetune.training.memory import choose_batch_size, fits, shares, shrink, use_less_memory
from finetune.training.progress import Progress, flops_per_token, iteration_line, plot, start_wandb
from finetune.training.recover import roll_back
from finetune.training.samples import draw, print_samples
from finetune.training.saving import model_weights, publish_model, save_state
from finetune.training.start import assemble
from finetune.training.step import evaluate, settle, update

TRAIN_PROBE = 16384  # tokens of the train split, spread evenly over it, that every evaluation measures
SLOW_FROM_SCRATCH = 1e-4  # a peak learning rate below which a network from scratch hardly moves


def train(recipe, reasons=None):
    """Train as the recipe says; return the finished Run. `reasons`, of `cli.reasons`, say in the record where its
    values are from.

    Raises UsageError before anything is written when it cannot be done, and Failure when it ends otherwise than by
    being done."""
    machine = machines.start(recipe)
    main = machine.accelerator.is_main_process
    with checkpoint.lock(recipe.out_dir) if main and not recipe.eval_only else contextlib.nullcontext():
        if main:
            _check_out_dir(recipe)
        progress = Progress(recipe.out_dir, write=main)
        run = assemble(recipe, machine, progress.say)
        _introduce(run, progress)
        try:
            if recipe.eval_only:
                _evaluate(run, progress)
            else:
                _begin(run, progress, reasons)
                with run.signals.caught():
                    _loop(run, progress)
                _finish(run, progress)
        except KeyboardInterrupt:
            progress.record("stop", step=run.iteration, signal="SIGINT")
            raise
        except Exception as error:  # so that whoever looks later can tell it from a kill
            code, rank = getattr(error, "code", 1), machine.accelerator.process_index
            if (
                rank and getattr(error, "alone", False) and not recipe.eval_only
            ):  # the main one will only see that this one is gone
                progress.join()
            if code not in guard.STOPPING.values():
                problem = str(error) or type(error).__name__
                progress.record(
                    "failed", step=run.iteration, problem=problem, code=code, **({"rank": rank} if rank else {})
                )
            raise
        finally:
            progress.close()
        machine.accelerator.wait_for_everyone()
    return run


def _loop(run, progress):
    schedule, clock, warned = run.schedule, Clock(run), set()
    if run.recipe.auto_batch_size:
        choose_batch_size(run, progress)
    if (
        run.machine.accelerator.num_processes > 1 and not run.machine.sharding
    ):  # then no process can try alone, and nothing settles
        while not fits(run):
            use_less_memory(run, progress)
        settle(run)
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
            while len(pending) > (0 if evaluation_due or sample_due or run.save_due or signals else run.machine.late):
                signals += _look(run, progress, clock, *pending.popleft())
            stop = next((name for name in signals if name in guard.STOPPING), None)
            evaluated = bool(run.evaluations) and run.evaluations[-1]["step"] == step
            if evaluation_due and not evaluated and (last or not stop):
                with clock.evaluating():
                    _evaluate(run, progress)
                _warn(run, progress, warned)
                clock.restart()
            if sample_due and not stop:
                _sample(run, progress)
                sampled = step
                clock.restart()
            ended = last or _out_of_patience(run)
            calm = (
                run.watch.high == 0
            )  # a state is not saved over a good one while it looks as if training were going wrong
            if (ended or signals or (run.save_due and calm)) and step != run.saved_at:
                save_state(run, progress, must_succeed=ended or stop is not None)
                clock.restart()
        except guard.Diverged as problem:
            pending.clear()
            roll_back(run, progress, str(problem))
            clock.restart()
            continue
        if ended:
            return
        if stop:
            progress.record("stop", step=step, signal=stop.name)
            raise Failure(
                f"stopped by {stop.name} after {step} updates; --init_from=resume goes on from here",
                guard.STOPPING[stop],
            )
        signals = []

        lr = optim.learning_rate(step, run.recipe, schedule) * run.lr_scale
        try:
            outcome = update(run, step, lr)
        except (RuntimeError, MemoryError) as error:
            shrink(run, progress, error)
            continue
        pending.append((step, lr, outcome))
        run.iteration += 1


def _look(run, progress, clock, step, lr, outcome):
    """Judge an update that was begun, and tell of it. Returns the signals that came meanwhile; raises Diverged."""
    loss, grad_norm, counts = outcome.read()
    if problem := run.watch.judge(loss, grad_norm, scaled=run.scaler is not None):
        run.iteration = step
        raise guard.Diverged(f"iter {step}: {problem}, learning rate {lr:.3g}")
    if step % run.recipe.log_interval == 0 or step + 1 == run.schedule.length:
        seconds, tokens, mfu, left = clock.read(step + 1)
        memory, _ = run.machine.memory()
        progress.pace(iteration_line(step, loss, seconds, tokens, mfu, left), tokens / seconds, mfu, left, memory)
        progress.record(
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
    progress.advance(step, loss)
    return run.signals.taken(counts)


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


def _evaluate(run, progress):
    """Measure both splits at this step; publish the model when it is the best so far, or when all are kept. Raises
    Diverged when a loss is no number."""
    recipe, step = run.recipe, run.iteration
    progress.doing("evaluating")
    probe = max(1, TRAIN_PROBE // run.train.block_size)
    val_loss, by_dataset = _val_losses(run)
    train_loss = evaluate(run, run.train, _eval_rows(run.train, run.eval_rows or probe))
    each = ", ".join(f"{name} {loss:.4f}" for name, loss in by_dataset.items())
    progress.say(f"step {step}: train loss {train_loss:.4f}, val loss {val_loss:.4f}{f' ({each})' if each else ''}")
    progress.record(
        "eval",
        step=step,
        train_loss=train_loss,
        val_loss=val_loss,
        **({"val_losses": by_dataset} if by_dataset else {}),
    )
    if recipe.eval_only:
        return
    if not math.isfinite(val_loss + train_loss):
        raise guard.Diverged(f"step {step}: val loss is {val_loss}, train loss is {train_loss}")
    run.evaluations.append({"step": step, "train_loss": train_loss, "val_loss": val_loss})
    facts = {**run.evaluations[-1], "init_from": run.init_from, "base_model": hub_id(run.init_from)}
    again = step == run.best.get("step")  # published before a crash that lost the state of this step
    if (again or val_loss < run.best.get("val_loss", math.inf)) and publish_model(run, progress, "best", facts):
        run.best = {"val_loss": val_loss, "step": step}
        progress.say(f"saving checkpoint to {recipe.out_dir}")
        progress.record("best", step=step, val_loss=val_loss)
    if recipe.always_save_checkpoint:
        publish_model(run, progress, f"iter_{step:06d}", facts)


def _val_losses(run):
    """Validation loss over all targets, and of each dataset where there are several."""
    rows = _eval_rows(run.val, run.eval_rows)
    if len(run.names_of_data) == 1:
        return evaluate(run, run.val, rows), {}
    total, count, losses = 0.0, 0, {}
    for number, _, there in run.val.shares(rows):
        part, name = run.val.parts[number], run.names_of_data[number]
        loss, targets = evaluate(run, part, there), part.num_targets(there)
        losses[name if run.names_of_data.count(name) == 1 else f"{name} {number + 1}"] = loss
        total, count = total + loss * targets, count + targets
    return total / count, losses


def _eval_rows(blocks, limit):
    """The rows an evaluation reads, the same every time: all that have a target, or `limit` of these spread evenly over
    the split."""
    rows = blocks.rows_with_targets()
    count = min(len(rows), limit or len(rows))
    return rows[np.linspace(0, len(rows) - 1, count).round().astype(np.int64)]


def _warn(run, progress, warned):
    """Say each of the guide's warning signs once."""
    for name, line in guard.warnings(
        run.evaluations, run.network.config.vocab_size, run.init_from != "scratch"
    ).items():
        if name not in warned:
            warned.add(name)
            progress.say(f"warning: {line}")
            progress.record("warning", step=run.iteration, name=name, line=line)


def _out_of_patience(run):
    if run.recipe.patience is None or not run.evaluations:
        return False
    losses = [evaluation["val_loss"] for evaluation in run.evaluations]
    return len(losses) - 1 - losses.index(min(losses)) >= run.recipe.patience


def _check_out_dir(recipe):
    """A new run must not mix with an old one."""
    out_dir = Path(recipe.out_dir)
    old = [name for name in ("best", "last", "metrics.jsonl") if (out_dir / name).exists()]
    if recipe.overwrite and (out_dir / "best").exists() and not (out_dir / "best" / checkpoint.MANIFEST).is_file():
        raise UsageError(
            f"out_dir {out_dir}: its best/ was not written by a run, so it is not overwritten; choose another out_dir"
        )
    if recipe.init_from == "resume" or recipe.eval_only or recipe.overwrite or not old:
        return
    raise UsageError(
        f"out_dir {out_dir}: holds a run already ({', '.join(old)}); go on with --init_from=resume, start anew with"
        " --overwrite=true, or choose another out_dir"
    )


def _introduce(run, progress):
    """Say what will be done, in the words of the guide, before it is done."""
    recipe, schedule, say = run.recipe, run.schedule, progress.say
    rows = recipe.batch_size * recipe.gradient_accumulation_steps
    say(f"number of parameters: {run.network.num_parameters() / 1e6:.2f}M")
    say(
        f"LoRA: {lora.describe(run.network.config, recipe)}" if recipe.lora_rank else optim.describe(run.network.config)
    )
    say(f"=> using fused AdamW: {run.optimizer.defaults['fused']}")
    say(run.machine.describe())
    if recipe.eval_only:
        return
    run.peak = machines.peak_flops(run.machine.device, run.machine.dtype) if progress.write else (math.inf, "")
    passes = schedule.length * rows / run.train.num_rows
    say(
        f"{schedule.length:,} updates of {rows * run.train.block_size:,} tokens are {passes:.1f} passes over"
        f" {run.train.num_rows:,} blocks; learning rate {recipe.learning_rate:g}, warmup {schedule.warmup_iters},"
        f" min_lr {schedule.min_lr:g}; evaluation every {schedule.eval_interval}"
    )
    if not recipe.auto_batch_size:
        say(shares(recipe, run.machine.accelerator.num_processes))
    if weights := recipes.weights(recipe):
        for name, part, weight in zip(run.names_of_data, run.train.parts, weights):
            share = schedule.length * rows * weight / sum(weights)
            say(
                f"{name}: {weight / sum(weights):.1%} of the blocks, {share / part.num_rows:.1f} passes over its"
                f" {part.num_rows:,}"
            )
    if run.train.is_isolated:
        filled = run.train.num_tokens / (run.train.num_rows * (run.train.block_size + 1))
        say(f"documents are isolated: {run.train.num_tokens:,} tokens packed into blocks that are {filled:.1%} full")
    if run.init_from == "scratch" and recipe.learning_rate < SLOW_FROM_SCRATCH:
        say(
            f"learning_rate {recipe.learning_rate:g} is one for pretrained weights; from scratch 3e-4 to 1e-3 are"
            " usual, see python -m finetune.plan"
        )
    if run.iteration >= schedule.length:
        say(f"this run is done: it has made its {schedule.length:,} updates; a larger max_iters, or epochs, goes on")
    say(f"mfu is against {run.peak[1]}")


def _begin(run, progress, reasons=None):
    """Clear the place, write the resolved recipe, open the records and the trackers."""
    recipe, out_dir, resumed = run.recipe, Path(run.recipe.out_dir), run.recipe.init_from == "resume"
    if not run.machine.accelerator.is_main_process:
        return
    if recipe.overwrite and not resumed:
        checkpoint.remove_run(out_dir)
    derived = {**dataclasses.asdict(run.schedule), "block_size": run.train.block_size, "wandb_run_name": out_dir.name}
    derived["val_fraction"] = run.data.get("val_fraction")
    derived["lora_alpha"] = recipes.alpha(recipe)
    partial = out_dir / ".tmp-recipe.yaml"
    config = run.network.config
    shape = (
        {"n_layer": config.n_layer, "n_head": config.n_head, "n_embd": config.n_embd}
        if run.init_from == "scratch"
        else {}
    )
    partial.write_text(
        recipes.dump(
            dataclasses.replace(recipe, init_from=run.init_from, memory="recipe", overwrite=False, push=False, **shape),
            derived,
        ),
        encoding="utf-8",
    )
    os.replace(partial, out_dir / "recipe.yaml")
    progress.open(run.schedule.length, run if resumed else None)
    values = {
        **dataclasses.asdict(recipe),
        **{name: value for name, value in derived.items() if getattr(recipe, name, 0) is None},
    }
    values["warmup_iters"] = run.schedule.warmup_iters  # fewer than asked for, where the run is too short for those
    progress.record(
        "resume" if resumed else "start",
        step=run.iteration,
        length=run.schedule.length,
        recipe=values,
        identity=run.identity,
        data=run.data,
        machine=run.machine.describe(),
        memory=run.machine.memory()[1],
        reasons=reasons,
    )
    if recipe.wandb_log:
        progress.tracker = start_wandb(run.machine.accelerator, recipe, values)


def _sample(run, progress):
    """Show what the model writes at this step."""
    if run.prompt is None:
        return
    progress.doing("sampling")
    tensors = model_weights(run)
    if not run.machine.accelerator.is_main_process:
        return
    config = dataclasses.replace(run.network.config)
    network = (
        GPT.from_state(config, convert.without_padding(tensors, config))
        .to(run.machine.device, run.machine.dtype)
        .eval()
    )
    begun, asked = run.tokenizer.decode(run.prompt), _samples_asked(run.recipe)
    texts = [begun + sample.text for sample in draw(network, run.tokenizer, run.prompt, **asked)]
    for text in texts:
        progress.say(f"---------------\n{text}")
    progress.say("---------------")
    progress.record("samples", step=run.iteration, start=run.recipe.start, texts=texts, **asked)


def _samples_asked(recipe):
    return {name: getattr(recipe, name) for name in ("num_samples", "max_new_tokens", "temperature", "top_k", "seed")}


def _finish(run, progress):
    recipe, accelerator = run.recipe, run.machine.accelerator
    if run.iteration < run.schedule.length:
        progress.say(
            f"no better validation loss in {recipe.patience} evaluations: done after {run.iteration} of"
            f" {run.schedule.length} updates"
        )
    if not run.best:
        raise Failure(
            f"out_dir {recipe.out_dir}: best/ could not be saved; the last state is in {recipe.out_dir}/last", 1
        )
    progress.record("end", step=run.iteration, best=run.best)
    progress.close_bar()
    for tracker in accelerator.trackers:  # not accelerator.end_training(), which would end the process group as well
        tracker.finish()
    if not accelerator.is_main_process:
        return
    plot(recipe.out_dir)
    print(f"best val loss {run.best['val_loss']:.4f} at step {run.best['step']}, in {recipe.out_dir}/best")
    if run.prompt is not None:
        best = GPT.from_pretrained(f"{recipe.out_dir}/best").to(run.machine.device, run.machine.dtype)
        asked = _samples_asked(recipe)
        samples = print_samples(best, run.tokenizer, run.prompt, **asked)
        begun = run.tokenizer.decode(run.prompt)
        progress.record(
            "samples",
            step=run.best["step"],
            start=recipe.start,
            texts=[begun + sample.text for sample in samples],
            **asked,
        )
    elif recipe.num_samples:
        print("no samples: these bins came without their tokenizer")
