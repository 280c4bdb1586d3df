"""A recipe for this data and this machine, each key with its reason."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from finetune.common.commands import command
from finetune.common.formatting import two_digits
from finetune.config import recipe_file
from finetune.config.paths import KEYS
from finetune.config.recipe import LORA_RATE, Recipe
from finetune.gpt import size as sizes
from finetune.gpt.model import SHAPES
from finetune.runs.thresholds import PASSES, PASSES_FROM_SCRATCH, TOKENS_OF_UPDATE, TOKENS_PER_PARAMETER
from finetune.tools.plan import advice
from finetune.tools.plan.estimate import Plan

UPDATES_PER_PASS = 256  # wanted, within TOKENS_OF_UPDATE
UPDATES_FROM_SCRATCH = 5000  # nanoGPT's for small models
MAX_ITERS = 5000  # the recipes' ceiling
Choices = dict[str, tuple[Any, str]]  # {key: (value, reason)}


def recipe(plan: Plan, path: str = "FILE.yaml", learning_rate: float | None = None) -> str:
    """The text of a YAML recipe for `path`. Keys given as flags stay; `learning_rate` is one that --find_lr found."""
    chosen = _choose(plan, learning_rate)
    fields = [field.name for field in dataclasses.fields(Recipe)]
    for name, origin in plan.origins.items():
        if name in fields and _is_given(plan, name):
            chosen[name] = getattr(plan.recipe, name), "as given on the command line"
        elif name in fields:
            chosen.setdefault(name, (getattr(plan.recipe, name), f"as in {origin}"))
    if not plan.data.exists:
        chosen["dataset"] = "data/mine", "your dataset, which does not exist yet"
        chosen["out_dir"] = "out-mine", "where the run is written"
    for name in KEYS & chosen.keys():
        chosen[name] = recipe_file.without_parents(name, chosen[name][0]), chosen[name][1]
    names = [name for name in fields if name in chosen and chosen[name][0] is not None]
    pairs = [f"{name}: {recipe_file.scalar(chosen[name][0])}" for name in names]
    width = max(map(len, pairs))
    place = (
        f"{plan.data.tokens['train']:,} tokens to train on, on {plan.device} with {plan.available / 1e9:.0f} GB free"
    )
    processes = {"num_processes": plan.processes} if plan.processes > 1 else {}
    head = f"# {command('train', path, **processes)}\n#\n# Suggested for {place}.\n"
    return "\n".join([head, *(f"{pair:<{width}}  # {chosen[name][1]}" for name, pair in zip(names, pairs))]) + "\n"


def _choose(plan: Plan, learning_rate: float | None) -> Choices:
    given = {name for name in plan.origins if _is_given(plan, name)}
    plan, chosen = (plan, {}) if "init_from" in given else _choose_model(plan)
    chosen |= _choose_batch(plan, given)
    rows = chosen["batch_size"][0] * chosen["gradient_accumulation_steps"][0]
    chosen |= _choose_length(plan, rows)
    chosen["learning_rate"] = _choose_learning_rate(plan, learning_rate)
    for name in ("warmup_iters", "lr_decay_iters", "min_lr", "eval_interval", "save_interval"):
        chosen[name] = None, "follows the length"
    chosen["patience"] = 5, "stop after five evaluations without a better validation loss"
    return chosen


def _choose_model(plan: Plan) -> tuple[Plan, Choices]:
    """The plan with the usual model for so many tokens, or the largest below it that fits."""
    if plan.recipe.init_from not in SHAPES:
        return plan, {}
    tokens = plan.data.tokens["train"]
    usual, reason = advice.model_for(tokens)[0], f"usual for {tokens:,} tokens"
    if plan.device == "cpu" and usual != "gpt2":
        usual, reason = "gpt2", "on a CPU larger ones take days"
    for name in reversed(advice.MODELS[: advice.MODELS.index(usual) + 1]):
        L, H, C = SHAPES[name]
        config = dataclasses.replace(plan.config, n_layer=L, n_head=H, n_embd=C, n_inner=None)
        recipe = dataclasses.replace(plan.recipe, init_from=name)
        plan = dataclasses.replace(plan, config=config, recipe=recipe, timing=None)
        if plan.largest_batch(gradient_checkpointing=True):
            break  # else the smallest is suggested although it does not fit
    if plan.recipe.init_from != usual:
        reason = f"{usual}, for {tokens:,} tokens, does not fit into memory"
    return plan, {"init_from": (plan.recipe.init_from, reason)}


def _choose_batch(plan: Plan, given: set[str]) -> Choices:
    """batch_size and gradient_accumulation_steps, and gradient_checkpointing if it must change."""
    chosen: Choices = {}
    asked = {name: getattr(plan.recipe, name) for name in given & {"batch_size", "gradient_accumulation_steps"}}
    rows, T = _rows_of_update(plan), plan.block_size
    recipe = dataclasses.replace(plan.recipe, batch_size=1, gradient_accumulation_steps=rows)
    plan = dataclasses.replace(plan, recipe=recipe)
    size, checkpointing = plan.largest_batch(gradient_checkpointing=False), False
    if size is None:
        size, checkpointing = plan.largest_batch(gradient_checkpointing=True) or 1, True
        chosen["gradient_checkpointing"] = True, "activations do not fit beside weights and optimizer"
    elif plan.recipe.gradient_checkpointing:
        chosen["gradient_checkpointing"] = False, "activations fit, and recomputing them takes time"
    size = asked.get("batch_size", min(size, max(1, rows // asked.get("gradient_accumulation_steps", 1))))
    steps = asked.get("gradient_accumulation_steps", plan.processes * max(1, rows // size // plan.processes))
    rows = size * steps
    needed = plan.peak_bytes(batch_size=size, gradient_checkpointing=checkpointing) / 1e9
    chosen["batch_size"] = size, f"larger ones do not fit or are not faster; {needed:.1f} GB"
    updates = f"{rows * T:,} tokens an update, {-(-plan.data.rows['train'] // rows):,} updates a pass"
    chosen["gradient_accumulation_steps"] = steps, f"{size} x {steps} x {T:,} = {updates}"
    return chosen


def _rows_of_update(plan: Plan) -> int:
    """Blocks of an update, a power of two times the processes, for UPDATES_PER_PASS or UPDATES_FROM_SCRATCH."""
    low, high = TOKENS_OF_UPDATE
    if plan.pretrained:
        wanted = plan.data.tokens["train"] / UPDATES_PER_PASS
    else:
        low, wanted = low // 8, _epochs(plan) * plan.data.tokens["train"] / UPDATES_FROM_SCRATCH
    rows = min(high, max(low, wanted)) / plan.block_size
    return plan.processes * 2 ** max(0, round(math.log2(rows / plan.processes)))


def _is_given(plan: Plan, name: str) -> bool:
    return plan.origins.get(name, "").startswith("--")


def _epochs(plan: Plan) -> float:
    if plan.recipe.epochs and _is_given(plan, "epochs"):
        return plan.recipe.epochs
    if plan.pretrained:
        return PASSES
    epochs = round(TOKENS_PER_PARAMETER * sizes.num_parameters(plan.config) / plan.data.tokens["train"])
    return max(1, min(PASSES_FROM_SCRATCH, epochs))


def _choose_length(plan: Plan, rows: int) -> Choices:
    """epochs and max_iters."""
    epochs = _epochs(plan)
    length = math.ceil(epochs * plan.data.rows["train"] / rows)
    if plan.pretrained:
        ceiling, why = MAX_ITERS, "a pretrained model is at its best within them"
    else:
        ceiling = max(MAX_ITERS, length)
        why = f"{TOKENS_PER_PARAMETER} tokens a parameter, at most {PASSES_FROM_SCRATCH} passes"
    if _is_given(plan, "epochs"):
        ceiling = max(MAX_ITERS, length)
    limit = "a ceiling" if length <= ceiling else f"ends the run before {epochs} passes, which are {length:,}"
    return {"epochs": (epochs, f"{min(length, ceiling):,} updates; {why}"), "max_iters": (ceiling, limit)}


def _choose_learning_rate(plan: Plan, found: float | None) -> tuple[float, str]:
    (low, high), tokens = advice.rates_for(plan), plan.data.tokens["train"]
    if found:
        return found, "the best of the rates that were tried"
    if plan.recipe.lora_rank:
        return LORA_RATE, f"{low:g} to {high:g} is usual for LoRA"
    if plan.pretrained:
        rate = high if tokens < 1_000_000 else two_digits(math.sqrt(low * high))
        return rate, f"{low:g} to {high:g} is usual for {tokens:,} tokens"
    return two_digits(low * 3), f"usual for a model {plan.config.n_embd} wide from scratch"
