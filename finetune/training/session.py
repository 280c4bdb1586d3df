"""Opening, describing and finishing a run."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

from finetune.common import files
from finetune.common.addresses import address_of
from finetune.common.commands import command, join
from finetune.common.errors import Failure, UsageError
from finetune.config import recipe as recipes
from finetune.config import recipe_file
from finetune.config import schedule as schedules
from finetune.config.mirror import check_storage
from finetune.config.paths import split_paths
from finetune.config.recipe import Recipe
from finetune.config.run_directory import LOSS_PLOT, RECIPE, REPORT, RUN_FILES, SHARE_PICTURE, has_state, resume_command
from finetune.config.trackers import chosen_trackers
from finetune.data.batches import ConcatBlocks
from finetune.data.run_notes import note_run
from finetune.gpt import lora, pretrained
from finetune.runs import checkpoints
from finetune.runs.events import read_metrics
from finetune.runs.logger import RunLogger
from finetune.runs.thresholds import WANTED_UPDATES
from finetune.runs.tracker_kinds import Place
from finetune.runs.trackers import start_trackers
from finetune.runtime import device as devices
from finetune.training import optimizer as optimizers
from finetune.training.micro_batch import describe_shares
from finetune.training.monitor import EXIT_CODES
from finetune.training.run_samples import sample_best
from finetune.training.state import Setup, TrainState, recipe_in_use
from finetune.training.validation import is_out_of_patience, worse_than_at_start

SLOW_FROM_SCRATCH = 1e-4  # a peak learning rate below which a model from scratch hardly learns


def check_out_dir(recipe: Recipe) -> None:
    """Raise UsageError when a run would mix with an old one, or replace files that no run wrote."""
    out_dir = Path(recipe.out_dir)
    problem = _problem_of_links(out_dir)
    if not (recipe.init_from == "resume" or recipe.eval_only):
        problem = problem or _problem_of_sources(recipe) or _problem_of_new_run(out_dir, recipe.overwrite)
    if problem:
        raise UsageError(f"out_dir {out_dir}: {problem}, or choose another out_dir")
    if not recipe.eval_only:
        check_storage(out_dir, None if recipe.init_from == "resume" else recipe.overwrite)


def _problem_of_links(out_dir: Path) -> str | None:
    for name in ("best", "metrics.jsonl", files.WORK, f"last/{files.WORK}"):
        if (out_dir / name).is_symlink():
            return f"its {name} is a link, and a run replaces it; make the whole directory the link"
    return None


def _problem_of_sources(recipe: Recipe) -> str | None:
    """The problem if an overwriting run would remove what it starts from."""
    if not recipe.overwrite:
        return None
    removed = [os.path.realpath(path) for path in checkpoints.directories_of_run(recipe.out_dir)]
    given_paths = [("init_from", recipe.init_from), ("tokenizer", recipe.tokenizer)]
    given_paths += [("dataset", path) for path in split_paths(recipe.dataset)]
    for name, given in given_paths:
        with contextlib.suppress(UsageError):  # reported when it is loaded
            is_plain = name == "dataset" or pretrained.is_hub_id(given)
            source = os.path.realpath(given if is_plain else pretrained.find(given))
            if any(Path(source).is_relative_to(path) for path in removed):
                return f"--overwrite=true would remove {name}={given}, from which this run starts; leave overwrite out"
    return None


def _problem_of_new_run(out_dir: Path, overwrite: bool | str) -> str | None:
    if checkpoints.is_unfinished(out_dir) and (overwrite or not (out_dir / "best").exists()):
        return None
    ran = [name for name in RUN_FILES if (out_dir / name).exists()]
    others = [name for name in (LOSS_PLOT, REPORT, SHARE_PICTURE, "trackers.json", RECIPE) if (out_dir / name).exists()]
    if not ran and RECIPE in others and not recipe_file.is_dumped(out_dir / RECIPE, Recipe):  # as a killed run wrote it
        rename = join(["mv", f"{out_dir}/{RECIPE}", f"{out_dir}.yaml"])
        return f"holds a recipe.yaml that no run wrote, and a run writes its own; {rename}"
    if overwrite is not True and ran:
        held = f"holds a run already ({', '.join(ran)})"
        if has_state(out_dir) or checkpoints.is_unfinished(out_dir):
            return f"{held}; go on: {resume_command(out_dir)}, start anew with --overwrite=true"
        way = checkpoints.way_without_states(out_dir)
        return f"{held} without a state to go on from; {way}; --overwrite=true starts anew"
    if not overwrite and others not in ([], [RECIPE]):
        return f"holds {' and '.join(others)}, which no run wrote; replace with --overwrite=true"
    if (out_dir / "best").exists() and not files.files_in_manifest(out_dir / "best"):
        return "its best/ was not written by a run, so it is not overwritten; move it away"
    return None


def log_setup(setup: Setup, state: TrainState, logger: RunLogger, peak_source: str) -> None:
    """Print what the run will do. `peak_source`: the origin of the FLOP/s that mfu is measured against."""
    recipe, schedule, train, say = setup.recipe, setup.schedule, setup.train, logger.print
    rows, config = recipe.blocks_per_update, setup.model.config
    say(f"number of parameters: {setup.model.num_parameters() / 1e6:.2f}M")
    say(f"LoRA: {lora.describe(config, recipe)}" if recipe.lora_rank else optimizers.describe(config))
    say(f"=> using fused AdamW: {setup.optimizer.defaults['fused']}")
    say(setup.device.describe())
    if about_torch := devices.about_torch():
        say(about_torch)
    if recipe.eval_only:
        return
    passes = schedule.length * rows / train.num_rows
    say(
        f"{schedule.length:,} updates of {rows * train.block_size:,} tokens are {passes:.1f} passes over"
        f" {train.num_rows:,} blocks; learning rate {recipe.learning_rate:g}, warmup {schedule.warmup_iters},"
        f" min_lr {schedule.min_lr:g}; evaluation every {schedule.eval_interval}"
    )
    if (ending := schedules.first_end(recipe, train.num_rows)).startswith("max_iters"):
        say(ending)
    if not setup.find_batch_size:
        say(describe_shares(state.micro_batch, setup.device.accelerator.num_processes))
    if (weights := recipes.dataset_weights(recipe)) and isinstance(train, ConcatBlocks):
        for name, part, weight in zip(setup.dataset_names, train.parts, weights):
            share = weight / sum(weights)
            part_passes = schedule.length * rows * share / part.num_rows
            say(f"{name}: {share:.1%} of the blocks, {part_passes:.1f} passes over its {part.num_rows:,}")
    if train.is_isolated:
        learned = train.num_targets(range(train.num_rows))
        share = learned / (train.num_rows * train.block_size)
        say(f"documents are isolated: {train.num_rows:,} blocks hold {learned:,} targets, {share:.1%} of their tokens")
    if setup.init_from == "scratch" and recipe.learning_rate < SLOW_FROM_SCRATCH:
        say(
            f"learning_rate {recipe.learning_rate:g} suits pretrained weights; from scratch 3e-4 to 1e-3 are usual, see"
            " finetune plan"
        )
    if line := _why_done(setup, state):
        say(f"this run is done: {line}")
    say(f"mfu is against {peak_source}")


def _why_done(setup: Setup, state: TrainState) -> str | None:
    """Why a resumed run has nothing to do, and how to go on."""
    made, length = state.step, setup.schedule.length
    if made >= length:
        asked = f"{made:,} updates, and {length:,} are asked for" if made > length else f"its {length:,} updates"
        return f"it has made {asked}; a larger max_iters, or epochs, goes on: {_twice_as_long(setup, made)}"
    if is_out_of_patience(setup, state):
        way = resume_command(setup.recipe.out_dir, patience="none")
        return f"patience={setup.recipe.patience} ended it after {made:,} of {length:,} updates; to go on: {way}"
    return None


def _twice_as_long(setup: Setup, made: int) -> str:
    """The command that goes on with a run to twice the updates that it has made."""
    recipe, longer = setup.recipe, {"max_iters": max(setup.recipe.max_iters, 2 * made, 1)}
    if recipe.epochs is not None:
        longer["epochs"] = math.ceil(longer["max_iters"] * recipe.blocks_per_update / setup.train.num_rows)
    if recipe.lr_decay_iters is not None:
        longer["lr_decay_iters"] = longer["max_iters"]
    return resume_command(recipe.out_dir, **longer)


def open_run(setup: Setup, state: TrainState, logger: RunLogger, reasons: dict[str, Any] | None = None) -> None:
    """Prepare out_dir, write recipe.yaml, open metrics.jsonl and the trackers."""
    if not setup.device.accelerator.is_main_process:
        return
    recipe, out_dir, resumed = setup.recipe, Path(setup.recipe.out_dir), setup.recipe.init_from == "resume"
    if not resumed and checkpoints.is_unfinished(out_dir):
        logger.print(f"out_dir {out_dir}: its run was ended before it saved a state; it starts anew")
        checkpoints.remove_run(out_dir)
    elif recipe.overwrite and not resumed:
        checkpoints.remove_run(out_dir)
    derived = {
        **dataclasses.asdict(setup.schedule),
        "block_size": setup.train.block_size,
        "wandb_run_name": out_dir.resolve().name,
        "val_fraction": setup.dataset_facts.get("val_fraction"),
        "lora_alpha": recipes.lora_alpha(recipe),
    }
    used = recipe_in_use(setup, state)
    _write_recipe(setup, used, derived)
    before = read_metrics(logger.path, logger.print) if resumed else []
    logger.open(setup.schedule.length, state.step if resumed else None, state.evaluations, state.best)
    values = dataclasses.asdict(used)
    values |= {name: value for name, value in derived.items() if values.get(name, 0) is None}
    values["warmup_iters"] = setup.schedule.warmup_iters  # fewer than in the recipe if the run is short
    logger.record(
        "resume" if resumed else "start",
        step=state.step,
        length=setup.schedule.length,
        recipe=values,
        **setup.provenance,
        identity=setup.identity,
        data=setup.dataset_facts,
        split_blocks={"train": setup.train.num_rows, "val": setup.val.num_rows},
        machine=setup.device.describe(),
        memory=setup.device.memory()[1],
        reasons=reasons,
        **({"eval_rows": setup.max_eval_rows} if setup.max_eval_rows else {}),
    )
    if line := _too_few_updates(setup):
        logger.print(f"warning: {line}")
        logger.record("warning", step=state.step, name="few_updates", line=line)
    for directory in setup.dataset_facts["directories"]:
        note_run(directory, out_dir)
    place = Place(out_dir, recipe.wandb_project, recipe.wandb_run_name or out_dir.resolve().name, values)
    kinds, now = chosen_trackers(recipe.log_with, recipe.wandb_log), read_metrics(logger.path)
    logger.trackers = start_trackers(kinds, setup.device.accelerator, place, state.step, before, now, logger.print)


def _too_few_updates(setup: Setup) -> str | None:
    """A line if the chosen epochs are few updates, with the command that makes more of them."""
    recipe, length, rows = setup.recipe, setup.schedule.length, setup.train.num_rows
    if recipe.init_from == "resume" or recipe.epochs is None or length >= min(WANTED_UPDATES, recipe.max_iters):
        return None
    sizes = schedules.sizes_for(WANTED_UPDATES, recipe, rows, setup.device.accelerator.num_processes)
    flags: dict[str, float] = {**sizes}
    blocks, epochs, what = math.prod(sizes.values()), recipe.epochs, "smaller ones"
    if not epochs or blocks >= recipe.blocks_per_update:  # they are as small as they can be
        blocks, what = recipe.blocks_per_update, "more epochs"
        flags = {"epochs": (epochs := math.ceil(WANTED_UPDATES * blocks / rows))}
    if (more := math.ceil(epochs * rows / blocks)) > recipe.max_iters:
        flags["max_iters"] = more
    way = command("train", Path(recipe.out_dir, RECIPE), **flags, overwrite="true")
    return f"{length} updates in {recipe.epochs:g} epochs teach little; {what} make {more:,}: {way}"


def _write_recipe(setup: Setup, used: Recipe, derived: dict[str, Any]) -> None:
    """Write the recipe that makes this run again to out_dir/recipe.yaml."""
    changes: dict[str, Any] = {"init_from": setup.init_from, "memory": "recipe", "overwrite": False, "push": False}
    changes["out_dir"] = address_of(used.out_dir) or used.out_dir
    if setup.recipe.batch_size == "auto":
        changes |= {name: getattr(setup.recipe, name) for name in ("batch_size", "gradient_accumulation_steps")}
    if setup.init_from == "scratch":
        changes |= {name: getattr(setup.model.config, name) for name in ("n_layer", "n_head", "n_embd")}
    resolved = recipe_file.dump(dataclasses.replace(used, **changes), derived)
    path = Path(setup.recipe.out_dir, RECIPE)
    files.write_file(path, recipe_file.edited(path, resolved))


@contextlib.contextmanager
def record_failure(setup: Setup, state: TrainState, logger: RunLogger) -> Generator[None]:
    """Record how a run fails, which a killed run cannot; close the logger however it ends."""
    try:
        yield
    except KeyboardInterrupt:
        logger.record("stop", step=state.step, signal="SIGINT")
        raise
    except Exception as error:
        code, rank = getattr(error, "code", 1), setup.device.accelerator.process_index
        # rank 0 only sees that this process has ended
        if rank and getattr(error, "alone", False) and not setup.recipe.eval_only:
            logger.join()
        if code not in EXIT_CODES.values():
            problem, which = str(error) or type(error).__name__, {"rank": rank} if rank else {}
            logger.record("failed", step=state.step, problem=problem, code=code, **which)
        raise
    finally:
        logger.close()


def finish_run(setup: Setup, state: TrainState, logger: RunLogger) -> None:
    """Record the end, draw the loss curve and sample from the best model."""
    recipe, accelerator = setup.recipe, setup.device.accelerator
    if state.step < setup.schedule.length:
        logger.print(
            f"early stopping after {state.step} of {setup.schedule.length} updates: no better validation loss in"
            f" {recipe.patience} evaluations"
        )
    if not state.best:
        raise Failure(
            f"out_dir {recipe.out_dir}: best/ could not be saved; the last state is in {Path(recipe.out_dir, 'last')}",
            1,
        )
    if line := worse_than_at_start(state):
        logger.print(f"warning: {line}")
        logger.record("warning", step=state.step, name="worse", line=line)
    logger.record("end", step=state.step, best={name: state.best[name] for name in ("val_loss", "step")})
    logger.close_bar()
    if not accelerator.is_main_process:
        return

    from finetune.runs.loss_plot import plot_loss  # matplotlib takes a while

    try:
        plot_loss(recipe.out_dir)
        if logger.trackers:
            logger.trackers.add_picture(Path(recipe.out_dir) / LOSS_PLOT)
    except OSError as error:  # the model is on disk: its samples and its push are still to be made
        logger.print(f"warning: {Path(recipe.out_dir, LOSS_PLOT)} cannot be written: {error.strerror or error}")
    place = Path(recipe.out_dir, "best")
    logger.print(f"best val loss {state.best['val_loss']:.4f} at step {state.best['step']}, in {place}")
    if setup.prompt is not None and setup.tokenizer is not None:
        sample_best(setup, state, logger)
    elif recipe.num_samples:
        logger.print("no samples: these bins came without their tokenizer")
