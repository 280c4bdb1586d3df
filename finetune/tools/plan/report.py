"""A Plan as text: one fact a line, named as in the recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from finetune.common.formatting import duration, gigabytes, setting
from finetune.config.recipe import Recipe, lora_alpha
from finetune.config.schedule import first_end
from finetune.gpt import lora
from finetune.gpt import size as sizes
from finetune.runtime import memory_modes
from finetune.tools.plan import advice
from finetune.tools.plan.estimate import Plan, device_name

RANK = 16  # of the LoRA that is offered
LINK = 100e9 / 8  # bytes a second of a link of 100 Gbit/s
# parts of the memory that are not needed at the peak of an update
WHEN = {
    **dict.fromkeys(["evaluation", "saving"], "without gradients and activations"),
    "copies of a state": "beyond the peak, while it is written and memory is free",
    "loading": "before training",
}
Lines = Iterator[tuple[str, str]]  # (name, fact); the name is empty if the line before has it


def report(plan: Plan) -> str:
    """The plan, and the advice about it."""
    lines = [*_run(plan), *_memory(plan), *_modes(plan), *_disk(plan), *_time(plan), *_communication(plan)]
    text = "\n".join(f"{name:<15}{line}".rstrip() for name, line in lines)
    if found := advice.advice(plan):
        text += "\n\nwhat stands out:\n" + "\n".join(f"- {line}" for line in found)
    return text


def facts(plan: Plan) -> dict[str, Any]:
    """The plan as JSON; sizes in bytes, times in seconds. {"seconds": {}} if it was not timed."""
    recipe, derived = dataclasses.asdict(plan.recipe) | dataclasses.asdict(plan.schedule), _derived(plan)
    for field in dataclasses.fields(Recipe):
        if recipe[field.name] is None and field.metadata.get("derived"):
            recipe[field.name] = derived[field.name]
    return {
        "recipe": {field.name: recipe[field.name] for field in dataclasses.fields(Recipe)},
        "processes": plan.processes,
        "device": plan.device,
        "dtype": plan.dtype,
        "parameters": sizes.num_parameters(plan.config),
        "data": dataclasses.asdict(plan.data),
        "updates": plan.schedule.length,
        "remaining_updates": plan.remaining,
        "passes": plan.passes,
        "tokens_per_update": plan.tokens,
        "evaluations": plan.evaluations,
        "memory": {"needed": plan.peak_bytes(), "available": plan.available},
        "disk": {"needed": plan.disk_needed, "available": plan.disk_free},
        "seconds": plan.seconds(),
        "advice": advice.advice(plan),
        "shortage": shortage(plan),
    }


def shortage(plan: Plan) -> str:
    """What does not suffice, in capitals, with the way out; empty if everything does."""
    lines = []
    if not plan.fits:
        needed, free = gigabytes(plan.peak_bytes()), f"{gigabytes(plan.available)} ARE FREE on {device_name(plan)}"
        lines.append(f"NOT ENOUGH MEMORY: IT TAKES {needed}, AND {free}. {_way_out(plan)}")
    if plan.disk_needed > plan.disk_free:
        needed, free = gigabytes(plan.disk_needed), f"{gigabytes(plan.disk_free)} ARE FREE for {plan.recipe.out_dir}"
        way_out = "Free some, or choose another out_dir."
        lines.append(f"NOT ENOUGH DISK SPACE: CHECKPOINTS TAKE {needed}, AND {free}. {way_out}")
    return "\n".join(lines)


def explanation(plan: Plan) -> str:
    """Every key of the recipe: its value, its origin and its help."""
    derived, rows = _derived(plan), []
    for field in dataclasses.fields(Recipe):
        name, value = field.name, getattr(plan.recipe, field.name)
        origin = plan.origins.get(name, "default")
        is_shortened = name == "warmup_iters" and value != derived[name]  # the run is too short for it
        if is_shortened or (name in derived and value in (None, "auto")):
            value, origin = derived[name], "derived"
        elif plan.found_batch_size and name in ("batch_size", "gradient_accumulation_steps"):
            origin = "derived"
        rows.append((name, setting(value), origin, field.metadata["help"]))
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for *cells, text in rows:
        lines.append("  ".join([*(cell.ljust(width) for cell, width in zip(cells, widths)), text]))
    return "\n".join(lines)


def _derived(plan: Plan) -> dict[str, Any]:
    """The values of keys that are None or auto in the recipe."""
    return {
        **vars(plan.config),
        **vars(plan.schedule),
        "isolate_documents": plan.data.isolated,
        "tokenizer": plan.data.tokenizer,
        "val_fraction": plan.data.val_fraction,
        "device": plan.device,
        "dtype": plan.dtype,
        "compile": plan.compile,
        "lora_alpha": lora_alpha(plan.recipe),
        "wandb_run_name": plan.recipe.out_dir.rstrip("/").split("/")[-1],
    }


def _run(plan: Plan) -> Lines:
    recipe, config, schedule, data = plan.recipe, plan.config, plan.schedule, plan.data
    shape = f"{config.n_layer} layers, {config.n_head} heads, {config.n_embd} wide"
    yield "model", f"{plan.init_from}: {sizes.num_parameters(config):,} parameters; {shape}"
    if recipe.lora_rank:
        yield "LoRA", lora.describe(config, recipe)
    counts = f"{data.tokens['train']:,} tokens to train on, {data.tokens['val']:,} to validate on"
    yield "data", f"{data.name}: {counts} ({data.tokenizer})"
    for note in plan.notes:
        yield "", note
    isolated = ", of isolated documents" if data.isolated else ""
    yield "", f"{data.rows['train']:,} and {data.rows['val']:,} blocks of {plan.block_size:,}{isolated}"
    auto = " (batch_size=auto)" if plan.found_batch_size else ""
    factors = f"{recipe.batch_size} x {recipe.gradient_accumulation_steps} x {plan.block_size:,}"
    updates_per_pass = data.rows["train"] / plan.rows
    yield "update", f"{factors} = {plan.tokens:,} tokens{auto}; {updates_per_pass:,.1f} updates are a pass"
    passes = f"{plan.passes:,.0f}" if plan.passes >= 100 else f"{plan.passes:.1f}"
    ending = first_end(recipe, data.rows["train"])
    yield "length", f"{schedule.length:,} updates, {passes} passes over the data{ending and f'; {ending}'}"
    if plan.done:
        yield "", f"{plan.done:,} are made already, {plan.remaining:,} are left"
    decay = f"cosine to {schedule.min_lr:g} at {schedule.lr_decay_iters:,}" if recipe.decay_lr else "then constant"
    yield "learning rate", f"{recipe.learning_rate:g} after {schedule.warmup_iters:,} updates of warmup, {decay}"
    train, val = plan.rows_of_evaluation
    times = f"every {schedule.eval_interval:,} updates, {plan.evaluations:,} times"
    yield "evaluation", f"{times}: {val:,} blocks of val, {train:,} of train"


def _memory(plan: Plan) -> Lines:
    estimate = plan.estimate_memory()
    each = f" for each of {plan.processes} processes" if plan.processes > 1 else ""
    free = f"{gigabytes(plan.available)} are free on {device_name(plan)}"
    yield "memory", f"{gigabytes(estimate.peak)} at the peak{each}, {plan.dtype}; {free}"
    for what, size in estimate.parts.items():
        when = f" ({WHEN[what]})" if what in WHEN else ""
        if size >= 1e6:
            yield "", f"{gigabytes(size):>9} {what}{when}"
    if plan.timing and plan.timing.peak:
        yield "", f"{gigabytes(plan.timing.peak):>9} measured while micro-batches were timed"


def _modes(plan: Plan) -> Lines:
    """The memory of the same run in other modes, the cheapest first."""
    asked = dataclasses.replace(plan, recipe=plan.asked or plan.recipe)
    modes = memory_modes.modes(asked.recipe, asked.peak_bytes_of)
    rows = [(asked.peak_bytes(**mode), _flags(mode) or "unchanged") for mode in modes]
    if _may_use_lora(plan):
        for mode in ({"lora_rank": RANK}, {"lora_rank": RANK, "gradient_checkpointing": True}):
            rows.append((asked.peak_bytes(**mode), f"{_flags(mode)} (LoRA trains fewer weights, with another result)"))
    for number, (size, flags) in enumerate(rows):
        yield "" if number else "memory modes", f"{gigabytes(size):>9} {flags}"
    if plan.mode:
        yield "", plan.mode


def _disk(plan: Plan) -> Lines:
    parts = ", ".join(f"{gigabytes(size)} {what}" for what, size in plan.disk.items())
    free = f"{gigabytes(plan.disk_free)} are free for {plan.recipe.out_dir}"
    yield "disk", f"{gigabytes(plan.disk_needed)} for checkpoints ({parts}); {free}"


def _time(plan: Plan) -> Lines:
    timing, seconds = plan.timing, plan.seconds()
    if timing is None:
        yield "time", f"not measured: {plan.untimed}"
        return
    yield "time", f"{duration(sum(seconds.values()))}, from three timed micro-batches with random weights"
    counts = {
        "evaluations": f", {plan.evaluations:,}",
        "checkpoints": f", {plan.saves:,} states and at most {plan.evaluations:,} models",
    }
    if plan.remaining:
        speed = plan.tokens * plan.remaining / seconds["updates"]
        counts["updates"] = f" of {plan.tokens:,} tokens, {speed:,.0f} tokens/s"
    for what, spent in seconds.items():
        if spent:
            yield "", f"{duration(spent):>9} {what}{counts.get(what, '')}"
    if timing.rows < plan.recipe.micro_batch_size:
        yield "", f"(timed with {timing.rows} of the {plan.recipe.batch_size} blocks of a micro-batch)"
    if plan.processes > 1:
        yield "", f"(with {plan.processes} devices like this one, without communication)"


def _communication(plan: Plan) -> Lines:
    if plan.processes == 1:
        return
    trained = lora.num_adapter_parameters(plan.config, plan.recipe.lora_rank) or sizes.num_parameters(plan.config)
    sent = 2 * (plan.processes - 1) * 4 * trained // plan.processes
    sends = f"each of {plan.processes} processes sends {gigabytes(sent)} an update"
    yield "communication", f"{sends} (ring all-reduce of float32 gradients)"
    milliseconds = sent / LINK * 1000
    yield "", f"{milliseconds:,.0f} ms over links of 100 Gbit/s, partly hidden behind the last backward pass"


def _way_out(plan: Plan) -> str:
    for mode in memory_modes.modes(plan.recipe, plan.peak_bytes_of):
        size = plan.largest_batch(**mode)
        if size and (mode or size < plan.recipe.micro_batch_size):
            rounded = ", but for the rounding of AdamW's moments," if "optimizer_dtype" in mode else ""
            flags = _flags({**mode, "batch_size": size, "gradient_accumulation_steps": plan.rows // size})
            return f"The same updates{rounded} fit with {flags}."
    least = {"lora_rank": RANK, "gradient_checkpointing": True, "batch_size": 1}
    if _may_use_lora(plan) and (needed := plan.peak_bytes(**least)) <= plan.available:
        flags = _flags({**least, "gradient_accumulation_steps": plan.rows})
        return f"LoRA would fit, in {gigabytes(needed)}: {flags}; or take a smaller model."
    if plan.processes > 1:
        fsdp = "recipes/accelerate/fsdp2.yaml shards weights, gradients and optimizer"
        return f"{fsdp}, which is not counted here (docs/scaling.md)."
    return "Take a smaller model, a smaller block_size or another device."


def _may_use_lora(plan: Plan) -> bool:
    return plan.pretrained and not plan.recipe.lora_rank and plan.recipe.init_from != "resume"


def _flags(changes: dict[str, Any]) -> str:
    return " ".join(f"--{name}={setting(value)}" for name, value in changes.items())
