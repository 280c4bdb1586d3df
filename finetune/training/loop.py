"""The training loop."""

import contextlib
import dataclasses
import json
import math
import os
import signal
import time
from pathlib import Path

import numpy as np
import torch

from finetune import recipe as recipes
from finetune.cli import Failure, UsageError
from finetune.gpt import convert, weights
from finetune.training import checkpoint, guard, optim
from finetune.training import machine as machines
from finetune.training.card import model_card
from finetune.training.progress import Progress, flops_per_token, iteration_line, plot, start_wandb
from finetune.training.start import assemble, begin_again, take_up
from finetune.training.step import evaluate, prime, update

TRAIN_PROBE = 16384  # tokens of the train split, spread evenly over it, that every evaluation measures


def train(recipe):
    """Train as the recipe says; return the finished Run.

    Raises UsageError before anything is written when it cannot be done, and Failure when it ends otherwise than by being done.
    """
    guard.die_with_launcher()
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
                _begin(run, progress)
                with run.signals.caught():
                    _loop(run, progress)
                _finish(run, progress)
        finally:
            progress.close()
        machine.accelerator.wait_for_everyone()
    return run


def _loop(run, progress):
    schedule, clock = run.schedule, Clock(run)
    warned = set()
    prime(run)
    while True:
        step = run.iteration
        last = step >= schedule.length
        signals = [name for name, count in zip(run.signals.NAMES, run.agreed_signals) if count]
        stop = next((name for name in signals if name in guard.STOPPING), None)

        evaluated = bool(run.evaluations) and run.evaluations[-1]["step"] == step
        if (last or step % schedule.eval_interval == 0) and not evaluated and not stop:
            problem = _evaluate(run, progress)
            if problem:
                _roll_back(run, progress, problem)
                continue
            _warn(run, progress, warned)
            clock.restart()
        ended = last or _out_of_patience(run)
        if step and (ended or signals or step % schedule.save_interval == 0) and step != run.saved_at:
            problem = _save_state(run, progress, must_succeed=ended or stop is not None)
            if problem:
                _roll_back(run, progress, problem)
                continue
            clock.restart()
        run.agreed_signals = [0.0] * len(run.signals.NAMES)
        if signal.SIGUSR1 in signals:
            run.signals.seen[signal.SIGUSR1] = False
        if ended:
            return
        if stop:
            progress.record("stop", step=step, signal=stop.name)
            raise Failure(f"stopped by {stop.name} after {step} updates; --init_from=resume goes on from here", guard.STOPPING[stop])

        lr = optim.learning_rate(step, run.recipe, schedule) * run.lr_scale
        try:
            outcome = update(run, step, lr)
        except (RuntimeError, MemoryError) as error:
            _shrink(run, progress, error)
            continue
        run.agreed_signals = outcome.signals
        problem = run.watch.judge(outcome.loss, outcome.grad_norm, scaled=run.scaler is not None)
        if problem:
            _roll_back(run, progress, f"iter {step}: {problem}, learning rate {lr:.3g}")
            continue
        run.iteration += 1
        if step % run.recipe.log_interval == 0 or run.iteration == schedule.length:
            seconds, tokens, mfu, left = clock.read()
            progress.say(iteration_line(step, outcome.loss, seconds, tokens, mfu, left))
            progress.record(
                "iter", iter=step, loss=outcome.loss, lr=lr, grad_norm=outcome.grad_norm, seconds=seconds, tokens_per_second=tokens / seconds, mfu=mfu
            )
            progress.advance(step, outcome.loss)


class Clock:
    """Time of an update, averaged since the clock was last read or restarted."""

    def __init__(self, run):
        recipe = run.recipe
        self.run = run
        self.tokens = run.train.block_size * recipe.batch_size * recipe.gradient_accumulation_steps
        self.flops = flops_per_token(run.network.config) * self.tokens
        self.restart()

    def restart(self):
        self.since, self.began = self.run.iteration, time.perf_counter()

    def read(self):
        """(seconds an update, tokens an update, mfu, seconds left)."""
        run = self.run
        seconds = (time.perf_counter() - self.began) / max(1, run.iteration - self.since)
        self.restart()
        mfu = self.flops / seconds / (run.peak[0] * run.machine.accelerator.num_processes)
        return seconds, self.tokens, mfu, seconds * (run.schedule.length - run.iteration)


def _evaluate(run, progress):
    """Measure both splits at this step; publish the model when it is the best so far, or when all are kept. Returns what is
    wrong, in words, when a loss is no number."""
    recipe, step = run.recipe, run.iteration
    probe = max(1, TRAIN_PROBE // run.train.block_size)
    val_loss = evaluate(run, run.val, _eval_rows(run.val, run.eval_rows))
    train_loss = evaluate(run, run.train, _eval_rows(run.train, run.eval_rows or probe))
    progress.say(f"step {step}: train loss {train_loss:.4f}, val loss {val_loss:.4f}")
    progress.record("eval", step=step, train_loss=train_loss, val_loss=val_loss)
    if recipe.eval_only:
        return None
    if not math.isfinite(val_loss + train_loss):
        return f"step {step}: val loss is {val_loss}, train loss is {train_loss}"
    run.evaluations.append({"step": step, "train_loss": train_loss, "val_loss": val_loss})
    facts = {**run.evaluations[-1], "init_from": run.init_from}
    if val_loss < run.best.get("val_loss", math.inf) and _publish_model(run, progress, "best", facts):
        run.best = {"val_loss": val_loss, "step": step}
        progress.say(f"saving checkpoint to {recipe.out_dir}")
        progress.record("best", step=step, val_loss=val_loss)
    if recipe.always_save_checkpoint:
        _publish_model(run, progress, f"iter_{step:06d}", facts)
    return None


def _eval_rows(blocks, limit):
    """The rows an evaluation reads, the same every time: all, or `limit` of them spread evenly over the split."""
    count = min(blocks.num_rows, limit or blocks.num_rows)
    return np.linspace(0, blocks.num_rows - 1, count).round().astype(np.int64)


def _publish_model(run, progress, name, facts):
    """Make out_dir/NAME a complete Hugging Face directory: weights, configuration, tokenizer and card. True when that worked."""

    def fill(directory):
        config = dataclasses.replace(run.network.config, dropout=0.0)
        weights.save(directory, run.network.state_dict(), config)
        if run.tokenizer:
            run.tokenizer.save(directory, config.block_size)
        (directory / "finetune.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        (directory / "README.md").write_text(model_card(run, facts), encoding="utf-8")

    return _on_main(run, progress, name, lambda: checkpoint.publish(Path(run.recipe.out_dir) / name, fill))


def _save_state(run, progress, must_succeed):
    """Publish a resumable state. Returns what is wrong, in words, when the weights are no numbers, which are never written."""
    if not all(torch.isfinite(parameter).all() for parameter in run.network.parameters()):
        return f"step {run.iteration}: the weights are not finite"

    def write():
        config = run.network.config
        tensors = convert.without_padding(run.network.state_dict(), config)
        moments = checkpoint.optimizer_tensors(run.optimizer, run.names)
        moments = {name: tensor[: config.vocab_size] if name.endswith(".wte.weight") else tensor for name, tensor in moments.items()}
        tensors, moments = ({name: tensor.detach().cpu().contiguous() for name, tensor in group.items()} for group in (tensors, moments))
        checkpoint.save_state(run.recipe.out_dir, tensors, moments, run.state())

    if _on_main(run, progress, "last", write):
        run.saved_at = run.iteration
    elif must_succeed:
        raise Failure(f"out_dir {run.recipe.out_dir}: the state after {run.iteration} updates could not be saved; the one before it is whole", 1)
    return None


def _on_main(run, progress, what, write):
    """Let the main process write something; True when that worked. A disk that is full now need not be so at the next try, so
    training goes on, and what was there before is still there."""
    accelerator, problem = run.machine.accelerator, None
    if accelerator.is_main_process:
        try:
            write()
        except OSError as error:
            problem = f"{what} at step {run.iteration} could not be saved: {error.strerror or error}; what was there before is untouched"
            progress.say(f"warning: {problem}")
            progress.record("save_failed", step=run.iteration, problem=problem)
    failed = accelerator.reduce(torch.tensor(float(problem is not None), device=run.machine.device))
    return not failed.item()


def _roll_back(run, progress, problem):
    """Go back to the last good state with half the learning rate, or give up and say why."""
    recipe, reached = run.recipe, run.iteration
    rollbacks, lr_scale = run.rollbacks + 1, run.lr_scale / 2
    states = checkpoint.states(recipe.out_dir)
    progress.say(problem)
    progress.record("diverged", step=reached, problem=problem)
    if rollbacks > recipe.max_rollbacks:
        tried = f" after {recipe.max_rollbacks} rollbacks" if recipe.max_rollbacks else ""
        good = f"the last good state is {states[0]}" if states else "no state had been saved yet"
        raise Failure(
            f"training diverged{tried}: {problem}; {good}. A lower learning_rate (now {recipe.learning_rate:g}) is the first thing to try", 3
        )
    run.optimizer.zero_grad(set_to_none=True)
    if states:
        take_up(run, checkpoint.load_state(recipe.out_dir, progress.say))
    else:
        begin_again(run)
    run.rollbacks, run.lr_scale = rollbacks, lr_scale
    progress.say(f"rollback {rollbacks} of {recipe.max_rollbacks}: back to step {run.iteration}, learning rates times {lr_scale:g}")
    progress.record("rollback", step=run.iteration, reached=reached, lr_scale=lr_scale, problem=problem)


def _shrink(run, progress, error):
    """Answer an error in an update: less memory for the next try when memory was the trouble, else raise it again."""
    if not guard.is_out_of_memory(error):
        raise error
    if run.machine.accelerator.num_processes > 1:  # the others wait in an exchange that this one cannot join any more
        recipe = run.recipe
        raise Failure(
            f"out of memory at batch_size {recipe.batch_size}; resume with half of it and twice the gradient_accumulation_steps, which is the same run",
            1,
        ) from error
    done = guard.use_less_memory(run)
    progress.say(f"out of memory at iter {run.iteration}: {done}")
    progress.record(
        "out_of_memory",
        step=run.iteration,
        done=done,
        batch_size=run.recipe.batch_size,
        gradient_accumulation_steps=run.recipe.gradient_accumulation_steps,
    )


def _warn(run, progress, warned):
    """Say each of the guide's warning signs once."""
    for name, line in guard.warnings(run.evaluations, run.network.config.vocab_size, run.init_from != "scratch").items():
        if name not in warned:
            warned.add(name)
            progress.say(f"warning: {line}")
            progress.record("warning", step=run.iteration, name=name, line=line)


def _out_of_patience(run):
    since = [evaluation for evaluation in run.evaluations if evaluation["step"] > run.best.get("step", 0)]
    return run.recipe.patience is not None and len(since) >= run.recipe.patience


def _check_out_dir(recipe):
    """A new run must not mix with an old one."""
    out_dir = Path(recipe.out_dir)
    old = [name for name in ("best", "last", "metrics.jsonl") if (out_dir / name).exists()]
    if recipe.overwrite and (out_dir / "best").exists() and not (out_dir / "best" / checkpoint.MANIFEST).is_file():
        raise UsageError(f"out_dir {out_dir}: its best/ was not written by a run, so it is not overwritten; choose another out_dir")
    if recipe.init_from == "resume" or recipe.eval_only or recipe.overwrite or not old:
        return
    raise UsageError(
        f"out_dir {out_dir}: holds a run already ({', '.join(old)}); go on with --init_from=resume, start anew with --overwrite=true, or choose another out_dir"
    )


def _introduce(run, progress):
    """Say what will be done, in the words of the guide, before it is done."""
    recipe, schedule, say = run.recipe, run.schedule, progress.say
    rows = recipe.batch_size * recipe.gradient_accumulation_steps
    say(f"number of parameters: {run.network.num_parameters() / 1e6:.2f}M")
    say(optim.describe(run.network.config))
    say(f"=> using fused AdamW: {run.optimizer.defaults['fused']}")
    say(run.machine.describe())
    if recipe.eval_only:
        return
    run.peak = machines.peak_flops(run.machine.device, run.machine.dtype) if progress.write else (math.inf, "")
    passes = schedule.length * rows / run.train.num_rows
    say(
        f"{schedule.length:,} updates of {rows * run.train.block_size:,} tokens are {passes:.1f} passes over {run.train.num_rows:,} blocks; "
        f"learning rate {recipe.learning_rate:g}, warmup {schedule.warmup_iters}, min_lr {schedule.min_lr:g}; evaluation every {schedule.eval_interval}"
    )
    say(f"mfu is against {run.peak[1]}")


def _begin(run, progress):
    """Clear the place, write the resolved recipe, open the records and the trackers."""
    recipe, out_dir, resumed = run.recipe, Path(run.recipe.out_dir), run.recipe.init_from == "resume"
    if not run.machine.accelerator.is_main_process:
        return
    if recipe.overwrite and not resumed:
        checkpoint.remove_run(out_dir)
    derived = {**dataclasses.asdict(run.schedule), "block_size": run.train.block_size, "wandb_run_name": out_dir.name, "val_fraction": 0.1}
    partial = out_dir / ".tmp-recipe.yaml"
    partial.write_text(recipes.dump(dataclasses.replace(recipe, init_from=run.init_from, overwrite=False), derived), encoding="utf-8")
    os.replace(partial, out_dir / "recipe.yaml")
    progress.open(run.iteration, run.schedule.length, resumed)
    values = {**dataclasses.asdict(recipe), **{name: value for name, value in derived.items() if getattr(recipe, name, 0) is None}}
    progress.record(
        "resume" if resumed else "start",
        step=run.iteration,
        length=run.schedule.length,
        recipe=values,
        identity=run.identity,
        machine=run.machine.describe(),
    )
    if recipe.wandb_log:
        progress.tracker = start_wandb(run.machine.accelerator, recipe, values)


def _finish(run, progress):
    recipe, accelerator = run.recipe, run.machine.accelerator
    if run.iteration < run.schedule.length:
        progress.say(f"no better validation loss in {recipe.patience} evaluations: done after {run.iteration} of {run.schedule.length} updates")
    progress.record("end", step=run.iteration, best=run.best)
    progress.close()
    for tracker in accelerator.trackers:  # not accelerator.end_training(), which would end the process group as well
        tracker.finish()
    if not accelerator.is_main_process:
        return
    plot(recipe.out_dir)
    print(f"best val loss {run.best['val_loss']:.4f} at step {run.best['step']}, in {recipe.out_dir}/best")
    if recipe.num_samples:
        _print_samples(run)


def _print_samples(run):
    """Let the best model speak."""
    from finetune.gpt import GPT

    if run.prompt is None:
        print("no samples: these bins came without their tokenizer")
        return
    recipe, device = run.recipe, run.machine.device
    model = GPT.from_pretrained(f"{recipe.out_dir}/best").to(device)
    idx = torch.from_numpy(run.prompt).to(device).expand(recipe.num_samples, -1)
    with run.machine.autocast():
        out = model.generate(idx, recipe.max_new_tokens, recipe.temperature, recipe.top_k, generator=torch.Generator(device).manual_seed(recipe.seed))
    for ids in out.tolist():
        print(f"---------------\n{run.tokenizer.decode(ids)}")
    print("---------------")
