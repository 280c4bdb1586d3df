"""How an update is cut: the largest micro-batch that fits, and a smaller one after OOM."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from finetune.common.errors import Failure
from finetune.common.formatting import setting
from finetune.config.recipe import Recipe
from finetune.runs.logger import RunLogger
from finetune.runs.state_format import MICRO_BATCH
from finetune.runtime import compiler, memory
from finetune.runtime.memory import is_out_of_memory
from finetune.runtime.memory_modes import oom_advice
from finetune.training.state import MicroBatch, Setup, TrainState, recipe_in_use
from finetune.training.step import two_passes

# of a micro-batch; larger ones are no faster, and a GPU would compute GPT-2's loss in chunks (gpt.loss.MANY_LOGITS)
MOST_TOKENS = {"cuda": 1 << 15, "cpu": 1 << 12, "mps": 1 << 14}


def fit_micro_batch(setup: Setup, state: TrainState, logger: RunLogger) -> None:
    """Before the first update: find the batch size for batch_size=auto. Under DDP a rank cannot retry alone, so the
    micro-batch is made to fit all ranks now."""
    if setup.find_batch_size:
        choose_batch_size(setup, state, logger)
    if setup.device.accelerator.num_processes > 1 and not setup.device.sharding:
        while not fits_in_memory(setup, state.micro_batch.batch_size):
            reduce_micro_batch(setup, state, logger)
        # DDP regroups gradients after its first backward passes, which changes the order of summation from three
        # processes on; after these passes fresh and resumed runs are equal to the bit
        two_passes(setup, batch_size=1)
        setup.optimizer.zero_grad(set_to_none=True)


def what_fitted(recipe: Recipe, state: dict[str, Any], processes: int, say: Callable[[str], object]) -> Recipe | None:
    """The recipe with the micro-batch of a saved run that was out of memory with the recipe's; None without one that so
    many processes can share."""
    asked, used = state["asked"], state["recipe"]
    if not asked or recipe.memory == "auto" or any(asked[name] != getattr(recipe, name) for name in MICRO_BATCH):
        return None
    fitted = dataclasses.replace(recipe, **{name: used[name] for name in MICRO_BATCH})
    if fitted.blocks_per_update != recipe.blocks_per_update or fitted.gradient_accumulation_steps % processes:
        return None
    told = ", ".join(f"{name}={setting(used[name])}" for name in MICRO_BATCH)
    say(f"{told}: what fitted when this run was out of memory; another batch_size is tried anew")
    return fitted


def choose_batch_size(setup: Setup, state: TrainState, logger: RunLogger) -> None:
    """For batch_size=auto: take the largest micro-batch that fits every process and still pays."""
    device, blocks = setup.device, state.micro_batch.blocks
    processes = device.accelerator.num_processes
    # processes may see different memory, and must cut alike
    tokens = int(device.accelerator.gather(torch.tensor([most_tokens(setup)], device=device.torch_device)).min())
    # a CPU is not tried to its limit, because it would swap and report no error
    is_cpu = device.torch_device.type == "cpu"
    size = largest_that_fits(
        blocks, processes, tokens // setup.train.block_size, lambda size: is_cpu or fits_in_memory(setup, size)
    )
    state.micro_batch = MicroBatch(size, blocks // size, state.micro_batch.checkpointing)
    logger.print(
        f"batch_size=auto: {size}, gradient_accumulation_steps {blocks // size}, {blocks:,} blocks an update as before"
    )
    logger.print(describe_shares(state.micro_batch, processes))
    logger.record("batch_size", step=state.step, **state.micro_batch.sizes())


def largest_that_fits(blocks: int, processes: int, most: int, fits: Callable[[int], bool]) -> int:
    """The largest batch size up to `most` that cuts the blocks of an update evenly among processes and `fits`, or 1."""
    sizes = range(max(1, min(blocks // processes, most)), 1, -1)
    return next((size for size in sizes if blocks % (size * processes) == 0 and fits(size)), 1)


def most_tokens(setup: Setup) -> int:
    """Tokens of the largest micro-batch that pays. On a CPU its activations may take a quarter of the free memory."""
    device, config, T = setup.device.torch_device.type, setup.model.config, setup.train.block_size
    most = MOST_TOKENS[device]
    if device != "cpu":
        return most
    rows = max(1, most // T)  # of many tokens, of which less is kept for each
    recipe = Recipe(batch_size=rows, dropout=setup.recipe.dropout, lora_rank=setup.recipe.lora_rank)
    work = memory.Workload(recipe, config, T, device, setup.device.dtype, setup.device.compile)
    activations = memory.estimate_memory(work).parts["activations"]
    return min(most, T * rows * memory.available_bytes("cpu") // 4 // activations)


def fits_in_memory(setup: Setup, batch_size: int) -> bool:
    """Whether every process has memory for a micro-batch. Tried uncompiled, which takes more than compiled
    on a GPU; on a CPU it takes less, and an update that does not fit is cut once more."""
    device, failed = setup.device, 0.0
    try:
        with device.accelerator.no_sync(setup.wrapped_model):
            two_passes(setup, batch_size)  # the second holds the gradients of the first, as in an update
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        failed = 1.0
    _free_memory(setup)
    return not device.accelerator.reduce(torch.tensor(failed, device=device.torch_device)).item()


def describe_shares(micro_batch: MicroBatch, processes: int) -> str:
    """How the blocks of an update are shared among the processes."""
    steps = micro_batch.accumulation // processes
    return (
        f"{micro_batch.blocks:,} blocks an update: {processes} process{'es' * (processes > 1)} x {steps} accumulation"
        f" step{'s' * (steps > 1)} x batch_size {micro_batch.batch_size}"
    )


def check_oom(setup: Setup, state: TrainState, error: Exception) -> None:
    """Raise the error of an update again, unless it is OOM and a smaller micro-batch can be tried. Raises Failure."""
    if not is_out_of_memory(error):
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            problem = f"torch.compile failed at iter {state.step} ({compiler.line_of(error)})"
            raise Failure(f"{problem}; --compile=false trains without it", 1, alone=True) from error
        raise error
    if setup.device.accelerator.num_processes > 1:  # the others wait for the gradients of this process
        raise Failure(
            f"out of memory at iter {state.step} with batch_size {state.micro_batch.batch_size}; halve it, double"
            " gradient_accumulation_steps and, once a state was saved, go on with --init_from=resume: it is the same"
            " run",
            1,
            alone=True,
        ) from error


def reduce_micro_batch(setup: Setup, state: TrainState, logger: RunLogger) -> None:
    """Take the next smaller micro-batch, the same on every process. Raises Failure when there is none."""
    before, after = state.micro_batch, state.micro_batch.smaller()
    if after is None:
        raise Failure(oom_advice(setup.model.config, setup.train.block_size, recipe_in_use(setup, state)), 1)
    done = "gradient_checkpointing=true"
    if after.batch_size < before.batch_size:
        done = (
            f"batch_size {before.batch_size} -> {after.batch_size}, gradient_accumulation_steps"
            f" {before.accumulation} -> {after.accumulation}"
        )
    done += "; blocks per update, their order and the learning rate stay the same"
    state.micro_batch, state.asked = after, {name: getattr(setup.recipe, name) for name in MICRO_BATCH}
    setup.model.gradient_checkpointing |= after.checkpointing
    if state.scaler:  # the old one has noted the gradients of the update that failed
        state.scaler = torch.amp.GradScaler(setup.device.torch_device.type, init_scale=state.scaler.get_scale())
    _free_memory(setup)
    logger.print(f"out of memory at iter {state.step}: {done}")
    logger.record("out_of_memory", step=state.step, done=done, **after.sizes())


def _free_memory(setup: Setup) -> None:
    setup.optimizer.zero_grad(set_to_none=True)
    if setup.device.torch_device.type == "cuda":
        torch.cuda.empty_cache()
