"""The training loop."""

import contextlib
import dataclasses
import json
import math
import time
from pathlib import Path

import numpy as np
import torch

from finetune import recipe as recipes
from finetune.cli import UsageError
from finetune.gpt import convert, weights
from finetune.training import checkpoint, optim
from finetune.training import machine as machines
from finetune.training.card import model_card
from finetune.training.progress import Progress, flops_per_token, iteration_line, plot, start_wandb
from finetune.training.start import assemble
from finetune.training.step import evaluate, update

TRAIN_PROBE = 65536  # tokens of the train split, spread evenly over it, that every evaluation measures


def train(recipe):
    """Train as the recipe says; return the finished Run. Raises UsageError before anything is written when it cannot be done."""
    machine = machines.start(recipe)
    main = machine.accelerator.is_main_process
    with checkpoint.lock(recipe.out_dir) if main and not recipe.eval_only else contextlib.nullcontext():
        if main:
            _check_out_dir(recipe)
        progress = Progress(recipe.out_dir, write=main, total=0)
        run = assemble(recipe, machine, progress.say)
        _introduce(run, progress)
        try:
            if recipe.eval_only:
                _evaluate(run, progress)
            else:
                _loop(run, progress)
        finally:
            progress.close()
        machine.accelerator.wait_for_everyone()
    return run


def _loop(run, progress):
    recipe, schedule, accelerator = run.recipe, run.schedule, run.machine.accelerator
    if recipe.overwrite and accelerator.is_main_process:
        checkpoint.remove_run(recipe.out_dir)
    progress.open(run.iteration, run.iteration if recipe.init_from == "resume" else None)
    if accelerator.is_main_process:
        _begin(run, progress)
    tokens = run.train.block_size * recipe.batch_size * recipe.gradient_accumulation_steps
    peak, _ = run.peak
    flops = flops_per_token(run.network.config) * tokens
    mfu, clock, since = 0.0, time.perf_counter(), run.iteration
    resumed_at = run.iteration if recipe.init_from == "resume" else None

    while True:
        step = run.iteration
        last = step >= schedule.length
        if (step % schedule.eval_interval == 0 or last) and step != resumed_at:
            _evaluate(run, progress)
            clock, since = time.perf_counter(), step
        if (step % schedule.save_interval == 0 or last) and step not in (0, resumed_at):
            _save_state(run)
            clock, since = time.perf_counter(), step
        if last:
            break

        lr = optim.learning_rate(step, recipe, schedule)
        loss, grad_norm = update(run, step, lr)
        run.iteration += 1

        if step % recipe.log_interval == 0 or run.iteration == schedule.length:
            loss = accelerator.reduce(loss).item()  # waits for the device, so the time below is that of finished work
            seconds = (time.perf_counter() - clock) / (run.iteration - since)
            clock, since = time.perf_counter(), run.iteration
            mfu = flops / seconds / (peak * accelerator.num_processes)
            left = seconds * (schedule.length - run.iteration)
            progress.say(iteration_line(step, loss, seconds, tokens, mfu, left))
            progress.record(
                "iter", iter=step, loss=loss, lr=lr, grad_norm=grad_norm.item(), seconds=seconds, tokens_per_second=tokens / seconds, mfu=mfu
            )
            progress.advance(step, loss)

    _finish(run, progress)


def _evaluate(run, progress):
    """Measure both splits at this step; publish the model when it is the best so far, or when all are kept."""
    recipe, step = run.recipe, run.iteration
    val_loss = evaluate(run, run.val, _eval_rows(run.val, recipe))
    train_loss = evaluate(run, run.train, _eval_rows(run.train, recipe, TRAIN_PROBE))
    progress.say(f"step {step}: train loss {train_loss:.4f}, val loss {val_loss:.4f}")
    progress.record("eval", step=step, train_loss=train_loss, val_loss=val_loss)
    if recipe.eval_only:
        return
    facts = {"step": step, "val_loss": val_loss, "train_loss": train_loss, "init_from": run.init_from}
    if val_loss < run.best.get("val_loss", math.inf):
        run.best = {"val_loss": val_loss, "step": step}
        if run.machine.accelerator.is_main_process:
            checkpoint.publish(Path(recipe.out_dir) / "best", lambda directory: _write_model(run, directory, facts))
        progress.say(f"saving checkpoint to {recipe.out_dir}")
        progress.record("best", step=step, val_loss=val_loss)
    if recipe.always_save_checkpoint and run.machine.accelerator.is_main_process:
        checkpoint.publish(Path(recipe.out_dir) / f"iter_{step:06d}", lambda directory: _write_model(run, directory, facts))


def _eval_rows(blocks, recipe, tokens=None):
    """The rows an evaluation reads, the same every time: all, or so many spread evenly over the split."""
    count = blocks.num_rows
    if recipe.eval_iters is not None:
        count = min(count, recipe.eval_iters * recipe.batch_size)
    elif tokens is not None:
        count = min(count, max(1, tokens // blocks.block_size))
    return np.linspace(0, blocks.num_rows - 1, count).round().astype(np.int64)


def _write_model(run, directory, facts):
    """A complete Hugging Face directory: weights, configuration, tokenizer and card."""
    config = dataclasses.replace(run.network.config, dropout=0.0)
    weights.save(directory, run.network.state_dict(), config)
    if run.tokenizer:
        run.tokenizer.save(directory, config.block_size)
    (directory / "finetune.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    (directory / "README.md").write_text(model_card(run, facts), encoding="utf-8")


def _save_state(run):
    accelerator = run.machine.accelerator
    if accelerator.is_main_process:
        config = run.network.config
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in convert.without_padding(run.network.state_dict(), config).items()}
        moments = checkpoint.optimizer_tensors(run.optimizer, run.names)
        moments = {name: (t[: config.vocab_size] if name.endswith(".wte.weight") else t).contiguous() for name, t in moments.items()}
        checkpoint.save_state(run.recipe.out_dir, state, moments, run.state())
    accelerator.wait_for_everyone()


def _check_out_dir(recipe):
    """A new run must not mix with an old one."""
    out_dir = Path(recipe.out_dir)
    old = [name for name in ("best", "last", "metrics.jsonl") if (out_dir / name).exists()]
    if recipe.init_from == "resume" or recipe.eval_only or not old:
        return
    if not recipe.overwrite:
        raise UsageError(
            f"out_dir {out_dir}: holds a run already ({', '.join(old)}); go on with --init_from=resume, start anew with --overwrite=true, or choose another out_dir"
        )


def _introduce(run, progress):
    """Say what will be done, in the words of the guide, before it is done."""
    recipe, schedule, say = run.recipe, run.schedule, progress.say
    progress.total = schedule.length
    rows = recipe.batch_size * recipe.gradient_accumulation_steps
    tokens = rows * run.train.block_size
    say(f"number of parameters: {run.network.num_parameters() / 1e6:.2f}M")
    say(optim.describe(run.network))
    say(f"=> using fused AdamW: {str(run.optimizer.defaults['fused'])}")
    say(run.machine.describe())
    if recipe.eval_only:
        return
    run.peak = machines.peak_flops(run.machine.device, run.machine.dtype) if progress.write else (math.inf, "")
    passes = schedule.length * rows / run.train.num_rows
    say(
        f"{schedule.length:,} updates of {tokens:,} tokens are {passes:.1f} passes over {run.train.num_rows:,} blocks; "
        f"learning rate {recipe.learning_rate:g}, warmup {schedule.warmup_iters}, min_lr {schedule.min_lr:g}; evaluation every {schedule.eval_interval}"
    )
    say(f"mfu is against {run.peak[1]}")


def _begin(run, progress):
    """Write the resolved recipe, and start the trackers."""
    recipe, out_dir = run.recipe, Path(run.recipe.out_dir)
    derived = {**dataclasses.asdict(run.schedule), "block_size": run.train.block_size, "wandb_run_name": out_dir.name}
    text = recipes.dump(dataclasses.replace(recipe, init_from=run.init_from, overwrite=False), derived)
    partial = out_dir / ".tmp-recipe.yaml"
    partial.write_text(text, encoding="utf-8")
    partial.replace(out_dir / "recipe.yaml")
    values = {**dataclasses.asdict(recipe), **{name: value for name, value in derived.items() if getattr(recipe, name, 0) is None}}
    progress.record(
        "resume" if recipe.init_from == "resume" else "start",
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
    progress.record("end", step=run.iteration, best=run.best)
    progress.close()
    if accelerator.trackers:
        accelerator.end_training()
    if not accelerator.is_main_process:
        return
    plot(recipe.out_dir)
    print(f"best val loss {run.best['val_loss']:.4f} at step {run.best['step']}, in {recipe.out_dir}/best")
    if recipe.num_samples:
        _print_samples(run)


def _print_samples(run):
    """Let the best model speak."""
    from finetune.gpt import GPT

    if run.tokenizer is None:
        print("no samples: these bins came without their tokenizer")
        return
    recipe, device = run.recipe, run.machine.device
    model = GPT.from_pretrained(f"{recipe.out_dir}/best").to(device)
    idx = torch.from_numpy(run.tokenizer.encode(recipe.start).astype(np.int64)).to(device).expand(recipe.num_samples, -1)
    with run.machine.autocast():
        out = model.generate(idx, recipe.max_new_tokens, recipe.temperature, recipe.top_k, torch.Generator(device).manual_seed(recipe.seed))
    for ids in out.tolist():
        print(f"---------------\n{run.tokenizer.decode(ids)}")
    print("---------------")
