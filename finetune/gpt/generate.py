"""The voice of a model: sampling with a key/value cache, all samples in one batch."""

import torch
from torch.nn import functional as F

from finetune.gpt import attention

WORTH_RECORDING = 16  # tokens to come; recording a CUDA graph costs a few steps
LIKELIEST = (
    64  # ids whose logits are computed again; for all 200 of the default top_k it took 2 ms of a step's 30 on two cores
)


@torch.no_grad()
def generate(
    model,
    idx,
    max_new_tokens,
    temperature=1.0,
    top_k=None,
    top_p=1.0,
    generator=None,
    min_p=0.0,
    repetition_penalty=1.0,
    process=None,
    watch=None,
    watch_every=1,
):
    """`idx` (B, T) continued by up to `max_new_tokens` ids, (B, T + max_new_tokens) unless `watch` ends it.

    temperature 0 is greedy; `top_k` keeps the k likeliest ids, `top_p` the likeliest that together have that
    probability, `min_p` those of at least that share of the likeliest's probability. `repetition_penalty` divides
    positive logits of ids that have been there, prompt included, and multiplies negative ones (Keskar et al. 2019,
    arXiv:1909.05858). All are as in transformers. `process(ids, logits)`, float32 (B, V) after the penalty, returns the
    logits to choose from. `watch(ids)` is shown the new ids (B, n) every `watch_every` tokens and at the end, and
    returns True when it has seen enough.

    Only the last block_size tokens are seen: within the context each step costs one token thanks to the cache, past it
    the window slides and every step recomputes, because positions move. Raises ValueError for an empty prompt and for
    values out of range."""
    _check(idx, temperature, top_p, min_p, repetition_penalty)
    block_size = model.config.block_size
    was_training = model.training
    model.eval()
    B, T = idx.shape
    end = T + max_new_tokens
    out = torch.empty(B, end, dtype=idx.dtype, device=idx.device)
    out[:, :T] = idx
    seen = (
        torch.zeros(B, model.config.vocab_size, dtype=torch.bool, device=idx.device).scatter_(1, idx, True)
        if repetition_penalty != 1
        else None
    )
    head = _float32_head(model, 1 if temperature == 0 else top_k, whole=seen is not None or process is not None)
    cache = Cache(model.config, B, min(end, block_size), idx.device)
    x = model.hidden(idx[:, -block_size:], cache)  # (B, T, C)
    step, shown = None, T
    for position in range(T, end):
        logits, ids = head(x[:, -1])  # (B, V), or (B, K) of these ids
        if seen is not None:
            logits = torch.where(
                seen, torch.where(logits < 0, logits * repetition_penalty, logits / repetition_penalty), logits
            )
        if process is not None:
            logits = process(out[:, :position], logits)
        new = _choose(logits, temperature, top_k, top_p, min_p, generator)
        new = new if ids is None else ids.gather(-1, new)
        out[:, position : position + 1] = new
        if seen is not None:
            seen.scatter_(1, new, True)
        there = position + 1
        if watch is not None and (there == end or there - shown == watch_every):
            if watch(out[:, shown:there]):
                out = out[:, :there]
                break
            shown = there
        if there == end:
            break
        if cache.length == block_size:
            x = model.hidden(out[:, there - block_size : there])
        elif idx.is_cuda and min(end, block_size) - T >= WORTH_RECORDING:
            step = step or CUDAGraphStep(model, cache)
            x = step(new)
        else:
            x = model.hidden(new, cache)
    model.train(was_training)
    return out


def _check(idx, temperature, top_p, min_p, repetition_penalty):
    if idx.size(1) == 0:
        raise ValueError("the prompt is empty; a model needs at least one token to go on from")
    if temperature < 0:
        raise ValueError(f"temperature must be at least 0, got {temperature}")
    if not (0 < top_p <= 1 and 0 <= min_p <= 1):
        raise ValueError(f"top_p must be above 0, min_p at least 0, and both at most 1; got {top_p} and {min_p}")
    if repetition_penalty <= 0:
        raise ValueError(f"repetition_penalty must be above 0, got {repetition_penalty}")


def _float32_head(model, top_k, whole):
    """A function from hidden states (B, C) to float32 logits and the ids (B, K) they belong to, None being all of the
    vocabulary.

    Weights of 16 bits give logits of 16 bits, which around -100, where GPT-2's are, are multiples of 0.5. Then those of
    the LIKELIEST are computed again in float32, or all where `top_k` does not say which are needed or the `whole`
    vocabulary is."""
    weight, V = model.wte.weight, model.config.vocab_size
    if weight.dtype == torch.float32:
        return lambda x: (model.head(x).float(), None)
    if whole or not top_k or max(top_k, LIKELIEST) >= V:
        wide = weight[:V].float()
        return lambda x: (F.linear(x.float(), wide), None)

    def likeliest(x):
        logits, ids = model.head(x).topk(max(top_k, LIKELIEST))
        logits = logits.float()
        logits[:, :LIKELIEST] = torch.bmm(weight[ids[:, :LIKELIEST]].float(), x.float().unsqueeze(-1)).squeeze(-1)
        return logits, ids

    return likeliest


class Cache:
    """Keys and values of every layer for up to `size` tokens, allocated once."""

    def __init__(self, config, batch_size, size, device):
        self.shape = (batch_size, config.n_head, size, config.n_embd // config.n_head)  # (B, H, T, D)
        self.device = device
        self.length = 0
        self.place = None  # where the next token goes as a tensor (1,), when steps are recorded
        self.layers = [None] * config.n_layer

    def positions(self, T):
        """Positions of the next T tokens, (T,)."""
        return torch.arange(self.length, self.length + T, device=self.device) if self.place is None else self.place

    def layer(self, index):
        return _Layer(self, index)


class _Layer:
    def __init__(self, cache, index):
        self.cache, self.index = cache, index

    def attend(self, q, k, v):
        """Append keys and values and let the queries look at all there are; each (B, H, T, D)."""
        cache, past, end = self.cache, self.cache.length, self.cache.length + k.size(2)
        if cache.layers[self.index] is None:  # allocated with the first keys, which know the dtype of the computation
            dtype = (
                torch.float32 if k.device.type == "cpu" else k.dtype
            )  # a CPU attends to one query three times as fast in float32
            cache.layers[self.index] = k.new_zeros(2, *cache.shape, dtype=dtype)
        keys, values = cache.layers[self.index]
        if cache.place is not None:
            keys.index_copy_(2, cache.place, k.to(keys.dtype))
            values.index_copy_(2, cache.place, v.to(values.dtype))
            there = torch.arange(keys.size(2), device=k.device) <= cache.place
            return attention.attention(q, keys, values, attn_mask=there.view(1, 1, 1, -1))
        assert past == 0 or k.size(2) == 1, "after the prompt, one token at a time"
        keys[:, :, past:end], values[:, :, past:end] = k, v
        if past == 0:
            return attention.attention(q, k, v, is_causal=True)
        return attention.attention(
            q, keys[:, :, :end], values[:, :, :end]
        )  # of one query, the newest, which may look at everything


class CUDAGraphStep:
    """A step of one token whose tensors stay where they are, so that a GPU can replay it as a CUDA graph: instead of
    some two hundred launches a token there is one. Without a GPU it computes the same, step by step."""

    def __init__(self, model, cache):
        self.cache = cache
        self.new = torch.zeros(cache.shape[0], 1, dtype=torch.long, device=cache.device)
        cache.place = torch.tensor([cache.length], device=cache.device)
        self.run = _recorded(lambda: model.hidden(self.new, cache), cache.device)

    def __call__(self, new):
        """Hidden states (B, 1, C) after the tokens `new` (B, 1)."""
        self.new.copy_(new)
        x = self.run()
        self.cache.place += 1
        self.cache.length += 1
        return x


def _recorded(step, device):
    """A function that does what `step` does; on a GPU by replaying it."""
    if device.type != "cuda":
        return step
    with torch.cuda.device(device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(
            stream
        ):  # libraries set themselves up before anything is recorded; what this writes is written again
            step()
            step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            x = step()

    def replay():
        with torch.cuda.device(device):
            graph.replay()
        return x

    return replay


def _choose(logits, temperature, top_k, top_p, min_p, generator):
    """The place of the chosen logit in each row of `logits` (B, V), as (B, 1). Never makes a GPU wait for the host, as
    torch.multinomial does."""
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    ids, V = None, logits.size(-1)
    if (top_k and top_k < V) or top_p < 1:
        logits, ids = logits.topk(min(top_k or V, V))  # likeliest first
    p = F.softmax(logits / temperature, -1)
    if top_p < 1:
        p = p.masked_fill(p.cumsum(-1) - p >= top_p, 0.0)  # those before it have that probability already
    if min_p > 0:
        p = p.masked_fill(p < min_p * p.amax(-1, keepdim=True), 0.0)
    chosen = (p / torch.empty_like(p).exponential_(generator=generator)).argmax(
        -1, keepdim=True
    )  # a draw in proportion to p
    return chosen if ids is None else ids.gather(-1, chosen)
