"""A Plan in words: one line a fact, with the names the recipe has for it."""

import dataclasses

from finetune.common.formatting import duration
from finetune.config import recipe as recipes
from finetune.gpt import lora
from finetune.gpt import size as sizes
from finetune.runtime import memory_modes
from finetune.tools.plan import advice
from finetune.tools.plan.estimate import device_name

RANK = 16  # of the adapters that are offered
LINK = 100e9 / 8  # bytes a second of a link of 100 Gbit/s


def report(plan):
    """The plan, and below it what stands out."""
    lines = [*_run(plan), *_memory(plan), *_modes(plan), *_disk(plan), *_time(plan), *_exchange(plan)]
    text = "\n".join(f"{name:<15}{line}".rstrip() for name, line in lines)
    if found := advice.advice(plan):
        text += "\n\nwhat stands out:\n" + "\n".join(f"- {line}" for line in found)
    return text


def shortage(plan):
    """What does not suffice, in capitals, with the way out; empty when everything does."""
    lines = []
    if not plan.fits:
        takes = gigabytes(plan.takes())
        lines.append(
            f"NOT ENOUGH MEMORY: IT TAKES {takes}, AND {gigabytes(plan.available)} ARE FREE on {device_name(plan)}."
            f" {_way_out(plan)}"
        )
    if plan.disk_needed > plan.disk_free:
        lines.append(
            f"NOT ENOUGH DISK SPACE: CHECKPOINTS TAKE {gigabytes(plan.disk_needed)}, AND {gigabytes(plan.disk_free)}"
            f" ARE FREE for {plan.recipe.out_dir}. Free some, or choose another out_dir."
        )
    return "\n".join(lines)


def explanation(plan):
    """Every key of the recipe: its value, its origin and its help."""
    rows = [
        (field.name, *_resolved(plan, field.name), field.metadata["help"])
        for field in dataclasses.fields(recipes.Recipe)
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join("  ".join([*(f"{cell:<{width}}" for cell, width in zip(row, widths)), row[3]]) for row in rows)


def _resolved(plan, name):
    """`(value, origin)` of a key as text. The origin is "derived" where the value follows from other keys."""
    value, origin = getattr(plan.recipe, name), plan.origins.get(name, "default")
    if name in DERIVED and value in (None, "auto"):
        value, origin = DERIVED[name](plan), "derived"
    elif name == "warmup_iters" and value != plan.schedule.warmup_iters:  # shortened, because the run is short
        value, origin = plan.schedule.warmup_iters, "derived"
    elif plan.found_batch_size and name in ("batch_size", "gradient_accumulation_steps"):
        origin = "derived"
    return _value(value), origin


DERIVED = {
    "block_size": lambda plan: plan.block_size,
    "n_layer": lambda plan: plan.config.n_layer,
    "n_head": lambda plan: plan.config.n_head,
    "n_embd": lambda plan: plan.config.n_embd,
    "isolate_documents": lambda plan: str(plan.data.isolated).lower(),
    "warmup_iters": lambda plan: plan.schedule.warmup_iters,
    "lr_decay_iters": lambda plan: plan.schedule.lr_decay_iters,
    "min_lr": lambda plan: plan.schedule.min_lr,
    "eval_interval": lambda plan: plan.schedule.eval_interval,
    "save_interval": lambda plan: plan.schedule.save_interval,
    "tokenizer": lambda plan: plan.data.tokenizer,
    "val_fraction": lambda plan: plan.data.val_fraction,
    "device": lambda plan: plan.device,
    "dtype": lambda plan: plan.dtype,
    "compile": lambda plan: str(plan.compile).lower(),
    "lora_alpha": lambda plan: recipes.lora_alpha(plan.recipe),
    "wandb_run_name": lambda plan: plan.recipe.out_dir.rstrip("/").split("/")[-1],
}


def gigabytes(size):
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"


def passes(plan):
    return f"{plan.passes:,.0f}" if plan.passes >= 100 else f"{plan.passes:.1f}"


def _run(plan):
    recipe, config, schedule, rows = plan.recipe, plan.config, plan.schedule, plan.data.rows
    count = sizes.num_parameters(plan.config)
    yield (
        "model",
        f"{plan.init_from}: {count:,} parameters; {config.n_layer} layers, {config.n_head} heads, {config.n_embd} wide",
    )
    if recipe.lora_rank:
        yield "LoRA", lora.describe(config, recipe)
    tokens = plan.data.tokens
    yield (
        "data",
        (
            f"{plan.data.name}: {tokens['train']:,} tokens to train on, {tokens['val']:,} to validate on"
            f" ({plan.data.tokenizer})"
        ),
    )
    isolated = ", of isolated documents" if plan.data.isolated else ""
    yield "", f"{rows['train']:,} and {rows['val']:,} blocks of {plan.block_size:,}{isolated}"
    auto = " (batch_size=auto)" if plan.found_batch_size else ""
    yield (
        "update",
        (
            f"{recipe.batch_size} x {recipe.gradient_accumulation_steps} x {plan.block_size:,} = {plan.tokens:,}"
            f" tokens{auto}; {rows['train'] / plan.rows:,.1f} updates are a pass"
        ),
    )
    by_epochs = (
        f"; epochs={recipe.epochs:g} ends it before max_iters={recipe.max_iters:,}"
        if schedule.length < recipe.max_iters
        else ""
    )
    yield "length", f"{schedule.length:,} updates, {passes(plan)} passes over the data{by_epochs}"
    if plan.done:
        yield "", f"{plan.done:,} of them are made, {plan.remaining:,} are left"
    decay = f"cosine to {schedule.min_lr:g} at {schedule.lr_decay_iters:,}" if recipe.decay_lr else "then constant"
    yield "learning rate", f"{recipe.learning_rate:g} after {schedule.warmup_iters:,} updates of warmup, {decay}"
    train, val = plan.rows_of_evaluation
    yield (
        "evaluation",
        (
            f"every {schedule.eval_interval:,} updates, {plan.evaluations:,} times: {val:,} blocks of val, {train:,} of"
            " train"
        ),
    )


def _memory(plan):
    needs, processes = plan.needs(), plan.processes
    each = f" for each of {processes} processes" if processes > 1 else ""
    free = f"; {gigabytes(plan.available)} are free on {device_name(plan)}" if plan.available is not None else ""
    yield "memory", f"{gigabytes(needs.peak)} at the most{each}, {plan.dtype}{free}"
    instead = {
        "loading": " (before there are gradients, activations and moments)",
        "evaluation": " (when there are no gradients and no activations)",
        "saving": " (when there are no gradients and no activations)",
    }
    for what, size in needs.parts.items():
        if size >= 1e6:
            yield "", f"{gigabytes(size):>9} {what}{instead.get(what, '')}"
    if plan.timing and plan.timing.peak:
        yield "", f"{gigabytes(plan.timing.peak):>9} were taken by the micro-steps that were timed"


def _modes(plan):
    """What the same run would take with less memory, the cheapest first."""
    asked = dataclasses.replace(plan, recipe=plan.asked or plan.recipe)
    rows = [
        (asked.takes(**mode), _flags(mode) or "as it is") for mode in memory_modes.modes(asked.recipe, asked.taken_by)
    ]
    if _may_adapt(plan):
        for mode in ({"lora_rank": RANK}, {"lora_rank": RANK, "gradient_checkpointing": True}):
            rows.append((asked.takes(**mode), f"{_flags(mode)} (LoRA learns something else than all weights do)"))
    for number, (size, told) in enumerate(rows):
        yield "" if number else "memory modes", f"{gigabytes(size):>9} {told}"
    if plan.mode:
        yield "", plan.mode


def _disk(plan):
    parts = ", ".join(f"{gigabytes(size)} {what}" for what, size in plan.disk.items())
    yield (
        "disk",
        (
            f"{gigabytes(plan.disk_needed)} for checkpoints ({parts}); {gigabytes(plan.disk_free)} are free for"
            f" {plan.recipe.out_dir}"
        ),
    )


def _time(plan):
    if not plan.timing:
        yield "time", f"not measured: {plan.untimed}"
        return
    timing, seconds = plan.timing, plan.seconds()
    speed = plan.tokens * plan.remaining / seconds["updates"] if plan.remaining else 0
    yield "time", f"{duration(sum(seconds.values()))}, from three timed micro-steps with random weights"
    counts = {
        "updates": f" of {plan.tokens:,} tokens, {speed:,.0f} tokens/s" if plan.remaining else "",
        "evaluations": f", {plan.evaluations:,}",
    }
    counts["checkpoints"] = f", {plan.saves:,} states and at most {plan.evaluations:,} models"
    for what, spent in seconds.items():
        if spent:
            yield "", f"{duration(spent):>9} {what}{counts.get(what, '')}"
    if timing.rows < plan.recipe.batch_size:
        yield "", f"(timed with {timing.rows} of the {plan.recipe.batch_size} blocks of a micro-batch)"
    if plan.processes > 1:
        yield "", f"(with {plan.processes} devices like this one; the exchange of gradients is not in it)"


def _exchange(plan):
    if plan.processes > 1:
        sent = plan.exchanged
        yield (
            "communication",
            (
                f"each of {plan.processes} processes sends {gigabytes(sent)} an update (ring all-reduce of float32"
                " gradients)"
            ),
        )
        yield "", f"{sent / LINK * 1000:,.0f} ms over links of 100 Gbit/s, hidden in part behind the last backward pass"


def _way_out(plan):
    for mode in memory_modes.modes(plan.recipe, plan.taken_by):
        size = plan.largest_batch(**mode)
        if size and (mode or size < plan.recipe.batch_size):
            rounded = ", but for the rounding of AdamW's moments," if "optimizer_dtype" in mode else ""
            flags = _flags({**mode, "batch_size": size, "gradient_accumulation_steps": plan.rows // size})
            return f"The same updates{rounded} fit with {flags}."
    least = {"lora_rank": RANK, "gradient_checkpointing": True, "batch_size": 1}
    if _may_adapt(plan) and (size := plan.takes(**least)) <= plan.available:
        return (
            f"LoRA would fit, in {gigabytes(size)}: {_flags({**least, 'gradient_accumulation_steps': plan.rows})}; or"
            " take a smaller model."
        )
    if plan.processes > 1:
        return (
            "recipes/accelerate/fsdp2.yaml shares weights, gradients and optimizer out, which is not counted here"
            " (docs/scaling.md)."
        )
    return "Take a smaller model, a smaller block_size or another device."


def _may_adapt(plan):
    return plan.pretrained and not plan.recipe.lora_rank and plan.recipe.init_from != "resume"


def _flags(changes):
    return " ".join(f"--{name}={str(value).lower()}" for name, value in changes.items())


def _value(value):
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return (
        "none"
        if value is None
        else repr(value)
        if isinstance(value, str) and (not value or value != value.strip())
        else str(value)
    )
