"""Losses of a text: every token is predicted once, nats are summed by block or by document, counted, and divided once.

A text goes through the model in windows. Padding comes after the tokens of a window, where nothing that counts can see
it, so batch size and number of processes change nothing but the rounding.

Shapes: B windows of a batch, T tokens of the longest, N counted tokens of a batch, V vocabulary, M models, U units
(blocks or documents)."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from finetune.gpt.loss import IGNORE
from finetune.runtime.memory import is_out_of_memory

TOKENS = {"cuda": 1 << 16, "mps": 1 << 13, "cpu": 1 << 12}  # of a batch, where its size is left open
LOGITS = {"cuda": 1 << 28, "mps": 1 << 26, "cpu": 1 << 24}  # that exist at a time, of each model: 1 GB, 256 MB, 64 MB


@dataclass
class TokenStream:
    """Tokens to be predicted. `mask` is 1 where a token is a target, None where all are; `token_bytes` holds the bytes
    of text behind each id, None where nobody knows the tokenizer."""

    ids: np.ndarray  # uint16 (tokens,)
    mask: np.ndarray | None = None
    token_bytes: np.ndarray | None = None  # (ids,)


@dataclass
class Windows:
    """What goes through the model: window w sees the tokens from `starts[w]` on and predicts those up to `ends[w]`, of
    which the ones from `counted[w]` on count, for the unit `units[w]`."""

    starts: np.ndarray  # (W,)
    ends: np.ndarray
    counted: np.ndarray
    units: np.ndarray
    num_units: int


@dataclass
class LossSums:
    """What the units of a text came to: sums, for the caller to divide once."""

    nats: np.ndarray  # (M, U)
    right: np.ndarray  # (M, U) tokens than which none was likelier
    targets: np.ndarray  # (U,)
    bytes: np.ndarray  # (U,) of text behind the targets, 0 where nobody knows the tokenizer
    divergence: np.ndarray  # (U,) nats of KL(last model || first model), 0 unless asked for

    def figures(self, number):
        """`loss` (nats per token), `perplexity`, `bits_per_byte` (None where the bytes are not known) and `accuracy` of
        a model."""
        nats, targets, num_bytes = self.nats[number].sum(), self.targets.sum(), self.bytes.sum()
        loss = nats / targets
        return {
            "loss": float(loss),
            "perplexity": math.exp(loss) if loss < 700 else math.inf,
            "bits_per_byte": float(nats / math.log(2) / num_bytes) if num_bytes else None,
            "accuracy": float(self.right[number].sum() / targets),
        }


def whole(text):
    """The one span of a text that is read as a stream, (1, 2): first token and end."""
    return np.array([[0, len(text.ids)]])


def windows(spans, block_size, stride=None, by_span=False):
    """Windows over spans (S, 2) that predict every token but the first of a span once, in blocks of `block_size`
    tokens.

    A smaller `stride` lets the windows overlap: each, after the first of a span, counts the last `stride` tokens only,
    which have seen at least block_size - stride before them. A unit is a window, or the whole span if `by_span`."""
    stride = stride or block_size
    predicted = spans[:, 1] - spans[:, 0] - 1
    per_span = np.where(predicted > 0, 1 + -(-np.maximum(predicted - block_size, 0) // stride), 0)
    span = np.repeat(np.arange(len(spans)), per_span)
    number = np.arange(len(span)) - np.repeat(np.cumsum(per_span) - per_span, per_span)  # of a window within its span
    starts = spans[span, 0] + number * stride
    ends = np.minimum(starts + block_size, spans[span, 1] - 1)
    counted = starts + 1 + np.where(number > 0, block_size - stride, 0)
    return Windows(
        starts, ends, counted, span if by_span else np.arange(len(span)), len(spans) if by_span else len(span)
    )


def measure(machine, models, text, windows, batch_size=None, divergence=False, title="evaluating"):
    """The Sums of `models` over the windows of a text, the same on every process. `batch_size` windows go at a time, as
    many as make sense if None; with `divergence` the KL of the last model to the first is summed too. Draws no random
    number."""
    from tqdm import tqdm

    accelerator, device = machine.accelerator, machine.torch_device
    batches = _batches(windows, batch_size, TOKENS[device.type])
    mine = batches[accelerator.process_index :: accelerator.num_processes]
    sums = np.zeros((2 * len(models) + 3, windows.num_units))
    for model in models:
        model.eval()
    for rows in tqdm(
        mine, desc=title, unit="batch", disable=None if accelerator.is_main_process else True, leave=False
    ):
        _add(sums, machine, models, text, windows, rows, divergence)
    if accelerator.num_processes > 1:
        sums = accelerator.reduce(torch.from_numpy(sums).to(device)).cpu().numpy()
    nats, right, rest = np.split(sums, [len(models), 2 * len(models)])
    return LossSums(nats, right, *rest)


def _batches(windows, batch_size, tokens):
    """Row numbers of each batch; windows of like length go together, the longest first, so that there is little
    padding."""
    lengths = windows.ends - windows.starts
    order, batches, done = np.argsort(-lengths, kind="stable"), [], 0
    while done < len(order):
        size = batch_size or max(1, tokens // lengths[order[done]])
        batches.append(order[done : done + size])
        done += size
    return batches


def _add(sums, machine, models, text, windows, rows, divergence):
    """Add what a batch came to; in halves, should it not fit into memory."""
    try:
        idx, targets = _batch(text, windows, rows)
        scores = _scores(machine, models, idx, targets, divergence)  # (2 M + 1, N)
    except RuntimeError as error:
        if not is_out_of_memory(error) or len(rows) == 1:
            raise
        scores = None
    if scores is None:  # outside of the except, where the error would keep what did not fit
        for half in np.array_split(rows, 2):
            _add(sums, machine, models, text, windows, half, divergence)
        return
    counted = targets != IGNORE
    sizes = np.zeros(int(counted.sum())) if text.token_bytes is None else text.token_bytes[targets[counted].numpy()]
    unit = np.broadcast_to(windows.units[rows][:, None], targets.shape)[counted.numpy()]  # of each counted token
    found, place = np.unique(unit, return_inverse=True)
    nats_and_right, kl = scores[:-1], scores[-1]
    for row, values in enumerate([*nats_and_right, np.ones(len(unit)), sizes, kl]):
        sums[row, found] += np.bincount(place, weights=values, minlength=len(found))


def _batch(text, windows, rows):
    """`(idx, targets)` of some windows, int64 (B, T) each; targets are -100 where a token does not count."""
    starts, ends, counted = (values[rows][:, None] for values in (windows.starts, windows.ends, windows.counted))
    places = starts + np.arange((ends - starts).max() + 1)
    ids = torch.from_numpy(text.ids[np.minimum(places, ends)].astype(np.int64))
    places = places[:, 1:]
    ignored = (places > ends) | (places < counted)
    if text.mask is not None:
        ignored |= text.mask[np.minimum(places, ends)] == 0
    return ids[:, :-1], ids[:, 1:].masked_fill(torch.from_numpy(ignored), IGNORE)


@torch.no_grad()
def _scores(machine, models, idx, targets, divergence):
    """Nats of each model, whether it was right, and the divergence of the last to the first: float64 (2 M + 1, N), in
    the order of the counted tokens."""
    device, counted = machine.torch_device, (targets != IGNORE).to(machine.torch_device)
    idx, labels = idx.to(device), targets[targets != IGNORE].to(device)
    nats, right = torch.zeros(len(models), len(labels)), torch.zeros(len(models), len(labels))
    kl = torch.zeros(len(labels))
    with machine.autocast():
        hidden = [model.hidden(idx)[counted] for model in models]  # (N, C) each
        step = max(1, LOGITS[device.type] // models[0].config.vocab_size)
        for first in range(0, len(labels), step):
            part = slice(first, first + step)
            logp = [
                F.log_softmax(model.head(x[part]).float().contiguous(), -1) for model, x in zip(models, hidden)
            ]  # (n, V) each
            for number, one in enumerate(logp):
                picked = one.gather(-1, labels[part, None])[:, 0]
                nats[number, part], right[number, part] = -picked.cpu(), (picked == one.amax(-1)).float().cpu()
            if divergence:
                difference = logp[-1] - logp[0]
                kl[part] = logp[-1].exp_().mul_(difference).sum(-1).cpu()
    return torch.cat([nats, right, kl[None]]).double().numpy()
