"""What an evaluation reads: models and texts, found and checked against each other before any weights are loaded."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finetune.common.errors import UsageError
from finetune.config.cli import parse
from finetune.config.recipe import Recipe
from finetune.data import dataset as datasets
from finetune.data import documents, sources
from finetune.data import tokenizer as tokenizers
from finetune.evaluation.loss import TokenStream
from finetune.gpt import GPT, pretrained
from finetune.gpt.model import GPTConfig
from finetune.runs.events import read_metrics
from finetune.runs.inputs import open_dataset


@dataclass
class ModelRef:
    """A model that is measured: where it is, what is known of it, and its tokenizer where it has one."""

    name: str  # as the user gave it
    source: Path
    config: GPTConfig
    tokenizer: object | None
    facts: dict  # of a run: {"step", "val_loss", "init_from", ...}

    @property
    def title(self):
        """Its place and, for a run, the update and validation loss it is from."""
        known = "step" in self.facts and "val_loss" in self.facts
        return (
            f"{self.source} (step {self.facts['step']}, val loss {self.facts['val_loss']:.4f})"
            if known
            else str(self.source)
        )

    def load(self, machine):
        """The model itself, float32, on the device."""
        return GPT.from_pretrained(self.source).to(machine.torch_device).eval()


def find_subject(name):
    """The Subject that anything `init_from` takes means. Raises UsageError."""
    source = pretrained.find(name)
    directory = source if source.is_dir() else source.parent
    try:
        facts = json.loads((directory / "finetune.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        facts = {}
    return ModelRef(str(name), source, pretrained.load_config(source), tokenizers.from_directory(directory), facts)


def find_baseline(name, subject):
    """The Subject to compare with; "auto" is what the run started from. Raises UsageError when their tokens are not the
    same."""
    if name == "auto":
        name = subject.facts.get("init_from")
        if name is None:
            raise UsageError(
                f"baseline: {subject.source} does not say what it started from (finetune.json); give --baseline=MODEL"
            )
        if name == "scratch":
            raise UsageError(
                f"baseline: {subject.name} started from scratch, so there is nothing to compare with; leave --baseline"
                " out, or name a model"
            )
    baseline = find_subject(name)
    ours, theirs = subject.tokenizer, baseline.tokenizer
    different = (
        ours.fingerprint != theirs.fingerprint
        if ours and theirs
        else subject.config.vocab_size != baseline.config.vocab_size
    )
    if different:
        raise UsageError(
            f"baseline: {name} works with {_kind(baseline)}, {subject.name} with {_kind(subject)}; only losses over the"
            " same tokens can be compared"
        )
    return baseline


def open_split(name, split, subject, out_dir):
    """`(Dataset, Text)` of a split of the dataset `name`, that of the run if None. Raises UsageError."""
    recipe = _recipe_of(out_dir) if out_dir else None
    if name is None and recipe is None:
        raise UsageError(f"dataset: {out_dir} has no recipe.yaml that says what it was trained on; give --dataset=DIR")
    if name is None and "," in recipe.dataset:
        raise UsageError(
            f"dataset: {out_dir} was trained on several; give one of them:"
            f" --dataset={recipe.dataset.replace(',', ', --dataset=')}"
        )
    own = recipe is not None and name in (None, recipe.dataset)
    tokenizer = subject.tokenizer or "gpt2"
    # a text is prepared with the characters of the model, not its own; that of the run is found again as the run
    # prepared it
    choice = "char" if own and subject.tokenizer and subject.tokenizer.kind == "char" else tokenizer
    dataset = open_dataset(name or recipe.dataset, lambda: choice, own and recipe.val_fraction or 0.1)
    there = sorted(
        path.stem for path in dataset.directory.glob("*.bin") if not path.stem.endswith(("_mask", "_documents"))
    )
    if split not in there:
        raise UsageError(f"split: {dataset.directory} has no {split}.bin; its splits are {', '.join(there)}")
    return dataset, _text_of(dataset, split, subject)


def by_documents(dataset, split, out_dir):
    """Whether a run looked at documents by themselves; of a model without a run, whether one would with these data."""
    told = (
        [event["identity"] for event in read_metrics(Path(out_dir) / "metrics.jsonl") if "identity" in event]
        if out_dir
        else []
    )
    return told[-1].get("isolate_documents", False) if told else dataset.mask(split) is not None


def open_general(name, subject):
    """The Text of a general corpus: the val split of a prepared directory, or whatever `prepare` reads. Raises
    UsageError."""
    for directory in (Path(name), Path("data") / name):
        if datasets.is_prepared(directory):
            return _text_of(datasets.load(directory), "val", subject)
    found, tokenizer = sources.find([name]), subject.tokenizer
    if tokenizer is None:
        raise UsageError(f"general: {subject.source} has no tokenizer to read {name} with; give a prepared directory")
    ids, end = [], np.array([] if tokenizer.eot is None or found[0].is_one_text else [tokenizer.eot], np.uint16)
    for chunk in documents.documents_of_sources(found):
        ids.append(tokenizer.encode(chunk.text))
        if chunk.is_last or chunk.eot_after:
            ids.append(end)
    text = TokenStream(np.concatenate(ids), token_bytes=token_bytes(tokenizer))
    if len(text.ids) < 2:
        raise UsageError(
            f"general: {name} has {len(text.ids)} tokens, and nothing precedes the first; at least two are needed"
        )
    return text


def token_bytes(tokenizer):
    """Bytes of text behind each id, (65536,); end-of-text and other special tokens have none. None without a
    tokenizer."""
    if tokenizer is None:
        return None
    sizes = np.zeros(1 << 16)
    if tokenizer.kind == "char":
        sizes[: tokenizer.vocab_size] = [len(char.encode("utf-8", "surrogatepass")) for char in tokenizer.chars]
    else:
        sizes[list(tokenizer.vocabulary.values())] = [len(token) for token in tokenizer.vocabulary]
    return sizes


def _text_of(dataset, split, subject):
    """A split as a Text, its files and ids checked against the model."""
    ours, theirs = dataset.tokenizer, subject.tokenizer
    if ours is not None:
        fits = ours.fingerprint == theirs.fingerprint if theirs else ours.vocab_size == subject.config.vocab_size
        if not fits:
            advice = f"--tokenizer={subject.name}" if theirs else "the model's tokenizer"
            raise UsageError(
                f"{dataset.directory} holds ids of {ours.describe()['name']}, but {subject.name} works with"
                f" {_kind(subject)}; prepare the text with {advice}"
            )
    contents = datasets.scan(dataset, split)
    datasets.check_ids(dataset, split, contents, subject.config.vocab_size, subject.name)
    if contents.tokens < 2:
        raise UsageError(
            f"{dataset.bin(split)}: has {contents.tokens} token, and nothing precedes the first; at least two are"
            " needed"
        )
    mask = dataset.mask(split)
    ids = np.memmap(dataset.bin(split), dtype="<u2", mode="r")
    text = TokenStream(ids, np.memmap(mask, dtype=np.uint8, mode="r") if mask else None, token_bytes(ours or theirs))
    if mask and not text.mask[1:].any():
        raise UsageError(f"{mask}: no token of {split}.bin is a target, so there is nothing to measure")
    return text


def _recipe_of(out_dir):
    path = Path(out_dir) / "recipe.yaml"
    return parse(Recipe, [str(path)], "")[0] if path.is_file() else None


def _kind(subject):
    return (
        subject.tokenizer.describe()["name"]
        if subject.tokenizer
        else f"a vocabulary of {subject.config.vocab_size:,} ids"
    )
