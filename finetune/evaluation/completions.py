"""Text that a model writes: answers to the prompts of instruction data, and samples."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch

from finetune.evaluation.loss import TokenStream
from finetune.gpt import GPT
from finetune.gpt.generate import generate
from finetune.runtime.device import Device

BATCH_SIZE = 16  # prompts of equal length in a batch
FIRST_STEP = 32  # tokens before the first check whether all rows have ended


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen, as in `generate`, and how many prompts form a batch."""

    max_new_tokens: int
    seed: int
    temperature: float
    top_k: int = 0
    top_p: float = 1.0
    batch_size: int | None = None


def examples(stream: TokenStream, spans: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """[(prompt, reference)] of the documents (D, 2) of instruction data, int64 ids: the tokens before the first target,
    and the targets that follow. A document without either is left out."""
    assert stream.mask is not None
    found = []
    for start, end in spans:
        ids, mask = np.asarray(stream.ids[start:end], dtype=np.int64), np.asarray(stream.mask[start:end]) == 1
        if mask.any() and (first := int(mask.argmax())) > 0:
            length = int((~mask[first:]).argmax()) or len(ids) - first
            found.append((ids[:first], ids[first : first + length]))
    return found


def complete(
    device: Device, model: GPT, prompts: list[np.ndarray], eot: int | None, decoding: Decoding, title: str = "answering"
) -> list[np.ndarray]:
    """The new ids of each prompt, int64, without the end-of-text that ends them, the same on every process.

    A batch has prompts of equal length and a seed of its own, so the batch size decides what is drawn, but the number
    of processes does not."""
    from accelerate.utils import gather_object
    from tqdm import tqdm

    accelerator = device.accelerator
    batches = _batches(prompts, decoding.batch_size or BATCH_SIZE)
    mine, answers = range(accelerator.process_index, len(batches), accelerator.num_processes), []
    model.eval()
    hide_bar = None if accelerator.is_main_process else True
    for number in tqdm(mine, desc=title, unit="batch", disable=hide_bar, leave=False):
        idx = torch.from_numpy(np.stack([prompts[prompt] for prompt in batches[number]])).to(device.torch_device)
        generator = torch.Generator(device.torch_device).manual_seed((decoding.seed + number) % 2**63)
        rows = _continue(model, idx, eot, decoding, generator).cpu().numpy()
        answers += [(prompt, truncate_at_eot(ids, eot)) for prompt, ids in zip(batches[number], rows)]
    if accelerator.num_processes > 1:
        answers = gather_object(answers)
    return [ids for _, ids in sorted(answers, key=lambda answer: answer[0])]


def truncate_at_eot(ids: np.ndarray, eot: int | None) -> np.ndarray:
    """The ids before the first end-of-text."""
    ends = np.flatnonzero(ids == eot)
    return ids[: ends[0]] if len(ends) else ids


def _batches(prompts: list[np.ndarray], batch_size: int) -> list[list[int]]:
    """Prompt numbers of each batch, in the order of length."""
    batches, order = [], sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    for _, numbers in itertools.groupby(order, key=lambda number: len(prompts[number])):
        alike = list(numbers)
        batches += [alike[first : first + batch_size] for first in range(0, len(alike), batch_size)]
    return batches


def _continue(
    model: GPT, idx: torch.Tensor, eot: int | None, decoding: Decoding, generator: torch.Generator
) -> torch.Tensor:
    """The new ids (B, up to max_new_tokens) after `idx`, until every row has an end-of-text. Steps double in length,
    because each step starts with a pass over all tokens so far."""
    length, step = idx.size(1), FIRST_STEP
    settings = {name: getattr(decoding, name) for name in ("temperature", "top_k", "top_p")}
    while (left := length + decoding.max_new_tokens - idx.size(1)) > 0:
        idx = generate(model, idx, min(step, left), generator=generator, **settings)
        if eot is not None and (idx[:, length:] == eot).any(1).all():
            break
        step *= 2
    return idx[:, length:]
