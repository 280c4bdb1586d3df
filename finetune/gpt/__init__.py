"""GPT-2 with weights interchangeable with Hugging Face's GPT2LMHeadModel.

model = GPT.from_pretrained("gpt2")            # or a directory, a run's out_dir, a nanoGPT ckpt.pt
logits = model(idx)                            # (B, T) -> (B, T, V)
out = model.generate(idx, 100, temperature=0.8, top_k=200)    # to its eos_token_id; eos_token_id=None goes on
model.save_pretrained("mine")                  # a Hugging Face directory
"""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from finetune.common.objects import as_path
from finetune.config.mirror import local_copy
from finetune.gpt import convert, pretrained, size
from finetune.gpt.generate import generate
from finetune.gpt.model import GPTConfig, Transformer

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel
    from typing_extensions import Self

__all__ = ["GPT", "GPTConfig"]


class GPT(Transformer):
    """The network with loading, saving and generation. A new one has random weights, drawn with torch's random state.
    `finetune.GPT` is this class with `tokenizer` and `push_to_hub`, which `publishing.model` adds to it from above."""

    source: str | Path | None = None  # what `from_pretrained` read: an absolute path, or an id of the Hub
    if TYPE_CHECKING:  # what `publishing.model` adds
        tokenizer: Any

        def push_to_hub(self, repository: str, private: bool = True) -> None: ...

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        if not self.wte.weight.is_meta:
            self.init_weights()

    @classmethod
    def from_scratch(cls, config: GPTConfig, seed: int = 1337, device: str | torch.device = "cpu") -> Self:
        """Random weights, the same for the same seed."""
        with torch.device("meta"):  # drawn once, below
            model = cls(config)
        return model.to_empty(device=device).init_weights(torch.Generator(device).manual_seed(seed))

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        block_size: int | None = None,
        dropout: float = 0.0,
        vocab_size: int | None = None,
    ) -> Self:
        """The model in a Hugging Face directory, a run's out_dir or a nanoGPT ckpt.pt, of a Hub id, or at an address.

        `block_size` keeps only that many positions; `vocab_size` adds rows to the embedding, up to that many. Raises
        UsageError if there is no such model or it is no GPT-2."""
        name = local_copy(as_path(source, "source"))
        config, state = pretrained.load(name)
        state = convert.with_vocabulary(state, vocab_size or 0)
        config.vocab_size = len(state["wte.weight"])
        model = cls.from_state(config, state, block_size, dropout)
        model.source = name if pretrained.is_hub_id(name) else Path(os.path.expanduser(name)).absolute()
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
    def from_hf(cls, hf_model: nn.Module) -> Self:
        """A float32 copy of a transformers model, which may be compiled, wrapped by DDP, or have adapters of peft: they
        are merged into the copy. Raises ValueError for what is no GPT-2."""
        theirs = _unwrapped(hf_model) if isinstance(hf_model, nn.Module) else hf_model
        if not hasattr(getattr(theirs, "config", None), "to_dict"):
            why = "GPT.from_pretrained takes a name" if isinstance(theirs, str) else "it has no config"
            raise ValueError(f"{type(theirs).__name__} is not a model of transformers; {why}")
        # of a GGUF file transformers makes floats and keeps this key; what is still quantized is no float
        keys = {key: value for key, value in theirs.config.to_dict().items() if key != "quantization_config"}
        config = convert.config_from_hf(keys)
        state = convert.from_hf(theirs.state_dict(), config)
        return cls.from_state(config, {name: tensor.detach().clone().float() for name, tensor in state.items()})

    def num_parameters(self) -> int:
        """Parameters without padding; the tied head counts once."""
        return size.num_parameters(self.config)

    def to_hf(self) -> GPT2LMHeadModel:
        """A transformers model with a copy of the weights, in evaluation mode."""
        from transformers import GPT2Config, GPT2LMHeadModel

        config = GPT2Config(**convert.config_to_hf(self.config))
        state = convert.to_hf(self.state_dict(), self.config)
        state = {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}
        return GPT2LMHeadModel.from_pretrained(None, config=config, state_dict=state).eval()

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Write a Hugging Face directory, without a tokenizer."""
        directory = Path(os.path.expanduser(as_path(directory, "directory")))
        directory.mkdir(parents=True, exist_ok=True)
        pretrained.save(directory, self.state_dict(), self.config)

    generate = generate


def _unwrapped(model: Any) -> Any:
    """The transformers model within torch.compile and DDP; of peft a copy with its adapters merged in."""
    inner = dict(model.named_children())
    for name in ("_orig_mod", "module"):
        if name in inner:
            return _unwrapped(inner[name])
    if not hasattr(model, "peft_config"):
        return model
    if not hasattr(model, "merge_and_unload"):
        raise ValueError("its adapters cannot be merged; merge_and_unload() is of a PeftModel with LoRA or the like")
    if any(getattr(module, "disable_adapters", None) is True for module in model.modules()):
        raise ValueError("its adapters are switched off; for the model without them, load its base again")
    if any(".lora_" in name and ("wte" in name or "lm_head" in name) for name in model.state_dict()):
        raise ValueError(
            "it has adapters of the embedding or the head, which share their weights; they cannot be merged"
        )
    return copy.deepcopy(model).merge_and_unload()
