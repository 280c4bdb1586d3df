"""What a run does about memory: how much it needs, the mode and the micro-batch that fit, and on with less when they
did not.

An update stays the same whatever it is cut into: its blocks, their order, their number and the learning rate.
"""

import dataclasses
from pathlib import Path

import psutil
import torch

from finetune.gpt import attention
from finetune.gpt import loss as gpt_loss
from finetune.gpt.lora import num_parameters as num_adapter_parameters
from finetune.gpt.size import num_parameters

BASE_RSS = 400 << 20  # bytes of a process that has imported what training takes, and no model yet
PEFT_RSS = 75 << 20  # that the package peft takes, and
LIBRARY_RSS = 70 << 20  # that its libraries take for themselves in the first update, and
HEAP_FRAGMENTATION = 0.15  # of what an update takes, lost between what is freed and taken (docs/log.md), both on a CPU


def is_out_of_memory(error):
    """Whether an exception says that the device or the computer has no memory left."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("out of memory", "can't allocate memory")
    )


@dataclasses.dataclass
class MemoryEstimate:
    """Bytes of memory that a process takes: by what they are for, and at the most, which is less than all of them
    together because not all are needed at a time."""

    parts: dict
    peak: int


def estimate_memory(
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
        "program": program + (LIBRARY_RSS + PEFT_RSS * (adapters > 0) if device == "cpu" else 0),
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
        parts["holes in the heap"] = int(HEAP_FRAGMENTATION * update)
        update += parts["holes in the heap"]
    begun = always - parts["optimizer"] + parts.get("loading", 0)
    return MemoryEstimate(parts, max(begun, always + max(update, parts["evaluation"], parts["saving"])))


def rows_of_evaluation(config, T, device):
    """Blocks that an evaluation reads at a time: logits or activations of 2 GB on a GPU, of 256 MB elsewhere."""
    room = 1 << (29 if device == "cuda" else 26)
    return max(1, min(256, room // (T * max(config.vocab_size, 16 * config.n_embd))))


def _evaluation(config, N, device):
    """Bytes of an evaluation of N tokens in float32: the widest place of the network, what layers before it have left
    on the heap, logits, and their softmax where that is not by chunks."""
    V = config.padded_vocab_size
    logits = 4 * min(gpt_loss.CHUNK, N) * V if device == "cpu" or N * V > gpt_loss.MANY_LOGITS else 8 * N * V
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
    elif device == "cpu" and e < 4 and B * H * T * T <= attention.KEPT:
        each += e * H * (T + attention.QUERIES) // 2
    return B * T * each


def _backward(config, B, T, device, e, dropout, frozen):
    """Bytes of gradients while a layer is passed: of its hidden layer and of a matrix, and where attention keeps
    probabilities of those."""
    size = 2 * e * B * T * _inner(config) + (0 if frozen else (4 + e) * config.n_embd * _inner(config))
    return max(size, 12 * B * config.n_head * T * T) if device == "cpu" and dropout else size


def _loss(config, N, device, e, compiled, chunked, frozen):
    """Bytes of the logits of N tokens, the head and their gradients."""
    C, V = config.n_embd, config.padded_vocab_size
    if gpt_loss.is_chunked(chunked, device, N * V):  # the head's gradient along with the loss
        return min(gpt_loss.CHUNK, N) * V * e + (e * V * C if e < 4 else 0) + (0 if frozen else 4 * V * C)
    return (6 if compiled else 16 if device == "cpu" else 10) * N * V


def _inner(config):
    return config.n_inner or 4 * config.n_embd


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
