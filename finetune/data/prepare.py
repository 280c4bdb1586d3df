"""Text to a prepared directory: train.bin, val.bin, meta.json and the tokenizer's files."""

from __future__ import annotations

import functools
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.common import files
from finetune.common.errors import UsageError
from finetune.common.formatting import shown
from finetune.common.machine import num_cores
from finetune.common.progress import progress
from finetune.data import chat_template, lossy, sources, target
from finetune.data import dataset as datasets
from finetune.data.base_tokenizer import SAFE_CUT
from finetune.data.dataset import Dataset
from finetune.data.documents import Chunk, Encoded, cut
from finetune.data.encode import encode_chunks
from finetune.data.kept_split import Facts, describe_split, keep_split
from finetune.data.new_tokenizers import TRAIN, size_to_train, train_tokenizer, with_added_tokens
from finetune.data.run_notes import check_unused
from finetune.data.sources import Source
from finetune.data.split import OverflowFilter, SplitBy, Stream, Survey, split_documents, survey_documents
from finetune.data.tokenizer import CharTokenizer, Tokenizer, from_directory, gpt2
from finetune.data.write_bins import write_bins


@dataclass
class TokenizeOptions:
    """Documents of more than `max_tokens` tokens, end-of-text included, are an `overflow`: "split" keeps them, and
    training cuts them, "drop" leaves them out, "error" raises UsageError."""

    overflow: str = "split"
    max_tokens: int = 1024
    num_proc: int = 0  # threads; 0 is one per core
    add_tokens: Sequence[str] = ()  # the tokenizer gets these as special tokens
    keep_split: str | Path | None = None  # a prepared directory whose documents stay in their split
    overwrite: bool = False  # also data that a run was trained on
    # a thread encodes about so much at a time
    group_characters: int = 1 << 18
    group_chunks: int = 1 << 12


def prepare(
    names: Sequence[str | Path],
    out_dir: str | Path,
    tokenizer: str | Path | Tokenizer = "gpt2",
    val_fraction: float = 0.1,
    val: Sequence[str | Path] = (),
    seed: int = 1337,
    options: TokenizeOptions | None = None,
    **reading: Any,
) -> Dataset:
    """Tokenize texts into `out_dir` and return its Dataset. Raises UsageError.

    val.bin gets the sources in `val`, or the validation files of a directory; else `val_fraction` of the documents,
    drawn by `seed`; else, of a single running text or of too few documents, the last `val_fraction` of the characters.
    An end-of-text follows each document, but not a running text. `tokenizer` is "gpt2", "char", a model directory, a
    tokenizer, or "train:8000" for a new one; `reading` goes to `sources.make_finder`. The text is read twice, in
    constant memory; `out_dir` changes only after everything succeeded."""
    options = options or TokenizeOptions()
    with target.held(out_dir, options.overwrite):
        _prepare(find_texts(names, val, **reading), Path(out_dir), tokenizer, val_fraction, seed, options)
    return datasets.load(out_dir)


def _prepare(
    texts: dict[str, list[Source]],
    out_dir: Path,
    tokenizer: str | Path | Tokenizer,
    val_fraction: float,
    seed: int,
    options: TokenizeOptions,
) -> None:
    """`prepare` for texts that were found."""
    is_new = size_to_train(tokenizer) is not None or tokenizer == "char"
    found = None if is_new else with_added_tokens(find_tokenizer(tokenizer), options.add_tokens)
    use_tokenizer(texts, found)
    surveys = {split: survey_documents(texts[split], tokenizer == "char") for split in ("train", "val")}
    check_unused(out_dir, {"sources": surveys["train"].sources}, options.overwrite)
    split = functools.partial(_split, texts, surveys, val_fraction, seed, options)
    if found is None:
        found = with_added_tokens(_new_tokenizer(tokenizer, surveys, split), options.add_tokens)
    stream, split_by, kept = split()
    eot = None if split_by == "text" else found.eot
    sample: lossy.Sample = []
    stream = lossy.sampled(stream, sample)
    chunks = _cut_chunks(stream, found, options.group_characters, sum(each.characters for each in surveys.values()))
    with files.temporary_directory(out_dir) as work:
        overflow = OverflowFilter(options.overflow, options.max_tokens)
        splits = write_bins(_encode(chunks, found, eot, options), found, eot, overflow, work)
        if unlearned := [split for split in splits if splits[split].get("targets") == 0]:
            problem = f"no token of {unlearned[0]} is to be learned: all its answers have weight 0"
            if unlearned == ["val"] and not texts["val"]:
                way = "draw others with --seed=N or a larger --val_fraction, or give --val=FILE"
                problem = f"all answers of the documents drawn for validation have weight 0; {way}"
            raise UsageError(f"{texts['train'][0].name}: {problem}")
        facts: dict[str, Any] = {
            "splits": splits,
            "split_by": split_by,
            **kept,
            "val_fraction": None if texts["val"] else val_fraction,
            "seed": seed,
            "end_of_text": eot,
        }
        facts |= {} if split_by == "text" else {"overflow": overflow.facts()}
        remarks = lossy.remarks(found, eot, sample, work, splits)
        facts |= {"read": [*report(texts), *remarks], "sources": surveys["train"].sources}
        facts |= {"val_sources": surveys["val"].sources} if texts["val"] else {}
        target.publish(work, out_dir, facts, found, options.overwrite)


def _new_tokenizer(
    choice: object, surveys: dict[str, Survey], split: Callable[[], tuple[Stream, SplitBy, Facts]]
) -> Tokenizer:
    """A tokenizer trained on the documents of train, or one of the characters of all."""
    if vocab_size := size_to_train(choice):
        return train_tokenizer((chunk.text for name, chunk in split()[0] if name == "train"), vocab_size)
    return CharTokenizer(sorted(surveys["train"].alphabet | surveys["val"].alphabet))


def _split(
    texts: dict[str, list[Source]], surveys: dict[str, Survey], val_fraction: float, seed: int, options: TokenizeOptions
) -> tuple[Stream, SplitBy, Facts]:
    """`(stream, split_by, entry of meta.json)`, see `split_documents` and `keep_split`."""
    val_numbers, kept = keep_split(options.keep_split, texts, val_fraction, seed)
    stream, split_by = split_documents(texts["train"], surveys["train"], texts["val"], val_fraction, seed, val_numbers)
    if split_by == "text" and options.overflow != "split":
        name = texts["train"][0].name
        raise UsageError(f"overflow: {options.overflow} is for documents, and {name} is one running text")
    return stream, split_by, kept


def find_texts(names: Sequence[str | Path], val: Sequence[str | Path], **reading: Any) -> dict[str, list[Source]]:
    """The sources of train and val, before a tokenizer is known. Raises UsageError."""
    finder = sources.make_finder(**reading)
    finder.has_val = bool(val)
    texts = finder.find(names)
    if val:
        given = finder.find(val)
        texts["val"] = given["val"] or given["train"]
        for source in texts["val"]:  # its directory does not train
            source.notes.clear()
    return texts


def use_tokenizer(texts: dict[str, list[Source]], tokenizer: Tokenizer | None) -> None:
    """Read the sources for a tokenizer: with its chat template and end-of-text. None is one of characters."""
    every = [source for found in texts.values() for source in found]
    kinds = {sources.is_table(path) for source in every for path in source.files}
    for source in every:
        if tokenizer:
            source.template, source.eot = chat_template.of_tokenizer(tokenizer), tokenizer.eot_text
        # where nothing else separates a text from rows
        source.ends_lines = source.eot is None and len(kinds) > 1


def report(texts: dict[str, list[Source]]) -> list[str]:
    """What was read, a line for each source, after it was read. Names in them do not steer a terminal."""
    return [shown(line, target.MOST_SHOWN) for found in texts.values() for source in found for line in source.report()]


def _encode(
    stream: Stream, tokenizer: Tokenizer, eot: int | None, options: TokenizeOptions
) -> Iterator[tuple[str, list[Encoded]]]:
    """(split, chunks with their ids) in the order of the stream, encoded in threads."""
    threads = options.num_proc or num_cores()
    pending: deque[tuple[str, Future[list[Encoded]]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for split, group in _groups(stream, options):
            pending.append((split, pool.submit(encode_chunks, group, tokenizer, eot)))
            if len(pending) > 4 * threads:
                split, encoded = pending.popleft()
                yield split, encoded.result()
        for split, encoded in pending:
            yield split, encoded.result()


def _groups(stream: Stream, options: TokenizeOptions) -> Iterator[tuple[str, list[Chunk]]]:
    """(split, chunks) to encode in one task: parts of a long document, or many short ones."""
    groups: dict[str, list[Chunk]] = {"train": [], "val": []}
    sizes = {"train": 0, "val": 0}
    for split, chunk in stream:
        groups[split].append(chunk)
        sizes[split] += len(chunk.text)
        if sizes[split] >= options.group_characters or len(groups[split]) >= options.group_chunks:
            yield split, groups[split]
            groups[split], sizes[split] = [], 0
    for split, group in groups.items():
        if group:
            yield split, group


def _cut_chunks(stream: Stream, tokenizer: Tokenizer, size: int, characters: int) -> Stream:
    """The stream in chunks of about `size`, if their tokenizer allows, with a progress bar up to all `characters`."""
    size, pattern = tokenizer.piece_size(size), tokenizer.cut_pattern or SAFE_CUT
    # each character is encoded by itself, so its text can be cut anywhere
    cut_anywhere = tokenizer.kind == "char"
    with progress(total=characters, unit="char", unit_scale=True, desc="tokenizing", leave=False) as bar:
        for split, run in itertools.groupby(stream, key=lambda item: item[0]):
            for chunk in cut((chunk for _, chunk in run), size, cut_anywhere, pattern):
                yield split, chunk
                bar.update(len(chunk.text))


def find_tokenizer(choice: str | Path | Tokenizer) -> Tokenizer:
    """The tokenizer of "gpt2", a model directory, a run's out_dir or prepared data; a tokenizer is returned as it is.
    Raises UsageError."""
    if not isinstance(choice, (str, Path)):
        return choice
    if choice == "gpt2":
        return gpt2()
    if str(choice).startswith(TRAIN):
        raise UsageError(f"tokenizer {choice}: is for `finetune prepare`; its directory then has a tokenizer")
    if datasets.is_prepared(choice) and (found := datasets.load(choice).tokenizer):
        return found
    if Path(choice).suffix == ".pt" and Path(choice).is_file():
        choice = Path(choice).parent
    if not Path(choice).is_dir():
        meant = f". Did you mean {word}?" if (word := str(choice).lower()) in ("gpt2", "char") else ""
        raise UsageError(f"tokenizer {choice}: is none of gpt2, char and the directory of a model{meant}")
    for directory in (Path(choice) / "best", Path(choice)):
        if directory.is_dir() and (found := from_directory(directory)):
            return found
    raise UsageError(f"tokenizer {choice}: no tokenizer.json, and no vocab.json with merges.txt, in this directory")


def summary(dataset: Dataset) -> str:
    """The figures of a prepared directory, as docs/quickstart.md shows them."""
    splits, split_by = dataset.meta["splits"], dataset.meta.get("split_by", "text")
    has_targets = any("targets" in split for split in splits.values())
    characters = sum(split["characters"] for split in splits.values())
    tokens = sum(split["tokens"] for split in splits.values())
    lines = [f"Dataset has {characters:,} characters, {tokens:,} tokens"]
    for name, split in splits.items():
        documents = f" in {split['documents']:,} documents" if split_by == "documents" else ""
        targets = f", {split['targets']:,} of them to be learned" if "targets" in split else ""
        lines.append(f"{name} has {split['tokens']:,} tokens{documents}{targets}")
    if dataset.eot is None and split_by != "text":
        lines.append("nothing stands between documents: a vocabulary of characters has no end-of-text")
    overflow = dataset.meta.get("overflow", {})
    count, max_tokens = overflow.get("dropped", 0), overflow.get("max_tokens", 0)
    fate = "left out"
    if has_targets and "kept" in overflow:
        count = overflow["kept"]
        fate = f"cut where a block of {max_tokens:,} ends (--overflow=drop leaves them out)"
    if count:
        lines.append(f"{count:,} document{'s' * (count > 1)} of more than {max_tokens:,} tokens: {fate}")
    return "\n".join([*lines, *describe_split(dataset.meta)])
