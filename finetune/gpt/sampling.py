"""Samples of text: ids become text as they come, end at end-of-text or a stop text, and are printed."""

from __future__ import annotations

import codecs
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, SupportsInt

import numpy as np
import torch
from torch import Tensor

from finetune.common.console import encodable, end_unread, is_terminal
from finetune.common.errors import Failure, UsageError
from finetune.common.free_memory import give_back_heap, is_out_of_memory
from finetune.gpt import GPT, pieces, streams
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
    """Continuations of a prompt (int64 ids). `options` are the fields of `SampleOptions`.

    `show(sample)` is called with the first sample after each of its tokens. Raises UsageError for a prompt with ids
    that the model lacks, and Failure if there is no memory for one sample."""
    return list(iterate_samples(model, tokenizer, prompt, show, **options))


def iterate_samples(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: np.ndarray,
    show: Callable[[Sample], None] | None = None,
    skip: int = 0,
    **options: Any,
) -> Iterator[Sample]:
    """`draw_samples` in pieces that fit into memory, without the first `skip` samples.

    The seed and its number decide what a sample is. For the same bits a piece is computed whole, also when its last
    rows are not asked for."""
    asked = SampleOptions(**options)
    check_prompt(prompt, "the model", model.config.vocab_size)
    most = pieces.most_rows(model, len(prompt), asked.max_new_tokens)
    if isinstance(asked.seed, torch.Generator):  # no other samples are equal to these
        most = min(most, asked.num_samples)
        asked = replace(asked, seed=int(streams.draw(asked.seed)))
    elif pieces.is_lone(model, asked.num_samples):
        most = 1
    begin, shown = 0, 0  # `shown` characters of the first sample
    while begin < asked.num_samples:
        rows = range(begin, begin + pieces.rows_of_piece(begin, most))
        if rows.stop > skip:
            samples = _new_samples(model, tokenizer, asked, len(rows[: asked.num_samples - begin]))
            samples[0].shown = shown
            if not _fill(samples, rows, model, tokenizer, prompt, asked, None if begin else show):
                shown, most = samples[0].shown, len(rows) // 2
                continue
            shown = 0
            yield from samples[max(0, skip - begin) :]
            if rows.stop < asked.num_samples:
                give_back_heap()
        begin = rows.stop


def _new_samples(model: GPT, tokenizer: Tokenizer, asked: SampleOptions, number: int) -> list[Sample]:
    ends = frozenset() if asked.ignore_eos else ends_of(model, tokenizer).union(asked.other_ends)
    return [Sample(tokenizer, ends, asked.stop) for _ in range(number)]


def _fill(
    samples: list[Sample],
    rows: range,
    model: GPT,
    tokenizer: Tokenizer,
    prompt: np.ndarray,
    asked: SampleOptions,
    show: Callable[[Sample], None] | None,
) -> bool:
    """Draw the samples, the first of the numbers `rows`. False after OOM; if it was one row, raises Failure."""
    device = model.wte.weight.device

    def add_tokens(new: Tensor) -> bool:
        for sample, ids in zip(samples, new.tolist()):
            sample.add(ids)
        if show:
            show(samples[0])
        return all(sample.finish_reason for sample in samples)

    blocker = asked.copy_blocker
    assert isinstance(asked.seed, int)
    try:
        model.generate(
            torch.from_numpy(prompt).to(device).expand(len(rows), -1),
            asked.max_new_tokens,
            generator=torch.Generator().manual_seed(asked.seed),
            rows=rows,
            logits_processor=_copy_processor(blocker, samples, tokenizer) if blocker else None,
            callback=add_tokens,
            eos_token_id=None,  # those of the samples are more
            callback_every=1 if show or blocker or device.type == "cpu" else CHECK_EVERY,
            **{field.name: getattr(asked, field.name) for field in fields(Sampler)},
        )
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        if len(rows) == 1:
            raise Failure("out of memory with one sample; a smaller --max_new_tokens takes less", 1) from None
        return False
    for sample in samples:
        sample.finish("length")
    return True


def _copy_processor(
    copy_blocker: CopyBlocker, samples: list[Sample], tokenizer: Tokenizer
) -> Callable[[Tensor, Tensor], Tensor]:
    """A logits processor that excludes what `copy_blocker` names, also spelled in shorter tokens, but never an end."""

    def process(_: Tensor, logits: Tensor) -> Tensor:
        for sample, row in zip(samples, logits):
            if sample.finish_reason:
                continue
            blocked = {int(i) for i in copy_blocker(sample.ids)}.difference(sample.ends)
            blocked = sorted(blocked.union(*(tokenizer.beginnings(i) for i in blocked)))
            if len(blocked) == len(row):
                sample.finish("max_copy")
            elif blocked:
                row[torch.tensor(blocked, device=row.device)] = -torch.inf
        return logits

    return process


def print_samples(model: GPT, tokenizer: Tokenizer, prompt: np.ndarray, **options: Any) -> list[Sample]:
    """`draw_samples`, and print each with the prompt before it; a terminal shows the first one token by token."""
    start = encodable(tokenizer.decode(prompt))
    print(f"---------------\n{start}", end="", flush=True)
    end_unread()
    samples: list[Sample] = []
    callback = write_new_text if is_terminal(sys.stdout) else None
    for sample in iterate_samples(model, tokenizer, prompt, callback, **options):
        if samples:
            print(f"---------------\n{start}", end="")
        write_new_text(sample)
        print()
        samples.append(sample)
    print("---------------")
    return samples


def write_new_text(sample: Sample) -> None:
    """Print what is new in a sample; a command that nobody reads ends here."""
    print(encodable(sample.new_text()), end="", flush=True)
    end_unread()
