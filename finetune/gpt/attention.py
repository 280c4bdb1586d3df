"""The two places of GPT-2 where a plain formula costs too much: attention and the loss.

Shapes: B batch, H heads, T tokens, D head size; N tokens of a batch, C width, V vocabulary, P its padded size.
"""

import torch
from torch.nn import functional as F

QUERIES = 128  # of blockwise attention that are looked at together
KEPT = 1 << 24  # probabilities of one attention that are kept for its backward pass at most: 19 MB in bfloat16


def attention(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, starts=None, flex=False):
    """Scaled dot product attention of q, k, v (B, H, T, D): flash attention, but where PyTorch's kernel is slow, which
    is in bfloat16 on a CPU: there causal attention goes by blocks of queries and takes half the time (docs/log.md).

    With `starts` (B, T) it is causal within documents: the query at t looks at the keys from starts[t] to t. With
    `flex` that is flex attention where it is being compiled, without which it is slow."""
    if flex and starts is not None and torch.compiler.is_compiling():
        return flex_attention(q, k, v, starts)
    if (
        q.device.type == "cpu"
        and is_causal
        and not dropout_p
        and (starts is not None or q.dtype == k.dtype == torch.bfloat16)
    ):
        return BlockwiseAttention.apply(q, k, v, starts)
    if starts is not None:
        attn_mask, is_causal = within_documents(starts), False
    if q.dtype != k.dtype:  # keys and values of a cache, which is kept in float32
        with torch.autocast(q.device.type, enabled=False):
            return F.scaled_dot_product_attention(q.to(k.dtype), k, v, attn_mask, dropout_p, is_causal).to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask, dropout_p, is_causal)


def document_starts(position_ids):
    """Where in its row the document of each token begins, (B, T), from positions that begin again with each
    document."""
    return torch.arange(position_ids.size(1), device=position_ids.device) - position_ids


def within_documents(starts):
    """The mask (B, 1, T, T) that is True where the query may look at the key."""
    places = torch.arange(starts.size(1), device=starts.device)
    return ((places >= starts[..., None]) & (places <= places[:, None]))[:, None]


def flex_attention(q, k, v, starts):
    """Attention within documents by a kernel that skips what no query of a block may look at."""
    from torch.nn.attention import flex_attention as flex

    def may_look(b, h, query, key):
        return (key <= query) & (key >= starts[b, query])

    B, T = starts.shape
    return flex.flex_attention(
        q, k, v, block_mask=flex.create_block_mask(may_look, B, None, T, T, device=starts.device)
    )


class BlockwiseAttention(torch.autograd.Function):
    """Causal attention in plain matrix products, each over a block of queries and the keys they may see.

    Probabilities are kept for the backward pass while they are few, else computed again.
    """

    @staticmethod
    def forward(ctx, q, k, v, starts=None):
        q, k, v = (q * q.size(-1) ** -0.5).contiguous(), k.contiguous(), v.contiguous()
        keep = any(ctx.needs_input_grad) and q.size(0) * q.size(1) * q.size(2) ** 2 <= KEPT
        out, kept = _as_projected(q), []
        for block, seen in _query_blocks(q, starts):
            p = _probabilities(q, k, block, seen, starts)
            out[:, :, block] = p @ v[:, :, seen]
            if keep:
                kept.append(p)
        ctx.save_for_backward(q, k, v, *kept)
        ctx.starts = starts
        return out

    @staticmethod
    def backward(ctx, grad):
        q, k, v, *kept = ctx.saved_tensors
        grad, grad_q = grad.contiguous(), _as_projected(q)
        grad_k, grad_v = torch.zeros_like(k, dtype=torch.float32), torch.zeros_like(v, dtype=torch.float32)
        for number, (block, seen) in enumerate(_query_blocks(q, ctx.starts)):
            p = kept[number] if kept else _probabilities(q, k, block, seen, ctx.starts)
            grad_v[:, :, seen] += p.transpose(-1, -2) @ grad[:, :, block]
            grad_p = grad[:, :, block] @ v[:, :, seen].transpose(-1, -2)
            grad_scores = torch._softmax_backward_data(grad_p, p, -1, p.dtype)
            grad_q[:, :, block] = grad_scores @ k[:, :, seen]
            grad_k[:, :, seen] += grad_scores.transpose(-1, -2) @ q[:, :, block]
        return grad_q.mul_(q.size(-1) ** -0.5), grad_k.to(k.dtype), grad_v.to(v.dtype), None


def _query_blocks(q, starts):
    """(queries, keys) as slices: blocks of queries with all the keys that any of them may see."""
    for first in range(0, q.size(2), QUERIES):
        end = min(first + QUERIES, q.size(2))
        yield slice(first, end), slice(0 if starts is None else int(starts[:, first].min()), end)


def _probabilities(q, k, block, seen, starts):
    """What a block of queries looks at: (B, H, queries, keys). q is scaled already."""
    q = q[:, :, block]
    scores = q @ k[:, :, seen].transpose(-1, -2)
    scores[..., -q.size(2) :] += torch.full((q.size(2), q.size(2)), -torch.inf, dtype=q.dtype).triu(1)
    if starts is not None:
        before = torch.arange(seen.start, seen.stop) < starts[:, block, None]  # keys of an earlier document
        scores.masked_fill_(before[:, None], -torch.inf)
    return scores.softmax(-1)


def _as_projected(like):
    """An empty (B, H, T, D) laid out as the next projection reads it, (B, T, H, D)."""
    B, H, T, D = like.shape
    return like.new_empty(B, T, H, D).transpose(1, 2)
