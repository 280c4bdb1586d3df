"""train.bin and val.bin: token ids as little-endian uint16, nanoGPT's format, with a meta.json that says what they
are."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finetune.common.errors import UsageError
from finetune.common.files import read_chunks, read_json
from finetune.data import nanogpt_meta
from finetune.data import tokenizer as tokenizers

FORMAT = 1
LLMC_MAGIC = 20240520
GPT2_EOT = 50256
CHUNK_BYTES = 1 << 22
SOURCES_KEPT = 20  # of a corpus of many files, which a run names


@dataclass
class Dataset:
    """A prepared directory. `meta` is its meta.json, or {} for bins that nanoGPT made; `tokenizer` is None when nobody
    knows it."""

    directory: Path
    meta: dict
    tokenizer: object | None

    def bin(self, split):
        return self.directory / f"{split}.bin"

    def mask(self, split):
        """The file that says which tokens are targets, one byte each; None where all are."""
        path = self.directory / f"{split}_mask.bin"
        return path if path.is_file() else None

    def documents(self, split):
        """The file that says where documents end, as uint64; None where meta.json promises none: then every end-of-text
        ends one."""
        promised = "documents_sha256" in self.meta.get("splits", {}).get(split, {})
        return self.directory / f"{split}_documents.bin" if promised else None

    @property
    def eot(self):
        """The id that ends documents, None where nothing does."""
        if "end_of_text" in self.meta:
            return self.meta["end_of_text"]
        return self.tokenizer.eot if self.tokenizer else GPT2_EOT

    def document_ends(self, split):
        """Where the documents of a split end, behind their last token, int64. What follows the last end-of-text is a
        document too. Raises UsageError where meta.json speaks of fewer than there are end-of-texts, which stand after
        turns then."""
        tokens = self.num_tokens(split)
        if path := self.documents(split):
            ends = np.fromfile(path, dtype="<u8").astype(np.int64)
        else:
            ids = np.memmap(self.bin(split), dtype="<u2", mode="r")
            parts = range(0, 0 if self.eot is None else tokens, CHUNK_BYTES)
            ends = np.concatenate(
                [
                    np.zeros(0, np.int64),
                    *(np.flatnonzero(ids[first : first + CHUNK_BYTES] == self.eot) + first + 1 for first in parts),
                ]
            )
            said = self.meta.get("splits", {}).get(split, {}).get("documents", len(ends))
            if len(ends) > said:
                raise UsageError(
                    f"{self.bin(split)}: {len(ends):,} end-of-texts in {said:,} documents, and nothing says where one"
                    " begins; prepare the data again"
                )
        return ends if len(ends) and ends[-1] == tokens else np.append(ends, tokens)

    def is_running_text(self, split):
        """Whether nothing says where one document ends and the next begins."""
        if self.documents(split):
            return False
        ends = self.document_ends(split)
        return len(ends) == 1 and (
            self.eot is None or np.memmap(self.bin(split), dtype="<u2", mode="r")[-1] != self.eot
        )

    def num_tokens(self, split):
        return self.bin(split).stat().st_size // 2

    def num_bytes(self, split):
        """Bytes of text in a split, which bits per byte need; None when unknown."""
        return self.meta.get("splits", {}).get(split, {}).get("bytes")

    def facts(self):
        """What a run keeps of its data: where it lies, what it was made from, how large it is. Plain values; what is
        unknown is left out."""
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
            "val_fraction": self.meta.get("val_fraction"),
            "sources": sources[:SOURCES_KEPT],
            "num_sources": len(sources),
        }


def identity_key(file, number, datasets):
    """How the identity of a run calls a file of its dataset `number`, counted from 1, of so many."""
    return file if datasets == 1 else f"{file} of dataset {number}"


def facts_of(datasets):
    """The facts of one dataset, or of several as if they were one."""
    each = [dataset.facts() for dataset in datasets]
    if len(each) == 1:
        return {**each[0], "directories": [each[0]["directory"]]}
    splits = {}
    for split in ("train", "val"):
        counted = [facts["splits"][split] for facts in each]
        splits[split] = {
            name: sum(one[name] for one in counted) for name in counted[0] if all(name in one for one in counted)
        }
    return {
        "name": ", ".join(facts["name"] for facts in each),
        "directories": [facts["directory"] for facts in each],
        "tokenizer": each[0]["tokenizer"],
        "splits": splits,
        "split_by": "sources",
        "sources": [source for facts in each for source in facts["sources"]][:SOURCES_KEPT],
        "num_sources": sum(facts["num_sources"] for facts in each),
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
        raise UsageError(
            f"{directory}: has tokenizer.json but no meta.json, so its preparation was interrupted; prepare the data"
            " again"
        )
    if described:
        try:
            meta = read_json(directory / "meta.json")
            if meta.get("format") != FORMAT:
                raise UsageError(
                    f"{directory / 'meta.json'}: format {meta.get('format')!r} is not {FORMAT}; prepare the data again"
                )
            if not all(isinstance(meta["splits"][split], dict) for split in ("train", "val")):
                raise ValueError("splits")
            tokenizer = tokenizers.from_description(meta["tokenizer"], directory)
        except UsageError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(
                f"{directory / 'meta.json'}: not readable as a dataset's description ({error!r}); prepare the data"
                " again"
            ) from None
    elif (directory / "meta.pkl").is_file():
        try:
            tokenizer = tokenizers.CharTokenizer(nanogpt_meta.read((directory / "meta.pkl").read_bytes()))
        except ValueError as error:
            raise UsageError(f"{directory / 'meta.pkl'}: {error}") from None
    return Dataset(directory, meta, tokenizer)


def check_size(path, guess=False):
    """The number of tokens in a bin. Raises UsageError for one that is missing, empty or cut, and for one that by a
    look at its first values is evidently of another format, if there is a need to `guess`."""
    if not path.is_file():
        raise UsageError(f"{path}: there is no such file; `python -m finetune.prepare` makes train.bin and val.bin")
    size = path.stat().st_size
    if size == 0:
        raise UsageError(f"{path}: is empty; prepare the data again, with a larger val_fraction if this is val.bin")
    if size % 2:
        raise UsageError(
            f"{path}: {size:,} bytes are not a whole number of 16-bit tokens; it was probably cut short. Copy or"
            " prepare it again"
        )
    if not guess:
        return size // 2
    with open(path, "rb") as file:
        head = np.frombuffer(file.read(8192), dtype="<u2")
    if head.size >= 2 and int(head[0]) + (int(head[1]) << 16) == LLMC_MAGIC:
        raise UsageError(
            f"{path}: is a bin of llm.c, which begins with a header; prepare the text with finetune.prepare"
        )
    if head.size >= 64 and (head[1::2] == 0).mean() > 0.9 and (head[::2] == 0).mean() < 0.9:
        raise UsageError(f"{path}: looks like 32-bit token ids (every second 16-bit value is 0); bins hold 16-bit ids")
    return size // 2


@dataclass
class BinStats:
    """What reading a whole bin tells."""

    tokens: int
    largest: int  # id
    sha256: str
    mask_sha256: str | None = None
    documents_sha256: str | None = None


def scan(dataset, split):
    """The Contents of a bin. Raises UsageError when meta.json promises another sha256, of the bin or of what lies
    beside it, so that a cut or edited file never passes, and when a mask is not as long as its bin."""
    path, largest = dataset.bin(split), 0
    tokens, promised = check_size(path), dataset.meta.get("splits", {}).get(split, {})

    def digest(path, name, look=lambda chunk: None):
        """sha256 of a file that meta.json speaks of as `name`, None where there is neither."""
        if not path.is_file() and name not in promised:
            return None
        if not path.is_file():
            raise UsageError(f"{path}: there is no such file, and meta.json speaks of one; prepare the data again")
        found = hashlib.sha256()
        for chunk in read_chunks(path):
            found.update(chunk)
            look(chunk)
        if promised.get(name, found.hexdigest()) != found.hexdigest():
            raise UsageError(
                f"{path}: is not the file that meta.json describes (its sha256 differs); prepare the data again"
            )
        return found.hexdigest()

    def look(chunk):
        nonlocal largest
        largest = max(largest, int(np.frombuffer(chunk, dtype="<u2").max()))

    if (mask := dataset.mask(split)) and mask.stat().st_size != tokens:
        raise UsageError(
            f"{mask}: {mask.stat().st_size:,} bytes for the {tokens:,} tokens of {split}.bin; a mask has one a token."
            " Prepare the data again"
        )
    mask_sha256 = digest(dataset.directory / f"{split}_mask.bin", "mask_sha256")
    documents_sha256 = digest(dataset.documents(split), "documents_sha256") if dataset.documents(split) else None
    return BinStats(
        tokens,
        sha256=digest(path, "sha256", look),
        largest=largest,
        mask_sha256=mask_sha256,
        documents_sha256=documents_sha256,
    )


def check_ids(dataset, split, contents, vocab_size, model):
    """Raise UsageError when a split has ids beyond the `vocab_size` of `model`, saying how many and where the first
    is."""
    if contents.largest < vocab_size:
        return
    ids = np.memmap(dataset.bin(split), dtype="<u2", mode="r")
    beyond = np.flatnonzero(ids >= vocab_size)
    raise UsageError(
        f"{dataset.bin(split)}: token {ids[beyond[0]]:,} at offset {beyond[0]:,} ({beyond.size:,} such), but {model}"
        f" has {vocab_size:,} ids; prepare the text with the model's tokenizer"
    )
