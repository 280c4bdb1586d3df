"""memory=auto: the cheapest mode that fits, and advice when none does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from finetune.common.errors import UsageError
from finetune.common.formatting import gigabytes, setting
from finetune.config.recipe import Recipe
from finetune.gpt.model import SHAPES, GPTConfig
from finetune.runtime import memory, process_group
from finetune.runtime.device import Device
from finetune.runtime.memory import Workload, estimate_memory

MAX_FILL = 0.9  # share of the free memory that memory=auto uses, because an estimate can be too low
# keys that memory=auto sets
CHOSEN = ("batch_size", "gradient_accumulation_steps", "chunked_loss", "gradient_checkpointing", "optimizer_dtype")

PeakBytes = Callable[[Recipe], int]  # the memory that a run of a recipe needs


def modes(recipe: Recipe, peak_bytes: PeakBytes) -> list[dict[str, Any]]:
    """Changes to a recipe, each needing less memory than the one before; the first is empty. They are in the order of
    their cost in time, and bfloat16 moments, which change the result by rounding, come last."""
    found: list[dict[str, Any]] = [{}]
    for key, value in ("chunked_loss", "true"), ("gradient_checkpointing", True), ("optimizer_dtype", "bfloat16"):
        before, after = found[-1], found[-1] | {key: value}
        if peak_bytes(dataclasses.replace(recipe, **after)) < peak_bytes(dataclasses.replace(recipe, **before)):
            found.append(after)
    return found


def choose_mode_that_fits(recipe: Recipe, peak_bytes: PeakBytes, available: int) -> tuple[Recipe, int, str] | None:
    """(recipe, bytes, message) of the cheapest mode that fits, with the largest micro-batch that does, or None."""
    rows, largest = recipe.blocks_per_update, recipe.micro_batch_size
    sizes = [size for size in range(largest, 0, -1) if largest % size == 0]
    for mode in modes(recipe, peak_bytes):
        for size in sizes:
            chosen = dataclasses.replace(recipe, batch_size=size, gradient_accumulation_steps=rows // size, **mode)
            needed = peak_bytes(chosen)
            if needed <= MAX_FILL * available:
                return chosen, needed, _message(recipe, chosen, peak_bytes, available)
    return None


def _message(recipe: Recipe, chosen: Recipe, peak_bytes: PeakBytes, available: int) -> str:
    """What memory=auto changed, what it needs, and how its result differs from that of the recipe."""
    changed = [key for key in CHOSEN if getattr(chosen, key) != getattr(recipe, key)]
    changes = ", ".join(f"{key}={setting(getattr(chosen, key))}" for key in changed) or "recipe unchanged"
    needed, free = gigabytes(peak_bytes(chosen)), gigabytes(available)
    message = f"memory=auto: {changes}, estimated {needed} of {free} free"
    if changed:
        message += f"; unchanged: {gigabytes(peak_bytes(recipe))}"
    if chosen.optimizer_dtype != recipe.optimizer_dtype:
        message += "; bfloat16 rounds AdamW's moments, which changes the result slightly"
    if chosen.batch_size != recipe.batch_size and (recipe.dropout or recipe.lora_dropout):
        message += "; dropout is drawn per micro-batch, so its masks change"
    return message


def choose_mode(recipe: Recipe, config: GPTConfig, T: int, device: Device, log: Callable[[str], object]) -> Recipe:
    """The recipe in the mode that memory=auto takes on this device; before the model exists. Raises UsageError."""
    accelerator, device_type = device.accelerator, device.torch_device.type
    free = memory.available_bytes(device_type)
    if device_type == "cpu":
        free //= process_group.local_size()
    # ranks may see different free memory but must choose alike
    free = int(accelerator.gather(torch.tensor([free], device=device.torch_device)).min())
    work = Workload(recipe, config, T, device_type, device.dtype, device.compile, accelerator.num_processes)
    if device_type != "cpu":  # on a GPU, evaluation retries with fewer rows after OOM
        work = dataclasses.replace(work, max_eval_rows=1)

    def peak_bytes(changed: Recipe) -> int:
        return estimate_memory(dataclasses.replace(work, recipe=changed)).peak

    if found := choose_mode_that_fits(recipe, peak_bytes, free):
        log(found[2])
        return found[0]
    problem = f"memory: no mode is estimated to fit in {MAX_FILL:.0%} of the {gigabytes(free)} free"
    raise UsageError("; ".join([problem, *_alternatives(work)]))


def previous_choice(recipe: Recipe, saved: Mapping[str, Any], processes: int) -> Recipe | None:
    """The recipe with the mode that memory=auto chose for the run before its resume; `saved` is that run's recipe. None
    if nothing was chosen, if updates have another size, or if this number of processes cannot share them."""
    steps = saved["gradient_accumulation_steps"]
    same_size = saved["batch_size"] * steps == recipe.blocks_per_update
    if saved.get("memory") != "auto" or not same_size or steps % processes:
        return None
    return dataclasses.replace(recipe, **{key: saved[key] for key in CHOSEN})


def oom_advice(config: GPTConfig, T: int, recipe: Recipe) -> str:
    """Message after OOM with the smallest micro-batch: what else needs less memory, and how much each needs."""
    work = Workload(recipe, config, T)
    adapters = f", lora_rank={recipe.lora_rank}" if recipe.lora_rank else ""
    first = f"out of memory with one block of {T:,} tokens and gradient_checkpointing=true{adapters}"
    return "\n  ".join([f"{first}, estimated {_least_memory(work)}", *_alternatives(work)])


def _alternatives(work: Workload) -> Iterator[str]:
    """Changes of the recipe that need less memory, each with its least memory."""
    recipe, config = work.recipe, work.config
    if not recipe.lora_rank and recipe.optimizer_dtype == "float32":
        compact = dataclasses.replace(recipe, optimizer_dtype="bfloat16")
        yield f"--optimizer_dtype=bfloat16 needs {_least_memory(dataclasses.replace(work, recipe=compact))}"
    if not recipe.lora_rank and recipe.init_from not in ("scratch", "resume"):
        adapters = dataclasses.replace(recipe, lora_rank=16)
        yield f"--lora_rank=16 needs {_least_memory(dataclasses.replace(work, recipe=adapters))}"
    for size in ("gpt2-large", "gpt2-medium", "gpt2"):
        L, H, C = SHAPES[size]
        if config.n_layer > L:
            smaller = dataclasses.replace(config, n_layer=L, n_head=H, n_embd=C, n_inner=None)
            yield f"--init_from={size} needs {_least_memory(dataclasses.replace(work, config=smaller))}"
    half = dataclasses.replace(work, block_size=max(1, work.block_size // 2))
    yield f"--block_size={half.block_size} needs {_least_memory(half)}"


def _least_memory(work: Workload) -> str:
    """Estimate for one block per micro-batch with gradient checkpointing."""
    recipe = Recipe(
        batch_size=1,
        gradient_checkpointing=True,
        lora_rank=work.recipe.lora_rank,
        optimizer_dtype=work.recipe.optimizer_dtype,
    )
    least = Workload(recipe, work.config, work.block_size, work.device_type, work.dtype)
    return gigabytes(estimate_memory(least).peak)
