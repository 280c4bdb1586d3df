"""Text to train.bin, val.bin and meta.json.

finetune prepare my.txt --out_dir=data/mine
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from finetune.common.commands import command
from finetune.config.cli import parse, run
from finetune.config.options import option
from finetune.config.paths import split_paths
from finetune.data.sources import NO_TEXT
from finetune.data.tables import ReadOptions

if TYPE_CHECKING:
    from finetune.data.dataset import Dataset

EXAMINED = 2_000_000_000  # bytes of text that `doctor=auto` examines, in about a minute
USAGE = """usage: finetune prepare SOURCE... --out_dir=DIR [--key=value ...]

Tokenizes text into train.bin and val.bin. SOURCE is a file (txt, md, jsonl, json, csv, tsv, parquet, arrow; also
compressed), a directory, zip or tar of such files, a pattern, - (standard input), a dataset of the Hub (owner/name or
owner/name:config), shakespeare (downloaded) or python_docs (part of Python)."""


@dataclass
class Options(ReadOptions):
    sources: list[str] = option([], "files, directories, patterns, datasets, or the names of texts")
    out_dir: str = option("", "directory to write; data/SOURCE for a single source")
    tokenizer: str = option(
        "gpt2", "gpt2 (BPE), a model directory; from scratch only: char (one id a character), train:8000 (a new BPE)"
    )
    add_tokens: str = option("", "special tokens to add to the tokenizer: <|user|>,<|bot|>")
    split: str = option("train", "the split of a Hub dataset to read")
    revision: str | None = option(None, "the revision of a Hub dataset")
    val_fraction: float = option(0.1, "validation share: of the documents, or the end of one text", gt=0, le=0.5)
    val: str | None = option(None, "validation source instead; several are separated by commas")
    keep_split: str | None = option(None, "a prepared directory: its documents stay in its train and its val")
    seed: int = option(1337, "random seed of the choice of validation documents", ge=0)
    overflow: Literal["split", "drop", "error"] = option(
        "split", "documents of more than max_tokens: cut in training, left out, or refused"
    )
    max_tokens: int = option(1024, "longest document, end-of-text included; give your block_size", ge=2)
    num_proc: int = option(0, "tokenizer threads; 0 is one per core", ge=0, le=1024)
    overwrite: bool = option(False, "replace prepared data that a run was trained on")
    doctor: Literal["auto", "true", "false"] = option("auto", "run finetune doctor at the end; auto: up to 2 GB")
    dry_run: bool = option(False, "read everything, say what it is and show three documents; nothing is written")

    def problems(self) -> Iterator[tuple[str, str]]:
        if not self.sources:
            yield "SOURCE", NO_TEXT
        yield from super().problems()
        if not self.out_dir and len(self.sources) > 1:
            yield "out_dir", "several sources need --out_dir=DIR"
        if self.keep_split and self.val:
            yield "keep_split", "cannot go with --val, which decides what val holds"


def main(argv: list[str]) -> None:
    options, _ = parse(Options, argv, USAGE)
    if options.dry_run:
        dry_run(options)
    else:
        prepare_and_examine(options)


def prepare_and_examine(options: Options) -> Dataset:
    """Write the dataset, print what was read and what the doctor found. Raises UsageError."""
    from finetune.data.new_tokenizers import names_of
    from finetune.data.prepare import TokenizeOptions, prepare, summary
    from finetune.data.run_notes import runs_on
    from finetune.tools.doctor.quality import examine_dataset
    from finetune.tools.doctor.report import page

    out_dir = options.out_dir or default_dir(options.sources[0])
    dataset = prepare(
        options.sources,
        out_dir,
        _find_tokenizer(options.tokenizer),
        options.val_fraction,
        split_paths(options.val),
        options.seed,
        TokenizeOptions(
            options.overflow,
            options.max_tokens,
            options.num_proc,
            add_tokens=names_of(options.add_tokens),
            keep_split=options.keep_split,
            overwrite=options.overwrite,
        ),
        read_options=options,
        split=options.split,
        revision=options.revision,
    )
    for line in dataset.meta["read"]:
        print(line)
    print(summary(dataset))
    print(f"wrote {Path(out_dir, 'train.bin')}, val.bin and meta.json ({dataset.meta['tokenizer']['name']})")
    for run_dir in runs_on(out_dir):
        print(f"the same data as before: the run {run_dir} was trained on them")
    is_small = sum(facts["bytes"] for facts in dataset.meta["splits"].values()) <= EXAMINED
    if options.doctor == "true" or (options.doctor == "auto" and is_small):
        print(f"\n{page(examine_dataset(dataset))}")
    elif options.doctor == "auto":
        print(f"not examined, because it is large: {command('doctor', out_dir)}")
    return dataset


def default_dir(source: str) -> str:
    """data/NAME for a source."""
    return f"data/{'stdin' if source == '-' else Path(source).stem}"


def dry_run(options: Options) -> None:
    """Read all texts and print what they are."""
    from finetune.data.new_tokenizers import TRAIN
    from finetune.data.prepare import find_texts, find_tokenizer, report, use_tokenizer
    from finetune.data.split import survey_documents
    from finetune.tools.doctor.sample import sample_documents, show_sample

    is_new = options.tokenizer == "char" or options.tokenizer.startswith(TRAIN)
    val = split_paths(options.val)
    given = {"split": options.split, "revision": options.revision}
    texts = find_texts(options.sources, val, read_options=options, **given)
    tokenizer = None if is_new else find_tokenizer(_find_tokenizer(options.tokenizer))
    use_tokenizer(texts, tokenizer)
    for found in texts.values():
        survey_documents(found, collect_alphabet=False)
    for line in report(texts):
        print(line)
    first = texts["train"][0]
    eot = tokenizer.eot_text if tokenizer and not first.is_one_text else None
    print(show_sample(sample_documents(first.chunks(), eot)))
    print("dry run: nothing was written")


def _find_tokenizer(choice: str) -> str | Path:
    """The choice itself, or the directory of a model on the Hub."""
    from finetune.data.new_tokenizers import TRAIN

    if choice in ("gpt2", "char") or choice.startswith(TRAIN) or Path(choice).is_dir():
        return choice
    from finetune.gpt import pretrained

    return pretrained.find(choice)


if __name__ == "__main__":
    run(main)
