"""What a run does about memory: how much it needs, the mode and the micro-batch that fit, and on with less when they
did not.

An update stays the same whatever it is cut into: its blocks, their order, their number and the learning rate.
"""

import dataclasses
import os
from pathlib import Path

import psutil
import torch

from finetune.cli import Failure, UsageError
from finetune.gpt import ops
from finetune.gpt.convert import num_parameters
from finetune.gpt.model import SHAPES
from finetune.training.lora import num_parameters as num_adapter_parameters

PROGRAM = 400 << 20  # bytes of a process that has imported what training takes, and no model yet
PEFT = 75 << 20  # that the package peft takes, and
FIRST_USE = 70 << 20  # that its libraries take for themselves in the first update, and
HOLES = 0.15  # of what an update takes, lost between what is freed and taken (docs/log.md), both on a CPU
FILLED = 0.9  # of what is free, by memory=auto: a prediction can be off
CHOSEN = (
    "batch_size",
    "gradient_accumulation_steps",
    "chunked_loss",
    "gradient_checkpointing",
    "optimizer_dtype",
)  # by memory=auto
MOST_TOKENS = {"cuda": 1 << 16, "cpu": 1 << 12, "mps": 1 << 14}  # of a micro-batch; larger ones are no faster


def is_out_of_memory(error):
    """Whether an exception says that the device or the computer has no memory left."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("out of memory", "can't allocate memory")
    )


def fits(run, batch_size=None):
    """Whether every process has memory for a micro-batch, by trying one, uncompiled, which takes more than compiled. To
    be asked before the first update of several processes: later, one that fails would leave the others waiting for its
    gradients."""
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
    rows, steps = (
        recipe.batch_size * recipe.gradient_accumulation_steps,
        recipe.gradient_accumulation_steps // processes,
    )
    return (
        f"{rows:,} blocks an update: {processes} process{'es' * (processes > 1)} x {steps} accumulation"
        f" step{'s' * (steps > 1)} x batch_size {recipe.batch_size}"
    )


def choose_batch_size(run, progress):
    """For batch_size=auto: the largest micro-batch that fits every process and still pays, at the same blocks an
    update."""
    recipe, processes = run.recipe, run.machine.accelerator.num_processes
    rows = recipe.batch_size * recipe.gradient_accumulation_steps
    # processes may see different memory, and must cut alike
    most = int(run.machine.accelerator.gather(torch.tensor([_most_tokens(run)], device=run.machine.device)).min())
    most = max(1, min(rows // processes, most // run.train.block_size))
    sizes = [size for size in range(most, 0, -1) if rows % (size * processes) == 0]
    # without an error to tell, a CPU is not tried to its limit
    size = next((size for size in sizes if size == 1 or run.machine.device.type == "cpu" or fits(run, size)), 1)
    run.recipe = dataclasses.replace(recipe, batch_size=size, gradient_accumulation_steps=rows // size)
    progress.say(
        f"batch_size=auto: {size}, gradient_accumulation_steps {rows // size}, {rows:,} blocks an update as before"
    )
    progress.say(shares(run.recipe, processes))
    progress.record("batch_size", step=run.iteration, batch_size=size, gradient_accumulation_steps=rows // size)


def shrink(run, progress, error):
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
    use_less_memory(run, progress)


def use_less_memory(run, progress):
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
        raise Failure(what_would_fit(run.network.config, run.train.block_size, recipe), 1)
    run.optimizer.zero_grad(set_to_none=True)
    if run.scaler:  # what it noted of the update that failed would be in the way of the next
        run.scaler = torch.amp.GradScaler(run.machine.device.type, init_scale=run.scaler.get_scale())
    if run.machine.device.type == "cuda":
        torch.cuda.empty_cache()
    done += "; blocks per update, their order and the learning rate stay the same"
    progress.say(f"out of memory at iter {run.iteration}: {done}")
    sizes = {"batch_size": run.recipe.batch_size, "gradient_accumulation_steps": run.recipe.gradient_accumulation_steps}
    progress.record("out_of_memory", step=run.iteration, done=done, **sizes)


def modes(recipe, takes):
    """Changes to a recipe that each take less memory than the one before, by `takes(recipe)`, beginning with none: what
    costs least comes first, and last what changes what is learned, by rounding."""
    found = [{}]
    for step in {"chunked_loss": "true"}, {"gradient_checkpointing": True}, {"optimizer_dtype": "bfloat16"}:
        before, after = (dataclasses.replace(recipe, **changes) for changes in (found[-1], found[-1] | step))
        if takes(after) < takes(before):
            found.append(found[-1] | step)
    return found


def needs_of(recipe, config, T, device, dtype, compiled, processes=1, **more):
    """The Needs of a process of a run as its recipe says."""
    accumulates = recipe.gradient_accumulation_steps > processes
    return needs(
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


def first_that_fits(recipe, takes, available):
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
            if needed <= FILLED * available:
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
    accelerator, device, dtype = machine.accelerator, machine.device.type, str(machine.dtype).removeprefix("torch.")
    free = available_bytes(device)
    if device == "cpu":
        free //= int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    # processes may see different memory, and must choose alike
    free = int(accelerator.gather(torch.tensor([free], device=machine.device)).min())

    def takes(recipe):
        evaluated = 256 if device == "cpu" else 1  # where a GPU has no room, evaluations take less by themselves
        return needs_of(
            recipe, config, T, device, dtype, machine.compile, accelerator.num_processes, evaluated=evaluated
        ).peak

    if found := first_that_fits(recipe, takes, free):
        say(found[2])
        return found[0]
    problem = f"memory: nothing is predicted to fit in {FILLED:.0%} of the {free / 1e9:.2f} GB that are free"
    raise UsageError("; ".join([problem, *_smaller(config, T, recipe, device=device, dtype=dtype)]))


def as_before(recipe, saved, processes):
    """For memory=auto: the recipe with what had been chosen for its run, whose `saved` recipe this is. None where
    nothing had been, or where that is for other updates or cannot be shared by so many processes; then it is chosen
    anew."""
    rows = [values["batch_size"] * values["gradient_accumulation_steps"] for values in (saved, vars(recipe))]
    if saved.get("memory") != "auto" or rows[0] != rows[1] or saved["gradient_accumulation_steps"] % processes:
        return None
    return dataclasses.replace(recipe, **{name: saved[name] for name in CHOSEN})


def what_would_fit(config, T, recipe):
    """The end of the ladder, in words: fewer moments, adapters, smaller models and shorter blocks, and the memory each
    needs."""
    adapters = (
        f", gradient_checkpointing=true and lora_rank={recipe.lora_rank}"
        if recipe.lora_rank
        else " and gradient_checkpointing=true"
    )
    first = f"out of memory with one block of {T:,} tokens{adapters}, which take {_least(config, T, recipe)}"
    return "\n  ".join([first, *_smaller(config, T, recipe)])


def _smaller(config, T, recipe, **place):
    """What takes less memory than a recipe at its least, each with what it takes."""
    if not recipe.lora_rank and recipe.optimizer_dtype == "float32":
        yield f"--optimizer_dtype=bfloat16 needs {_least(config, T, recipe, optimizer_dtype='bfloat16', **place)}"
    if not recipe.lora_rank and recipe.init_from not in ("scratch", "resume"):
        yield f"--lora_rank=16 needs {_least(config, T, recipe, lora_rank=16, **place)}"
    for size in ("gpt2-large", "gpt2-medium", "gpt2"):
        L, H, C = SHAPES[size]
        if config.n_layer > L:
            shape = dataclasses.replace(config, n_layer=L, n_head=H, n_embd=C, n_inner=None)
            yield f"--init_from={size} needs {_least(shape, T, recipe, **place)}"
    yield f"--block_size={max(1, T // 2)} needs {_least(config, max(1, T // 2), recipe, **place)}"


def _least(config, T, recipe, **changes):
    modes = {"lora_rank": recipe.lora_rank, "optimizer_dtype": recipe.optimizer_dtype} | changes
    return f"{needs(config, 1, T, checkpointing=True, **modes).peak / 1e9:.2f} GB"


@dataclasses.dataclass
class Needs:
    """Bytes of memory that a process takes: by what they are for, and at the most, which is less than all of them
    together because not all are needed at a time."""

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
    chunked="auto",
    lora_rank=0,
    optimizer_dtype="float32",
):
    """The Needs of training with micro-batches of `B` blocks of `T` tokens.

    `accumulates` where an update has several micro-batches a process; `program` is what the process takes without a
    model; an evaluation reads at most `evaluated` blocks. `checkpointing`, `chunked`, `lora_rank` and `optimizer_dtype`
    are the recipe's. On a CPU compared with what was measured (docs/log.md), on a GPU counted only."""
    C, V, L = config.n_embd, config.padded_vocab_size, config.n_layer
    e = 4 if dtype == "float32" else 2  # bytes of a number in a matrix product
    parameters, matrices = (
        num_parameters(config) + (V - config.vocab_size) * C,
        L * (4 * C * C + 2 * C * _inner(config)),
    )
    adapters = num_adapter_parameters(config, lora_rank)
    trained = adapters or parameters
    layer = activations_of_layer(config, B, T, device, e, compiled, dropout, lora_rank)
    kept = layer + (L - 1) * 4 * B * T * C if checkpointing else L * layer
    # the copies of frozen ones are kept like activations
    read = adapters + (matrices // L if adapters and checkpointing else matrices)
    parts = {
        "program": program + (FIRST_USE + PEFT * (adapters > 0) if device == "cpu" else 0),
        "weights": 4 * parameters,
        "adapters": 4 * adapters,
        "optimizer": 2 * getattr(torch, optimizer_dtype).itemsize * trained,
        "gradients": 4 * trained,
        "buckets of the exchange": 4 * trained if processes > 1 else 0,
        "weights as products read them": e * read if e < 4 else 0,
        "activations": kept + 8 * B * T * C,
        "logits and loss": _loss(config, B * T, device, e, compiled, chunked, frozen=adapters > 0),
        "backward pass of a layer": _backward(config, B, T, device, e, dropout, frozen=adapters > 0),
        "evaluation": _evaluation(config, min(evaluated, rows_of_evaluation(config, T, device)) * T, device),
        "saving": 4 * matrices if device == "cpu" else 0,  # transposed
    }
    if device == "cpu":  # the file is mapped while its weights are copied, and the embedding is padded
        parts["loading"] = 4 * parameters + 4 * V * C
    always = parts["program"] + parts["weights"] + parts["adapters"] + parts["optimizer"]
    update = (
        parts["buckets of the exchange"] + parts["weights as products read them"] + parts["backward pass of a layer"]
    )
    begins = (
        parts["activations"] + parts["logits and loss"] + (parts["gradients"] if accumulates else 0)
    )  # the backward pass
    ends = (
        parts["gradients"] + layer + (0 if adapters else 4 * V * C)
    )  # the embedding has a gradient from both ends of the network
    update += max(begins, ends)
    if device == "cpu":
        parts["holes in the heap"] = int(HOLES * update)
        update += parts["holes in the heap"]
    begun = always - parts["optimizer"] + parts.get("loading", 0)
    return Needs(parts, max(begun, always + max(update, parts["evaluation"], parts["saving"])))


def rows_of_evaluation(config, T, device):
    """Blocks that an evaluation reads at a time: logits or activations of 2 GB on a GPU, of 256 MB elsewhere."""
    room = 1 << (29 if device == "cuda" else 26)
    return max(1, min(256, room // (T * max(config.vocab_size, 16 * config.n_embd))))


def _evaluation(config, N, device):
    """Bytes of an evaluation of N tokens in float32: the widest place of the network, what layers before it have left
    on the heap, logits, and their softmax where that is not by chunks."""
    V = config.padded_vocab_size
    logits = 4 * min(ops.CHUNK, N) * V if device == "cpu" or N * V > ops.MANY_LOGITS else 8 * N * V
    return 4 * N * (10 * config.n_embd + 2 * _inner(config)) + logits


def activations_of_layer(config, B, T, device, e, compiled, dropout, lora_rank=0):
    """Bytes of activations that the forward pass of a layer leaves for the backward pass: the two inputs of layer norms
    in float32; in the arithmetic of products their outputs, q, k, v, what attention hands on and the hidden layer
    before and after GELU. Compiled, the second input is computed again from what attention adds to the first."""
    C, H = config.n_embd, config.n_head
    each = 8 * C + e * (6 * C + 2 * _inner(config) + 4 * lora_rank) + 4 * H
    if compiled:
        each -= (4 - e) * C
    if dropout and not compiled:  # masks of the two residual ones, which compiled code draws again
        each += 2 * C if device == "cuda" else 2 * e * C
    if (
        device == "cpu" and dropout
    ):  # attention has no kernel for it: q, k, v, probabilities, their mask and what is left, in float32
        each += (4 - e) * 3 * C + 12 * H * T
    elif device == "cpu" and e < 4 and B * H * T * T <= ops.KEPT:
        each += e * H * (T + ops.QUERIES) // 2
    return B * T * each


def _backward(config, B, T, device, e, dropout, frozen):
    """Bytes of gradients while a layer is passed: of its hidden layer and of a matrix, and where attention keeps
    probabilities of those."""
    size = 2 * e * B * T * _inner(config) + (0 if frozen else (4 + e) * config.n_embd * _inner(config))
    return max(size, 12 * B * config.n_head * T * T) if device == "cpu" and dropout else size


def _loss(config, N, device, e, compiled, chunked, frozen):
    """Bytes of the logits of N tokens, the head and their gradients."""
    C, V = config.n_embd, config.padded_vocab_size
    if ops.is_chunked(chunked, device, N * V):  # the head's gradient along with the loss
        return min(ops.CHUNK, N) * V * e + (e * V * C if e < 4 else 0) + (0 if frozen else 4 * V * C)
    return (6 if compiled else 16 if device == "cpu" else 10) * N * V


def _inner(config):
    return config.n_inner or 4 * config.n_embd


def _most_tokens(run):
    """Tokens of the largest micro-batch that pays; on a CPU also of one whose activations take a quarter of what memory
    is free."""
    most, device = MOST_TOKENS[run.machine.device.type], run.machine.device.type
    if device == "cpu":
        free, T = available_bytes("cpu"), run.train.block_size
        dtype = str(run.machine.dtype).removeprefix("torch.")
        most = min(
            most,
            T
            * free
            // 4
            // needs(run.network.config, 1, T, device, dtype, dropout=run.recipe.dropout).parts["activations"],
        )
    return most


def available_bytes(device: str) -> int:
    """Free memory of a device. On a CPU: what the system can give without swapping, within the container's limit."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    if device == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    free = psutil.virtual_memory().available
    try:
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())  # "max" where there is none
        used = next(
            int(line.split()[1])
            for line in (group / "memory.stat").read_text().splitlines()
            if line.startswith("anon ")
        )
        return min(free, limit - used)
    except (OSError, ValueError, StopIteration):
        return free
