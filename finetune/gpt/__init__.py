"""A GPT with weights interchangeable with Hugging Face's GPT2LMHeadModel.

model = GPT.from_pretrained("gpt2")            # or a directory, a run's out_dir, a nanoGPT ckpt.pt
logits = model(idx)                            # (B, T) -> (B, T, V)
model.save_pretrained("mine")                  # a Hugging Face directory
"""

from pathlib import Path

import torch

from finetune.gpt import convert, pretrained, size
from finetune.gpt.generate import generate
from finetune.gpt.model import GPTConfig, Transformer

__all__ = ["GPT", "GPTConfig"]


class GPT(Transformer):
    """The network together with its files and its voice."""

    @classmethod
    def from_scratch(cls, config, seed=1337):
        """Freshly initialised weights, decided by the seed."""
        return cls(config).init_weights(torch.Generator().manual_seed(seed))

    @classmethod
    def from_pretrained(cls, source, block_size=None, dropout=0.0):
        """The model that `source` means: a Hub id, a Hugging Face directory, a run's out_dir or a nanoGPT ckpt.pt.

        `block_size` keeps only that many positions. Raises UsageError when there is no such model or it is no GPT-2.
        """
        config, state = pretrained.load(source)
        return cls.from_state(config, state, block_size, dropout)

    @classmethod
    def from_state(cls, config, state, block_size=None, dropout=0.0):
        """A model around given weights (ours, without padding)."""
        with torch.device("meta"):  # no time spent on initial values that are replaced at once
            model = cls(config)
        model.load_state_dict(convert.with_padding(state, config), assign=True)
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        if block_size is not None and block_size != config.block_size:
            model.crop_block_size(block_size)
        model.set_dropout(dropout)
        return model

    @classmethod
    def from_hf(cls, hf_model):
        """Our twin of a transformers GPT2LMHeadModel, float32."""
        config = convert.config_from_hf(hf_model.config.to_dict())
        state = convert.from_hf(hf_model.state_dict(), config)
        return cls.from_state(config, {name: tensor.detach().clone().float() for name, tensor in state.items()})

    def num_parameters(self):
        """Parameters as they are exported: the tied head once, no padding."""
        return size.num_parameters(self.config)

    def to_hf(self):
        """A transformers GPT2LMHeadModel with the same weights, in evaluation mode."""
        from transformers import GPT2Config, GPT2LMHeadModel

        state = {
            name: tensor.detach().clone() for name, tensor in convert.to_hf(self.state_dict(), self.config).items()
        }
        hf = GPT2LMHeadModel.from_pretrained(
            None, config=GPT2Config(**convert.config_to_hf(self.config)), state_dict=state
        )
        return hf.eval()

    def save_pretrained(self, directory):
        """Write the model as a Hugging Face directory, which is made if need be. The tokenizer is saved by its own
        `save`."""
        Path(directory).mkdir(parents=True, exist_ok=True)
        pretrained.save(directory, self.state_dict(), self.config)

    generate = generate
