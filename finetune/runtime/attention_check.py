"""Start-up self-test: attention must not cross document boundaries on this device and dtype."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch.nn import functional as F

from finetune.common.errors import Failure
from finetune.gpt import attention as attentions
from finetune.gpt.model import CausalSelfAttention, GPTConfig, Transformer
from finetune.runtime.device import Device

# of q, k, v, document_starts
Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

# largest rounding error of outputs and gradients, which are around 1 to 3; attention across documents is off by 0.5
TOLERANCE = {torch.float32: 4e-3, torch.bfloat16: 0.12, torch.float16: 2e-2}


def check_isolation(
    model: Transformer, device: Device, block_size: int, dropout: float, log: Callable[[str], object]
) -> None:
    """Isolate documents by flex attention if the run is compiled and it is correct here, else by a mask. Raises Failure
    if the mask is wrong too."""
    if device.compile and device.torch_device.type == "cuda" and not dropout:
        try:
            flex = torch.compile(attentions.flex_attention, dynamic=False)
            problem = _find_error(model.config, device, block_size, flex)
        except Exception as error:  # a compiler may raise anything; the mask needs no compiler
            problem = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        if problem is None:
            for module in model.modules():
                if isinstance(module, CausalSelfAttention):
                    module.use_flex_attention = True
            return
        log(f"documents are isolated by a mask, because flex attention does not work here ({problem[:200]})")
    if problem := _find_error(model.config, device, block_size, attentions.causal_attention):
        raise Failure(f"isolate_documents: attention does not keep documents apart on this device ({problem})", 1)


def _find_error(config: GPTConfig, device: Device, T: int, attention: Attention) -> str | None:
    """The error of `attention` over two rows of random documents, against plain attention over each document; None if
    it is within the tolerance."""
    generator = torch.Generator().manual_seed(0)
    shape = (3, 2, config.n_head, T, config.n_embd // config.n_head)  # of q, k and v, each (B, H, T, D)
    q, k, v = torch.randn(shape, generator=generator).to(device.torch_device, device.dtype).requires_grad_()
    weights = torch.randn(shape[1:], generator=generator).to(device.torch_device)
    rows = [_random_documents(T, generator) for _ in range(2)]
    starts = [torch.cat([torch.full((end - start,), start) for start, end in row]) for row in rows]
    packed = attention(q, k, v, torch.stack(starts).to(device.torch_device)).float()
    separate = torch.zeros_like(packed)
    for number, row in enumerate(rows):
        for start, end in row:
            one_q, one_k, one_v = (tensor[number : number + 1, :, start:end].float() for tensor in (q, k, v))
            alone = F.scaled_dot_product_attention(one_q, one_k, one_v, is_causal=True)
            separate[number, :, start:end] = alone[0]
    found = [packed, *torch.autograd.grad((packed * weights).sum(), (q, k, v))]
    expected = [separate, *torch.autograd.grad((separate * weights).sum(), (q, k, v))]
    error = max((one.float() - other.float()).abs().max().item() for one, other in zip(found, expected))
    return None if error <= TOLERANCE[device.dtype] else f"off by {error:.2g}"


def _random_documents(T: int, generator: torch.Generator) -> list[tuple[int, int]]:
    """(start, end) of the documents that fill a row of T tokens: at most six, cut at random."""
    cuts = set(torch.randint(1, T, (min(T - 1, 5),), generator=generator).tolist()) if T > 1 else set()
    return list(pairwise([0, *sorted(cuts), T]))
