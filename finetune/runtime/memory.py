"""Memory: the estimate of what a training process needs, and, from `common.free_memory`, how much is free."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from finetune.common.free_memory import available_bytes as available_bytes
from finetune.common.free_memory import is_out_of_memory as is_out_of_memory
from finetune.config.recipe import Recipe
from finetune.gpt import attention, lora, loss, recompute, size
from finetune.gpt.model import GPTConfig

# measured on a CPU (docs/log.md), in bytes
BASE_RSS = 400 << 20  # a process that has imported everything training uses, without a model
PEFT_RSS = 75 << 20  # importing peft
LIBRARY_RSS = 70 << 20  # libraries in the first update
HEAP_FRAGMENTATION = 0.15  # share of an update's memory that the heap loses


@dataclass(frozen=True)
class Workload:
    """What one process trains. Of the recipe, only keys that memory depends on are read."""

    recipe: Recipe
    config: GPTConfig
    block_size: int
    device_type: str = "cuda"
    dtype: torch.dtype = torch.bfloat16  # of matrix products
    compiled: bool = False
    processes: int = 1
    base_rss: int = 0  # bytes of the process without a model
    max_eval_rows: int = 256  # blocks that an evaluation reads at most

    @property
    def on_cpu(self) -> bool:
        return self.device_type == "cpu"

    @property
    def tokens(self) -> int:
        """Tokens of a micro-batch."""
        return self.recipe.micro_batch_size * self.block_size


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that a process needs."""

    parts: dict[str, int]  # by purpose; not all exist at the same time
    peak: int


def estimate_memory(work: Workload) -> MemoryEstimate:
    """Memory of one training process. On a CPU compared with measurements (docs/log.md), on a GPU only counted."""
    parts = _parts(work)
    accumulated = parts["gradients"] if work.recipe.gradient_accumulation_steps > work.processes else 0
    backward_begins = parts["activations"] + parts["logits and loss"] + accumulated
    # the tied embedding gets a gradient from the head and another from the input
    is_frozen = work.recipe.lora_rank and not work.config.new_tokens
    embedding = 0 if is_frozen else 4 * work.config.padded_vocab_size * work.config.n_embd
    backward_ends = parts["gradients"] + activations_of_layer(work) + embedding
    update = parts["gradient buckets"] + parts["cast weights"] + parts["backward pass of a layer"]
    update += max(backward_begins, backward_ends)
    if work.on_cpu:
        parts["heap fragmentation"] = int(HEAP_FRAGMENTATION * update)
        update += parts["heap fragmentation"]
    model = parts["program"] + parts["weights"] + parts["adapters"]
    training = model + parts["optimizer"] + max(update, parts["evaluation"], parts["saving"])
    return MemoryEstimate(parts, max(model + parts.get("loading", 0), training))


def _parts(work: Workload) -> dict[str, int]:
    """{purpose: bytes}."""
    recipe, config = work.recipe, work.config
    C, V, L = config.n_embd, config.padded_vocab_size, config.n_layer
    parameters = size.num_parameters(config) + (V - config.vocab_size) * C
    adapters = lora.num_adapter_parameters(config, recipe.lora_rank)
    trained, matrices = adapters or parameters, size.num_matrix_weights(config)
    layer = activations_of_layer(work)
    saved = layer + (L - 1) * 4 * work.tokens * C if recipe.gradient_checkpointing else L * layer
    # autograd keeps the cast copies of frozen matrices like activations, so checkpointing frees them too
    cast = adapters + (matrices // L if adapters and recipe.gradient_checkpointing else matrices)
    parts = {
        "program": work.base_rss + (LIBRARY_RSS + PEFT_RSS * (adapters > 0) if work.on_cpu else 0),
        "weights": 4 * parameters,
        "adapters": 4 * adapters,
        "optimizer": 2 * getattr(torch, recipe.optimizer_dtype).itemsize * trained,
        "gradients": 4 * trained,
        "gradient buckets": 4 * trained if work.processes > 1 else 0,  # of DDP's all-reduce
        "cast weights": work.dtype.itemsize * cast if work.dtype.itemsize < 4 else 0,  # by autocast
        "activations": saved + 8 * work.tokens * C,
        "logits and loss": _loss(work),
        "backward pass of a layer": _backward(work),
        "evaluation": _evaluation(work),
        "saving": 4 * matrices if work.on_cpu else 0,  # transposed copies
        # of weights and moments, in the peak only where memory is left for them (training.saving)
        "copies of a state": (4 + 2 * getattr(torch, recipe.optimizer_dtype).itemsize) * trained if work.on_cpu else 0,
    }
    if work.on_cpu:  # the file stays mapped while its weights are copied, and the embedding is padded
        parts["loading"] = 4 * parameters + 4 * V * C
    return parts


def rows_of_evaluation(config: GPTConfig, T: int, device_type: str) -> int:
    """Blocks that an evaluation reads at a time: logits or activations of 2 GB on a GPU, of 256 MB elsewhere."""
    values = 1 << (29 if device_type == "cuda" else 26)
    return max(1, min(256, values // (T * max(config.vocab_size, 16 * config.n_embd))))


def activations_of_layer(work: Workload) -> int:
    """Bytes of activations that one layer saves for its backward pass.

    In float32: the inputs of both layer norms; compiled code recomputes the second. In the products' dtype: outputs of
    the layer norms, q, k, v, the output of attention, and the hidden layer before and after GELU; without the outputs
    of layer norms and GELU where these are computed again (gpt.recompute)."""
    recipe, T, e = work.recipe, work.block_size, work.dtype.itemsize
    C, H, inner = work.config.n_embd, work.config.n_head, work.config.mlp_width
    per_token = 8 * C + e * (6 * C + 2 * inner + 4 * recipe.lora_rank) + 4 * H
    if _recomputes(work):
        per_token -= e * (2 * C + inner)
    if work.compiled:
        per_token -= (4 - e) * C
    if recipe.dropout and not work.compiled:  # masks of the two residual dropouts; compiled code draws them again
        per_token += 2 * C if work.device_type == "cuda" else 2 * e * C
    if work.on_cpu and recipe.dropout:
        # no CPU kernel has dropout in attention: q, k, v, probabilities, their mask and their product, in float32
        per_token += (4 - e) * 3 * C + 12 * H * T
    elif work.on_cpu and e < 4 and work.tokens * H * T <= attention.MAX_SAVED:
        per_token += e * H * (T + min(T, attention.QUERY_BLOCK)) // 2
    return work.tokens * per_token


def _recomputes(work: Workload) -> bool:
    """Whether outputs of layer norms and GELU are computed again in the backward pass."""
    is_trained_whole = not (work.compiled or work.recipe.lora_rank)
    return work.on_cpu and is_trained_whole and work.tokens >= recompute.MANY_TOKENS


def _backward(work: Workload) -> int:
    """Bytes of temporary gradients in one layer's backward pass: of the hidden layer and of one matrix, or of the
    attention probabilities where these are saved."""
    e, C, inner = work.dtype.itemsize, work.config.n_embd, work.config.mlp_width
    hidden = (2 + _recomputes(work)) * e * work.tokens * inner + (0 if work.recipe.lora_rank else (4 + e) * C * inner)
    probabilities = 12 * work.tokens * work.config.n_head * work.block_size
    return max(hidden, probabilities) if work.on_cpu and work.recipe.dropout else hidden


def _loss(work: Workload) -> int:
    """Bytes of the logits, the head and their gradients."""
    C, V, N, e = work.config.n_embd, work.config.padded_vocab_size, work.tokens, work.dtype.itemsize
    if loss.is_chunked(work.recipe.chunked_loss, work.device_type, N * V):  # computes the head's gradient with the loss
        head_gradient = 0 if work.recipe.lora_rank else 4 * V * C
        return min(loss.CHUNK, N) * V * e + (e * V * C if e < 4 else 0) + head_gradient
    # uncompiled on a GPU: log-probabilities, their gradient and that of the logits, each in float32
    return (6 if work.compiled else 16 if work.on_cpu else 12) * N * V


def _evaluation(work: Workload) -> int:
    """Bytes of an evaluation in float32: the widest point of the model, what earlier layers left on the heap, the
    logits, and their softmax where the loss is not chunked."""
    config, V = work.config, work.config.padded_vocab_size
    N = work.block_size * min(work.max_eval_rows, rows_of_evaluation(config, work.block_size, work.device_type))
    logits = 4 * min(loss.CHUNK, N) * V if work.on_cpu or N * V > loss.MANY_LOGITS else 8 * N * V
    return 4 * N * (10 * config.n_embd + 2 * config.mlp_width) + logits
