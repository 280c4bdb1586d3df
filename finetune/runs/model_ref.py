"""A model that was found but not loaded."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune.common.files import read_json_object
from finetune.common.formatting import is_number
from finetune.data.tokenizer import Tokenizer
from finetune.gpt import GPT, GPTConfig

HUB_ID = re.compile(r"[\w-][\w.-]{0,95}(/[\w-][\w.-]{0,95})?", re.ASCII)


def read_facts(folder: Path) -> dict[str, Any]:
    """What finetune.json says of a model; what is not of the right type is left out."""
    found = read_json_object(folder / "finetune.json")
    checks = {
        "step": lambda value: type(value) is int and 0 <= value < 1 << 63,
        "new_tokens": lambda value: type(value) is int and 0 <= value < 1 << 32,
        "init_from": lambda value: isinstance(value, str) and 0 < len(value) < 4096,
        "base_model": lambda value: value is None or isinstance(value, str) and bool(HUB_ID.fullmatch(value)),
        "interpolation": _is_mixture,
        "versions": lambda value: isinstance(value, dict) and all(isinstance(one, str) for one in value.values()),
        "git": lambda value: isinstance(value, dict) and isinstance(value.get("commit"), str),
    }
    return {key: value for key, value in found.items() if checks.get(key, is_number)(value)}


def _is_mixture(value: Any) -> bool:
    """Whether it is what publishing.interpolate records."""
    if not isinstance(value, dict) or not isinstance(losses := value.get("losses"), list):
        return False
    pairs = all(isinstance(pair, list) and len(pair) == 2 and all(map(is_number, pair)) for pair in losses)
    return pairs and is_number(value.get("weight")) and isinstance(value.get("base"), str)


@dataclass(frozen=True)
class ModelRef:
    """A model that was found but not loaded."""

    name: str  # as the user wrote it
    path: Path  # directory or ckpt.pt; the name again if there are no files: from scratch, or with `shape_only`
    config: GPTConfig
    tokenizer: Tokenizer | None
    facts: dict[str, Any] = field(default_factory=dict)  # finetune.json: step, val_loss, init_from, base_model
    notes: tuple[str, ...] = ()  # lines for the user: what `with_tokens_of` changed

    @property
    def folder(self) -> Path:
        """The directory that holds the files of the model."""
        return self.path.parent if self.path.is_file() else self.path

    def describe(self) -> str:
        """`out/best (step 250, val loss 3.1234)`."""
        step, val_loss = self.facts.get("step"), self.facts.get("val_loss")
        if step is None or not isinstance(val_loss, int | float):
            return str(self.path)
        return f"{self.path} (step {step}, val loss {val_loss:.4f})"

    def describe_vocabulary(self) -> str:
        """The vocabulary in words, for error messages."""
        if self.tokenizer:
            return self.tokenizer.describe()["name"]
        return f"a vocabulary of {self.config.vocab_size:,} ids"

    def load(self) -> GPT:
        """The model with its weights, float32, on the CPU, and with the rows that `config` says."""
        return GPT.from_pretrained(self.path, vocab_size=self.config.vocab_size)
