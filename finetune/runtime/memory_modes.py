"""memory=auto: the cheapest mode that fits."""

import dataclasses
import os

import torch

from finetune.common.errors import UsageError
from finetune.gpt.model import SHAPES
from finetune.runtime import memory
from finetune.runtime.memory import estimate_memory

MAX_FILL = 0.9  # of what is free, by memory=auto: a prediction can be off
CHOSEN = (
    "batch_size",
    "gradient_accumulation_steps",
    "chunked_loss",
    "gradient_checkpointing",
    "optimizer_dtype",
)  # by memory=auto


def modes(recipe, takes):
    """Changes to a recipe that each take less memory than the one before, by `takes(recipe)`, beginning with none: what
    costs least comes first, and last what changes what is learned, by rounding."""
    found = [{}]
    for step in {"chunked_loss": "true"}, {"gradient_checkpointing": True}, {"optimizer_dtype": "bfloat16"}:
        before, after = (dataclasses.replace(recipe, **changes) for changes in (found[-1], found[-1] | step))
        if takes(after) < takes(before):
            found.append(found[-1] | step)
    return found


def estimate_of(recipe, config, T, device, dtype, compiled, processes=1, **more):
    """The Needs of a process of a run as its recipe says."""
    accumulates = recipe.gradient_accumulation_steps > processes
    return estimate_memory(
        config,
        recipe.batch_size,
        T,
        device,
        dtype,
        compiled,
        recipe.gradient_checkpointing,
        recipe.dropout,
        accumulates,
        processes,
        chunked=recipe.chunked_loss,
        lora_rank=recipe.lora_rank,
        optimizer_dtype=recipe.optimizer_dtype,
        **more,
    )


def choose_mode_that_fits(recipe, takes, available):
    """For memory=auto: `(recipe, bytes, line)`, the recipe in the first of its `modes` that `takes(recipe)` no more
    than FILLED of what is available, with the largest micro-batch that does so, and what was chosen and why in a line.
    None when none does."""
    rows, smallest = recipe.batch_size * recipe.gradient_accumulation_steps, None
    for mode in modes(recipe, takes):
        for size in (size for size in range(recipe.batch_size, 0, -1) if recipe.batch_size % size == 0):
            changes = {"batch_size": size, "gradient_accumulation_steps": rows // size, **mode}
            chosen = dataclasses.replace(recipe, **changes)
            needed = takes(chosen)
            if smallest is None:
                smallest = needed
            if needed <= MAX_FILL * available:
                told = ", ".join(
                    f"{name}={str(value).lower()}" for name, value in changes.items() if value != getattr(recipe, name)
                )
                line = f"memory=auto: {told or 'all as the recipe says'}, predicted to take {needed / 1e9:.2f} GB"
                line += f" of {available / 1e9:.2f} GB that are free"
                if told:
                    line += f"; as the recipe says it would be {smallest / 1e9:.2f} GB"
                if "optimizer_dtype" in mode:
                    line += "; AdamW's moments are rounded, so this learns a little differently"
                if told and (recipe.dropout or recipe.lora_dropout) and size != recipe.batch_size:
                    line += "; dropout is drawn by the micro-batch, so another cut draws others"
                return chosen, needed, line
    return None


def choose_mode(recipe, config, T, machine, say):
    """The recipe in the mode that memory=auto takes on this machine. To be asked before there is a network. Raises
    UsageError when nothing is predicted to fit."""
    accelerator, device, dtype = (
        machine.accelerator,
        machine.torch_device.type,
        str(machine.dtype).removeprefix("torch."),
    )
    free = memory.available_bytes(device)
    if device == "cpu":
        free //= int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    # processes may see different memory, and must choose alike
    free = int(accelerator.gather(torch.tensor([free], device=machine.torch_device)).min())

    def takes(recipe):
        evaluated = 256 if device == "cpu" else 1  # where a GPU has no room, evaluations take less by themselves
        return estimate_of(
            recipe, config, T, device, dtype, machine.compile, accelerator.num_processes, evaluated=evaluated
        ).peak

    if found := choose_mode_that_fits(recipe, takes, free):
        say(found[2])
        return found[0]
    problem = f"memory: nothing is predicted to fit in {MAX_FILL:.0%} of the {free / 1e9:.2f} GB that are free"
    raise UsageError("; ".join([problem, *smaller_micro_batches(config, T, recipe, device=device, dtype=dtype)]))


def previous_choice(recipe, saved, processes):
    """For memory=auto: the recipe with what had been chosen for its run, whose `saved` recipe this is. None where
    nothing had been, or where that is for other updates or cannot be shared by so many processes; then it is chosen
    anew."""
    rows = [values["batch_size"] * values["gradient_accumulation_steps"] for values in (saved, vars(recipe))]
    if saved.get("memory") != "auto" or rows[0] != rows[1] or saved["gradient_accumulation_steps"] % processes:
        return None
    return dataclasses.replace(recipe, **{name: saved[name] for name in CHOSEN})


def oom_advice(config, T, recipe):
    """The end of the ladder, in words: fewer moments, adapters, smaller models and shorter blocks, and the memory each
    needs."""
    adapters = (
        f", gradient_checkpointing=true and lora_rank={recipe.lora_rank}"
        if recipe.lora_rank
        else " and gradient_checkpointing=true"
    )
    first = f"out of memory with one block of {T:,} tokens{adapters}, which take {least_memory_mode(config, T, recipe)}"
    return "\n  ".join([first, *smaller_micro_batches(config, T, recipe)])


def smaller_micro_batches(config, T, recipe, **place):
    """What takes less memory than a recipe at its least, each with what it takes."""
    if not recipe.lora_rank and recipe.optimizer_dtype == "float32":
        least = least_memory_mode(config, T, recipe, optimizer_dtype="bfloat16", **place)
        yield f"--optimizer_dtype=bfloat16 needs {least}"
    if not recipe.lora_rank and recipe.init_from not in ("scratch", "resume"):
        yield f"--lora_rank=16 needs {least_memory_mode(config, T, recipe, lora_rank=16, **place)}"
    for size in ("gpt2-large", "gpt2-medium", "gpt2"):
        L, H, C = SHAPES[size]
        if config.n_layer > L:
            shape = dataclasses.replace(config, n_layer=L, n_head=H, n_embd=C, n_inner=None)
            yield f"--init_from={size} needs {least_memory_mode(shape, T, recipe, **place)}"
    yield f"--block_size={max(1, T // 2)} needs {least_memory_mode(config, max(1, T // 2), recipe, **place)}"


def least_memory_mode(config, T, recipe, **changes):
    modes = {"lora_rank": recipe.lora_rank, "optimizer_dtype": recipe.optimizer_dtype} | changes
    return f"{estimate_memory(config, 1, T, checkpointing=True, **modes).peak / 1e9:.2f} GB"
