"""How an update is cut: the largest micro-batch that fits, and a smaller one after OOM."""

import dataclasses

import torch

from finetune.common.errors import Failure
from finetune.runtime.memory import Workload, available_bytes, estimate_memory, is_out_of_memory
from finetune.runtime.memory_modes import oom_advice

MOST_TOKENS = {"cuda": 1 << 16, "cpu": 1 << 12, "mps": 1 << 14}  # of a micro-batch; larger ones are no faster


def fits_in_memory(run, batch_size=None):
    """Whether every process has memory for a micro-batch, by trying one, uncompiled, which takes more than compiled. To
    be asked before the first update of several processes: later, one that fails would leave the others waiting for its
    gradients."""
    batch_size = batch_size or run.recipe.batch_size
    machine, failed = run.machine, 0.0
    try:
        batch = run.train.batch([0] * batch_size, machine.torch_device)
        for _ in range(2):  # the second finds the gradients of the first in its way, as in an update
            with machine.accelerator.no_sync(run.model), machine.uncompiled():
                with machine.autocast():
                    loss, _ = run.model(*batch)
                (loss * 0.0).backward()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        failed = 1.0
    run.optimizer.zero_grad(set_to_none=True)
    if machine.torch_device.type == "cuda":
        torch.cuda.empty_cache()
    return not machine.accelerator.reduce(torch.tensor(failed, device=machine.torch_device)).item()


def describe_shares(recipe, processes):
    """How the blocks of an update are shared out, in words."""
    rows, steps = (
        recipe.batch_size * recipe.gradient_accumulation_steps,
        recipe.gradient_accumulation_steps // processes,
    )
    return (
        f"{rows:,} blocks an update: {processes} process{'es' * (processes > 1)} x {steps} accumulation"
        f" step{'s' * (steps > 1)} x batch_size {recipe.batch_size}"
    )


def choose_batch_size(run, logger):
    """For batch_size=auto: the largest micro-batch that fits every process and still pays, at the same blocks an
    update."""
    recipe, processes = run.recipe, run.machine.accelerator.num_processes
    rows = recipe.batch_size * recipe.gradient_accumulation_steps
    # processes may see different memory, and must cut alike
    most = int(run.machine.accelerator.gather(torch.tensor([most_tokens(run)], device=run.machine.torch_device)).min())
    most = max(1, min(rows // processes, most // run.train.block_size))
    sizes = [size for size in range(most, 0, -1) if rows % (size * processes) == 0]
    # without an error to tell, a CPU is not tried to its limit
    size = next(
        (size for size in sizes if size == 1 or run.machine.torch_device.type == "cpu" or fits_in_memory(run, size)), 1
    )
    run.recipe = dataclasses.replace(recipe, batch_size=size, gradient_accumulation_steps=rows // size)
    logger.print(
        f"batch_size=auto: {size}, gradient_accumulation_steps {rows // size}, {rows:,} blocks an update as before"
    )
    logger.print(describe_shares(run.recipe, processes))
    logger.record("batch_size", step=run.iteration, batch_size=size, gradient_accumulation_steps=rows // size)


def handle_oom(run, logger, error):
    """Answer an error in an update: less memory for the next try when memory was the trouble, else raise it again."""
    if not is_out_of_memory(error):
        raise error
    if run.machine.accelerator.num_processes > 1:  # the others wait for gradients that this one cannot bring any more
        advice = (
            "halve it, double gradient_accumulation_steps and, once a state was saved, go on with --init_from=resume:"
            " it is the same run"
        )
        raise Failure(
            f"out of memory at iter {run.iteration} with batch_size {run.recipe.batch_size}; {advice}", 1, alone=True
        ) from error
    reduce_micro_batch(run, logger)


def reduce_micro_batch(run, logger):
    """Make the next try of an update smaller, on every process alike, and say so. Raises Failure when nothing is left
    to try."""
    recipe = run.recipe
    if recipe.batch_size > 1:
        factor = next(n for n in range(2, recipe.batch_size + 1) if recipe.batch_size % n == 0)
        smaller, steps = recipe.batch_size // factor, recipe.gradient_accumulation_steps * factor
        run.recipe = dataclasses.replace(recipe, batch_size=smaller, gradient_accumulation_steps=steps)
        done = (
            f"batch_size {recipe.batch_size} -> {smaller}, gradient_accumulation_steps"
            f" {recipe.gradient_accumulation_steps} -> {steps}"
        )
    elif not run.network.gradient_checkpointing:
        run.network.gradient_checkpointing = True
        run.recipe = dataclasses.replace(recipe, gradient_checkpointing=True)
        done = "gradient_checkpointing=true"
    else:
        raise Failure(oom_advice(run.network.config, run.train.block_size, recipe), 1)
    run.optimizer.zero_grad(set_to_none=True)
    if run.scaler:  # what it noted of the update that failed would be in the way of the next
        run.scaler = torch.amp.GradScaler(run.machine.torch_device.type, init_scale=run.scaler.get_scale())
    if run.machine.torch_device.type == "cuda":
        torch.cuda.empty_cache()
    done += "; blocks per update, their order and the learning rate stay the same"
    logger.print(f"out of memory at iter {run.iteration}: {done}")
    sizes = {"batch_size": run.recipe.batch_size, "gradient_accumulation_steps": run.recipe.gradient_accumulation_steps}
    logger.record("out_of_memory", step=run.iteration, done=done, **sizes)


def most_tokens(run):
    """Tokens of the largest micro-batch that pays; on a CPU also of one whose activations take a quarter of what memory
    is free."""
    most, device = MOST_TOKENS[run.machine.torch_device.type], run.machine.torch_device.type
    if device == "cpu":
        free, T = available_bytes("cpu"), run.train.block_size
        dtype = str(run.machine.dtype).removeprefix("torch.")
        work = Workload(run.network.config, 1, T, device, dtype, dropout=run.recipe.dropout)
        most = min(most, T * free // 4 // estimate_memory(work).parts["activations"])
    return most
