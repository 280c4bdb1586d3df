"""The texts of an evaluation as token ids, checked against the model before any weights are loaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from finetune.common.errors import UsageError
from finetune.data import dataset as datasets
from finetune.data import sources
from finetune.data.dataset import Dataset
from finetune.data.tokenizer import Tokenizer
from finetune.evaluation.loss import TokenStream
from finetune.runs.datasets import find_dataset, find_dataset_of_run, find_prepared, newest_start
from finetune.runs.model_ref import ModelRef
from finetune.runs.vocabulary import check_vocabulary


def open_dataset(name: str | None, model: ModelRef, out_dir: str | None) -> Dataset:
    """The dataset `name`; None is the one that the run in `out_dir` was trained on. Raises UsageError."""
    if name is None:
        return find_dataset_of_run(out_dir or "")
    choice, val_fraction = model.tokenizer or "gpt2", 0.1
    recipe = newest_start(out_dir).get("recipe", {}) if out_dir else {}
    if name == recipe.get("dataset"):  # the run's own text is prepared as the run prepared it
        val_fraction = recipe["val_fraction"] or val_fraction
        if model.tokenizer and model.tokenizer.kind == "char":
            choice = "char"
    return find_dataset(name, lambda: choice, val_fraction)


def open_split(dataset: Dataset, split: str, model: ModelRef) -> TokenStream:
    """A split of a dataset, its files and ids checked. Raises UsageError."""
    bins = [path.stem for path in dataset.directory.glob("*.bin")]
    splits = sorted(name for name in bins if not name.endswith(("_mask", "_documents")))
    if split not in splits:
        raise UsageError(f"split: {dataset.directory} has no {split}.bin; its splits are {', '.join(splits)}")
    check_vocabulary(dataset, model)
    stats = datasets.scan(dataset, split)
    datasets.check_ids(dataset, split, stats, model.config.vocab_size, model.name)
    if stats.tokens < 2:
        raise UsageError(f"{dataset.bin(split)}: has {stats.tokens} token; at least two are needed to predict one")
    ids, mask = dataset.open_bin(split), None
    if path := dataset.mask(split):
        mask = np.memmap(path, dtype=np.uint8, mode="r")
        if not mask[1:].any():
            raise UsageError(f"{path}: no token of {split}.bin is a target, so there is nothing to measure")
    return TokenStream(ids, mask, token_bytes(dataset.tokenizer or model.tokenizer))


def open_general(name: str, model: ModelRef) -> TokenStream:
    """A general text: the val split of a prepared directory, or any source that `prepare` reads. Raises UsageError."""
    if dataset := find_prepared(name):
        return open_split(dataset, "val", model)
    found, tokenizer = sources.find([name]), model.tokenizer
    if tokenizer is None:
        raise UsageError(f"general: {model.path} has no tokenizer to read {name} with; give a prepared directory")
    eot = None if found[0].is_one_text else tokenizer.eot
    ids = [np.zeros(0, tokenizer.dtype)]
    for chunk in sources.documents_of(found):
        ids.append(tokenizer.encode(chunk.text))
        if eot is not None and (chunk.is_last or chunk.eot_after):
            ids.append(np.array([eot], tokenizer.dtype))
    stream = TokenStream(np.concatenate(ids), token_bytes=token_bytes(tokenizer))
    if len(stream.ids) < 2:
        raise UsageError(f"general: {name} has {len(stream.ids)} tokens; at least two are needed to predict one")
    return stream


def is_by_document(dataset: Dataset, split: str, out_dir: str | None) -> bool:
    """Whether the run isolated documents; without a run, whether training on this dataset would."""
    identity = newest_start(out_dir).get("identity") if out_dir else None
    if identity is None:
        return dataset.mask(split) is not None
    return identity.get("isolate_documents", False)


def document_spans(dataset: Dataset, split: str, asked_by: str) -> np.ndarray:
    """The documents of a split, int64 (D, 2): first token and end. Raises UsageError for a running text; it names the
    option `asked_by`."""
    ends = dataset.document_ends(split)
    if dataset.is_running_text(split):
        raise UsageError(f"{asked_by}: {dataset.bin(split)} is one running text, without documents")
    return np.stack([np.append(0, ends[:-1]), ends], 1)


def check_predicts(stream: TokenStream, spans: np.ndarray, path: Path) -> None:
    """Raise UsageError if no document of a bin, read from its start, has a target behind its first token."""
    firsts = spans[spans[:, 0] < spans[:, 1], 0]
    mask = stream.mask
    all_are_firsts = len(firsts) == len(stream.ids)
    if mask is not None:
        all_are_firsts = np.count_nonzero(mask) == np.count_nonzero(mask[firsts])
    if all_are_firsts:
        problem = "no document has a target behind its first token, so there is nothing to predict"
        raise UsageError(f"{path}: {problem}; --documents=false reads them as one text")


def token_bytes(tokenizer: Tokenizer | None) -> np.ndarray | None:
    """Bytes of text of each id, (65536,) or more, 0 for special tokens; None without a tokenizer."""
    if tokenizer is None:
        return None
    sizes = np.zeros(max(tokenizer.vocab_size, 1 << 16))
    sizes[: tokenizer.vocab_size] = [len(text) for text in tokenizer.token_bytes]
    return sizes
