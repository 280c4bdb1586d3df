"""Causal attention: PyTorch's kernels, a faster one for bfloat16 on a CPU, and the key/value cache of decoding.

Shapes: B batch, H heads, T tokens, D head size.
`document_starts` (B, T): the position in the row where each token's document begins.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

QUERY_BLOCK = 256  # queries in a block of BlockwiseAttention
FLASH_TOKENS = 512  # of a row, from which on PyTorch's kernel is fast with AMX
CPUINFO = 1 << 14  # bytes of /proc/cpuinfo that are read: those of the first cores
MAX_SAVED = 1 << 24  # most probabilities kept for a backward pass; 19 MB in bfloat16, as half of each row is masked


def _has_amx() -> bool:
    """Whether the processor multiplies bfloat16 matrices in tiles (AMX)."""
    try:
        with open("/proc/cpuinfo", "rb") as file:
            return b"amx_bf16" in file.read(CPUINFO)
    except OSError:  # only Linux has this file
        return False


HAS_AMX = _has_amx()  # a constant, since torch.compile would break its graph at a function that reads a file


def causal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    document_starts: Tensor | None = None,
    dropout_p: float = 0.0,
    allow_flex: bool = False,
) -> Tensor:
    """Causal scaled dot product attention of q, k, v (B, H, T, D), with `document_starts` within documents only.

    `allow_flex` allows flex attention within documents, which is fast only when compiled. BlockwiseAttention takes half
    the time of PyTorch's kernel on a CPU, in bfloat16 or within documents (docs/log.md)."""
    if allow_flex and document_starts is not None and torch.compiler.is_compiling():
        return flex_attention(q, k, v, document_starts)
    by_blocks = q.dtype == k.dtype == torch.bfloat16 and not _is_flash_faster(q)
    if q.device.type == "cpu" and not dropout_p and (document_starts is not None or by_blocks):
        return BlockwiseAttention.apply(q, k, v, document_starts)
    if document_starts is not None:
        return F.scaled_dot_product_attention(q, k, v, within_documents(document_starts), dropout_p)
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p, is_causal=True)


def _is_flash_faster(q: Tensor) -> bool:
    """Whether PyTorch's kernel is faster than BlockwiseAttention, which it is on a processor with AMX for long rows of
    which no probabilities are kept (docs/log.md)."""
    trains = torch.is_grad_enabled() and q.requires_grad
    return HAS_AMX and q.size(2) >= FLASH_TOKENS and not (trains and keeps_probabilities(q.shape))


def keeps_probabilities(shape: torch.Size) -> bool:
    """Whether BlockwiseAttention keeps the probabilities of queries (B, H, T, D) for its backward pass."""
    B, H, T, _ = shape
    return B * H * T**2 <= MAX_SAVED


def find_document_starts(position_ids: Tensor) -> Tensor:
    """`document_starts` of `position_ids` (B, T), which begin at 0 in each document."""
    return torch.arange(position_ids.size(1), device=position_ids.device) - position_ids


def within_documents(document_starts: Tensor) -> Tensor:
    """The mask (B, 1, T, T), True where a query attends to a key."""
    positions = torch.arange(document_starts.size(1), device=document_starts.device)
    return ((positions >= document_starts[..., None]) & (positions <= positions[:, None]))[:, None]


def flex_attention(q: Tensor, k: Tensor, v: Tensor, document_starts: Tensor) -> Tensor:
    """Attention within documents by PyTorch's flex attention, which skips blocks that are masked whole."""
    from torch.nn.attention import flex_attention as flex

    def attends(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (key >= document_starts[b, query])

    B, T = document_starts.shape
    mask = flex.create_block_mask(attends, B, None, T, T, device=document_starts.device)
    return flex.flex_attention(q, k, v, block_mask=mask)


class KVCache:
    """Keys and values of all layers, each of `shape` (B, H, T, D). `length` tokens are in it.

    A CUDA graph repeats its kernels with the same tensors, so its steps read their position from `input_pos` (1,)."""

    def __init__(self, n_layer: int, shape: tuple[int, int, int, int], device: torch.device) -> None:
        self.n_layer, self.shape, self.device = n_layer, shape, device
        self.length = 0
        self.input_pos: Tensor | None = None
        self.layers: Tensor | None = None  # (n_layer, 2, B, H, T, D)

    def positions(self, T: int) -> Tensor:
        """Positions (T,) of the next T tokens."""
        if self.input_pos is not None:
            return self.input_pos
        return torch.arange(self.length, self.length + T, device=self.device)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Add keys and values to a layer, then attend to all of them; q, k, v and the result are (B, H, T, D)."""
        if self.layers is None:  # on a CPU one query is three times as fast in float32; with AMX bfloat16 is faster
            is_fast = k.dtype == torch.bfloat16 and HAS_AMX
            dtype = torch.float32 if k.device.type == "cpu" and not is_fast else k.dtype
            self.layers = k.new_zeros(self.n_layer, 2, *self.shape, dtype=dtype)
        keys, values = self.layers[layer]
        if self.input_pos is not None:
            keys.index_copy_(2, self.input_pos, k.to(keys.dtype))
            values.index_copy_(2, self.input_pos, v.to(values.dtype))
            mask = torch.arange(keys.size(2), device=k.device) <= self.input_pos
            return _attend_to_cache(q, keys, values, mask.view(1, 1, 1, -1))
        T, end = k.size(2), self.length + k.size(2)
        assert self.length == 0 or T == 1, "after the prompt, one token at a time"
        keys[:, :, self.length : end], values[:, :, self.length : end] = k, v
        if self.length == 0:
            return causal_attention(q, k, v)
        return _attend_to_cache(q, keys[:, :, :end], values[:, :, :end])


def _attend_to_cache(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention of one query (B, H, 1, D) to cached keys and values, in their dtype."""
    if q.dtype == keys.dtype:
        return F.scaled_dot_product_attention(q, keys, values, mask)
    with torch.autocast(q.device.type, enabled=False):
        return F.scaled_dot_product_attention(q.to(keys.dtype), keys, values, mask).to(q.dtype)


class BlockwiseAttention(torch.autograd.Function):
    """Causal attention in plain matrix products, each of a block of queries and the keys they attend to.

    At most MAX_SAVED probabilities are kept for the backward pass; more are computed again there."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, document_starts: Tensor | None = None) -> Tensor:
        q, k, v = (q * q.size(-1) ** -0.5).contiguous(), k.contiguous(), v.contiguous()
        keep = any(ctx.needs_input_grad) and keeps_probabilities(q.shape)
        out, kept = _empty_heads(q), []
        for queries, keys in _blocks(q, document_starts):
            p = _probabilities(q, k, queries, keys, document_starts)
            out[:, :, queries] = p @ v[:, :, keys]
            if keep:
                kept.append(p)
        ctx.save_for_backward(q, k, v, *kept)
        ctx.document_starts = document_starts
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # autograd would take these for constants
            raise RuntimeError("create_graph=True: no second derivatives with position_ids or in bfloat16 on a CPU")
        q, k, v, *kept = ctx.saved_tensors
        grad, grad_q = grad_outputs[0].contiguous(), _empty_heads(q)
        grad_k, grad_v = torch.zeros_like(k, dtype=torch.float32), torch.zeros_like(v, dtype=torch.float32)
        for i, (queries, keys) in enumerate(_blocks(q, ctx.document_starts)):
            p = kept[i] if kept else _probabilities(q, k, queries, keys, ctx.document_starts)
            grad_v[:, :, keys] += p.transpose(-1, -2) @ grad[:, :, queries]
            grad_p = grad[:, :, queries] @ v[:, :, keys].transpose(-1, -2)
            grad_scores = torch._softmax_backward_data(grad_p, p, -1, p.dtype)
            grad_q[:, :, queries] = grad_scores @ k[:, :, keys]
            grad_k[:, :, keys] += grad_scores.transpose(-1, -2) @ q[:, :, queries]
        return grad_q.mul_(q.size(-1) ** -0.5), grad_k.to(k.dtype), grad_v.to(v.dtype), None


def _blocks(q: Tensor, document_starts: Tensor | None) -> Iterator[tuple[slice, slice]]:
    """(queries, keys): blocks of queries, and the keys that any of them attends to."""
    for first in range(0, q.size(2), QUERY_BLOCK):
        end = min(first + QUERY_BLOCK, q.size(2))
        yield slice(first, end), slice(0 if document_starts is None else int(document_starts[:, first].min()), end)


def _probabilities(q: Tensor, k: Tensor, queries: slice, keys: slice, document_starts: Tensor | None) -> Tensor:
    """Attention probabilities (B, H, queries, keys) of a block. q is scaled already."""
    q = q[:, :, queries]
    scores = q @ k[:, :, keys].transpose(-1, -2)
    scores[..., -q.size(2) :] += torch.full((q.size(2), q.size(2)), -torch.inf, dtype=q.dtype).triu(1)
    if document_starts is not None:
        earlier = torch.arange(keys.start, keys.stop) < document_starts[:, queries, None]  # keys of earlier documents
        scores.masked_fill_(earlier[:, None], -torch.inf)
    return scores.softmax(-1)


def _empty_heads(like: Tensor) -> Tensor:
    """An empty (B, H, T, D) with the memory layout (B, T, H, D), which c_proj reads without a copy."""
    B, H, T, D = like.shape
    return like.new_empty(B, T, H, D).transpose(1, 2)
