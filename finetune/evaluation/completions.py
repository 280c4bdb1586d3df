"""Text that a model writes: answers to the prompts of instruction data, and samples."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
import torch

from finetune.evaluation.loss import TokenStream, own_share
from finetune.gpt import GPT
from finetune.gpt.generate import generate
from finetune.runtime.device import Device

BATCH_SIZE = 16  # prompts of equal length in a batch
CHECK_EVERY = 32  # tokens between checks whether all rows have ended


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
    and the targets in a row from there. A document without either is left out."""
    assert stream.mask is not None
    found = []
    for start, end in spans:
        ids, mask = np.asarray(stream.ids[start:end], dtype=np.int64), np.asarray(stream.mask[start:end]) == 1
        if mask.any() and (first := int(mask.argmax())) > 0:
            length = int((~mask[first:]).argmax()) or len(ids) - first
            found.append((ids[:first], ids[first : first + length]))
    return found


def complete(
    device: Device,
    model: GPT,
    prompts: list[np.ndarray],
    ends: Collection[int],
    decoding: Decoding,
    title: str = "answering",
) -> list[np.ndarray]:
    """The new ids of each prompt, int64, up to the first of the ids `ends`, the same on every process.

    The seed and the number of a prompt decide what is drawn, also in batches of another size or on more processes, up
    to rounding. A batch has prompts of equal length."""
    from accelerate.utils import gather_object

    batches, answers = _batches(prompts, decoding.batch_size or BATCH_SIZE), []
    for batch in own_share(device, batches, title):
        idx = torch.from_numpy(np.stack([prompts[prompt] for prompt in batch])).to(device.torch_device)
        out = generate(
            model,
            idx,
            decoding.max_new_tokens,
            generator=torch.Generator().manual_seed(decoding.seed),
            rows=batch,
            callback=_stop_at(ends, len(idx)) if ends else None,
            callback_every=CHECK_EVERY,
            eos_token_id=None,
            temperature=decoding.temperature,
            top_k=decoding.top_k,
            top_p=decoding.top_p,
        )
        rows = out[:, idx.size(1) :].cpu().numpy()
        answers += [(prompt, truncate(ids, ends)) for prompt, ids in zip(batch, rows)]
    if device.accelerator.num_processes > 1:
        answers = gather_object(answers)
    return [ids for _, ids in sorted(answers, key=lambda answer: answer[0])]


def truncate(ids: np.ndarray, ends: Collection[int]) -> np.ndarray:
    """The ids before the first of `ends`."""
    places = np.flatnonzero(np.isin(ids, list(ends)))
    return ids[: places[0]] if len(places) else ids


def _batches(prompts: list[np.ndarray], batch_size: int) -> list[list[int]]:
    """Prompt numbers of each batch, the shortest prompts first."""
    by_length: dict[int, list[int]] = {}
    for number, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(number)
    batches = []
    for _, alike in sorted(by_length.items()):
        batches += [alike[first : first + batch_size] for first in range(0, len(alike), batch_size)]
    return batches


def _stop_at(ends: Collection[int], num_rows: int) -> Callable[[torch.Tensor], bool]:
    """A callback of `generate` that stops when every row has one of the ids `ends`."""
    has_ended, wanted = torch.zeros(num_rows, dtype=torch.bool), torch.tensor(sorted(ends))

    def callback(new: torch.Tensor) -> bool:
        has_ended.logical_or_(torch.isin(new.cpu(), wanted).any(1))
        return bool(has_ended.all())

    return callback
