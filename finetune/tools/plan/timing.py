"""Timing on this machine: a few micro-batches of a model of the real shape with random weights, an evaluation of some
blocks, a few sampled tokens, and a file written to the disk."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import torch

from finetune.common import disk_space, files
from finetune.common.direct_file import write_summed
from finetune.config.recipe import Recipe
from finetune.data import arrow_cache
from finetune.data.batches import Blocks
from finetune.data.sampler import BlockSampler
from finetune.evaluation.split_loss import split_loss
from finetune.gpt import GPT, lora
from finetune.runtime import device as devices
from finetune.runtime import memory
from finetune.runtime.compiler import check_compiler
from finetune.runtime.device import Device
from finetune.tools.plan.estimate import Plan, Timing
from finetune.training.optimizer import fill_optimizer
from finetune.training.setup import wrap_model_and_make_optimizer
from finetune.training.state import MicroBatch, Setup, TrainState
from finetune.training.step import update

MICRO_BATCHES = 3  # that are timed, where they are slow
ENOUGH = 2.0  # seconds; fast micro-batches are repeated for so long
PATIENCE = 60.0  # seconds; slower micro-batches are timed with one block each
PROBE_BYTES = 64 << 20  # of the file that is written
NEW_TOKENS = 8  # that are sampled


def timed(plan: Plan, began: float) -> Plan:
    """The plan with its Timing, or with the reason why there is none. The process began at `began`."""
    if not plan.fits:
        return dataclasses.replace(plan, untimed="it does not fit into memory")
    if plan.device == "cpu" and plan.processes > 1:
        return dataclasses.replace(plan, untimed="processes that share a CPU are not timed one by one")
    _import_the_rest()
    device = devices.start(dataclasses.replace(plan.recipe, gradient_accumulation_steps=1))
    if plan.device == "cpu":
        plan = dataclasses.replace(plan, program=psutil.Process().memory_info().rss)
    try:
        return dataclasses.replace(plan, timing=_time(plan, device, began))
    except (RuntimeError, MemoryError) as error:
        if not memory.is_out_of_memory(error):
            raise
        return dataclasses.replace(plan, available=0, untimed="it ran out of memory")


def _time(plan: Plan, device: Device, began: float) -> Timing:
    recipe = plan.recipe
    setup = _setup(plan, device)
    start = time.perf_counter() - began

    rows, is_cpu = recipe.micro_batch_size, device.torch_device.type == "cpu"
    first = _seconds_of_an_update(setup, 1 if is_cpu else rows)
    if is_cpu and rows > 1:
        rows = rows if (MICRO_BATCHES + 2) * rows * first < PATIENCE else 1
        first = _seconds_of_an_update(setup, rows) if rows > 1 else first
    single, micro_batch = _repeat(setup, rows)
    scale = recipe.micro_batch_size / rows
    row = _seconds_of_a_row(setup)
    peak = _peak_memory(device) if scale == 1 else None  # before tokens are sampled
    return Timing(
        start=start,
        warm_up=max(0.0, first - single),
        micro_batch=micro_batch * scale,
        update=single + micro_batch * (scale - 1),
        row=row,
        byte=_seconds_of_a_byte(recipe.out_dir),
        token=_seconds_of_a_token(setup.model, recipe, device) if recipe.num_samples else 0.0,
        rows=rows,
        peak=peak,
    )


def _setup(plan: Plan, device: Device) -> Setup:
    """A run over random blocks, with random weights."""
    recipe = plan.recipe
    check_compiler(recipe, device, lambda line: None)
    model = GPT.from_scratch(plan.config, recipe.seed, device.torch_device)
    if recipe.lora_rank:
        lora.add_adapters(model, recipe)
    wrapped_model, optimizer = wrap_model_and_make_optimizer(
        model, recipe, device, plan.data.isolated, lambda line: None
    )
    blocks = _blocks(plan)
    sampler = BlockSampler(blocks.num_rows, recipe.blocks_per_update, recipe.seed)
    setup = Setup(recipe, device, plan.schedule, model, wrapped_model, optimizer, blocks, blocks, sampler)
    fill_optimizer(optimizer, setup.parameter_names)
    return setup


def _seconds(device: Device, work: Callable[[], object]) -> float:
    devices.synchronize(device.torch_device)
    began = time.perf_counter()
    work()
    devices.synchronize(device.torch_device)
    return time.perf_counter() - began


def _seconds_of_an_update(setup: Setup, batch_size: int, micro_batches: int = 1) -> float:
    """Of an update with learning rate 0."""
    device, micro_batch = setup.device, MicroBatch(batch_size, micro_batches)
    sampler = BlockSampler(setup.train.num_rows, micro_batch.blocks, setup.recipe.seed)
    scaler = torch.amp.GradScaler(device.torch_device.type) if device.dtype == torch.float16 else None
    setup, state = dataclasses.replace(setup, sampler=sampler), TrainState(micro_batch, scaler=scaler)
    return _seconds(device, lambda: update(setup, state, lr=0.0).read())


def _repeat(setup: Setup, rows: int) -> tuple[float, float]:
    """Median seconds of an update of one micro-batch, and of another micro-batch in it."""
    singles, micro_batches, spent = [], [], 0.0
    while not singles or spent < ENOUGH:
        single, several = _seconds_of_an_update(setup, rows), _seconds_of_an_update(setup, rows, MICRO_BATCHES)
        singles.append(single)
        micro_batches.append((several - single) / (MICRO_BATCHES - 1))
        spent += single + several
    single = statistics.median(singles)
    return single, min(statistics.median(micro_batches), single)


def _seconds_of_a_row(setup: Setup) -> float:
    """Of evaluating a block, by as many blocks as two seconds allow."""

    def evaluate(rows: int) -> float:
        return _seconds(setup.device, lambda: split_loss(setup.device, setup.model, setup.val, range(rows)))

    evaluate(1)
    once = evaluate(1)
    rows = max(1, min(setup.val.num_rows, int(2 / max(once, 1e-4))))
    return evaluate(rows) / rows if rows > 1 else once


def _seconds_of_a_token(model: GPT, recipe: Recipe, device: Device) -> float:
    """Of a new token of all samples together, with a short context. Changes the dtype of the model."""
    model.to(device.dtype)
    idx = torch.zeros(recipe.num_samples, 1, dtype=torch.int64, device=device.torch_device)
    new = min(NEW_TOKENS, recipe.max_new_tokens)
    with device.uncompiled():
        model.generate(idx, 1, eos_token_id=None)
        return _seconds(device, lambda: model.generate(idx, new, eos_token_id=None)) / new


def _seconds_of_a_byte(out_dir: str) -> float:
    """Of a checkpoint: written, summed meanwhile, and synced, on the disk of out_dir."""
    data = np.frombuffer(os.urandom(PROBE_BYTES), np.uint8)
    try:
        with tempfile.TemporaryDirectory(prefix=".tmp-", dir=disk_space.nearest_directory(out_dir)) as directory:
            path = Path(directory) / "probe"
            began = time.perf_counter()
            write_summed(path, [data])
            files.sync(path)
            return (time.perf_counter() - began) / PROBE_BYTES
    except OSError:  # training reports it better
        return 0.0


def _blocks(plan: Plan) -> Blocks:
    """Random blocks. Isolated documents in them are as long as those of the data."""
    T, rows = plan.block_size, max(MICRO_BATCHES * plan.recipe.micro_batch_size, 32)
    dtype = np.uint16 if plan.config.vocab_size <= 1 << 16 else np.uint32
    ids = np.random.default_rng(0).integers(0, plan.config.vocab_size, rows * T + 1, dtype=dtype)
    blocks = Blocks.from_tokens(ids, T)
    if not plan.data.isolated:
        return blocks
    positions = (np.arange(T + 1) % (plan.data.document or T + 1)).astype(arrow_cache.position_dtype(T))
    positions = np.tile(positions, (rows, 1))
    targets = (positions > 0).astype(np.uint8)
    return Blocks({**blocks.columns, "position_ids": [positions], "targets": [targets]}, len(ids))


def _import_the_rest() -> None:
    """Import what training imports later, so that it counts as start time."""
    import accelerate  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import torch._dynamo  # noqa: F401  the optimizer imports it

    with contextlib.suppress(ImportError):
        import datasets  # noqa: F401


def _peak_memory(device: Device) -> int | None:
    if device.torch_device.type == "cuda":
        return torch.cuda.max_memory_allocated(device.torch_device)
    return devices.peak_memory() if device.torch_device.type == "cpu" else None
