"""Text to a prepared directory: train.bin, val.bin, meta.json and the tokenizer's own file."""

import contextlib
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finetune.common import files
from finetune.common.errors import UsageError
from finetune.data import bin_writer, chat, nanogpt_meta, sources
from finetune.data import dataset as datasets
from finetune.data import tokenizer as tokenizers
from finetune.data.split import PIECE_CHARACTERS, Overflow, split_documents, survey_documents

PIECE_DOCUMENTS = 1 << 12


def prepare(
    names,
    out_dir,
    tokenizer="gpt2",
    val_fraction=0.1,
    val=(),
    seed=1337,
    num_proc=0,
    max_tokens=1024,
    overflow="split",
    **reading,
):
    """Tokenize texts into `out_dir` and return its Dataset.

    A single running text is split by characters, the last `val_fraction` of them into val.bin, and gets no end-of-text.
    Documents are followed by one end-of-text token each, and `val_fraction` of them, drawn by `seed`, go into val.bin
    whole; where that would be less than one, their characters are split instead. With sources in `val`, these are
    val.bin. `tokenizer` is "gpt2", "char", a model directory or a tokenizer; `reading` goes to `sources.find`;
    `num_proc` threads encode, 0 is one a core. Documents of more than `max_tokens` tokens, end-of-text included, are an
    `overflow`: "split" takes them as they are, and training cuts them, "drop" leaves them out, "error" raises. Two
    passes over the text, in constant memory; `out_dir` changes only when all is well. Raises UsageError."""
    plan = planned(names, tokenizer, val_fraction, val, seed, max_tokens, overflow, **reading)
    with files.temporary_directory(out_dir) as work:
        tokenize(plan, work, num_proc)
        publish(work, out_dir, plan.meta, plan.tokenizer)
    return datasets.load(out_dir)


@dataclass
class Plan:
    """What a first pass over the text says of the second, which tokenizes."""

    stream: object  # of (split, Piece)
    characters: int  # in it
    tokenizer: object
    overflow: object  # Overflow
    meta: dict  # of meta.json; what is known only after the second pass is empty


def planned(names, tokenizer, val_fraction, val, seed, max_tokens, overflow, **reading):
    """The Plan of a preparation. Raises UsageError."""
    chosen = sources.find(names, **reading)
    train, alphabet = survey_documents(chosen, collect_alphabet=tokenizer == "char")
    held_out = sources.find(val, **reading) if val else []
    val_facts, more = survey_documents(held_out, collect_alphabet=tokenizer == "char")
    for texts, facts in ((chosen, train), (held_out, val_facts)) if val else ((chosen, train),):
        if facts["characters"] == 0:
            raise UsageError(f"{', '.join(source.name for source in texts)}: no text in it")
    tokenizer = tokenizers.CharTokenizer(sorted(alphabet | more)) if tokenizer == "char" else find_tokenizer(tokenizer)
    stream, by = split_documents(chosen, train, held_out, val_fraction, seed, anywhere=tokenizer.kind == "char")
    if by == "text" and overflow != "split":
        raise UsageError(f"overflow: {overflow} is for documents, and {chosen[0].name} is one running text")
    meta = {
        "format": datasets.FORMAT,
        "tokenizer": tokenizer.describe(),
        "vocab_size": tokenizer.vocab_size,
        "splits": {},
        "split_by": by,
        "val_fraction": None if val else val_fraction,
        "seed": seed,
        "end_of_text": None if by == "text" else tokenizer.eot,
        **(
            {}
            if by == "text"
            else {"overflow": {"kept" if overflow == "split" else "dropped": 0, "max_tokens": max_tokens}}
        ),
        "sources": train["sources"],
        **({"val_sources": val_facts["sources"]} if val else {}),
    }
    return Plan(stream, train["characters"] + val_facts["characters"], tokenizer, Overflow(overflow, max_tokens), meta)


def publish(work, out_dir, meta, tokenizer):
    """Make the bins in `work` and what belongs to them the prepared directory `out_dir`. Raises UsageError before it
    changes anything."""
    out_dir, splits = Path(out_dir), meta["splits"]
    for split, facts in splits.items():
        if not facts["tokens"]:
            most = meta["overflow"]["max_tokens"]
            raise UsageError(
                f"{split}.bin would be empty: each of its documents has more than {most:,} tokens; --overflow=split"
                " keeps them"
            )
    if tokenizer.kind == "char":
        (work / "meta.pkl").write_bytes(nanogpt_meta.write(tokenizer.chars))
    else:
        if any(
            "targets" in split for split in splits.values()
        ):  # so that whoever loads the model later speaks as the data did
            tokenizer.files["chat_template.jinja"] = chat.TEMPLATE.encode()
            meta["chat_template"] = chat.TEMPLATE
        tokenizer.save(work)
    for name in KEPT:
        if (work / name).exists():
            os.replace(work / name, out_dir / name)
        else:  # left by an earlier preparation with another tokenizer
            (out_dir / name).unlink(missing_ok=True)
    # last, because with it the directory is complete; bins beside an older meta.json are refused by their sha256
    with files.replacing(out_dir / "meta.json") as path:
        files.write_json(path, meta, ensure_ascii=False)


KEPT = (
    "train.bin",
    "val.bin",
    "train_mask.bin",
    "val_mask.bin",
    "train_documents.bin",
    "val_documents.bin",
    "meta.pkl",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)


def find_tokenizer(choice):
    """The tokenizer behind "gpt2", a model directory, a run's out_dir or prepared data; a tokenizer is returned as it
    is. Raises UsageError."""
    if not isinstance(choice, (str, Path)):
        return choice
    if choice == "gpt2":
        return tokenizers.gpt2()
    if datasets.is_prepared(choice) and (found := datasets.load(choice).tokenizer):
        return found
    directories = [Path(choice) / "best", Path(choice)]
    if not Path(choice).is_dir():
        raise UsageError(f"tokenizer {choice}: is none of gpt2, char and the directory of a model")
    for directory in directories:
        if directory.is_dir() and (found := tokenizers.from_directory(directory)):
            return found
    raise UsageError(f"tokenizer {choice}: no tokenizer.json, and no vocab.json with merges.txt, in this directory")


def summary(dataset):
    """The figures of a prepared directory, as the guide prints them."""
    splits, by = dataset.meta["splits"], dataset.meta.get("split_by", "text")
    characters = sum(split["characters"] for split in splits.values())
    tokens = sum(split["tokens"] for split in splits.values())
    lines = [f"Dataset has {characters:,} characters, {tokens:,} tokens"]
    for name, split in splits.items():
        documents = f" in {split['documents']:,} documents" if by == "documents" else ""
        targets = f", {split['targets']:,} of them to be learned" if "targets" in split else ""
        lines.append(f"{name} has {split['tokens']:,} tokens{documents}{targets}")
    overflow = dataset.meta.get("overflow", {})
    learned = any("targets" in split for split in splits.values())
    if count := overflow.get("dropped") or (learned and overflow.get("kept")):
        what = (
            "left out"
            if "dropped" in overflow
            else f"cut where a block of {overflow['max_tokens']:,} ends (--overflow=drop leaves them out)"
        )
        lines.append(f"{count:,} document{'s' * (count > 1)} of more than {overflow['max_tokens']:,} tokens: {what}")
    if by == "characters":
        lines.append("too few documents to keep some whole for validation: the last characters of them all are val")
    return "\n".join(lines)


def tokenize(plan, directory, num_proc):
    """Write train.bin and val.bin of a Plan, and what they came to into its meta. Raises UsageError."""
    threads = num_proc or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    waiting, eot, overflow = deque(), plan.meta["end_of_text"], plan.overflow
    with ThreadPoolExecutor(threads) as pool, contextlib.ExitStack() as open_writers:
        writers = {
            split: open_writers.enter_context(bin_writer.BinWriter(directory / f"{split}.bin", eot))
            for split in ("train", "val")
        }
        for split, group in _groups(_progress(plan.stream, plan.characters)):
            waiting.append((split, group, pool.submit(_encoded, group, plan.tokenizer, eot)))
            if len(waiting) > 4 * threads:
                _write(writers, overflow, *waiting.popleft())
        while waiting:
            _write(writers, overflow, *waiting.popleft())
        for split, pieces, ids in overflow.rest():
            writers[split].add(pieces, ids)
        plan.meta["splits"] = {split: writer.close() for split, writer in writers.items()}
    if "overflow" in plan.meta:
        plan.meta["overflow"]["kept" if overflow.answer == "split" else "dropped"] = overflow.count
    if plan.tokenizer.eot is None and any("mask_sha256" in facts for facts in plan.meta["splits"].values()):
        raise UsageError(
            f"tokenizer: {plan.tokenizer.describe()['name']} have no end-of-text, so nobody could learn where an answer"
            " ends; instruction data needs gpt2 or the tokenizer of a model directory"
        )


def _groups(stream):
    """(split, [Piece, ...]) of some hundred thousand characters each: a task for a thread, be it a part of a document
    or many."""
    groups, sizes = {"train": [], "val": []}, {"train": 0, "val": 0}
    for split, piece in stream:
        groups[split].append(piece)
        sizes[split] += len(piece.text)
        if sizes[split] >= PIECE_CHARACTERS or len(groups[split]) >= PIECE_DOCUMENTS:
            yield split, groups[split]
            groups[split], sizes[split] = [], 0
    yield from ((split, group) for split, group in groups.items() if group)


def _encoded(pieces, tokenizer, eot):
    """The ids of each of some pieces, with one end-of-text after each document and each turn of an assistant."""
    ids, end = [], np.array([] if eot is None else [eot], dtype=np.uint16)
    for piece in pieces:
        ids.append(tokenizer.encode(piece.text))
        if piece.ends or piece.stops:
            ids[-1] = np.concatenate([ids[-1], end])
    return ids


def _write(writers, overflow, split, pieces, future):
    pieces, ids = overflow.kept(split, pieces, future.result())
    if pieces:
        writers[split].add(pieces, ids)


def _progress(stream, characters):
    from tqdm import tqdm

    with tqdm(total=characters, unit="char", unit_scale=True, desc="tokenizing", disable=None, leave=False) as bar:
        for split, piece in stream:
            yield split, piece
            bar.update(len(piece.text))
