"""memory=auto: the cheapest mode that fits, and advice when none does."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from finetune.common.errors import UsageError
from finetune.config.recipe import Recipe
from finetune.gpt.model import SHAPES, GPTConfig
from finetune.runtime import memory
from finetune.runtime.device import Device
from finetune.runtime.memory import MemoryEstimate, Workload, estimate_memory

MAX_FILL = 0.9  # share of the free memory that memory=auto uses, because an estimate can be too low
# keys that memory=auto sets
CHOSEN = ("batch_size", "gradient_accumulation_steps", "chunked_loss", "gradient_checkpointing", "optimizer_dtype")


def modes(recipe: Recipe, peak_bytes: Callable[[Recipe], int]) -> list[dict[str, Any]]:
    """Changes to a recipe, each needing less memory than the one before; the first is empty. They are in the order of
    their cost in time, and bfloat16 moments, which change the result by rounding, come last."""
    found: list[dict[str, Any]] = [{}]
    for key, value in ("chunked_loss", "true"), ("gradient_checkpointing", True), ("optimizer_dtype", "bfloat16"):
        changes: dict[str, Any] = {**found[-1], key: value}
        before, after = dataclasses.replace(recipe, **found[-1]), dataclasses.replace(recipe, **changes)
        if peak_bytes(after) < peak_bytes(before):
            found.append(changes)
    return found


def estimate_of(
    recipe: Recipe,
    config: GPTConfig,
    T: int,
    device_type: str,
    dtype: str,
    compiled: bool,
    processes: int = 1,
    **more: int,
) -> MemoryEstimate:
    """Memory of one process of the recipe's run. `more` are further fields of `Workload`."""
    work = Workload(
        config,
        recipe.micro_batch_size,
        T,
        device_type,
        dtype,
        compiled,
        gradient_checkpointing=recipe.gradient_checkpointing,
        dropout=recipe.dropout,
        chunked_loss=recipe.chunked_loss,
        lora_rank=recipe.lora_rank,
        optimizer_dtype=recipe.optimizer_dtype,
        accumulates=recipe.gradient_accumulation_steps > processes,
        processes=processes,
        **more,
    )
    return estimate_memory(work)


def choose_mode_that_fits(
    recipe: Recipe, peak_bytes: Callable[[Recipe], int], available: int
) -> tuple[Recipe, int, str] | None:
    """(recipe, bytes, message) of the cheapest mode that fits, with the largest micro-batch that does, or None."""
    rows, largest = recipe.blocks_per_update, recipe.micro_batch_size
    sizes = [size for size in range(largest, 0, -1) if largest % size == 0]
    for mode in modes(recipe, peak_bytes):
        for size in sizes:
            chosen = dataclasses.replace(recipe, batch_size=size, gradient_accumulation_steps=rows // size, **mode)
            needed = peak_bytes(chosen)
            if needed <= MAX_FILL * available:
                total, free = f"{needed / 1e9:.2f} GB", f"{available / 1e9:.2f} GB"
                unchanged = f"; unchanged: {peak_bytes(recipe) / 1e9:.2f} GB" if chosen != recipe else ""
                changes = _describe_changes(recipe, chosen) or "recipe unchanged"
                message = f"memory=auto: {changes}, estimated {total} of {free} free{unchanged}"
                return chosen, needed, message + _side_effects(recipe, chosen)
    return None


def _describe_changes(recipe: Recipe, chosen: Recipe) -> str:
    values = {name: getattr(chosen, name) for name in CHOSEN}
    return ", ".join(f"{name}={value}".lower() for name, value in values.items() if value != getattr(recipe, name))


def _side_effects(recipe: Recipe, chosen: Recipe) -> str:
    """How the result of the chosen recipe differs from that of the original."""
    effects = ""
    if chosen.optimizer_dtype != recipe.optimizer_dtype:
        effects += "; bfloat16 rounds AdamW's moments, which changes the result slightly"
    if chosen.batch_size != recipe.batch_size and (recipe.dropout or recipe.lora_dropout):
        effects += "; dropout is drawn per micro-batch, so its masks change"
    return effects


def choose_mode(recipe: Recipe, config: GPTConfig, T: int, device: Device, log: Callable[[str], object]) -> Recipe:
    """The recipe in the mode that memory=auto takes on this device. Call it before the model exists. Raises UsageError
    if no mode is estimated to fit."""
    accelerator, device_type, dtype = device.accelerator, device.torch_device.type, str(device.dtype)[len("torch.") :]
    free = memory.available_bytes(device_type)
    if device_type == "cpu":
        free //= int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    # ranks may see different free memory but must choose alike
    free = int(accelerator.gather(torch.tensor([free], device=device.torch_device)).min())
    max_eval_rows = 256 if device_type == "cpu" else 1  # on a GPU, evaluation retries with fewer rows after OOM

    def peak_bytes(recipe: Recipe) -> int:
        processes = accelerator.num_processes
        return estimate_of(
            recipe, config, T, device_type, dtype, device.compile, processes, max_eval_rows=max_eval_rows
        ).peak

    if found := choose_mode_that_fits(recipe, peak_bytes, free):
        log(found[2])
        return found[0]
    problem = f"memory: no mode is estimated to fit in {MAX_FILL:.0%} of the {free / 1e9:.2f} GB free"
    raise UsageError("; ".join([problem, *_alternatives(config, T, recipe, device_type=device_type, dtype=dtype)]))


def previous_choice(recipe: Recipe, saved: Mapping[str, Any], processes: int) -> Recipe | None:
    """The recipe with the mode that memory=auto chose for the run before its resume; `saved` is that run's recipe. None
    if nothing was chosen, if updates have another size, or if this number of processes cannot share them."""
    rows = [values["batch_size"] * values["gradient_accumulation_steps"] for values in (saved, vars(recipe))]
    if saved.get("memory") != "auto" or rows[0] != rows[1] or saved["gradient_accumulation_steps"] % processes:
        return None
    return dataclasses.replace(recipe, **{name: saved[name] for name in CHOSEN})


def oom_advice(config: GPTConfig, T: int, recipe: Recipe) -> str:
    """Message after OOM with the smallest micro-batch: what else needs less memory, and how much each needs."""
    lora = f", lora_rank={recipe.lora_rank}" if recipe.lora_rank else ""
    first = f"out of memory with one block of {T:,} tokens and gradient_checkpointing=true{lora}"
    return "\n  ".join([f"{first}, estimated {_least_memory(config, T, recipe)}", *_alternatives(config, T, recipe)])


def _alternatives(config: GPTConfig, T: int, recipe: Recipe, **place: str) -> Iterator[str]:
    """Changes that need less memory than the recipe with one block per micro-batch, each with its estimate."""
    if not recipe.lora_rank and recipe.optimizer_dtype == "float32":
        least = _least_memory(config, T, recipe, optimizer_dtype="bfloat16", **place)
        yield f"--optimizer_dtype=bfloat16 needs {least}"
    if not recipe.lora_rank and recipe.init_from not in ("scratch", "resume"):
        yield f"--lora_rank=16 needs {_least_memory(config, T, recipe, lora_rank=16, **place)}"
    for size in ("gpt2-large", "gpt2-medium", "gpt2"):
        L, H, C = SHAPES[size]
        if config.n_layer > L:
            shape = dataclasses.replace(config, n_layer=L, n_head=H, n_embd=C, n_inner=None)
            yield f"--init_from={size} needs {_least_memory(shape, T, recipe, **place)}"
    yield f"--block_size={max(1, T // 2)} needs {_least_memory(config, max(1, T // 2), recipe, **place)}"


def _least_memory(config: GPTConfig, T: int, recipe: Recipe, **changes: Any) -> str:
    """Estimate for one block per micro-batch with gradient checkpointing."""
    work = Workload(config, 1, T, gradient_checkpointing=True)
    work = dataclasses.replace(work, lora_rank=recipe.lora_rank, optimizer_dtype=recipe.optimizer_dtype)
    return f"{estimate_memory(dataclasses.replace(work, **changes)).peak / 1e9:.2f} GB"
