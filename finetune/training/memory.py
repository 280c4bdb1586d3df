"""What a run does about memory: the micro-batch that fits, and on with less when it did not.

An update stays the same whatever it is cut into: its blocks, their order, their number and the learning rate.
"""

import dataclasses

import torch

from finetune.cli import Failure

MOST_TOKENS = {"cuda": 1 << 16, "cpu": 1 << 12, "mps": 1 << 14}  # of a micro-batch; larger ones are no faster


def is_out_of_memory(error):
    """Whether an exception says that the device or the computer has no memory left."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in ("out of memory", "can't allocate memory"))


def fits(run, batch_size=None):
    """Whether every process has memory for a micro-batch, by trying one, uncompiled, which takes more than compiled. To be asked before
    the first update of several processes: later, one that fails would leave the others waiting for its gradients."""
    batch_size = batch_size or run.recipe.batch_size
    machine, failed = run.machine, 0.0
    try:
        batch = run.train.batch([0] * batch_size, machine.device)
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
    if machine.device.type == "cuda":
        torch.cuda.empty_cache()
    return not machine.accelerator.reduce(torch.tensor(failed, device=machine.device)).item()


def shares(recipe, processes):
    """How the blocks of an update are shared out, in words."""
    rows, steps = recipe.batch_size * recipe.gradient_accumulation_steps, recipe.gradient_accumulation_steps // processes
    return f"{rows:,} blocks an update: {processes} process{'es' * (processes > 1)} x {steps} accumulation step{'s' * (steps > 1)} x batch_size {recipe.batch_size}"


def choose_batch_size(run, progress):
    """For batch_size=auto: the largest micro-batch that fits every process and still pays, at the same blocks an update."""
    recipe, processes = run.recipe, run.machine.accelerator.num_processes
    rows = recipe.batch_size * recipe.gradient_accumulation_steps
    # processes may see different memory, and must cut alike
    most = int(run.machine.accelerator.gather(torch.tensor([_most_tokens(run)], device=run.machine.device)).min())
    most = max(1, min(rows // processes, most // run.train.block_size))
    sizes = [size for size in range(most, 0, -1) if rows % (size * processes) == 0]
    # without an error to tell, a CPU is not tried to its limit
    size = next((size for size in sizes if size == 1 or run.machine.device.type == "cpu" or fits(run, size)), 1)
    run.recipe = dataclasses.replace(recipe, batch_size=size, gradient_accumulation_steps=rows // size)
    progress.say(f"batch_size=auto: {size}, gradient_accumulation_steps {rows // size}, {rows:,} blocks an update as before")
    progress.say(shares(run.recipe, processes))
    progress.record("batch_size", step=run.iteration, batch_size=size, gradient_accumulation_steps=rows // size)


def shrink(run, progress, error):
    """Answer an error in an update: less memory for the next try when memory was the trouble, else raise it again."""
    if not is_out_of_memory(error):
        raise error
    if run.machine.accelerator.num_processes > 1:  # the others wait for gradients that this one cannot bring any more
        advice = "halve it, double gradient_accumulation_steps and, once a state was saved, go on with --init_from=resume: it is the same run"
        raise Failure(f"out of memory at iter {run.iteration} with batch_size {run.recipe.batch_size}; {advice}", 1, alone=True) from error
    use_less_memory(run, progress)


def use_less_memory(run, progress):
    """Make the next try of an update smaller, on every process alike, and say so. Raises Failure when nothing is left to try."""
    recipe = run.recipe
    if recipe.batch_size > 1:
        factor = next(n for n in range(2, recipe.batch_size + 1) if recipe.batch_size % n == 0)
        smaller, steps = recipe.batch_size // factor, recipe.gradient_accumulation_steps * factor
        run.recipe = dataclasses.replace(recipe, batch_size=smaller, gradient_accumulation_steps=steps)
        done = f"batch_size {recipe.batch_size} -> {smaller}, gradient_accumulation_steps {recipe.gradient_accumulation_steps} -> {steps}"
    elif not run.network.gradient_checkpointing:
        run.network.gradient_checkpointing = True
        run.recipe = dataclasses.replace(recipe, gradient_checkpointing=True)
        done = "gradient_checkpointing=true"
    else:
        raise Failure(what_would_fit(run.network.config, run.train.block_size), 1)
    run.optimizer.zero_grad(set_to_none=True)
    if run.scaler:  # what it noted of the update that failed would be in the way of the next
        run.scaler = torch.amp.GradScaler(run.machine.device.type, init_scale=run.scaler.get_scale())
    if run.machine.device.type == "cuda":
        torch.cuda.empty_cache()
    done += "; blocks per update, their order and the learning rate stay the same"
    progress.say(f"out of memory at iter {run.iteration}: {done}")
    sizes = {"batch_size": run.recipe.batch_size, "gradient_accumulation_steps": run.recipe.gradient_accumulation_steps}
    progress.record("out_of_memory", step=run.iteration, done=done, **sizes)


def what_would_fit(config, T):
    """The end of the ladder, in words: smaller models and shorter blocks, and the memory each needs."""
    lines = [
        f"out of memory with one block of {T:,} tokens and gradient_checkpointing=true, which take {_gigabytes(config.n_layer, config.n_embd, config.vocab_size, T):.2f} GB"
    ]
    for size, (L, C) in {"gpt2-large": (36, 1280), "gpt2-medium": (24, 1024), "gpt2": (12, 768)}.items():
        if config.n_layer > L:
            lines.append(f"  --init_from={size} needs {_gigabytes(L, C, config.vocab_size, T):.2f} GB")
    lines.append(f"  --block_size={max(1, T // 2)} needs {_gigabytes(config.n_layer, config.n_embd, config.vocab_size, max(1, T // 2)):.2f} GB")
    return "\n".join(lines)


def _gigabytes(L, C, V, T):
    """Weights, gradients and two moments in float32, checkpointed activations with one live layer, and the logits of one block."""
    parameters = 12 * L * C * C + V * C
    return (16 * parameters + T * (4 * C * L + 42 * C) + 10 * T * V) / 1e9


def _most_tokens(run):
    """Tokens of the largest micro-batch that pays; on a CPU also of one whose activations take a quarter of what memory is free."""
    most, config = MOST_TOKENS[run.machine.device.type], run.network.config
    if run.machine.device.type == "cpu" and (free := _available_bytes()) is not None:
        most = min(most, free // 4 // (42 * config.n_embd * config.n_layer))
    return most


def _available_bytes():
    """What Linux says can be had without swapping; None elsewhere."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None
