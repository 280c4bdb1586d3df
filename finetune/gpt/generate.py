"""Sampling of token ids with a key/value cache, all samples in one batch.

Shapes: B samples, T tokens, C width, V vocabulary, K likeliest ids.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from finetune.gpt import streams
from finetune.gpt.attention import KVCache
from finetune.gpt.model import GPTConfig, Transformer
from finetune.gpt.reordered import reordered_weights

CHECK_EVERY = 16  # tokens, on a GPU
MIN_GRAPH_STEPS = 16  # fewer tokens go without a CUDA graph, because recording it costs a few steps
MIN_TEMPERATURE = 1e-20  # a lower one is greedy; with these two bounds a logit stays below float32's 3e38
MAX_PENALTY = 1e6
LIKELIEST = 64  # ids with logits in float32; all 200 of the default top_k took 2 ms of a step's 30 on two cores


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """How an id is chosen from logits, as in transformers. Raises ValueError for values out of range."""

    temperature: float = 1.0  # 0 is greedy, and so is one below MIN_TEMPERATURE
    top_k: int | None = None  # keep the k likeliest ids; None or 0 keeps all
    top_p: float = 1.0  # keep the likeliest ids that together have this probability
    min_p: float = 0.0  # keep ids of at least this share of the likeliest id's probability
    repetition_penalty: float = 1.0  # above 1, ids of the prompt and of the sample become less likely

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be at least 0, got {self.temperature}")
        if self.top_k is not None and self.top_k < 0:
            raise ValueError(f"top_k must be at least 0, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p must be at least 0 and at most 1, got {self.min_p}")
        if not 1 / MAX_PENALTY <= self.repetition_penalty <= MAX_PENALTY:
            bounds = f"from {1 / MAX_PENALTY:g} to {MAX_PENALTY:g}"
            raise ValueError(f"repetition_penalty must be {bounds}, got {self.repetition_penalty}")

    @property
    def is_greedy(self) -> bool:
        return self.temperature < MIN_TEMPERATURE


@torch.no_grad()
def generate(
    model: Transformer,
    idx: Tensor,
    max_new_tokens: int,
    *,
    generator: torch.Generator | None = None,
    logits_processor: Callable[[Tensor, Tensor], Tensor] | None = None,
    callback: Callable[[Tensor], bool | None] | None = None,
    callback_every: int = 1,
    **sampling: Any,
) -> Tensor:
    """Continue `idx` (B, T), a tensor, an array or lists, by `max_new_tokens` ids: (B, T + max_new_tokens), or fewer if
    all rows end or `callback` stops it.

    `sampling` are the fields of `Sampler`: temperature, top_k, top_p, min_p, repetition_penalty. And `eos_token_id`, an
    id or a list, that ends a row: the model's own unless others are given, None for no end. Behind it stand pads, as in
    transformers: the model's pad_token_id, or else the first eos_token_id.

    One number of `generator` and the number of a row decide what it draws, so a row is the same in any batch, up to
    rounding. The numbers are `rows`, else 0 to B - 1.

    `logits_processor(ids, logits)` gets all ids so far and logits (B, V) in float32, and returns logits (B, V).
    `callback(ids)` gets the new ids (B, n) every `callback_every` tokens and at the end; True stops.

    The model sees the last block_size tokens. Beyond these all positions move with each token, so every step computes
    the whole window, without the cache. Raises ValueError for an empty prompt, for ids that are not in the vocabulary
    and for values out of range."""
    eos_token_id: int | Sequence[int] | Literal["model"] | None = sampling.pop("eos_token_id", "model")
    rows: Sequence[int] = sampling.pop("rows", range(len(idx)))
    sampler = Sampler(**sampling)
    idx = _as_ids(idx, model.wte.weight.device)
    _check(idx, rows, max_new_tokens, model.config.vocab_size)
    out = torch.cat([idx, idx.new_empty(len(idx), max_new_tokens)], 1)
    endings, shown = _endings(model.config, eos_token_id, out), idx.size(1)
    keys = streams.step_keys(generator, rows, max_new_tokens, idx.device)
    was_training = model.training
    model.eval()
    try:
        with reordered_weights(model, len(out), max_new_tokens):
            for end in decode_tokens(model, out, sampler, logits_processor, keys):
                is_last = (endings is not None and endings.add(out[:, end - 1], end)) or end == out.size(1)
                if callback is not None and (is_last or end - shown == callback_every):
                    is_last = bool(callback(out[:, shown:end])) or is_last
                    shown = end
                if is_last:
                    out = out[:, :end]
                    break
    finally:
        model.train(was_training)
    return out if endings is None else out[:, : idx.size(1) + endings.longest()]


def _as_ids(idx: Any, device: torch.device) -> Tensor:
    """Ids that an embedding takes, of a tensor, of the arrays that tokenizers make, or of lists."""
    idx = idx if isinstance(idx, Tensor) else torch.as_tensor(idx, device=device)
    if idx.dtype.is_floating_point or idx.dtype == torch.bool:
        raise ValueError(f"idx must be ids, which are whole numbers, got {str(idx.dtype).removeprefix('torch.')}")
    return idx if idx.dtype == torch.int32 else idx.long()


def _check(idx: Tensor, rows: Sequence[int], max_new_tokens: int, vocab_size: int) -> None:
    if idx.dim() != 2:
        raise ValueError(f"idx must be (B, T), a row of ids for each text, got the shape {tuple(idx.shape)}")
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens must be at least 0, got {max_new_tokens}")
    if idx.size(1) == 0:
        raise ValueError("the prompt is empty; a model needs at least one token to go on from")
    if len(rows) != len(idx):
        raise ValueError(f"rows must have a number for each of the {len(idx)} rows, got {len(rows)}")
    wrong = [int(one) for one in idx.aminmax() if not 0 <= one < vocab_size] if len(idx) else []
    if wrong:  # the embedding has a few rows more
        raise ValueError(f"idx has {wrong[0]}, which is no id of this model; these are 0 to {vocab_size - 1}")


class Endings:
    """Which rows have ended. Behind the first of the `ids` a row has pads."""

    def __init__(self, ids: Tensor, pad: int, rows: int) -> None:
        self.ids, self.pad = ids, pad
        self.is_done = torch.zeros(rows, dtype=torch.bool, device=ids.device)
        self.lengths = torch.zeros(rows, dtype=torch.long, device=ids.device)

    def add(self, new: Tensor, end: int) -> bool:
        """Take the newest ids (B) of the rows, of which the ended ones become pads. Whether all are known to have
        ended: a GPU is asked now and then, because it has to be waited for."""
        new.masked_fill_(self.is_done, self.pad)
        self.lengths += ~self.is_done
        self.is_done |= torch.isin(new, self.ids)
        return (not new.is_cuda or end % CHECK_EVERY == 0) and bool(self.is_done.all())

    def longest(self) -> int:
        """New ids of the longest row, without pads."""
        return int(self.lengths.max())


def _endings(config: GPTConfig, ids: int | Sequence[int] | None | str, out: Tensor) -> Endings | None:
    found = list(config.end_ids) if isinstance(ids, str) else [ids] if isinstance(ids, int) else list(ids or [])
    if not found or not len(out):
        return None
    pad = found[0] if config.pad_id is None else config.pad_id
    return Endings(out.new_tensor(found), pad, len(out))


def decode_tokens(
    model: Transformer,
    out: Tensor,
    sampler: Sampler,
    logits_processor: Callable[[Tensor, Tensor], Tensor] | None,
    keys: Tensor,
) -> Iterator[int]:
    """Fill `out` (B, prompt and new tokens) in place, and yield its length so far after each token. `keys` (B, new
    tokens) decide what is drawn."""
    block_size, end = model.config.block_size, out.size(1)
    prompt_length = end - keys.size(1)
    penalty = sampler.repetition_penalty
    top_k = 1 if sampler.is_greedy else sampler.top_k
    head = _float32_head(model, top_k, whole=penalty != 1 or logits_processor is not None)
    shape = (len(out), model.config.n_head, min(end, block_size), model.config.n_embd // model.config.n_head)
    cache = KVCache(model.config.n_layer, shape, out.device)
    prompt = out[:, :prompt_length][:, -block_size:]
    is_one = len(prompt) > 1 and bool((prompt == prompt[0]).all())  # then one row is computed, for the cache of all
    x = forward_cached(model, prompt[:1] if is_one else prompt, cache).expand(len(prompt), -1, -1)
    use_graph = out.is_cuda and min(end, block_size) - prompt_length >= MIN_GRAPH_STEPS
    step = CUDAGraphStep(model, cache) if use_graph else None
    for t in range(prompt_length, end):
        logits, ids = head(x[:, -1])
        if penalty != 1:
            logits = penalize_repetition(logits, out[:, :t], penalty)
        if logits_processor is not None:
            logits = logits_processor(out[:, :t], logits)
        out[:, t : t + 1] = sample(logits, ids, sampler, keys[:, t - prompt_length, None])
        yield t + 1
        if t + 1 == end:
            return
        if cache.length == block_size:
            x = model.hidden(out[:, t + 1 - block_size : t + 1])
        elif step is not None:
            x = step(out[:, t : t + 1])
        else:
            x = forward_cached(model, out[:, t : t + 1], cache)


def forward_cached(model: Transformer, idx: Tensor, cache: KVCache) -> Tensor:
    """Hidden states (B, T, C) of the next tokens (B, T), which are added to the cache."""
    x = model.hidden(idx, cache)
    cache.length += idx.size(1)
    return x


def penalize_repetition(logits: Tensor, idx: Tensor, penalty: float) -> Tensor:
    """Divide positive logits (B, V) of the ids `idx` (B, T) by the penalty and multiply negative ones (Keskar et al.
    2019, arXiv:1909.05858)."""
    seen = logits.gather(-1, idx)
    return logits.scatter(-1, idx, torch.where(seen < 0, seen * penalty, seen / penalty))


def sample(logits: Tensor, ids: Tensor | None, sampler: Sampler, keys: Tensor) -> Tensor:
    """The chosen id (B, 1) in each row of `logits` (B, K), which are those of `ids` (B, K) or of the vocabulary. `keys`
    (B, 1) decide what is drawn."""
    K = logits.size(-1)
    if sampler.is_greedy:
        choice = logits.argmax(-1, keepdim=True)
        return choice if ids is None else ids.gather(-1, choice)
    if (sampler.top_k and sampler.top_k < K) or sampler.top_p < 1:
        logits, columns = logits.topk(min(sampler.top_k or K, K))  # likeliest first
        ids = columns if ids is None else ids.gather(-1, columns)
    p = F.softmax(logits / sampler.temperature, -1)
    if sampler.top_p < 1:
        p = p.masked_fill(p.cumsum(-1) - p >= sampler.top_p, 0.0)  # the ids before it reach top_p already
    if sampler.min_p > 0:
        p = p.masked_fill(p < sampler.min_p * p.amax(-1, keepdim=True), 0.0)
    if ids is None:
        ids = torch.arange(K, device=p.device).expand_as(p)
    # a draw in proportion to p; each id has its own random number, so rounding changes a choice only in a near tie
    return ids.gather(-1, (p / streams.exponential(keys, ids)).argmax(-1, keepdim=True))


def _float32_head(
    model: Transformer, top_k: int | None, whole: bool
) -> Callable[[Tensor], tuple[Tensor, Tensor | None]]:
    """A function from hidden states (B, C) to float32 logits and their ids: (B, V) and None, or (B, K) and (B, K).

    GPT-2's logits are near -100, where bfloat16 has multiples of 0.5. The logits of LIKELIEST ids are therefore
    computed again in float32; without `top_k`, or for the `whole` vocabulary, all are."""
    weight, V = model.wte.weight, model.config.vocab_size
    if weight.dtype == torch.float32:
        return lambda x: (model.head(x).float(), None)
    if whole or not top_k or max(top_k, LIKELIEST) >= V:
        float32_weight = weight[:V].float()
        return lambda x: (F.linear(x.float(), float32_weight), None)

    def likeliest(x: Tensor) -> tuple[Tensor, Tensor]:
        logits, ids = model.head(x).topk(max(top_k, LIKELIEST))
        logits = logits.float()
        logits[:, :LIKELIEST] = torch.bmm(weight[ids[:, :LIKELIEST]].float(), x.float().unsqueeze(-1)).squeeze(-1)
        return logits, ids

    return likeliest


class CUDAGraphStep:
    """`forward_cached` of one token as a CUDA graph: one launch instead of two hundred. Without a GPU the same step
    runs uncaptured."""

    def __init__(self, model: Transformer, cache: KVCache) -> None:
        self.cache = cache
        self.idx = torch.zeros(cache.shape[0], 1, dtype=torch.long, device=cache.device)
        self.input_pos = cache.input_pos = torch.tensor([cache.length], device=cache.device)
        step = lambda: model.hidden(self.idx, cache)  # noqa: E731
        self.replay = _capture(step, cache.device) if cache.device.type == "cuda" else step

    def __call__(self, idx: Tensor) -> Tensor:
        """Hidden states (B, 1, C) of the next token (B, 1)."""
        self.idx.copy_(idx)
        x = self.replay()
        self.input_pos += 1
        self.cache.length += 1
        return x


def _capture(step: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
    """A function that replays the kernels of `step` from a CUDA graph."""
    with torch.cuda.device(device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # warm-up, in which libraries allocate; the first replay overwrites its keys
            step()
            step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            x = step()

    def replay() -> Tensor:
        with torch.cuda.device(device):
            graph.replay()
        return x

    return replay
