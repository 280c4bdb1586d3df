"""Cross entropy, also in chunks that never hold all logits."""

import torch
from torch.nn import functional as F

IGNORE = -100  # a target that is not counted
CHUNK = 1024  # tokens whose logits exist at a time: 100 MB in bfloat16 for GPT-2's vocabulary
MANY_LOGITS = 1 << 32  # on a GPU, where chunks cost time: 8 GB of them in bfloat16
ROWS = 64  # of a chunk's logits that become probabilities at a time on a CPU: 13 MB in float32, which its cache holds
IDS = 16384  # rows of the weight's gradient that are computed at a time


def cross_entropy(x, weight, targets, vocab_size):
    """Cross entropy in nats of `x @ weight.T` against `targets`, summed over those that are not IGNORE.

    x (N, C), weight (P, C), of which the first `vocab_size` rows count, targets (N,). Made to be compiled: then logits
    stay in bfloat16, and float32 is what the softmax computes in."""
    logits = F.linear(x, weight)[:, :vocab_size]
    return F.cross_entropy(logits.float(), targets, ignore_index=IGNORE, reduction="sum")


def is_chunked(chunked, device, count):
    """Whether a loss of so many logits goes by chunks: as `chunked` ("true", "false") has it, and by "auto" on a CPU,
    where that is faster, and where they would take gigabytes."""
    return device == "cpu" or count > MANY_LOGITS if chunked == "auto" else chunked == "true"


def chunked_cross_entropy(x, weight, targets, vocab_size):
    """The same without ever holding all logits."""
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    return LinearCrossEntropy.apply(x, weight, targets, vocab_size, dtype)


class LinearCrossEntropy(torch.autograd.Function):
    """`chunked_cross_entropy` as a function with a gradient.

    Products are computed in `dtype`, sums and softmax in float32. A chunk's logits become its share of both gradients
    before the next chunk begins, so the backward pass only scales what is there already."""

    @staticmethod
    def forward(ctx, x, weight, targets, vocab_size, dtype):
        w = weight.to(dtype)
        loss = x.new_zeros((), dtype=torch.float32)
        grad_x, grad_w = (
            torch.empty_like(tensor) if wanted else None for tensor, wanted in zip((x, weight), ctx.needs_input_grad)
        )
        for first in range(0, x.size(0), CHUNK):
            part = x[first : first + CHUNK].to(dtype)
            logits = part @ w.T  # (n, P)
            loss += _cross_entropy_(logits, targets[first : first + CHUNK], vocab_size)
            if grad_x is not None:
                grad_x[first : first + CHUNK] = logits @ w
            for ids in range(0, len(weight) if grad_w is not None else 0, IDS):  # frozen weights have no gradient
                product = logits[:, ids : ids + IDS].T @ part
                (grad_w[ids : ids + IDS].add_ if first else grad_w[ids : ids + IDS].copy_)(product)
        ctx.save_for_backward(grad_x, grad_w)
        return loss

    @staticmethod
    def backward(ctx, grad):
        grad_x, grad_w = (
            ctx.saved_tensors
        )  # in place, because just now all activations are there; a second pass would be refused
        return *(None if each is None else each.mul_(grad) for each in (grad_x, grad_w)), None, None, None


def _cross_entropy_(logits, targets, vocab_size):
    """The summed cross entropy of logits (n, P), which are overwritten with its gradient."""
    loss = logits.new_zeros((), dtype=torch.float32)
    logits[:, vocab_size:] = -torch.inf
    rows = ROWS if logits.device.type == "cpu" else CHUNK
    for first in range(0, logits.size(0), rows):
        part, index = logits[first : first + rows], targets[first : first + rows, None]
        counted, index = index != IGNORE, index.clamp(min=0)
        scores = part.float()
        picked, top = scores.gather(-1, index), scores.amax(-1, keepdim=True)
        p = scores.softmax(-1)
        # log-sum-exp by the likeliest id, whose probability cannot underflow; torch.logsumexp takes several times as
        # long
        loss += ((top - p.amax(-1, keepdim=True).log() - picked) * counted).sum()
        part.copy_(
            p.mul_(counted).scatter_add_(-1, index, -counted.float())
        )  # the gradient: probabilities, less one at the target
    return loss
