"""Cross entropy of logits x @ weight.T, also in chunks of tokens so that all logits never exist at once.

Shapes: N tokens of a batch, n of a chunk, C width, V vocabulary, P its padded size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORE_INDEX = -100  # a target that does not count; the same in data.batches, which gpt may not import
CHUNK = 1024  # tokens in a chunk; their logits take 100 MB in bfloat16 with GPT-2's vocabulary
MANY_LOGITS = (1 << 31) - 1  # that 32-bit indices reach; above, a GPU computes in chunks too, which takes longer
SOFTMAX_ROWS = 64  # tokens in a softmax on a CPU: 13 MB in float32, which fit its cache
GRADIENT_ROWS = 16384  # of the weight's gradient, in one matrix product


def linear_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor, vocab_size: int) -> Tensor:
    """Cross entropy in nats, summed over all targets but IGNORE_INDEX.

    x (N, C), weight (P, C) of which the first `vocab_size` rows count, targets (N,). A compiler fuses the conversion to
    float32 with the softmax, so that logits stay in bfloat16."""
    logits = F.linear(x, weight)[:, :vocab_size]
    return F.cross_entropy(logits.float(), targets, ignore_index=IGNORE_INDEX, reduction="sum")


def is_chunked(chunked: str, device: str, num_logits: int) -> bool:
    """Whether to compute the loss in chunks; "auto" does on a CPU, where it is faster, and above MANY_LOGITS."""
    if chunked == "auto":
        return device == "cpu" or num_logits > MANY_LOGITS
    return chunked == "true"


def chunked_linear_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor, vocab_size: int) -> Tensor:
    """`linear_cross_entropy` with the logits of one chunk at a time."""
    device = x.device.type
    if not torch.is_grad_enabled():
        weight = weight.detach()  # autograd asks for the gradient of a parameter even then, a third product
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    return ChunkedLinearCrossEntropy.apply(x, weight, targets, vocab_size, dtype)


class ChunkedLinearCrossEntropy(torch.autograd.Function):
    """`chunked_linear_cross_entropy` with a gradient that is computed in the forward pass, where the logits are.

    Matrix products are computed in `dtype`, sums and softmax in float32. Frozen weights get no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, vocab_size: int, dtype: torch.dtype) -> Tensor:
        w = weight.to(dtype)
        loss = x.new_zeros((), dtype=torch.float32)
        grad_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        grad_w = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        for first in range(0, max(1, x.size(0)), CHUNK):  # without a token once too, which makes the gradients zero
            part = x[first : first + CHUNK].to(dtype)
            logits = part @ w.T  # (n, P)
            loss += _cross_entropy_(logits, targets[first : first + CHUNK], vocab_size)  # logits are gradients now
            if grad_x is not None:
                grad_x[first : first + CHUNK] = logits @ w
            if grad_w is not None:
                for ids in range(0, len(weight), GRADIENT_ROWS):
                    rows, product = grad_w[ids : ids + GRADIENT_ROWS], logits[:, ids : ids + GRADIENT_ROWS].T @ part
                    rows.add_(product) if first else rows.copy_(product)
        ctx.save_for_backward(grad_x, grad_w)
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # autograd would take these for constants
            raise RuntimeError('create_graph=True: no second derivatives in chunks; set model.chunked_loss = "false"')
        grad_x, grad_w = ctx.saved_tensors
        # in place, because memory is short while all activations exist; a second backward pass would be refused
        grad_x, grad_w = (None if saved is None else saved.mul_(grad_outputs[0]) for saved in (grad_x, grad_w))
        return grad_x, grad_w, None, None, None


def _cross_entropy_(logits: Tensor, targets: Tensor, vocab_size: int) -> Tensor:
    """The summed cross entropy of logits (n, P), which are overwritten with their gradients."""
    loss = logits.new_zeros((), dtype=torch.float32)
    logits[:, vocab_size:] = -torch.inf
    rows = SOFTMAX_ROWS if logits.device.type == "cpu" else CHUNK
    for first in range(0, logits.size(0), rows):
        part, index = logits[first : first + rows], targets[first : first + rows, None]
        counted = index != IGNORE_INDEX
        index = index.masked_fill(~counted, 0)
        scores = part.float()
        picked = scores[:, :vocab_size].gather(-1, index)  # an error for any other id, as in F.cross_entropy
        top = scores.amax(-1, keepdim=True)
        p = scores.softmax(-1)
        # log-sum-exp by way of the likeliest id, whose probability cannot underflow: faster than torch.logsumexp
        loss += ((top - p.amax(-1, keepdim=True).log() - picked) * counted).sum()
        # the gradient: probabilities, minus one at the target
        part.copy_(p.mul_(counted).scatter_add_(-1, index, -counted.float()))
    return loss
