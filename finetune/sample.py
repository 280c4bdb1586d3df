"""Let a model write: samples from a run, or from any model that init_from takes.

python -m finetune.sample --out_dir=out-mine --start="Once upon a time"
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from finetune.common.errors import UsageError
from finetune.config.cli import check_run_dir, parse, run
from finetune.config.options import option
from finetune.runs.inputs import data_of_run, describe_model, gpt2_for

USAGE = """usage: python -m finetune.sample --out_dir=OUT [--key=value ...]

Prints samples of the best model of a run."""


@dataclass
class Options:
    out_dir: str | None = option(None, "the run whose best model speaks")
    init_from: str | None = option(
        None, "another model instead: a Hub id, a Hugging Face directory or a nanoGPT ckpt.pt"
    )
    start: str = option("\n", "the prompt, or FILE:path to read it from a file; <|endoftext|> is the token")
    prompts: str = option("", "a file of prompts instead: a line each, or .jsonl with prompt or messages")
    chat: bool = option(False, "talk with a model that was trained on conversations, a line of standard input a turn")
    num_samples: int = option(10, "how many samples of each prompt", ge=1)
    max_new_tokens: int = option(500, "tokens in each sample at most", ge=1)
    temperature: float = option(
        0.8, "below 1.0 more predictable, above more random, 0 always the likeliest token", ge=0
    )
    top_k: int = option(200, "draw from the k likeliest tokens only; 0 is all", ge=0)
    top_p: float = option(
        1.0, "draw from the likeliest tokens that together have this probability; 1 is all", gt=0, le=1
    )
    min_p: float = option(
        0.0, "draw from tokens of at least this share of the likeliest one's probability; 0 is all", ge=0, le=1
    )
    repetition_penalty: float = option(1.0, "above 1 tokens that have been there become less likely; 1 is off", gt=0)
    stop: str = option("", "a text at which a sample ends")
    ignore_eos: bool = option(False, "write on after end-of-text, which otherwise ends a sample")
    max_copy: int = option(0, "never repeat more than this many tokens in a row from the training data; 0 is off", ge=0)
    dataset: str = option("", "for max_copy: the prepared directory of the training data [that of the run]")
    out: str = option(
        "", "write the samples to this file instead, .jsonl: one object a sample, with its ids and settings"
    )
    seed: int = option(1337, "the same seed gives the same samples", ge=0, lt=2**63)
    device: Literal["auto", "cpu", "cuda", "mps"] = option("auto", "where to compute")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option("auto", "arithmetic of the matrix products")

    def problems(self):
        if (self.out_dir is None) == (self.init_from is None):
            yield "out_dir", "give --out_dir=OUT of a run, or --init_from=MODEL, one of them"
        if not self.start:
            yield "start", "the prompt is empty; a model needs at least one token to go on from"
        if self.dataset and not self.max_copy:
            yield "dataset", "has no effect without --max_copy=N"
        if self.max_copy > 0 and self.out_dir is None and not self.dataset:
            yield "max_copy", "which data was --init_from trained on? Give --dataset=DIR"


def main(argv):
    options, given = parse(Options, argv, USAGE)
    if problems := [*_contradictions(options, given), *_wrong_paths(options)]:
        raise UsageError("\n".join(problems))

    from finetune.data import chat as chats
    from finetune.data import prompts as data_prompts
    from finetune.data import tokenizer as tokenizers
    from finetune.gpt import GPT, pretrained, sampling
    from finetune.runtime import device as devices

    source = pretrained.find(options.out_dir or options.init_from)
    directory = source if source.is_dir() else source.parent
    tokenizer = tokenizers.from_directory(directory) or gpt2_for(pretrained.load_config(source), source)
    template = chats.template_of(directory)
    if options.chat and template is None:
        raise UsageError(
            f"{source}: has no chat template; --chat=true is for models that were trained on conversations"
        )
    if options.prompts:
        starts = [
            tokenizers.encode_prompt(tokenizer, text, place)
            for place, text in data_prompts.read(options.prompts, template)
        ]
    else:
        starts = [] if options.chat else [tokenizers.prompt_ids(tokenizer, options.start)]
    settings = {name: getattr(options, name) for name in SETTINGS}
    settings["copy_blocker"] = _copy_blocker(options, tokenizer) if options.max_copy else None
    device = devices.choose_device(options.device)
    if device.type == "cpu":
        devices.keep_heap()
        devices.use_all_cores()
    model = GPT.from_pretrained(source).to(device, devices.best_dtype(options.dtype, device)).eval()
    print(
        f"{describe_model(source)}, {model.num_parameters() / 1e6:.2f}M parameters, {tokenizer.describe()['name']}",
        flush=True,
    )
    if options.chat:
        _chat(model, tokenizer, template, options.seed, settings)
    elif options.out:
        _write(model, tokenizer, starts, options, settings, describe_model(source))
    else:
        for start in starts:
            sampling.print_samples(
                model, tokenizer, start, num_samples=options.num_samples, seed=options.seed, **settings
            )


SETTINGS = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "stop", "ignore_eos")


def _contradictions(options, given):
    """Flags that others leave nothing to do."""
    pairs = [("prompts", "start")] if options.prompts else []
    pairs += [("chat", name) for name in ("start", "prompts", "num_samples", "out")] if options.chat else []
    return [f"--{name}: cannot go with --{other}, which decides that" for other, name in pairs if name in given]


def _wrong_paths(options):
    """What is there and should not be, and the other way round."""
    if problem := check_run_dir(options.out_dir):
        yield problem
    for path in (options.start[5:] if options.start.startswith("FILE:") else "", options.prompts):
        if path and not Path(path).is_file():
            yield f"{path}: cannot be read: there is no such file"
    if options.out and Path(options.out).exists():
        yield f"out {options.out}: is there already; name another file"
    if options.out and not Path(options.out).parent.is_dir():
        yield f"out {options.out}: cannot be written: there is no directory {Path(options.out).parent}"


def _write(model, tokenizer, starts, options, settings, name):
    """Write the samples of all prompts to options.out."""
    import json

    from tqdm import tqdm

    from finetune.gpt.sampling import draw_samples

    plain = {"model": name, "seed": options.seed, **{name: getattr(options, name) for name in (*SETTINGS, "max_copy")}}
    with open(options.out, "x", encoding="utf-8") as file:
        for start in tqdm(starts, unit=" prompts", disable=None, leave=False):
            for number, sample in enumerate(
                draw_samples(model, tokenizer, start, num_samples=options.num_samples, seed=options.seed, **settings)
            ):
                row = {
                    "prompt": tokenizer.decode(start),
                    "text": sample.text,
                    "sample": number,
                    "finish_reason": sample.finish_reason,
                }
                file.write(json.dumps({**row, "tokens": sample.ids, **plain}, ensure_ascii=False) + "\n")
            file.flush()
    print(f"wrote {len(starts) * options.num_samples:,} samples to {options.out}")


def _chat(model, tokenizer, template, seed, settings):
    """Answer the lines of standard input until it ends. The oldest turns are left out of what no longer fits into the
    context."""
    import sys

    import torch

    from finetune.data import chat as chats
    from finetune.data.tokenizer import encode_prompt
    from finetune.gpt.sampling import draw_samples, write_fresh

    generator = torch.Generator(model.wte.weight.device).manual_seed(seed)
    room = model.config.block_size - min(settings["max_new_tokens"], model.config.block_size // 2)
    messages, talking = [], sys.stdin.isatty()
    while True:
        try:
            line = input("> " if talking else "")
        except EOFError:
            break
        except UnicodeDecodeError as error:
            raise UsageError(
                f"standard input: what follows turn {len(messages) // 2} is not UTF-8 ({error.reason})"
            ) from None
        if not line.strip():
            continue
        messages.append({"role": "user", "content": line})
        try:
            start = encode_prompt(tokenizer, chats.render(template, messages), "this turn")
            while len(start) > room and len(messages) > 1:
                del messages[:2]
                start = encode_prompt(tokenizer, chats.render(template, messages), "this turn")
        except UsageError as error:
            messages.pop()
            print(error, flush=True)
            continue
        [sample] = draw_samples(
            model, tokenizer, start, seed=generator, show=write_fresh if sys.stdout.isatty() else None, **settings
        )
        write_fresh(sample)
        print("\n" if talking else "", flush=True)
        messages.append({"role": "assistant", "content": sample.text})


def _copy_blocker(options, tokenizer):
    """What max_copy asks at each step: which ids follow in the training data."""
    from finetune.data import dataset as datasets
    from finetune.data.verbatim import CopyBlocker

    if options.dataset:
        named = [path for path in (Path(options.dataset), Path("data") / options.dataset) if datasets.is_prepared(path)]
        if not named:
            raise UsageError(f"dataset {options.dataset}: no train.bin there; `python -m finetune.prepare` makes one")
        dataset = datasets.load(named[0])
    else:
        dataset = data_of_run(options.out_dir)
    if dataset.tokenizer and dataset.tokenizer.fingerprint != tokenizer.fingerprint:
        ours, theirs = tokenizer.describe()["name"], dataset.tokenizer.describe()["name"]
        raise UsageError(
            f"{dataset.directory} holds ids of {theirs}, but the model works with {ours}; it was trained on something"
            " else"
        )
    return CopyBlocker(dataset, options.max_copy)


if __name__ == "__main__":
    run(main)
