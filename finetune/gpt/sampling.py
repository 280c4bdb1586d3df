"""Samples of text: ids become text as they come, end at end-of-text or a stop text, and are printed."""

from __future__ import annotations

import codecs
import sys
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, fields
from typing import Any, Protocol, SupportsInt

import numpy as np
import torch
from torch import Tensor

from finetune.common.errors import UsageError
from finetune.gpt import GPT
from finetune.gpt.generate import CHECK_EVERY, Sampler

CopyBlocker = Callable[[list[int]], Iterable[SupportsInt]]  # ids of a sample -> ids that must not follow


class Tokenizer(Protocol):
    @property
    def eot(self) -> int | None: ...

    def decode(self, ids: Any) -> str: ...

    def decode_bytes(self, ids: Any) -> bytes: ...

    def beginnings(self, token: int) -> list[int]: ...


@dataclass(frozen=True, kw_only=True)
class SampleOptions(Sampler):
    """How samples are drawn and where they end."""

    num_samples: int = 1
    max_new_tokens: int = 200
    seed: int | torch.Generator = 1337  # a generator goes on where it is
    stop: str = ""  # a text that ends a sample
    ignore_eos: bool = False  # the ids of `ends_of` do not end a sample
    other_ends: Collection[int] = ()  # more ids that end a sample
    copy_blocker: CopyBlocker | None = None


class Sample:
    """One continuation of a prompt: `ids`, their `text`, and `finish_reason`, None until it ends.

    "end_of_text": one of the ids `ends` came, which `ids` leave out. "stop": `stop` came; the text is cut before it,
    `ids` are not. "max_copy": the copy blocker left no id. "length": max_new_tokens."""

    def __init__(self, tokenizer: Tokenizer, ends: Collection[int] = (), stop: str = "") -> None:
        self.tokenizer, self.ends, self.stop = tokenizer, ends, stop
        self.ids: list[int] = []
        self.text = ""
        self.finish_reason: str | None = None
        self.shown = 0  # characters
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a character may take several tokens

    def add(self, ids: list[int]) -> None:
        for i in ids:
            if self.finish_reason:
                return
            if i in self.ends:
                self.finish("end_of_text")
                return
            self.ids.append(i)
            self._append(self.tokenizer.decode_bytes([i]))

    def finish(self, reason: str) -> None:
        """End here for this reason, unless it has ended."""
        if not self.finish_reason:
            self._append(b"", final=True)  # the last characters may complete `stop`
            self.finish_reason = self.finish_reason or reason

    def new_text(self) -> str:
        """The text since the last call, without an end that may be the beginning of `stop`."""
        held = 0
        if self.stop and not self.finish_reason:
            held = max(n for n in range(len(self.stop)) if self.text.endswith(self.stop[:n]))
        start, self.shown = self.shown, max(self.shown, len(self.text) - held)
        return self.text[start : self.shown]

    def _append(self, more: bytes, final: bool = False) -> None:
        before = len(self.text)
        self.text += self.decoder.decode(more, final)
        if self.stop and (at := self.text.find(self.stop, max(0, before - len(self.stop) + 1))) >= 0:
            self.text, self.finish_reason = self.text[:at], "stop"


def ends_of(model: GPT, tokenizer: Tokenizer) -> frozenset[int]:
    """The ids that end a text: those of the model's generation settings, and the tokenizer's end-of-text."""
    return frozenset(model.config.end_ids) | ({tokenizer.eot} if tokenizer.eot is not None else set())


def check_prompt(prompt: np.ndarray, model: str, vocab_size: int) -> None:
    """Raise UsageError for ids that `model` has no embedding for."""
    if len(prompt) and prompt.max() >= vocab_size:
        problem = f"has the token {prompt.max():,} of the tokenizer, and {model} has {vocab_size:,} ids"
        raise UsageError(f"the prompt {problem}; leave its added tokens out")


def draw_samples(
    model: GPT, tokenizer: Tokenizer, prompt: np.ndarray, show: Callable[[Sample], None] | None = None, **options: Any
) -> list[Sample]:
    """Continuations of a prompt (int64 ids), in one batch. `options` are the fields of `SampleOptions`.

    `show(sample)` is called with the first sample after each of its tokens. Raises UsageError for a prompt with ids
    that the model lacks."""
    asked = SampleOptions(**options)
    check_prompt(prompt, "the model", model.config.vocab_size)
    device = model.wte.weight.device
    seed = asked.seed
    generator = seed if isinstance(seed, torch.Generator) else torch.Generator(device).manual_seed(seed)
    ends = frozenset() if asked.ignore_eos else ends_of(model, tokenizer).union(asked.other_ends)
    samples = [Sample(tokenizer, ends, asked.stop) for _ in range(asked.num_samples)]

    def add_tokens(new: Tensor) -> bool:
        for sample, ids in zip(samples, new.tolist()):
            sample.add(ids)
        if show:
            show(samples[0])
        return all(sample.finish_reason for sample in samples)

    model.generate(
        torch.from_numpy(prompt).to(device).expand(asked.num_samples, -1),
        asked.max_new_tokens,
        generator=generator,
        logits_processor=_copy_processor(asked.copy_blocker, samples, tokenizer, ends) if asked.copy_blocker else None,
        callback=add_tokens,
        eos_token_id=None,  # `ends` are more
        callback_every=1 if show or asked.copy_blocker or device.type == "cpu" else CHECK_EVERY,
        **{field.name: getattr(asked, field.name) for field in fields(Sampler)},
    )
    for sample in samples:
        sample.finish("length")
    return samples


def _copy_processor(
    copy_blocker: CopyBlocker, samples: list[Sample], tokenizer: Tokenizer, ends: Collection[int]
) -> Callable[[Tensor, Tensor], Tensor]:
    """A logits processor that excludes what `copy_blocker` names, also spelled in shorter tokens, but never `ends`."""

    def process(_: Tensor, logits: Tensor) -> Tensor:
        for sample, row in zip(samples, logits):
            if sample.finish_reason:
                continue
            blocked = {int(i) for i in copy_blocker(sample.ids)}.difference(ends)
            blocked = sorted(blocked.union(*(tokenizer.beginnings(i) for i in blocked)))
            if len(blocked) == len(row):
                sample.finish("max_copy")
            elif blocked:
                row[torch.tensor(blocked, device=row.device)] = -torch.inf
        return logits

    return process


def print_samples(model: GPT, tokenizer: Tokenizer, prompt: np.ndarray, **options: Any) -> list[Sample]:
    """`draw_samples`, and print each with the prompt before it; a terminal shows the first one token by token."""
    print("---------------")
    print(tokenizer.decode(prompt), end="", flush=True)
    show = write_new_text if sys.stdout.isatty() else None
    samples = draw_samples(model, tokenizer, prompt, show, **options)
    write_new_text(samples[0])
    print()
    for sample in samples[1:]:
        print(f"---------------\n{tokenizer.decode(prompt)}{sample.text}")
    print("---------------")
    return samples


def write_new_text(sample: Sample) -> None:
    sys.stdout.write(sample.new_text())
    sys.stdout.flush()
