"""Losses of a text: every token is predicted once; nats are summed by block or document and divided once.

A text goes through the model in windows. Padding follows the tokens of a window, and no token attends to it, so batch
size and number of processes change nothing but rounding.

Shapes: B windows of a batch, T tokens of the longest, N counted tokens of a batch, V vocabulary, M models, U units
(blocks or documents)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch.nn import functional as F

from finetune.common.mapped import check_mapped
from finetune.common.progress import progress
from finetune.gpt import GPT
from finetune.gpt.loss import IGNORE_INDEX
from finetune.runtime.device import Device
from finetune.runtime.memory import is_out_of_memory

Batch = TypeVar("Batch")
BATCH_TOKENS = {"cuda": 1 << 16, "mps": 1 << 13, "cpu": 1 << 12}  # of a batch whose size is not given
LOGITS = {"cuda": 1 << 28, "mps": 1 << 26, "cpu": 1 << 24}  # at a time, per model: 1 GB, 256 MB, 64 MB


@dataclass
class TokenStream:
    """Token ids of a text."""

    ids: np.ndarray  # uint16 or uint32 (tokens,)
    mask: np.ndarray | None = None  # uint8 (tokens,), 1 for targets; None if every token is one
    token_bytes: np.ndarray | None = None  # (V,) bytes of the text of each id; None without a tokenizer

    def as_span(self) -> np.ndarray:
        """One span over the whole stream, (1, 2): first token and end."""
        return np.array([[0, len(self.ids)]])


@dataclass
class Windows:
    """The inputs of the model: window w reads from token `starts[w]` and predicts up to token `ends[w]`. The loss of
    token `counted[w]` and of those after it is added to unit `units[w]`."""

    starts: np.ndarray  # (W,)
    ends: np.ndarray
    counted: np.ndarray
    units: np.ndarray
    num_units: int


@dataclass
class LossSums:
    """Sums over the units of a text, for the caller to divide once."""

    nats: np.ndarray  # (M, U)
    correct: np.ndarray  # (M, U) targets that were the likeliest token; of equally likely ones the first
    targets: np.ndarray  # (U,)
    bytes: np.ndarray  # (U,) of the text of the targets, 0 without a tokenizer
    divergence: np.ndarray  # (U,) nats of KL(last model || first model), 0 unless asked for

    def figures(self, number: int) -> dict[str, float | None]:
        """`loss` (nats per token), `perplexity`, `bits_per_byte` (None without a tokenizer) and `accuracy` of a
        model."""
        nats, targets, num_bytes = self.nats[number].sum(), self.targets.sum(), self.bytes.sum()
        loss = nats / targets
        return {
            "loss": float(loss),
            "perplexity": math.exp(loss) if loss < 700 else math.inf,
            "bits_per_byte": float(nats / math.log(2) / num_bytes) if num_bytes else None,
            "accuracy": float(self.correct[number].sum() / targets),
        }


def make_windows(spans: np.ndarray, block_size: int, stride: int | None = None, by_span: bool = False) -> Windows:
    """Windows of `block_size` tokens over spans (S, 2) that predict every token once, except the first of a span.

    With a smaller `stride` windows overlap: after the first window of a span, each counts only its last `stride`
    tokens, which have at least block_size - stride tokens of context. A unit is a window, or a span if `by_span`."""
    stride = stride or block_size
    predicted = spans[:, 1] - spans[:, 0] - 1
    per_span = np.where(predicted > 0, 1 + -(-np.maximum(predicted - block_size, 0) // stride), 0)
    span = np.repeat(np.arange(len(spans)), per_span)
    number = np.arange(len(span)) - np.repeat(np.cumsum(per_span) - per_span, per_span)  # of a window within its span
    starts = spans[span, 0] + number * stride
    ends = np.minimum(starts + block_size, spans[span, 1] - 1)
    counted = starts + 1 + np.where(number > 0, block_size - stride, 0)
    if by_span:
        return Windows(starts, ends, counted, span, len(spans))
    return Windows(starts, ends, counted, np.arange(len(span)), len(span))


def measure(
    device: Device,
    models: list[GPT],
    stream: TokenStream,
    windows: Windows,
    batch_size: int | None,
    title: str,
    divergence: bool = False,
) -> LossSums:
    """The LossSums of `models` over the windows of a stream, the same on every process. Draws no random number.

    `batch_size` windows form a batch; None chooses by their length. `divergence` asks for the KL too."""
    # rows: nats of each model, correct of each model, targets, bytes, divergence
    sums = np.zeros((2 * len(models) + 3, windows.num_units))
    batches = _batches(windows, batch_size, BATCH_TOKENS[device.torch_device.type])
    for rows in own_share(device, batches, title):
        _add(sums, device, models, stream, windows, rows, divergence)
    if device.accelerator.num_processes > 1:
        sums = device.accelerator.reduce(torch.from_numpy(sums).to(device.torch_device)).cpu().numpy()
    nats, correct, rest = np.split(sums, [len(models), 2 * len(models)])
    return LossSums(nats, correct, *rest)


def own_share(device: Device, batches: list[Batch], title: str) -> Iterable[Batch]:
    """This process's batches, with a progress bar on the main process."""
    accelerator = device.accelerator
    mine = batches[accelerator.process_index :: accelerator.num_processes]
    hide_bar = None if accelerator.is_main_process else True  # None shows it on a terminal
    return progress(mine, desc=title, unit="batch", disable=hide_bar, leave=False)


def _batches(windows: Windows, batch_size: int | None, tokens: int) -> list[np.ndarray]:
    """Window numbers of each batch. Sorted by length, longest first, so that there is little padding."""
    lengths = windows.ends - windows.starts
    order, batches, done = np.argsort(-lengths, kind="stable"), [], 0
    while done < len(order):
        size = batch_size or max(1, tokens // lengths[order[done]])
        batches.append(order[done : done + size])
        done += size
    return batches


def _add(
    sums: np.ndarray,
    device: Device,
    models: list[GPT],
    stream: TokenStream,
    windows: Windows,
    rows: np.ndarray,
    divergence: bool,
) -> None:
    """Add the sums of a batch; after an OOM, of its halves."""
    idx, targets = _batch(stream, windows, rows)
    try:
        scores = _scores(device, models, idx, targets, divergence)  # (2 M + 1, N)
    except RuntimeError as error:
        if not is_out_of_memory(error) or len(rows) == 1:
            raise
        scores = None
    if scores is None:  # not in the except block, where the traceback would keep tensors alive
        for half in np.array_split(rows, 2):
            _add(sums, device, models, stream, windows, half, divergence)
        return
    counted = (targets != IGNORE_INDEX).numpy()
    labels = targets.numpy()[counted]
    sizes = np.zeros(len(labels)) if stream.token_bytes is None else stream.token_bytes[labels]
    # the units of the batch, and which of them each counted token belongs to
    units, which = np.unique(np.repeat(windows.units[rows], counted.sum(1)), return_inverse=True)
    *nats_and_correct, kl = scores
    for row, values in enumerate([*nats_and_correct, np.ones(len(labels)), sizes, kl]):
        sums[row, units] += np.bincount(which, weights=values, minlength=len(units))


def _batch(stream: TokenStream, windows: Windows, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """`(idx, targets)` of some windows, int64 (B, T) each; targets that do not count are -100."""
    for array in (stream.ids, stream.mask):
        check_mapped(getattr(array, "base", None), "a bin of the split")  # that of a memmap is its file
    starts, ends, counted = (values[rows][:, None] for values in (windows.starts, windows.ends, windows.counted))
    places = starts + np.arange((ends - starts).max() + 1)
    ids = torch.from_numpy(stream.ids[np.minimum(places, ends)].astype(np.int64))
    places = places[:, 1:]
    ignored = (places > ends) | (places < counted)
    if stream.mask is not None:
        ignored |= stream.mask[np.minimum(places, ends)] == 0
    return ids[:, :-1], ids[:, 1:].masked_fill(torch.from_numpy(ignored), IGNORE_INDEX)


@torch.no_grad()
def _scores(
    device: Device, models: list[GPT], idx: torch.Tensor, targets: torch.Tensor, divergence: bool
) -> np.ndarray:
    """Nats and correctness of each model, then the divergence of the last from the first: float64 (2 M + 1, N), in the
    order of the counted tokens."""
    torch_device, is_counted = device.torch_device, targets != IGNORE_INDEX
    idx, labels = idx.to(torch_device), targets[is_counted].to(torch_device)
    is_counted = is_counted.to(torch_device)
    nats, correct = torch.zeros(2, len(models), len(labels))
    kl = torch.zeros(len(labels))
    with device.autocast():
        hidden = [model.hidden(idx)[is_counted] for model in models]  # (N, C) each
        step = max(1, LOGITS[torch_device.type] // models[0].config.vocab_size)
        for first in range(0, len(labels), step):
            part = slice(first, first + step)
            logp = []  # (n, V) of each model
            for number, (model, x) in enumerate(zip(models, hidden)):
                logits = model.head(x[part]).float().contiguous()
                # of equal logits, which bfloat16 has many of, one is chosen: the others do not count as right
                correct[number, part] = (logits.argmax(-1) == labels[part]).float().cpu()
                logp.append(F.log_softmax(logits, -1))
                nats[number, part] = -logp[-1].gather(-1, labels[part, None])[:, 0].cpu()
            if divergence:
                difference = logp[-1] - logp[0]
                kl[part] = logp[-1].exp_().mul_(difference).sum(-1).cpu()
    return torch.cat([nats, correct, kl[None]]).double().numpy()
