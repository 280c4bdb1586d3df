"""What a run does about memory: how much it needs, the micro-batch that fits, and on with less when it did not.

An update stays the same whatever it is cut into: its blocks, their order, their number and the learning rate.
"""

import dataclasses
from pathlib import Path

import torch

from finetune.cli import Failure
from finetune.gpt import ops
from finetune.gpt.convert import num_parameters
from finetune.gpt.model import SHAPES

PROGRAM = 400 << 20  # bytes of a process that has imported what training takes, and no model yet
FIRST_USE = 70 << 20  # that its libraries take for themselves in the first update, and
HOLES = 0.15  # of what an update takes, lost between what is freed and taken (docs/log.md), both on a CPU
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

    def gigabytes(T=T, **shape):
        return f"{needs(dataclasses.replace(config, **shape), 1, T, checkpointing=True).peak / 1e9:.2f} GB"

    lines = [f"out of memory with one block of {T:,} tokens and gradient_checkpointing=true, which take {gigabytes()}"]
    for size in ("gpt2-large", "gpt2-medium", "gpt2"):
        L, H, C = SHAPES[size]
        if config.n_layer > L:
            lines.append(f"  --init_from={size} needs {gigabytes(n_layer=L, n_head=H, n_embd=C, n_inner=None)}")
    lines.append(f"  --block_size={max(1, T // 2)} needs {gigabytes(max(1, T // 2))}")
    return "\n".join(lines)


@dataclasses.dataclass
class Needs:
    """Bytes of memory that a process takes: by what they are for, and at the most, which is less than all of them together because not
    all are needed at a time."""

    parts: dict
    peak: int


def needs(
    config,
    B,
    T,
    device="cuda",
    dtype="bfloat16",
    compiled=False,
    checkpointing=False,
    dropout=0.0,
    accumulates=True,
    processes=1,
    program=0,
    evaluated=256,
):
    """The Needs of training with micro-batches of `B` blocks of `T` tokens.

    `accumulates` where an update has several micro-batches a process; `program` is what the process takes without a model; an evaluation
    reads at most `evaluated` blocks. On a CPU compared with what was measured (docs/log.md), on a GPU counted only.
    """
    C, V, L = config.n_embd, config.padded_vocab_size, config.n_layer
    e = 4 if dtype == "float32" else 2  # bytes of a number in a matrix product
    parameters, matrices = num_parameters(config) + (V - config.vocab_size) * C, L * (4 * C * C + 2 * C * _inner(config))
    layer = activations_of_layer(config, B, T, device, e, compiled, dropout)
    kept = layer + (L - 1) * 4 * B * T * C if checkpointing else L * layer
    parts = {
        "program": program + (FIRST_USE if device == "cpu" else 0),
        "weights": 4 * parameters,
        "optimizer": 8 * parameters,
        "gradients": 4 * parameters,
        "buckets of the exchange": 4 * parameters if processes > 1 else 0,
        "weights as products read them": e * matrices if e < 4 else 0,
        "activations": kept + 8 * B * T * C,
        "logits and loss": _loss(config, B * T, device, e, compiled),
        "backward pass of a layer": _backward(config, B, T, device, e, dropout),
        "evaluation": _evaluation(config, min(evaluated, rows_of_evaluation(config, T, device)) * T, device),
        "saving": 4 * matrices if device == "cpu" else 0,  # transposed
    }
    always = parts["program"] + parts["weights"] + parts["optimizer"]
    update = parts["buckets of the exchange"] + parts["weights as products read them"] + parts["backward pass of a layer"]
    begins = parts["activations"] + parts["logits and loss"] + (parts["gradients"] if accumulates else 0)  # the backward pass
    ends = parts["gradients"] + 4 * V * C + layer  # the embedding has a gradient from both ends of the network
    update += max(begins, ends)
    if device == "cpu":
        parts["holes in the heap"] = int(HOLES * update)
        update += parts["holes in the heap"]
    return Needs(parts, always + max(update, parts["evaluation"], parts["saving"]))


def rows_of_evaluation(config, T, device):
    """Blocks that an evaluation reads at a time: logits or activations of 2 GB on a GPU, of 256 MB elsewhere."""
    room = 1 << (29 if device == "cuda" else 26)
    return max(1, min(256, room // (T * max(config.vocab_size, 16 * config.n_embd))))


def _evaluation(config, N, device):
    """Bytes of an evaluation of N tokens in float32: the widest place of the network, what layers before it have left on the heap, logits,
    and their softmax where that is not by chunks."""
    V = config.padded_vocab_size
    logits = 4 * min(ops.CHUNK, N) * V if device == "cpu" or N * V > ops.MANY_LOGITS else 8 * N * V
    return 4 * N * (10 * config.n_embd + 2 * _inner(config)) + logits


def activations_of_layer(config, B, T, device, e, compiled, dropout):
    """Bytes of activations that the forward pass of a layer leaves for the backward pass: the two inputs of layer norms in float32; in the
    arithmetic of products their outputs, q, k, v, what attention hands on and the hidden layer before and after GELU."""
    C, H = config.n_embd, config.n_head
    if compiled:  # which computes part of them again
        return B * T * 24 * C
    each = 8 * C + e * (6 * C + 2 * _inner(config)) + 4 * H
    if dropout:  # masks of the two residual ones
        each += 2 * C if device == "cuda" else 2 * e * C
    if device == "cpu" and dropout:  # attention has no kernel for it: q, k, v, probabilities, their mask and what is left, in float32
        each += (4 - e) * 3 * C + 12 * H * T
    elif device == "cpu" and e < 4 and B * H * T * T <= ops.KEPT:
        each += e * H * (T + ops.QUERIES) // 2
    return B * T * each


def _backward(config, B, T, device, e, dropout):
    """Bytes of gradients while a layer is passed: of its hidden layer and of a matrix, and where attention keeps probabilities of those."""
    size = 2 * e * B * T * _inner(config) + (4 + e) * config.n_embd * _inner(config)
    return max(size, 12 * B * config.n_head * T * T) if device == "cpu" and dropout else size


def _loss(config, N, device, e, compiled):
    """Bytes of the logits of N tokens, the head and their gradients."""
    C, V = config.n_embd, config.padded_vocab_size
    if device == "cpu" or N * V > ops.MANY_LOGITS:  # by chunks, and the head's gradient along with the loss
        return min(ops.CHUNK, N) * V * e + (e * V * C if e < 4 else 0) + 4 * V * C
    return (6 if compiled else 10) * N * V


def _inner(config):
    return config.n_inner or 4 * config.n_embd


def _most_tokens(run):
    """Tokens of the largest micro-batch that pays; on a CPU also of one whose activations take a quarter of what memory is free."""
    most, device = MOST_TOKENS[run.machine.device.type], run.machine.device.type
    if device == "cpu" and (free := available_bytes("cpu")) is not None:
        T = run.train.block_size
        dtype = str(run.machine.dtype).removeprefix("torch.")
        most = min(most, T * free // 4 // needs(run.network.config, 1, T, device, dtype, dropout=run.recipe.dropout).parts["activations"])
    return most


def available_bytes(device):
    """Memory that a device has to give: of a CPU what Linux says can be had without swapping and a container's limit leaves, None where
    nothing says it."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    if device == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            free = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None
    try:
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())  # "max" where there is none
        used = next(int(line.split()[1]) for line in (group / "memory.stat").read_text().splitlines() if line.startswith("anon "))
        return min(free, limit - used)
    except (OSError, ValueError, StopIteration):
        return free
