"""Samples of the text that a run, or any other model, generates.

finetune sample --out_dir=out-mine --start="Once upon a time"
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from finetune.common.errors import UsageError
from finetune.config.cli import check_run_dir, parse, run
from finetune.config.options import option
from finetune.config.recipe import MANY
from finetune.config.run_directory import problem_of_model

if TYPE_CHECKING:
    import numpy as np

    from finetune.data.verbatim import CopyBlocker
    from finetune.gpt import GPT
    from finetune.runs.model_ref import ModelRef

USAGE = """usage: finetune sample --out_dir=OUT [--key=value ...]

Prints samples of the best model of a run."""
SETTINGS = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "stop", "ignore_eos")


@dataclass
class Options:
    out_dir: str | None = option(None, "run directory; its best model is sampled")
    init_from: str | None = option(
        None, "another model: a Hub id or id@revision, a Hugging Face directory or a nanoGPT ckpt.pt"
    )
    start: str = option("\n", "the prompt, or FILE:path to read it from a file; <|endoftext|> is the token")
    prompts: str = option("", "a file of prompts instead: a line each, or .jsonl with prompt or messages")
    chat: bool = option(False, "chat with a model trained on conversations; a line of standard input is a turn")
    system: str = option("", "for chat: the system prompt at the beginning of the conversation")
    num_samples: int = option(10, "samples of each prompt", ge=1, le=10_000)
    max_new_tokens: int = option(500, "length limit of a sample, in tokens", ge=1, le=MANY)
    temperature: float = option(0.8, "below 1.0 more predictable, above more random; 0 is greedy", ge=0)
    top_k: int = option(200, "sample from the k likeliest tokens; 0 is all", ge=0)
    top_p: float = option(1.0, "sample from the likeliest tokens that sum to this probability; 1 is all", gt=0, le=1)
    min_p: float = option(
        0.0, "sample from tokens with at least this share of the highest probability; 0 is all", ge=0, le=1
    )
    repetition_penalty: float = option(
        1.0, "above 1, tokens that already occurred become less likely; 1 is off", ge=1e-6, le=1e6
    )
    stop: str = option("", "text that ends a sample")
    ignore_eos: bool = option(False, "continue after end-of-text, which otherwise ends a sample")
    max_copy: int = option(0, "repeat at most this many consecutive tokens of the training data; 0 is off", ge=0)
    dataset: str = option("", "for max_copy: the training data, prepared or a text [that of the run]")
    out: str = option(
        "", "a .jsonl for the samples, an object each, with its ids; the same command continues a file that ended early"
    )
    overwrite: bool = option(False, "replace the file at --out")
    seed: int = option(1337, "the same seed gives the same samples", ge=0, lt=2**63)
    device: Literal["auto", "cpu", "cuda", "mps"] = option("auto", "where to compute")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option("auto", "arithmetic of the matrix products")

    def problems(self) -> Iterator[tuple[str, str]]:
        if problem := problem_of_model(self.out_dir, self.init_from):
            yield "out_dir", problem
        if not self.start:
            yield "start", "the prompt is empty; a model needs at least one token to go on from"
        if self.overwrite and not self.out:
            yield "overwrite", "has no effect without --out=FILE.jsonl"
        if self.system and not self.chat:
            yield "system", "has no effect without --chat=true"
        if self.dataset and not self.max_copy:
            yield "dataset", "has no effect without --max_copy=N"
        if self.max_copy > 0 and self.out_dir is None and not self.dataset:
            yield "max_copy", "needs the training data of --init_from. Give --dataset=DIR"


def main(argv: list[str]) -> None:
    options, given = parse(Options, argv, USAGE)
    check(options, given)
    found = find(options)
    assert found.tokenizer
    from finetune.data import chat
    from finetune.gpt import sampling
    from finetune.runs import chat_session

    template = chat.template_of(found.folder) if options.chat else None
    if options.chat and template is None:
        raise UsageError(f"{found.path}: has no chat template; --chat=true is for models trained on conversations")
    starts = [] if options.chat else read_starts(options, found)
    settings = read_settings(options, found)
    model = load(options, found)
    if template:
        chat_session.run_chat(model, found.tokenizer, template, options.seed, settings, options.system)
        return
    settings |= {"num_samples": options.num_samples, "seed": options.seed}
    if options.out:
        write(model, found, starts, options, settings)
    else:
        for start in starts:
            sampling.print_samples(model, found.tokenizer, start, **settings)


def check(options: Options, given: Collection[str]) -> None:
    """Raise UsageError for flags that do not go together, inputs that do not exist and outputs that do."""
    if problems := [*_contradictions(options, given), *_wrong_paths(options)]:
        raise UsageError("\n".join(problems))


def find(options: Options) -> ModelRef:
    """The model, with its tokenizer. Raises UsageError."""
    from finetune.runs import inputs

    found = inputs.find_model(options.out_dir or options.init_from or "")
    return replace(found, tokenizer=inputs.require_tokenizer(found))


def read_starts(options: Options, found: ModelRef) -> list[np.ndarray]:
    """The ids of each prompt that the options name. Raises UsageError."""
    from finetune.data import chat, chat_template, prompts
    from finetune.data.tokenizer import encode_prompt, prompt_ids

    tokenizer = found.tokenizer
    assert tokenizer
    if not options.prompts:
        return [prompt_ids(tokenizer, options.start)]
    template = chat.template_of(found.folder)
    found_prompts = prompts.read(options.prompts, template, chat_template.special_names(tokenizer))
    return [encode_prompt(tokenizer, text, place) for place, text in found_prompts]


def read_settings(options: Options, found: ModelRef) -> dict[str, Any]:
    """How samples are drawn. Raises UsageError."""
    settings = {name: getattr(options, name) for name in SETTINGS}
    return settings | {"copy_blocker": _copy_blocker(options, found) if options.max_copy else None}


def load(options: Options, found: ModelRef) -> GPT:
    """The model on its device; it is described in a line."""
    from finetune.runtime import device as devices

    device = devices.choose_device(options.device)
    if device.type == "cpu":
        devices.keep_heap()
        devices.use_all_cores()
    model = found.load().to(device, devices.best_dtype(options.dtype, device))
    parameters = f"{model.num_parameters() / 1e6:.2f}M parameters"
    print(f"{found.describe()}, {parameters}, {found.describe_vocabulary()}", flush=True)
    return model


def _contradictions(options: Options, given: Collection[str]) -> list[str]:
    """Flags that another flag leaves without effect."""
    pairs = [("prompts", "start")] if options.prompts else []
    pairs += (
        [("chat", name) for name in ("start", "prompts", "num_samples", "out", "overwrite")] if options.chat else []
    )
    return [f"--{name}: cannot go with --{other}, which decides that" for other, name in pairs if name in given]


def _wrong_paths(options: Options) -> Iterator[str]:
    """Inputs that do not exist and outputs that do."""
    if problem := check_run_dir(options.out_dir):
        yield problem
    start_file = options.start.removeprefix("FILE:") if options.start.startswith("FILE:") else ""
    for path in (start_file, options.prompts):
        place = Path(os.path.expanduser(path))
        if path and not (place.is_file() or place.is_fifo()):
            problem = "it is a directory" if place.is_dir() else "there is no such file"
            yield f"{path}: cannot be read: {problem}"
    if options.out and not options.chat:
        from finetune.runs import sample_file

        if problem := sample_file.problem_of(Path(options.out), options.overwrite):
            yield f"out {options.out}: {problem}"


def write(
    model: GPT, found: ModelRef, starts: list[np.ndarray], options: Options, settings: dict[str, Any]
) -> list[str]:
    """Write the samples of all prompts to options.out, or those that are not there yet; return the texts of all with
    the prompts before them. Raises UsageError if another command wrote the file."""
    from finetune.common.progress import progress
    from finetune.gpt.sampling import iterate_samples
    from finetune.runs import sample_file

    tokenizer, number = found.tokenizer, options.num_samples
    assert tokenizer
    how = {"model": found.describe(), "seed": options.seed}
    how |= {key: getattr(options, key) for key in (*SETTINGS, "max_copy")}
    how |= {"dtype": str(model.wte.weight.dtype).removeprefix("torch.")}
    how |= {"weights": sample_file.fingerprint(model, settings["copy_blocker"])}
    wanted = sample_file.Wanted([tokenizer.decode(start) for start in starts], number, how)
    with (
        sample_file.continued(Path(options.out), wanted, options.overwrite) as (texts, file),
        progress(total=wanted.total, initial=file.done, unit=" samples", leave=False) as bar,
    ):
        try:
            for place in range(file.done // number, len(starts)):
                skip = file.done - place * number
                for sample in iterate_samples(model, tokenizer, starts[place], skip=skip, **settings):
                    file.add(sample.text, sample.finish_reason, sample.ids)
                    texts.append(wanted.prompts[place] + sample.text)
                    bar.update(1)
        except KeyboardInterrupt:
            bar.close()
            same = "the same command without --overwrite" if options.overwrite else "the same command"
            print(f"{file.done:,} of {wanted.total:,} samples are in {options.out}; {same} goes on")
            raise
    print(f"wrote {wanted.total:,} samples to {options.out}")
    return texts


def _copy_blocker(options: Options, model: ModelRef) -> CopyBlocker:
    """A blocker of ids that would repeat more than max_copy tokens of the training data. Raises UsageError."""
    from finetune.data import dataset as datasets
    from finetune.data.verbatim import CopyBlocker
    from finetune.evaluation.token_streams import open_dataset
    from finetune.runs.vocabulary import check_vocabulary

    dataset = open_dataset(options.dataset or None, model, options.out_dir)
    check_vocabulary(dataset, model)
    datasets.scan(dataset, "train")  # raises when it is not the file that meta.json describes
    return CopyBlocker(dataset, options.max_copy)


if __name__ == "__main__":
    run(main)
