"""Opening, describing and closing a run."""

import dataclasses
import math
from pathlib import Path

from finetune.common import files
from finetune.common.errors import Failure, UsageError
from finetune.config import recipe as recipes
from finetune.config import recipe_file
from finetune.gpt import GPT, convert, lora
from finetune.gpt.sampling import draw_samples, print_samples
from finetune.runs import checkpoints
from finetune.runs.loss_plot import plot_loss
from finetune.runs.wandb_log import start_wandb
from finetune.runtime import device
from finetune.training import optimizer
from finetune.training.micro_batch import describe_shares
from finetune.training.saving import model_weights

SLOW_FROM_SCRATCH = 1e-4  # a peak learning rate below which a network from scratch hardly moves


def check_out_dir(recipe):
    """A new run must not mix with an old one."""
    out_dir = Path(recipe.out_dir)
    old = [name for name in ("best", "last", "metrics.jsonl") if (out_dir / name).exists()]
    if recipe.overwrite and (out_dir / "best").exists() and not (out_dir / "best" / files.MANIFEST).is_file():
        raise UsageError(
            f"out_dir {out_dir}: its best/ was not written by a run, so it is not overwritten; choose another out_dir"
        )
    if recipe.init_from == "resume" or recipe.eval_only or recipe.overwrite or not old:
        return
    raise UsageError(
        f"out_dir {out_dir}: holds a run already ({', '.join(old)}); go on with --init_from=resume, start anew with"
        " --overwrite=true, or choose another out_dir"
    )


def log_setup(run, logger):
    """Say what will be done, in the words of the guide, before it is done."""
    recipe, schedule, say = run.recipe, run.schedule, logger.print
    rows = recipe.batch_size * recipe.gradient_accumulation_steps
    say(f"number of parameters: {run.network.num_parameters() / 1e6:.2f}M")
    say(
        f"LoRA: {lora.describe(run.network.config, recipe)}"
        if recipe.lora_rank
        else optimizer.describe(run.network.config)
    )
    say(f"=> using fused AdamW: {run.optimizer.defaults['fused']}")
    say(run.machine.describe())
    if recipe.eval_only:
        return
    run.peak = device.peak_flops(run.machine.torch_device, run.machine.dtype) if logger.write else (math.inf, "")
    passes = schedule.length * rows / run.train.num_rows
    say(
        f"{schedule.length:,} updates of {rows * run.train.block_size:,} tokens are {passes:.1f} passes over"
        f" {run.train.num_rows:,} blocks; learning rate {recipe.learning_rate:g}, warmup {schedule.warmup_iters},"
        f" min_lr {schedule.min_lr:g}; evaluation every {schedule.eval_interval}"
    )
    if not recipe.auto_batch_size:
        say(describe_shares(recipe, run.machine.accelerator.num_processes))
    if weights := recipes.dataset_weights(recipe):
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


def open_run(run, logger, reasons=None):
    """Clear the place, write the resolved recipe, open the records and the trackers."""
    recipe, out_dir, resumed = run.recipe, Path(run.recipe.out_dir), run.recipe.init_from == "resume"
    if not run.machine.accelerator.is_main_process:
        return
    if recipe.overwrite and not resumed:
        checkpoints.remove_run(out_dir)
    derived = {**dataclasses.asdict(run.schedule), "block_size": run.train.block_size, "wandb_run_name": out_dir.name}
    derived["val_fraction"] = run.data.get("val_fraction")
    derived["lora_alpha"] = recipes.lora_alpha(recipe)
    config = run.network.config
    shape = (
        {"n_layer": config.n_layer, "n_head": config.n_head, "n_embd": config.n_embd}
        if run.init_from == "scratch"
        else {}
    )
    resolved = dataclasses.replace(
        recipe, init_from=run.init_from, memory="recipe", overwrite=False, push=False, **shape
    )
    files.write_file(out_dir / "recipe.yaml", recipe_file.dump(resolved, derived))
    logger.open(run.schedule.length, run if resumed else None)
    values = {
        **dataclasses.asdict(recipe),
        **{name: value for name, value in derived.items() if getattr(recipe, name, 0) is None},
    }
    values["warmup_iters"] = run.schedule.warmup_iters  # fewer than asked for, where the run is too short for those
    logger.record(
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
        logger.tracker = start_wandb(run.machine.accelerator, recipe, values)


def sample(run, logger):
    """Show what the model writes at this step."""
    if run.prompt is None:
        return
    logger.status("sampling")
    tensors = model_weights(run)
    if not run.machine.accelerator.is_main_process:
        return
    config = dataclasses.replace(run.network.config)
    network = (
        GPT.from_state(config, convert.without_padding(tensors, config))
        .to(run.machine.torch_device, run.machine.dtype)
        .eval()
    )
    begun, asked = run.tokenizer.decode(run.prompt), samples_asked(run.recipe)
    texts = [begun + sample.text for sample in draw_samples(network, run.tokenizer, run.prompt, **asked)]
    for text in texts:
        logger.print(f"---------------\n{text}")
    logger.print("---------------")
    logger.record("samples", step=run.iteration, start=run.recipe.start, texts=texts, **asked)


def samples_asked(recipe):
    return {name: getattr(recipe, name) for name in ("num_samples", "max_new_tokens", "temperature", "top_k", "seed")}


def close_run(run, logger):
    recipe, accelerator = run.recipe, run.machine.accelerator
    if run.iteration < run.schedule.length:
        logger.print(
            f"no better validation loss in {recipe.patience} evaluations: done after {run.iteration} of"
            f" {run.schedule.length} updates"
        )
    if not run.best:
        raise Failure(
            f"out_dir {recipe.out_dir}: best/ could not be saved; the last state is in {recipe.out_dir}/last", 1
        )
    logger.record("end", step=run.iteration, best=run.best)
    logger.close_bar()
    for tracker in accelerator.trackers:  # not accelerator.end_training(), which would end the process group as well
        tracker.finish()
    if not accelerator.is_main_process:
        return
    plot_loss(recipe.out_dir)
    print(f"best val loss {run.best['val_loss']:.4f} at step {run.best['step']}, in {recipe.out_dir}/best")
    if run.prompt is not None:
        best = GPT.from_pretrained(f"{recipe.out_dir}/best").to(run.machine.torch_device, run.machine.dtype)
        asked = samples_asked(recipe)
        samples = print_samples(best, run.tokenizer, run.prompt, **asked)
        begun = run.tokenizer.decode(run.prompt)
        logger.record(
            "samples",
            step=run.best["step"],
            start=recipe.start,
            texts=[begun + sample.text for sample in samples],
            **asked,
        )
    elif recipe.num_samples:
        print("no samples: these bins came without their tokenizer")
