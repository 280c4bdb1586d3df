"""GPT-2 with weights interchangeable with Hugging Face's GPT2LMHeadModel.

model = GPT.from_pretrained("gpt2")            # or a directory, a run's out_dir, a nanoGPT ckpt.pt
logits = model(idx)                            # (B, T) -> (B, T, V)
out = model.generate(idx, 100, temperature=0.8, top_k=200)    # to its eos_token_id; eos_token_id=None goes on
model.save_pretrained("mine")                  # a Hugging Face directory
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from finetune.gpt import convert, pretrained, size
from finetune.gpt.generate import generate
from finetune.gpt.model import GPTConfig, Transformer

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel
    from typing_extensions import Self

__all__ = ["GPT", "GPTConfig"]


class GPT(Transformer):
    """The network with loading, saving and generation. `finetune.GPT` is this class with `tokenizer` and `push_to_hub`,
    which `publishing.model` adds to it from above."""

    source: str | Path | None = None  # what `from_pretrained` read

    @classmethod
    def from_scratch(cls, config: GPTConfig, seed: int = 1337) -> Self:
        """Random weights."""
        return cls(config).init_weights(torch.Generator().manual_seed(seed))

    @classmethod
    def from_pretrained(
        cls, source: str | Path, block_size: int | None = None, dropout: float = 0.0, vocab_size: int | None = None
    ) -> Self:
        """The model in a Hugging Face directory, a run's out_dir or a nanoGPT ckpt.pt, or of a Hub id.

        `block_size` keeps only that many positions; `vocab_size` adds rows to the embedding, up to that many. Raises
        UsageError if there is no such model or it is no GPT-2."""
        config, state = pretrained.load(source)
        state = convert.with_vocabulary(state, vocab_size or 0)
        config.vocab_size = len(state["wte.weight"])
        model = cls.from_state(config, state, block_size, dropout)
        model.source = source
        return model

    @classmethod
    def from_state(
        cls, config: GPTConfig, state: dict[str, Tensor], block_size: int | None = None, dropout: float = 0.0
    ) -> Self:
        """A model with the given weights, named as ours and without padding. It takes them over without a copy."""
        with torch.device("meta"):  # no memory for weights that are replaced at once
            model = cls(config)
        model.load_state_dict(convert.with_padding(state, config), assign=True)
        model.requires_grad_(True)
        if block_size is not None and block_size != config.block_size:
            model.crop_block_size(block_size)
        model.set_dropout(dropout)
        return model

    @classmethod
    def from_hf(cls, hf_model: GPT2LMHeadModel) -> Self:
        """A float32 copy of a transformers model."""
        config = convert.config_from_hf(hf_model.config.to_dict())
        state = convert.from_hf(hf_model.state_dict(), config)
        return cls.from_state(config, {name: tensor.detach().clone().float() for name, tensor in state.items()})

    def num_parameters(self) -> int:
        """Parameters without padding; the tied head counts once."""
        return size.num_parameters(self.config)

    def to_hf(self) -> GPT2LMHeadModel:
        """A transformers model with a copy of the weights, in evaluation mode."""
        from transformers import GPT2Config, GPT2LMHeadModel

        config = GPT2Config(**convert.config_to_hf(self.config))
        state = convert.to_hf(self.state_dict(), self.config)
        state = {name: tensor.detach().clone() for name, tensor in state.items()}
        return GPT2LMHeadModel.from_pretrained(None, config=config, state_dict=state).eval()

    def save_pretrained(self, directory: str | Path) -> None:
        """Write a Hugging Face directory, without a tokenizer."""
        Path(directory).mkdir(parents=True, exist_ok=True)
        pretrained.save(directory, self.state_dict(), self.config)

    generate = generate
