"""The voice of a model: sampling with a key/value cache, all samples in one batch."""

import torch
from torch.nn import functional as F


@torch.no_grad()
def generate(model, idx, max_new_tokens, temperature=1.0, top_k=None, top_p=None, generator=None):
    """`idx` (B, T) continued by `max_new_tokens` ids, (B, T + max_new_tokens).

    temperature 0 is greedy; `top_k` keeps the k likeliest ids, `top_p` the likeliest that together have that probability. Only the last block_size tokens are seen: within the context each
    step costs one token thanks to the cache, past it the window slides and every step recomputes, because positions move.
    Raises ValueError for an empty prompt or a negative temperature.
    """
    if idx.size(1) == 0:
        raise ValueError("the prompt is empty; a model needs at least one token to go on from")
    if temperature < 0:
        raise ValueError(f"temperature must be at least 0, got {temperature}")
    block_size = model.config.block_size
    was_training = model.training
    model.eval()
    B, T = idx.shape
    out = torch.empty(B, T + max_new_tokens, dtype=idx.dtype, device=idx.device)
    out[:, :T] = idx
    cache = Cache(model.config, B, min(T + max_new_tokens, block_size), idx.device)
    new = idx[:, -block_size:]
    for position in range(T, T + max_new_tokens):
        if cache.length + new.size(1) > block_size:
            x = model.hidden(out[:, position - block_size : position])
        else:
            x = model.hidden(new, cache)
        logits = model.head(x[:, -1]).float()  # (B, V)
        new = _choose(logits, temperature, top_k, top_p, generator)
        out[:, position : position + 1] = new
    model.train(was_training)
    return out


class Cache:
    """Keys and values of every layer for up to `size` tokens, allocated once."""

    def __init__(self, config, batch_size, size, device):
        self.shape = (batch_size, config.n_head, size, config.n_embd // config.n_head)  # (B, H, T, D)
        self.device = device
        self.length = 0
        self.layers = [None] * config.n_layer

    def layer(self, index):
        return _Layer(self, index)


class _Layer:
    def __init__(self, cache, index):
        self.cache, self.index = cache, index

    def extend(self, k, v):
        """Append keys and values (B, H, T, D) and return all there are."""
        cache, past, end = self.cache, self.cache.length, self.cache.length + k.size(2)
        if cache.layers[self.index] is None:  # allocated with the first keys, which know the dtype that autocast chose
            cache.layers[self.index] = k.new_empty(2, *cache.shape)
        keys, values = cache.layers[self.index]
        keys[:, :, past:end], values[:, :, past:end] = k, v
        return keys[:, :, :end], values[:, :, :end]


def _choose(logits, temperature, top_k, top_p, generator):
    """One id for each row of `logits` (B, V), as (B, 1)."""
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    logits = logits / temperature
    if top_k:
        threshold = logits.topk(min(top_k, logits.size(-1))).values[:, -1:]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    if top_p is not None and top_p < 1:
        ordered, order = logits.sort(descending=True)
        before = F.softmax(ordered, -1).cumsum(-1) - F.softmax(ordered, -1)  # probability of all that are likelier
        logits = logits.masked_fill((before >= top_p).gather(-1, order.argsort(-1)), -torch.inf)
    return torch.multinomial(F.softmax(logits, -1), 1, generator=generator)
