"""A model that was found but not loaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune.data.tokenizer import Tokenizer
from finetune.gpt import GPT, GPTConfig


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
