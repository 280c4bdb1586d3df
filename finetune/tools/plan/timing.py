"""What a run costs on this machine: a few micro-batches of a network of the real shape with random weights, an
evaluation of some blocks, a few tokens of samples, and a file written to the disk. Each is scaled up by the counts of
the plan."""

import contextlib
import dataclasses
import hashlib
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import torch

from finetune.common import files
from finetune.data.batches import Blocks
from finetune.data.sampler import BlockSampler
from finetune.evaluation import split_loss
from finetune.gpt import GPT, lora
from finetune.runtime import device, memory
from finetune.tools.plan.estimate import Timing
from finetune.training import optimizer as optimizers
from finetune.training import setup, state, step

MICRO_BATCHES = 3  # that are timed, where they are slow
ENOUGH = 2.0  # seconds; where they are fast, rounds are repeated for so long
PATIENCE = 60.0  # seconds; where the micro-batches would take longer, one block of each is timed
PROBE_BYTES = 64 << 20  # of the file that is written
NEW_TOKENS = 8


def timed(plan, began):
    """The plan with its Timing, or with the reason why there is none. `began` is when the process did."""
    if not plan.fits:
        return dataclasses.replace(plan, untimed="it does not fit into memory")
    if plan.device == "cpu" and plan.processes > 1:
        return dataclasses.replace(plan, untimed="processes that share a CPU are not timed one by one")
    _import_the_rest()
    place = device.start(dataclasses.replace(plan.recipe, gradient_accumulation_steps=1))
    plan = dataclasses.replace(plan, program=_program(plan))
    try:
        return dataclasses.replace(plan, timing=_time(plan, place, began))
    except (RuntimeError, MemoryError) as error:
        if not memory.is_out_of_memory(error):
            raise
        return dataclasses.replace(plan, available=0, untimed="it ran out of memory")


def _time(plan, place, began):
    recipe, T = plan.recipe, plan.block_size
    with torch.device(place.torch_device):
        network = GPT(plan.config).init_weights(torch.Generator(place.torch_device).manual_seed(recipe.seed))
    if recipe.lora_rank:
        lora.add_adapters(network, recipe)
    model, optimizer = setup.wrap_model_and_make_optimizer(
        network, recipe, place, T, plan.data.isolated, lambda line: None
    )
    blocks = _blocks(plan)
    run = state.Run(
        recipe=recipe,
        schedule=plan.schedule,
        machine=place,
        network=network,
        model=model,
        optimizer=optimizer,
        scaler=torch.amp.GradScaler(place.torch_device.type) if place.dtype == torch.float16 else None,
        train=blocks,
        val=blocks,
        order=None,
        names_of_data=[],
        tokenizer=None,
        prompt=None,
        eval_rows=None,
        identity={},
        data={},
        init_from="scratch",
    )
    optimizers.fill_optimizer(optimizer, run.names)
    ready = time.perf_counter() - began

    def updated(micro_batches, batch_size):
        """Seconds of an update of some micro-batches; its learning rate is 0."""
        run.recipe = dataclasses.replace(recipe, batch_size=batch_size, gradient_accumulation_steps=micro_batches)
        run.order = BlockSampler(blocks.num_rows, batch_size * micro_batches, recipe.seed)
        device.synchronize(place.torch_device)
        before = time.perf_counter()
        step.update(run, 0, 0.0).read()
        return time.perf_counter() - before

    rows = recipe.batch_size
    first = updated(1, 1 if place.torch_device.type == "cpu" else rows)
    if place.torch_device.type == "cpu" and rows > 1:
        rows = rows if (MICRO_BATCHES + 2) * rows * first < PATIENCE else 1
        first = updated(1, rows) if rows > 1 else first
    singles, micro_batches, spent = [], [], 0.0
    while not singles or spent < ENOUGH:
        singles.append(updated(1, rows))
        micro_batches.append((updated(MICRO_BATCHES, rows) - singles[-1]) / (MICRO_BATCHES - 1))
        spent += singles[-1] + MICRO_BATCHES * micro_batches[-1]
    single, micro_batch = statistics.median(singles), statistics.median(micro_batches)
    micro_batch = min(micro_batch, single)  # what was measured less than it is, by chance, is no less than nothing
    whole = recipe.batch_size / rows
    row = _seconds_of_a_row(run, blocks, place)
    peak = _peak_memory(place) if whole == 1 else None
    return Timing(
        start=ready,
        warm_up=max(0.0, first - single),
        micro_batch=micro_batch * whole,
        update=single + micro_batch * (whole - 1),
        row=row,
        byte=_seconds_of_a_byte(recipe.out_dir),
        token=_seconds_of_a_token(network, recipe, place) if recipe.num_samples else 0.0,
        rows=rows,
        peak=peak,
    )


def _seconds_of_a_row(run, blocks, place):
    """Of an evaluation, on as many blocks as two seconds allow."""

    def evaluated(rows):
        device.synchronize(place.torch_device)
        before = time.perf_counter()
        split_loss.split_loss(run, blocks, range(rows))
        return time.perf_counter() - before

    evaluated(1)
    once = evaluated(1)
    rows = max(1, min(blocks.num_rows, int(2 / max(once, 1e-4))))
    return evaluated(rows) / rows if rows > 1 else once


def _seconds_of_a_token(network, recipe, place):
    """Of a new token of all samples together, with a short context. The network is of no other use after it."""
    network.to(place.dtype)
    idx = torch.zeros(recipe.num_samples, 1, dtype=torch.int64, device=place.torch_device)
    new = min(NEW_TOKENS, recipe.max_new_tokens)
    with place.uncompiled():
        network.generate(idx, 1)
        device.synchronize(place.torch_device)
        before = time.perf_counter()
        network.generate(idx, new)
        device.synchronize(place.torch_device)
    return (time.perf_counter() - before) / new


def _seconds_of_a_byte(out_dir):
    """Of a checkpoint: written, read again for its sum, and synced, where out_dir is or will be."""
    place, data = Path(out_dir).resolve(), os.urandom(1 << 20)
    while not place.is_dir():
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            before = time.perf_counter()
            for _ in range(PROBE_BYTES >> 20):
                file.write(data)
            file.flush()
            file.seek(0)
            digest = hashlib.sha256()
            while chunk := file.read(files.CHUNK_BYTES):
                digest.update(chunk)
            os.fsync(file.fileno())
            return (time.perf_counter() - before) / PROBE_BYTES
    except OSError:  # training will say it better
        return 0.0


def _blocks(plan):
    """Random blocks, cut into documents as long as those of the data where these are isolated."""
    T, rows = plan.block_size, max(MICRO_BATCHES * plan.recipe.batch_size, 32)
    ids = np.random.default_rng(0).integers(0, plan.config.vocab_size, rows * T + 1, dtype=np.uint16)
    blocks = Blocks.from_tokens(ids, T)
    if not plan.data.isolated:
        return blocks
    positions = (np.arange(T + 1) % (plan.data.document or T + 1)).astype(np.uint16)
    columns = {"input_ids": blocks.columns["input_ids"], "position_ids": [np.tile(positions, (rows, 1))]}
    return Blocks({**columns, "targets": [(columns["position_ids"][0] > 0).astype(np.uint8)]}, len(ids))


def _import_the_rest():
    """What training imports besides, so that the time of its start is counted."""
    import accelerate  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import torch._dynamo  # noqa: F401  the optimizer wants it

    with contextlib.suppress(ImportError):
        import datasets  # noqa: F401


def _program(plan):
    """Bytes that this process takes now, which has no model yet."""
    return psutil.Process().memory_info().rss if plan.device == "cpu" else 0


def _peak_memory(place):
    if place.torch_device.type == "cuda":
        return torch.cuda.max_memory_allocated(place.torch_device)
    return device.peak_memory() if place.torch_device.type == "cpu" else None
