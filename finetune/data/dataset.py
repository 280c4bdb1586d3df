"""A prepared directory: train.bin and val.bin in nanoGPT's format, with a meta.json that describes them.

Token ids are little-endian uint16, of vocabularies above 65,536 uint32."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finetune.common.errors import UsageError
from finetune.common.files import CHUNK_BYTES, read_chunks, read_json, sha256_of
from finetune.data import bin_formats, description, nanogpt_meta
from finetune.data import tokenizer as tokenizers
from finetune.data.bpe_files import GPT2_EOT, GPT2_PADDED_VOCAB, GPT2_VOCAB

FORMAT = 1
UINT16 = np.dtype("<u2")
SIZES = ("tokens", "characters", "bytes", "documents", "targets")  # of a split, as far as known
SOURCES_KEPT = 20  # of a corpus of many files, in the facts of a run


@dataclass
class Dataset:
    """A prepared directory. `meta` is its meta.json; of nanoGPT's bins the vocab_size of meta.pkl, or {}. `tokenizer`
    is None if unknown."""

    directory: Path
    meta: dict
    tokenizer: tokenizers.Tokenizer | None
    is_assumed: bool = False  # the tokenizer is GPT-2's because the ids allow it
    note: str = ""  # what a run says of it

    def bin(self, split: str) -> Path:
        return self.directory / f"{split}.bin"

    def mask(self, split: str) -> Path | None:
        """The file with a byte for each token, 1 if it is a target; None if all are."""
        path = self.directory / f"{split}_mask.bin"
        return path if path.is_file() else None

    def documents(self, split: str) -> Path | None:
        """The file of document ends, uint64; None if meta.json lists none: then every end-of-text ends a document."""
        is_listed = "documents_sha256" in self.split_meta(split)
        return self.directory / f"{split}_documents.bin" if is_listed else None

    def split_meta(self, split: str) -> dict:
        return self.meta.get("splits", {}).get(split, {})

    @property
    def dtype(self) -> np.dtype:
        """That of an id in a bin, little-endian."""
        return bin_dtype(self.meta.get("dtype", "uint16"))

    def open_bin(self, split: str) -> np.ndarray:
        """The ids of a split, memory-mapped."""
        return np.memmap(self.bin(split), dtype=self.dtype, mode="r")

    @property
    def eot(self) -> int | None:
        """The id that ends documents, None if there is none."""
        if "end_of_text" in self.meta:
            return self.meta["end_of_text"]
        if self.tokenizer:
            return self.tokenizer.eot
        return GPT2_EOT if (self.vocab_size or GPT2_VOCAB) > GPT2_EOT else None

    @property
    def vocab_size(self) -> int | None:
        """The ids of a model from scratch: those of the tokenizer, or of meta.json or meta.pkl; None if unknown."""
        return self.meta.get("vocab_size") or (self.tokenizer.vocab_size if self.tokenizer else None)

    def forget_tokenizer(self) -> None:
        """Leave the tokenizer unknown that was only assumed."""
        self.tokenizer, self.is_assumed, self.note = None, False, ""

    def document_ends(self, split: str) -> np.ndarray:
        """The end of each document, behind its last token, int64. Tokens behind the last end-of-text are one too.
        Raises UsageError if there are more end-of-texts than documents, because then some only end a turn."""
        tokens, path = self.num_tokens(split), self.documents(split)
        if path:
            ends = np.fromfile(path, dtype="<u8").astype(np.int64)
        else:
            ends = self._ends_by_eot(split)
            count = self.split_meta(split).get("documents", len(ends))
            if len(ends) > count:
                problem = f"{len(ends):,} end-of-texts in {count:,} documents, and nothing says where one begins"
                raise _unusable(self.bin(split), problem)
        return ends if len(ends) and ends[-1] == tokens else np.append(ends, tokens)

    def _ends_by_eot(self, split: str) -> np.ndarray:
        ids = self.open_bin(split)
        ends = [np.zeros(0, np.int64)]
        for first in range(0, 0 if self.eot is None else len(ids), CHUNK_BYTES):
            ends.append(np.flatnonzero(ids[first : first + CHUNK_BYTES] == self.eot) + first + 1)
        return np.concatenate(ends)

    def is_running_text(self, split: str) -> bool:
        """Whether nothing marks where one document ends and the next begins."""
        if self.documents(split) or len(self.document_ends(split)) > 1:
            return False
        return self.eot is None or self.open_bin(split)[-1] != self.eot

    def num_tokens(self, split: str) -> int:
        return self.bin(split).stat().st_size // self.dtype.itemsize

    def num_bytes(self, split: str) -> int | None:
        """Bytes of text in a split, for bits per byte; None if unknown."""
        return self.split_meta(split).get("bytes")

    def facts(self) -> dict:
        """What a run records of its data: place, sources, sizes. Plain values, without the unknown ones."""
        splits = {}
        for split in ("train", "val"):
            known = {"tokens": self.num_tokens(split), **self.split_meta(split)}
            splits[split] = {name: known[name] for name in SIZES if name in known}
        sources = [*(self.meta.get("sources") or []), *(self.meta.get("val_sources") or [])]
        return {
            "name": self.directory.resolve().name,
            "directory": str(self.directory),
            "tokenizer": self.tokenizer.describe()["name"] if self.tokenizer else None,
            "splits": splits,
            "split_by": self.meta.get("split_by"),
            "val_fraction": self.meta.get("val_fraction"),
            "sources": sources[:SOURCES_KEPT],
            "num_sources": len(sources),
        }


def identity_key(file: str, number: int, count: int) -> str:
    """Key of a file of dataset `number` (from 1) of `count` in a run's identity."""
    return file if count == 1 else f"{file} of dataset {number}"


def facts_of(datasets: list[Dataset]) -> dict:
    """The facts of one dataset, or of several as if they were one."""
    each = [dataset.facts() for dataset in datasets]
    if len(each) == 1:
        return {**each[0], "directories": [each[0]["directory"]]}
    splits = {}
    for split in each[0]["splits"]:
        counts = [facts["splits"][split] for facts in each]
        known = [name for name in counts[0] if all(name in one for one in counts)]
        splits[split] = {name: sum(one[name] for one in counts) for name in known}
    return {
        "name": ", ".join(facts["name"] for facts in each),
        "directories": [facts["directory"] for facts in each],
        "tokenizer": each[0]["tokenizer"],
        "splits": splits,
        "split_by": "sources",
        "sources": [source for facts in each for source in facts["sources"]][:SOURCES_KEPT],
        "num_sources": sum(facts["num_sources"] for facts in each),
    }


def is_prepared(directory: str | Path) -> bool:
    return (Path(directory) / "train.bin").is_file() or (Path(directory) / "meta.json").is_file()


def load(directory: str | Path) -> Dataset:
    """The Dataset in a directory. Of its bins the sizes are checked, and without meta.json that they look like 16-bit
    ids. Raises UsageError naming the file."""
    directory = Path(directory)
    meta_json, meta_pkl = directory / "meta.json", directory / "meta.pkl"
    if meta_json.is_file():
        return _load_described(directory, meta_json)
    for split in ("train", "val"):
        check_size(directory / f"{split}.bin", guess=True)
    if (directory / "tokenizer.json").is_file():
        raise _unusable(directory, "has tokenizer.json but no meta.json, so its preparation was interrupted")
    return _load_nanogpt(directory, meta_pkl if meta_pkl.is_file() else None)


def _load_nanogpt(directory: Path, meta_pkl: Path | None) -> Dataset:
    """The Dataset of nanoGPT's bins. Without their tokens they are GPT-2's if the ids allow it: some are merged tokens,
    and none is beyond the vocabulary."""
    described = nanogpt_meta.read_file(meta_pkl) if meta_pkl else nanogpt_meta.NanoGPTMeta(GPT2_VOCAB, None)
    meta = {"vocab_size": described.vocab_size} if meta_pkl else {}
    if described.chars:
        return Dataset(directory, meta, tokenizers.CharTokenizer(described.chars))
    if described.tokens:
        note = f"{meta_pkl}: its tokens are words, and nothing says how a text is cut into them: no tokenizer"
        return Dataset(directory, meta, None, note=note)
    if described.vocab_size not in (GPT2_VOCAB, GPT2_PADDED_VOCAB):
        note = f"{meta_pkl}: holds the number of ids, {described.vocab_size:,}, and no characters: no tokenizer"
        return Dataset(directory, meta, None, note=note)
    largest = max(bin_formats.largest_id(directory / f"{split}.bin") for split in ("train", "val"))
    gpt2 = tokenizers.gpt2_if_here() if 256 <= largest < GPT2_VOCAB else None
    if gpt2 is None:
        return Dataset(directory, meta, None)
    note = f"{directory}: nothing says which tokenizer made its ids; they are taken for GPT-2's (up to {largest:,})"
    return Dataset(directory, meta, gpt2, is_assumed=True, note=note)


def _load_described(directory: Path, meta_json: Path) -> Dataset:
    try:
        meta = read_json(meta_json)
        if meta.get("format") != FORMAT:
            raise _unusable(meta_json, f"format {meta.get('format')!r} is not {FORMAT}")
        description.check(meta)
        dtype = bin_dtype(meta.get("dtype", "uint16"))
        for split in ("train", "val"):
            check_size(directory / f"{split}.bin", dtype)
        return Dataset(directory, meta, tokenizers.from_description(meta["tokenizer"], directory))
    except UsageError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unusable(meta_json, f"not readable as a dataset's description ({error!r})") from None


def _unusable(place: Path, problem: str) -> UsageError:
    return UsageError(f"{place}: {problem}; prepare the data again")


def bin_dtype(name: str) -> np.dtype:
    """The dtype of a bin, named as in meta.json. Raises ValueError."""
    if name not in ("uint16", "uint32"):
        raise ValueError(f"dtype {name!r} is neither uint16 nor uint32")
    return np.dtype(name).newbyteorder("<")


def check_size(path: Path, dtype: np.dtype = UINT16, guess: bool = False) -> int:
    """The number of tokens in a bin. Raises UsageError if it is missing, empty or cut short, or, with `guess`, if it
    looks like another format."""
    if not path.is_file():
        raise UsageError(f"{path}: there is no such file; `finetune prepare` makes train.bin and val.bin")
    size = path.stat().st_size
    if size == 0:
        raise UsageError(f"{path}: is empty; prepare the data again, with a larger val_fraction if this is val.bin")
    if size % dtype.itemsize:
        bits = 8 * dtype.itemsize
        problem = f"{size:,} bytes are not a whole number of {bits}-bit tokens, so it was probably cut short"
        raise UsageError(f"{path}: {problem}; copy or prepare it again")
    if guess:
        bin_formats.check(path)
    return size // dtype.itemsize


@dataclass
class BinStats:
    """What reading a whole bin shows."""

    tokens: int
    largest: int  # id
    sha256: str
    mask_sha256: str | None = None
    documents_sha256: str | None = None


def scan(dataset: Dataset, split: str) -> BinStats:
    """Read a whole bin and the files beside it. Raises UsageError if a file is not the one that meta.json describes,
    or if the mask is not as long as the bin."""
    path, mask = dataset.bin(split), dataset.mask(split)
    tokens, expected = check_size(path, dataset.dtype), dataset.split_meta(split)
    if mask and mask.stat().st_size != tokens:
        size = mask.stat().st_size
        raise _unusable(mask, f"{size:,} bytes for the {tokens:,} tokens of {split}.bin, and a mask has one a token")
    mask_sha256 = documents_sha256 = None
    if mask or "mask_sha256" in expected:
        mask_sha256 = _checked_sha256(dataset.directory / f"{split}_mask.bin", expected.get("mask_sha256"))
    if documents := dataset.documents(split):
        documents_sha256 = _checked_sha256(documents, expected["documents_sha256"])
    digest, largest = hashlib.sha256(), 0
    for chunk in read_chunks(path):
        digest.update(chunk)
        largest = max(largest, int(np.frombuffer(chunk, dtype=dataset.dtype).max()))
    _check_sha256(path, digest.hexdigest(), expected.get("sha256"))
    return BinStats(tokens, largest, digest.hexdigest(), mask_sha256, documents_sha256)


def _checked_sha256(path: Path, expected: str | None) -> str:
    if not path.is_file():
        raise _unusable(path, "there is no such file, and meta.json lists one")
    found = sha256_of(path)
    _check_sha256(path, found, expected)
    return found


def _check_sha256(path: Path, found: str, expected: str | None) -> None:
    if expected not in (None, found):
        raise _unusable(path, "is not the file that meta.json describes (its sha256 differs)")


def check_ids(dataset: Dataset, split: str, stats: BinStats, vocab_size: int, model: str) -> None:
    """Raise UsageError if a split has ids beyond the `vocab_size` of `model`: how many, and where the first is."""
    if stats.largest < vocab_size:
        return
    ids = dataset.open_bin(split)
    beyond = np.flatnonzero(ids >= vocab_size)
    found = f"token {ids[beyond[0]]:,} at offset {beyond[0]:,} ({beyond.size:,} such)"
    advice = "prepare the text with the model's tokenizer"
    raise UsageError(f"{dataset.bin(split)}: {found}, but {model} has {vocab_size:,} ids; {advice}")
