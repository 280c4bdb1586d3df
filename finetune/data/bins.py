"""train.bin and val.bin: token ids as little-endian uint16, nanoGPT's format, with a meta.json that says what they are."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finetune.cli import UsageError
from finetune.data import nanogpt_meta
from finetune.data import tokenizer as tokenizers

FORMAT = 1
LLMC_MAGIC = 20240520
CHUNK_BYTES = 1 << 22
SOURCES_KEPT = 20  # of a corpus of many files, which a run names


@dataclass
class Dataset:
    """A prepared directory. `meta` is its meta.json, or {} for bins that nanoGPT made; `tokenizer` is None when nobody knows it."""

    directory: Path
    meta: dict
    tokenizer: object | None

    def bin(self, split):
        return self.directory / f"{split}.bin"

    def mask(self, split):
        """The file that says which tokens are targets, one byte each; None where all are."""
        path = self.directory / f"{split}_mask.bin"
        return path if path.is_file() else None

    def num_tokens(self, split):
        return self.bin(split).stat().st_size // 2

    def num_bytes(self, split):
        """Bytes of text in a split, which bits per byte need; None when unknown."""
        return self.meta.get("splits", {}).get(split, {}).get("bytes")

    def facts(self):
        """What a run keeps of its data: where it lies, what it was made from, how large it is. Plain values; what is unknown is left out."""
        counted = ("tokens", "characters", "bytes", "documents", "targets")
        splits = {split: {"tokens": self.num_tokens(split)} for split in ("train", "val")}
        for split, described in self.meta.get("splits", {}).items():
            splits[split] |= {name: described[name] for name in counted if name in described}
        sources = [*self.meta.get("sources", []), *self.meta.get("val_sources", [])]
        return {
            "name": self.directory.resolve().name,
            "directory": str(self.directory),
            "tokenizer": self.tokenizer.describe()["name"] if self.tokenizer else None,
            "splits": splits,
            "split_by": self.meta.get("split_by"),
            "sources": sources[:SOURCES_KEPT],
            "num_sources": len(sources),
        }


def is_prepared(directory):
    return (Path(directory) / "train.bin").is_file() or (Path(directory) / "meta.json").is_file()


def load(directory):
    """The Dataset in a directory, its files checked as far as their sizes tell. Raises UsageError naming the file."""
    directory = Path(directory)
    described = (directory / "meta.json").is_file()
    for split in ("train", "val"):
        check_size(directory / f"{split}.bin", guess=not described)
    meta, tokenizer = {}, None
    if not described and (directory / "tokenizer.json").is_file():
        raise UsageError(f"{directory}: has tokenizer.json but no meta.json, so its preparation was interrupted; prepare the data again")
    if described:
        try:
            with open(directory / "meta.json", encoding="utf-8") as file:
                meta = json.load(file)
            if meta.get("format") != FORMAT:
                raise UsageError(f"{directory / 'meta.json'}: format {meta.get('format')!r} is not {FORMAT}; prepare the data again")
            if not all(isinstance(meta["splits"][split], dict) for split in ("train", "val")):
                raise ValueError("splits")
            tokenizer = tokenizers.from_description(meta["tokenizer"], directory)
        except UsageError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"{directory / 'meta.json'}: not readable as a dataset's description ({error!r}); prepare the data again") from None
    elif (directory / "meta.pkl").is_file():
        try:
            tokenizer = tokenizers.CharTokenizer(nanogpt_meta.read((directory / "meta.pkl").read_bytes()))
        except ValueError as error:
            raise UsageError(f"{directory / 'meta.pkl'}: {error}") from None
    return Dataset(directory, meta, tokenizer)


def check_size(path, guess=False):
    """The number of tokens in a bin. Raises UsageError for one that is missing, empty or cut, and for one that by a look at its
    first values is evidently of another format, if there is a need to `guess`."""
    if not path.is_file():
        raise UsageError(f"{path}: there is no such file; `python -m finetune.prepare` makes train.bin and val.bin")
    size = path.stat().st_size
    if size == 0:
        raise UsageError(f"{path}: is empty; prepare the data again, with a larger val_fraction if this is val.bin")
    if size % 2:
        raise UsageError(f"{path}: {size:,} bytes are not a whole number of 16-bit tokens; it was probably cut short. Copy or prepare it again")
    if not guess:
        return size // 2
    with open(path, "rb") as file:
        head = np.frombuffer(file.read(8192), dtype="<u2")
    if head.size >= 2 and int(head[0]) + (int(head[1]) << 16) == LLMC_MAGIC:
        raise UsageError(f"{path}: is a bin of llm.c, which begins with a header; prepare the text with finetune.prepare")
    if head.size >= 64 and (head[1::2] == 0).mean() > 0.9 and (head[::2] == 0).mean() < 0.9:
        raise UsageError(f"{path}: looks like 32-bit token ids (every second 16-bit value is 0); bins hold 16-bit ids")
    return size // 2


@dataclass
class Contents:
    """What reading a whole bin tells."""

    tokens: int
    largest: int  # id
    sha256: str
    mask_sha256: str | None = None


def survey(dataset, split):
    """The Contents of a bin. Raises UsageError when meta.json promises another sha256, so that a cut or edited bin never passes, and
    when a mask is not as long as its bin."""
    path, digest, largest = dataset.bin(split), hashlib.sha256(), 0
    tokens = check_size(path)
    mask_sha256 = _survey_mask(dataset, split, tokens)
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            largest = max(largest, int(np.frombuffer(chunk, dtype="<u2").max()))
    promised = dataset.meta.get("splits", {}).get(split, {}).get("sha256")
    if promised and digest.hexdigest() != promised:
        raise UsageError(f"{path}: is not the file that meta.json describes (its sha256 differs); prepare the data again")
    return Contents(tokens, largest, digest.hexdigest(), mask_sha256)


def _survey_mask(dataset, split, tokens):
    """sha256 of the mask of a split, None without one."""
    path, promised = dataset.mask(split), dataset.meta.get("splits", {}).get(split, {}).get("mask_sha256")
    if path is None and promised:
        raise UsageError(f"{dataset.directory / f'{split}_mask.bin'}: there is no such file, and meta.json speaks of one; prepare the data again")
    if path is None:
        return None
    if path.stat().st_size != tokens:
        raise UsageError(
            f"{path}: {path.stat().st_size:,} bytes for the {tokens:,} tokens of {split}.bin; a mask has one a token. Prepare the data again"
        )
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    if promised and digest.hexdigest() != promised:
        raise UsageError(f"{path}: is not the file that meta.json describes (its sha256 differs); prepare the data again")
    return digest.hexdigest()


def check_ids(dataset, split, contents, vocab_size, model):
    """Raise UsageError when a split has ids beyond the `vocab_size` of `model`, saying how many and where the first is."""
    if contents.largest < vocab_size:
        return
    ids = np.memmap(dataset.bin(split), dtype="<u2", mode="r")
    beyond = np.flatnonzero(ids >= vocab_size)
    raise UsageError(
        f"{dataset.bin(split)}: token {ids[beyond[0]]:,} at offset {beyond[0]:,} ({beyond.size:,} such), but {model} has {vocab_size:,} ids; "
        "prepare the text with the model's tokenizer"
    )


class Writer:
    """A bin being written, its mask when there is one, and what meta.json will say of them."""

    def __init__(self, path):
        self.path, self.file, self.digest = path, open(path, "wb"), hashlib.sha256()
        self.mask_path = path.with_name(f"{path.stem}_mask.bin")
        self.mask_file, self.mask_digest = None, hashlib.sha256()
        self.tokens = self.characters = self.bytes = self.documents = self.targets = 0

    def add(self, pieces, ids, mask=None):
        """Append the ids of some Pieces, and which of them are targets; None is all."""
        if mask is not None and self.mask_file is None:
            self.mask_file = open(self.mask_path, "wb")
            self._write_mask(np.ones(self.tokens, dtype=np.uint8))
        if self.mask_file:
            self._write_mask(np.ones(len(ids), dtype=np.uint8) if mask is None else mask)
        raw = np.ascontiguousarray(ids, dtype="<u2").tobytes()
        self.file.write(raw)
        self.digest.update(raw)
        self.tokens += len(ids)
        self.targets += len(ids) if mask is None else int(mask.sum())
        for piece in pieces:
            self.characters += len(piece.text)
            self.bytes += len(piece.text.encode("utf-8", "surrogatepass"))
            self.documents += piece.ends

    def close(self):
        for file in (self.file, self.mask_file):
            if file:
                file.flush()
                os.fsync(file.fileno())
                file.close()
        facts = {name: getattr(self, name) for name in ("tokens", "characters", "bytes", "documents")} | {"sha256": self.digest.hexdigest()}
        return facts | ({"targets": self.targets, "mask_sha256": self.mask_digest.hexdigest()} if self.mask_file else {})

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for file in (self.file, self.mask_file):
            if file:
                file.close()

    def _write_mask(self, mask):
        self.mask_file.write(mask.tobytes())
        self.mask_digest.update(mask.tobytes())
