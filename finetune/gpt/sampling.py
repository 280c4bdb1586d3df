"""Samples as people read them: text that grows with its tokens, ends where it should, and is shown."""

import codecs
import sys

import torch

LOOK_EVERY = 16  # tokens between looks at what a GPU has written, because each look waits for it


class Sample:
    """What a model wrote after a prompt, as its ids come: `ids`, their `text`, and why it ended, `finish_reason`.

    "end_of_text": with the id `end`, which is not part of it; "stop": its text came to `stop`, where text is cut, while
    ids are those it took to see that; "max_copy": every way to go on would have been copied; "length": it was long
    enough."""

    def __init__(self, tokenizer, end=None, stop=""):
        self.tokenizer, self.end, self.stop = tokenizer, end, stop
        self.ids, self.text, self.finish_reason = [], "", None
        self.shown = 0  # characters
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a character may be spread over several tokens

    def add(self, ids):
        for i in ids:
            if self.finish_reason:
                return
            if i == self.end:
                self.finish("end_of_text")
                return
            self.ids.append(i)
            self._append(self.tokenizer.decode_bytes([i]))

    def finish(self, reason):
        """Let it end here for this reason, unless it has ended before."""
        if not self.finish_reason:
            self._append(b"", final=True)
            self.finish_reason = self.finish_reason or reason

    def fresh(self):
        """The text that was not shown yet and that no later token can take back."""
        held = 0
        if self.stop and not self.finish_reason:  # what may be the begin of the stop text
            held = max(n for n in range(len(self.stop)) if self.text.endswith(self.stop[:n]))
        start, self.shown = self.shown, max(self.shown, len(self.text) - held)
        return self.text[start : self.shown]

    def _append(self, more, final=False):
        before = len(self.text)
        self.text += self.decoder.decode(more, final)
        if self.stop and (at := self.text.find(self.stop, max(0, before - len(self.stop) + 1))) >= 0:
            self.text, self.finish_reason = self.text[:at], "stop"


def draw_samples(
    model,
    tokenizer,
    prompt,
    num_samples=1,
    max_new_tokens=200,
    seed=1337,
    stop="",
    ignore_eos=False,
    followers=None,
    show=None,
    **settings,
):
    """`num_samples` Samples that go on from the prompt (int64 ids), all in one batch; the seed decides them, whatever
    else is asked.

    End-of-text ends a sample unless `ignore_eos`. `followers`, `data.copied.Followers`, says what must not come next.
    `show(sample)` sees the first sample after each of its tokens. `settings` are those of `generate`. `seed` may be a
    generator that goes on."""
    device = model.wte.weight.device
    generator = seed if isinstance(seed, torch.Generator) else torch.Generator(device).manual_seed(seed)
    end = None if ignore_eos else tokenizer.eot
    samples = [Sample(tokenizer, end, stop) for _ in range(num_samples)]

    def watch(new):
        for sample, ids in zip(samples, new.tolist()):
            sample.add(ids)
        if show:
            show(samples[0])
        return all(sample.finish_reason for sample in samples)

    def without_copies(_, logits):
        for sample, row in zip(samples, logits):
            if sample.finish_reason or not (excluded := _excluded(followers(sample.ids), tokenizer, end)):
                continue
            if len(excluded) == len(row):
                sample.finish("max_copy")
            else:
                row[torch.tensor(excluded, device=device)] = -torch.inf
        return logits

    model.generate(
        torch.from_numpy(prompt).to(device).expand(num_samples, -1),
        max_new_tokens,
        generator=generator,
        process=without_copies if followers else None,
        watch=watch,
        watch_every=1 if show or followers or device.type == "cpu" else LOOK_EVERY,
        **settings,
    )
    for sample in samples:
        sample.finish("length")
    return samples


def _excluded(ids, tokenizer, end):
    """These ids and all that would begin the same text in shorter tokens; never `end`, which adds no text."""
    ids = {int(i) for i in ids} - {end}
    return sorted(ids.union(*(tokenizer.beginnings(i) for i in ids)))


def print_samples(model, tokenizer, prompt, **options):
    """Print what `draw` gives for the options, each sample with the prompt before it; on a terminal the first one as it
    is written."""
    print("---------------")
    print(tokenizer.decode(prompt), end="", flush=True)
    live = sys.stdout.isatty()
    samples = draw_samples(model, tokenizer, prompt, show=write_fresh if live else None, **options)
    write_fresh(samples[0])
    print()
    for sample in samples[1:]:
        print(f"---------------\n{tokenizer.decode(prompt)}{sample.text}")
    print("---------------")
    return samples


def write_fresh(sample):
    sys.stdout.write(sample.fresh())
    sys.stdout.flush()
