"""Text to a prepared directory: train.bin, val.bin, meta.json and the tokenizer's own file."""

import hashlib
import json
import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from finetune.cli import UsageError
from finetune.data import bins, nanogpt_meta, sources
from finetune.data import tokenizer as tokenizers

PIECE_CHARACTERS = 1 << 18


def prepare(names, out_dir, tokenizer="gpt2", val_fraction=0.1):
    """Tokenize the texts, joined in the order given, into `out_dir`; return its Dataset.

    The first (1 - val_fraction) of the characters are train.bin, the rest val.bin. `tokenizer` is "gpt2", "char", a model directory,
    or a tokenizer. Two passes over the text, in constant memory; `out_dir` changes only when all is well. Raises UsageError.
    """
    texts = sources.find(names)
    described, characters, alphabet = _survey(texts, collect_alphabet=tokenizer == "char")
    if characters == 0:
        raise UsageError(f"{', '.join(source.name for source in texts)}: no text in it")
    num_train = int(characters * (1 - val_fraction))
    if num_train in (0, characters):
        raise UsageError(f"{characters:,} characters are too few to keep val_fraction={val_fraction} of them for validation")
    tokenizer = tokenizers.CharTokenizer(sorted(alphabet)) if tokenizer == "char" else find_tokenizer(tokenizer)

    out_dir = Path(out_dir)
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".tmp-prepare-", dir=out_dir))
    except OSError as error:
        raise UsageError(f"out_dir {out_dir}: cannot be written: {error.strerror}") from None
    try:
        stream = _progress((text for source in texts for text in source.texts()), characters)
        splits = _tokenize(stream, num_train, tokenizer, work)
        meta = {
            "format": bins.FORMAT,
            "tokenizer": tokenizer.describe(),
            "vocab_size": tokenizer.vocab_size,
            "splits": splits,
            "val_fraction": val_fraction,
            "sources": described,
        }
        if tokenizer.kind == "char":
            (work / "meta.pkl").write_bytes(nanogpt_meta.write(tokenizer.chars))
        else:
            tokenizer.save(work)
        for name in KEPT:
            if (work / name).exists():
                os.replace(work / name, out_dir / name)
            else:  # left by an earlier preparation with another tokenizer
                (out_dir / name).unlink(missing_ok=True)
        # last, because with it the directory is complete; bins beside an older meta.json are refused by their sha256
        (work / "meta.json").write_text(json.dumps(meta, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(work / "meta.json", out_dir / "meta.json")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return bins.load(out_dir)


KEPT = (
    "train.bin",
    "val.bin",
    "meta.pkl",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)


def find_tokenizer(choice):
    """The tokenizer behind "gpt2", a model directory or a run's out_dir; a tokenizer is returned as it is. Raises UsageError."""
    if not isinstance(choice, (str, Path)):
        return choice
    if choice == "gpt2":
        return tokenizers.gpt2()
    directories = [Path(choice) / "best", Path(choice)]
    if not Path(choice).is_dir():
        raise UsageError(f"tokenizer {choice}: is none of gpt2, char and the directory of a model")
    for directory in directories:
        if directory.is_dir() and (found := tokenizers.from_directory(directory)):
            return found
    raise UsageError(f"tokenizer {choice}: no tokenizer.json, and no vocab.json with merges.txt, in this directory")


def open_dataset(value, tokenizer, val_fraction):
    """The Dataset that a recipe's `dataset` means: a prepared directory, the name of one under data/, or a text prepared now.

    A text is prepared once into data/, under a name that holds what it was made from. `tokenizer` is a function that gives the
    choice for that case, so that nobody looks for one that is not needed. Raises UsageError.
    """
    for directory in (Path(value), Path("data") / value):
        if bins.is_prepared(directory):
            found = bins.load(directory)
            # a named text is there for every tokenizer, not only for the one it was prepared with first
            if value not in sources.NAMED or not found.tokenizer or (tokenizer() == "char") == (found.tokenizer.kind == "char"):
                return found
    if Path(value).is_dir() and not list(Path(value).glob("*.bin")):
        raise UsageError(f"{value}: no train.bin here; prepare it with `python -m finetune.prepare TEXT --out_dir={value}`")
    if Path(value).is_dir():
        return bins.load(value)  # says which of the two is missing
    if value not in sources.NAMED and not Path(value).is_file():
        there = sorted(str(path.parent) for path in Path("data").glob("*/train.bin"))
        known = f"prepared here: {', '.join(there)}; " if there else ""
        raise UsageError(f"dataset {value}: no such directory or text file; {known}named texts: {', '.join(sources.NAMED)}")
    choice = tokenizer()
    made_from, _, _ = _survey(sources.find([value]), collect_alphabet=False)
    kind = choice if choice == "char" else (choice := find_tokenizer(choice)).fingerprint
    mark = hashlib.sha256(json.dumps([made_from[0]["sha256"], kind, val_fraction, bins.FORMAT]).encode()).hexdigest()[:8]
    directory = Path("data") / f"{Path(value).stem}-{choice if choice == 'char' else choice.kind}-{mark}"
    if (directory / "meta.json").is_file():
        return bins.load(directory)
    return prepare([value], directory, choice, val_fraction)


def summary(dataset):
    """The figures of a prepared directory, as the guide prints them."""
    splits = dataset.meta["splits"]
    characters = sum(split["characters"] for split in splits.values())
    tokens = sum(split["tokens"] for split in splits.values())
    lines = [f"Dataset has {characters:,} characters, {tokens:,} tokens"]
    lines += [f"{name} has {split['tokens']:,} tokens" for name, split in splits.items()]
    return "\n".join(lines)


def _survey(texts, collect_alphabet):
    """What the sources are (name, bytes, sha256), their characters in all, and the set of them when asked for."""
    described, characters, alphabet = [], 0, set()
    for source in texts:
        digest = hashlib.sha256()
        for text in source.texts(digest):
            characters += len(text)
            if collect_alphabet:
                alphabet.update(text)
        described.append({"name": Path(source.name).name, "bytes": source.size(), "sha256": digest.hexdigest()})
    return described, characters, alphabet


def _tokenize(texts, num_train, tokenizer, directory):
    """Write train.bin and val.bin of a stream of text; the split comes after `num_train` characters."""
    train, val = [], texts

    def first_part():
        left = num_train
        for text in texts:
            if len(text) >= left:
                train.append(text[left:])  # what belongs to val already
                yield text[:left]
                return
            left -= len(text)
            yield text

    splits = {}
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()) as pool:
        for name in ("train", "val"):
            part = first_part() if name == "train" else (text for part in (train, val) for text in part)
            writer = bins.Writer(directory / f"{name}.bin")
            for text, ids in _encoded(part, tokenizer, pool):
                writer.add(text, ids)
            splits[name] = writer.close()
    return splits


def _encoded(texts, tokenizer, pool):
    """(text, ids) in order, a few pieces being encoded at once."""
    waiting = []
    for piece in sources.pieces(texts, PIECE_CHARACTERS, anywhere=tokenizer.kind == "char"):
        waiting.append((piece, pool.submit(tokenizer.encode, piece)))
        if len(waiting) > 16:
            text, future = waiting.pop(0)
            yield text, future.result()
    for text, future in waiting:
        yield text, future.result()


def _progress(texts, characters):
    from tqdm import tqdm

    with tqdm(total=characters, unit="char", unit_scale=True, desc="tokenizing", disable=None, leave=False) as bar:
        for text in texts:
            yield text
            bar.update(len(text))
