"""Text to train.bin, val.bin and meta.json.

finetune prepare my.txt --out_dir=data/mine
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from finetune.common.commands import command
from finetune.common.errors import UsageError
from finetune.config.cli import parse, run
from finetune.config.options import option
from finetune.config.paths import split_paths, stem_of
from finetune.data.new_tokenizers import TRAIN
from finetune.data.sources import NO_TEXT
from finetune.data.tables import ReadOptions

if TYPE_CHECKING:
    from finetune.data.dataset import Dataset
    from finetune.data.tokenizer import Tokenizer

EXAMINED = 2_000_000_000  # bytes of text that `doctor=auto` examines, in about a minute
USAGE = """usage: finetune prepare SOURCE... --out_dir=DIR [--key=value ...]

Tokenizes text into train.bin and val.bin. SOURCE is a file, a directory, zip or tar of files, a pattern,
or - (standard input). Files are txt, md, jsonl, json, csv, tsv, parquet or arrow, also compressed. SOURCE can also be a
dataset of the Hub (owner/name or owner/name:config), shakespeare (downloaded) or python_docs (part of Python)."""


@dataclass
class Options(ReadOptions):
    sources: list[str] = option([], "files, directories, patterns, datasets, or the names of texts")
    out_dir: str = option("", "directory to write; data/SOURCE for a single source", local=True)
    tokenizer: str = option(
        "gpt2", "gpt2 (BPE), a model directory; from scratch only: char (one id a character), train:8000 (a new BPE)"
    )
    add_tokens: str = option("", "special tokens to add to the tokenizer: <|user|>,<|bot|>")
    split: str = option("train", "the split of a Hub dataset to read")
    revision: str | None = option(None, "the revision of a Hub dataset")
    val_fraction: float = option(0.1, "validation share: of the documents, or the end of one text", gt=0, le=0.5)
    val: str | None = option(None, "another source for validation; several are separated by commas")
    keep_split: str | None = option(
        None, "a prepared directory, whose documents stay in train or val as they are there"
    )
    seed: int = option(1337, "random seed that chooses the validation documents", ge=0)
    overflow: Literal["split", "drop", "error"] = option(
        "split", "documents of more than max_tokens: cut in training, left out, or refused"
    )
    max_tokens: int = option(1024, "longest document, end-of-text included; give your block_size", ge=2)
    num_proc: int = option(0, "tokenizer threads; 0 is one per core", ge=0, le=1024)
    overwrite: bool = option(False, "replace prepared data that a run was trained on")
    executor: Literal["local", "slurm", "ray"] | None = option(
        None, "prepare a corpus by many processes, jobs of SLURM or tasks of Ray, without its duplicates"
    )
    tasks: int = option(0, "with executor: parts that the files are read in; 0 is one per core", ge=0, le=100_000)
    duplicates: Literal["drop", "keep"] = option(
        "drop", "with executor: of documents that are nearly equal (MinHash) only the first stays, or all do"
    )
    slurm: str = option("", "with executor=slurm: partition=NAME,time=24:00:00 and more, for datatrove and sbatch")
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
        if (self.executor == "slurm") != bool(self.slurm):
            yield "slurm", "goes with --executor=slurm: --slurm=partition=NAME,time=24:00:00"
        if self.executor is None:
            given = [("tasks", self.tasks), ("duplicates", self.duplicates == "keep")]
            yield from ((name, "goes with --executor=local, slurm or ray") for name, is_given in given if is_given)
            remote = [name for name in (*self.sources, *split_paths(self.val)) if "://" in name]
            yield from (("SOURCE", f"{name} is read with --executor=local, slurm or ray") for name in remote)
            return
        for name in ("keep_split", "dry_run"):
            if getattr(self, name):
                yield name, "cannot go with --executor, where nobody sees all documents at once"
        if _is_new(self.tokenizer):
            problem = "is made from all of the text at once; prepare a sample without --executor"
            yield "tokenizer", f"{self.tokenizer} {problem}, and name its directory as --tokenizer"


def main(argv: list[str]) -> None:
    options, given = parse(Options, argv, USAGE)
    if options.dry_run:
        dry_run(options)
    else:
        prepare_and_examine(options, given)


def prepare_and_examine(options: Options, given: Container[str] = ()) -> Dataset | None:
    """Write the dataset, print what was read and what the doctor found; `given` are the keys that the user named. None
    where jobs of a cluster write it. Raises UsageError."""
    from finetune.data.prepare import summary
    from finetune.data.run_notes import runs_on
    from finetune.tools.doctor.quality import examine_dataset
    from finetune.tools.doctor.report import page

    out_dir = options.out_dir or default_dir(options.sources[0])
    dataset = _prepare(options, out_dir, given)
    if dataset is None:
        print("submitted; when the jobs have ended, the same command says what they made")
        return None
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


def _prepare(options: Options, out_dir: str, given: Container[str]) -> Dataset | None:
    from finetune.data import token_folders
    from finetune.data.new_tokenizers import names_of, with_added_tokens
    from finetune.data.prepare import TokenizeOptions, find_tokenizer, prepare

    if any(map(token_folders.token_paths, options.sources)):
        return _prepare_tokens(options, out_dir, given)
    tokenizer, val = _find_tokenizer(options.tokenizer), split_paths(options.val)
    reading = {"split": options.split, "revision": options.revision}
    names = names_of(options.add_tokens)
    if options.executor:
        return _prepare_corpus(options, out_dir, with_added_tokens(find_tokenizer(tokenizer), names), val, reading)
    return prepare(
        options.sources,
        out_dir,
        tokenizer,
        options.val_fraction,
        val,
        options.seed,
        TokenizeOptions(
            options.overflow,
            options.max_tokens,
            options.num_proc,
            add_tokens=names,
            keep_split=options.keep_split,
            overwrite=options.overwrite,
        ),
        read_options=options,
        **reading,
    )


def _prepare_corpus(
    options: Options, out_dir: str, tokenizer: Tokenizer, val: list[str], reading: dict[str, str | None]
) -> Dataset | None:
    """By many processes or machines."""
    from finetune.common.machine import num_cores
    from finetune.corpus.prepare import Cluster, Plan, prepare_corpus

    plan = Plan(
        [],
        ReadOptions().updated(options, None),
        tokenizer.fingerprint,
        options.tasks or num_cores(),
        options.val_fraction,
        options.seed,
        options.overflow,
        options.max_tokens,
        options.duplicates,
        overwrite=options.overwrite,
    )
    cluster = Cluster(options.executor or "local", options.num_proc, options.slurm)
    return prepare_corpus(options.sources, val, out_dir, tokenizer, plan, cluster, **reading)


def _prepare_tokens(options: Options, out_dir: str, given: Container[str]) -> Dataset:
    """A folder that datatrove wrote, which is tokenized already. Raises UsageError for an option without effect."""
    from finetune.data import token_folders
    from finetune.data.prepare import find_tokenizer
    from finetune.data.split import OverflowFilter

    folder = options.sources[0]
    if len(options.sources) > 1:
        raise UsageError(f"{folder}: holds tokens of datatrove; prepare it by itself")
    used = ("sources", "out_dir", "tokenizer", "val_fraction", "seed", "overflow", "max_tokens", "overwrite", "doctor")
    unused = [each.name for each in fields(options) if each.name in given and each.name not in used]
    if unused:
        raise UsageError(f"{unused[0]}: has no effect, because {folder} holds tokens of datatrove")
    if "tokenizer" in given:
        tokenizer = find_tokenizer(_find_tokenizer(options.tokenizer))
        token_folders.check_tokenizer(folder, tokenizer)
    else:
        tokenizer = token_folders.known_tokenizer(folder)
    overflow = OverflowFilter(options.overflow, options.max_tokens)
    return token_folders.prepare_tokens(
        folder, out_dir, tokenizer, options.val_fraction, options.seed, overflow, options.overwrite
    )


def default_dir(source: str) -> str:
    """data/NAME for a source."""
    return f"data/{'stdin' if source == '-' or source.startswith('/dev/') else stem_of(source)}"


def dry_run(options: Options) -> None:
    """Read all texts and print what they are."""
    from finetune.data.prepare import find_texts, find_tokenizer, report, use_tokenizer
    from finetune.data.split import survey_documents
    from finetune.tools.doctor.sample import sample_documents, show_sample

    val = split_paths(options.val)
    given = {"split": options.split, "revision": options.revision}
    texts = find_texts(options.sources, val, read_options=options, **given)
    tokenizer = None if _is_new(options.tokenizer) else find_tokenizer(_find_tokenizer(options.tokenizer))
    use_tokenizer(texts, tokenizer)
    for found in texts.values():
        survey_documents(found, collect_alphabet=False)
    for line in report(texts):
        print(line)
    first = texts["train"][0]
    eot = tokenizer.eot_text if tokenizer and not first.is_one_text else None
    print(show_sample(sample_documents(first.chunks(), eot)))
    print("dry run: nothing was written")


def _is_new(tokenizer: str) -> bool:
    """Whether a tokenizer is made from the text."""
    return tokenizer == "char" or tokenizer.startswith(TRAIN)


def _find_tokenizer(choice: str) -> str | Path:
    """The choice itself, or the directory of a model on the Hub."""
    if choice == "gpt2" or _is_new(choice) or Path(choice).is_dir():
        return choice
    if (word := choice.lower()) in ("gpt2", "char"):
        raise UsageError(f"tokenizer {choice}: no such directory. Did you mean {word}?")
    from finetune.gpt import pretrained

    return pretrained.find(choice)


if __name__ == "__main__":
    run(main)
