"""Rules of thumb for a plan, each in a line with its numbers. Their thresholds are in runs/thresholds.py."""

from __future__ import annotations

import math
from collections.abc import Iterator

from finetune.common.formatting import duration
from finetune.runs import thresholds
from finetune.tools.plan.estimate import Plan

MODELS = [model for _, model, _ in thresholds.MODELS]
KNOWN_SIZES = [*MODELS, "gpt2-xl"]


def advice(plan: Plan) -> list[str]:
    """One line for each point, the gravest first."""
    rules = (_passes, _time, _learning_rate, _model_size, _update, _evaluation, _data)
    return [line for rule in rules for line in rule(plan)]


def model_for(tokens: int) -> tuple[str, str]:
    """(init_from, recipe file) for so many tokens to train on."""
    return next((model, recipe) for limit, model, recipe in thresholds.MODELS if tokens < limit)


def rates_for(plan: Plan) -> tuple[float, float]:
    """The usual range of learning rates: by amount of data for pretrained weights, by width from scratch."""
    if plan.recipe.lora_rank:
        return thresholds.RATES_OF_LORA
    if plan.pretrained:
        return next((low, high) for limit, low, high in thresholds.RATES if plan.data.tokens["train"] < limit)
    rate = next(rate for limit, rate in thresholds.RATES_FROM_SCRATCH if plan.config.n_embd < limit)
    return rate / 3, rate * 3


def _passes(plan: Plan) -> Iterator[str]:
    length, tokens, recipe = plan.schedule.length, plan.data.tokens["train"], plan.recipe
    most = thresholds.PASSES if plan.pretrained else thresholds.PASSES_FROM_SCRATCH
    updates_per_pass = plan.data.rows["train"] / plan.rows
    if plan.passes > 2 * most:
        line = (
            f"{length:,} iterations are {plan.passes:,.0f} passes over {tokens:,} tokens; best validation is expected"
            f" within the first {most} passes, by iteration {math.ceil(most * updates_per_pass):,}: --epochs={most}"
        )
        if recipe.patience:
            later = recipe.patience * plan.schedule.eval_interval
            line += f" (patience={recipe.patience} ends it {later:,} iterations after the best)"
        yield line
    elif length and plan.passes < 0.95 and length == recipe.max_iters:
        once = math.ceil(updates_per_pass)
        yield f"{length:,} iterations read {plan.passes:.0%} of {tokens:,} tokens; --max_iters={once} reads them once"


def _time(plan: Plan) -> Iterator[str]:
    seconds = sum(plan.seconds().values())
    if seconds > thresholds.LONG_RUN:
        shorter = "a smaller model, fewer epochs or another device would shorten that"
        yield f"{duration(seconds)} are {seconds / thresholds.DAY:,.1f} days; {shorter}"
    if plan.device == "cpu" and plan.config.n_layer * plan.config.n_embd**2 > 12 * 768**2:
        yield "larger models than gpt2 are slow on a CPU"


def _learning_rate(plan: Plan) -> Iterator[str]:
    low, high = rates_for(plan)
    rate = plan.recipe.learning_rate
    if low * 0.999 <= rate <= high * 1.001:
        return
    if plan.recipe.lora_rank:
        what = "LoRA"
    elif plan.pretrained:
        what = f"pretrained weights and {plan.data.tokens['train']:,} tokens"
    else:
        what = f"a model {plan.config.n_embd} wide from scratch"
    if rate < low:
        why = "lower ones hardly move"
    else:
        why = "higher ones forget what the model knew" if plan.pretrained else "higher ones diverge"
    yield f"learning_rate {rate:g}: for {what} {low:.2g} to {high:.2g} is usual; {why}"


def _model_size(plan: Plan) -> Iterator[str]:
    tokens, given = plan.data.tokens["train"], plan.recipe.init_from
    usual, recipe = model_for(tokens)
    largest = "gpt2-xl" if usual == MODELS[-1] else usual
    if given in KNOWN_SIZES and KNOWN_SIZES.index(given) > KNOWN_SIZES.index(largest):
        yield f"{given} for {tokens:,} tokens: {usual} is usual ({recipe}), and a larger model overfits sooner"


def _update(plan: Plan) -> Iterator[str]:
    low, high = thresholds.TOKENS_OF_UPDATE
    if 0 < plan.schedule.length < thresholds.FEW_UPDATES:
        more = "a smaller gradient_accumulation_steps makes more of the same passes"
        yield f"{plan.schedule.length} iterations in all leave the optimizer few steps; {more}"
    if plan.pretrained and not low <= plan.tokens <= high:
        yield f"{plan.tokens:,} tokens an iteration: {low:,} to {high:,} is usual, for the usual learning rates"


def _evaluation(plan: Plan) -> Iterator[str]:
    if plan.data.tokens["val"] < thresholds.FEW_VAL_TOKENS:
        chance = "differences of a few hundredths of a nat are chance; a larger val_fraction is more precise"
        yield f"{plan.data.tokens['val']:,} tokens validate: {chance}"
    seconds = plan.seconds()
    if seconds and seconds["evaluations"] > max(60, seconds["updates"]):
        evaluations = f"{plan.evaluations:,} evaluations take {duration(seconds['evaluations'])}"
        updates = f"the {plan.remaining:,} updates {duration(seconds['updates'])}"
        less = f"a larger eval_interval (now {plan.schedule.eval_interval:,}) or a smaller eval_iters reduces that"
        yield f"{evaluations}, {updates}; {less}"


def _data(plan: Plan) -> Iterator[str]:
    tokens = plan.data.tokens["train"]
    if tokens < thresholds.FEW_TOKENS and plan.data.tokenizer != "char":
        yield f"{tokens:,} tokens are few: overfitting is likely below {thresholds.FEW_TOKENS:,}"
