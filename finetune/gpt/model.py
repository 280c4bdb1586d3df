"""GPT-2, written out: a network whose parameters carry the names they have on the Hugging Face Hub.

Shapes: B batch, T tokens, C n_embd, H n_head, D head size (C / H), V vocabulary, L n_layer.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from finetune.gpt import attention, loss


@dataclass
class GPTConfig:
    """The shape of a network. The defaults are GPT-2 small, 124,439,808 parameters."""

    block_size: int = 1024
    vocab_size: int = 50257
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    n_inner: int | None = None  # None is 4 * n_embd
    activation_function: str = "gelu_new"  # tanh GELU; "gelu" is the exact one, which nanoGPT uses
    layer_norm_epsilon: float = 1e-5
    dropout: float = 0.0
    bos_token_id: int | None = None
    eos_token_id: int | None = None

    def __post_init__(self):
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd={self.n_embd} cannot be divided among n_head={self.n_head} heads")
        if self.activation_function not in ("gelu_new", "gelu"):
            raise ValueError(f"activation_function={self.activation_function!r}: gelu_new and gelu are known")

    @property
    def padded_vocab_size(self):
        """Rows of the embedding inside the network: a multiple of 64, because matrix units like it (50257 becomes
        50304)."""
        return math.ceil(self.vocab_size / 64) * 64


SHAPES = {
    "gpt2": (12, 12, 768),
    "gpt2-medium": (24, 16, 1024),
    "gpt2-large": (36, 20, 1280),
    "gpt2-xl": (48, 25, 1600),
}  # L, H, C


class Transformer(nn.Module):
    """The network with its tied head. Dropout is that of the config and acts in training mode only.

    A new one has no weights yet: `init_weights` makes some, `load_state_dict` brings some.
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        self.chunked_loss = "auto"
        self.cross_entropy = loss.cross_entropy  # a place for its compiled self
        self.wte = Embedding(config.padded_vocab_size, config.n_embd)
        self.wpe = Embedding(config.block_size, config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)

    def forward(self, idx, targets=None, position_ids=None):
        """Logits (B, T, V) for token ids `idx` (B, T).

        With `targets` (B, T), where -100 marks positions that do not count: `(loss, count)`, the cross entropy in nats
        summed over the targets and how many they were. Sums, so that the caller divides once, whatever the batch was
        cut into. With `position_ids` (B, T), which begin at 0 with each document, no token sees another document.
        Raises ValueError when T is above block_size."""
        x = self.hidden(idx, position_ids=position_ids)
        if targets is None:
            return self.head(x)
        x, targets, config = x.flatten(0, 1), targets.flatten(), self.config
        chunked = loss.is_chunked(self.chunked_loss, x.device.type, x.size(0) * config.padded_vocab_size)
        cross_entropy = loss.chunked_cross_entropy if chunked else self.cross_entropy
        return cross_entropy(x, self.wte.weight, targets, config.vocab_size), (targets != loss.IGNORE).sum()

    def hidden(self, idx, cache=None, position_ids=None):
        """What the last layer norm hands to the head, (B, T, C). An empty `cache` is filled in place, and a
        filled one continued by one token."""
        T = idx.size(1)
        length = T + (cache.length if cache else 0)
        if length > self.config.block_size:
            raise ValueError(f"{length} tokens are more than block_size={self.config.block_size}")
        starts = None if position_ids is None else attention.document_starts(position_ids)
        if position_ids is None:
            position_ids = cache.positions(T) if cache else torch.arange(T, device=idx.device)
        x = self.drop(self.wte(idx) + self.wpe(position_ids))
        for layer, block in enumerate(self.h):
            if self.gradient_checkpointing and self.training:
                x = checkpoint(block, x, None, starts, use_reentrant=False)
            else:
                x = block(x, cache.layer(layer) if cache else None, starts)
        if cache and cache.place is None:
            cache.length = length
        return self.ln_f(x)

    def head(self, x):
        """Logits (..., V) of hidden states (..., C). The padding of the vocabulary is cut off here, so nothing ever
        sees it."""
        return F.linear(x, self.wte.weight)[..., : self.config.vocab_size]

    @torch.no_grad()
    def init_weights(self, generator=None):
        """GPT-2's initialisation, meant for all widths: embeddings normal(0, 0.02), matrices normal(0, 0.02 sqrt(768 /
        C)), those that project into the residual smaller by sqrt(2 L), biases zero.

        GPT-2 and nanoGPT use 0.02 for every width. It is right at 768; a narrow network starts so close to zero with it
        that it loses hundreds of updates (docs/log.md)."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif ".ln_" in name or name.startswith("ln_f"):
                parameter.fill_(1.0)
            else:
                std = 0.02 if name in ("wte.weight", "wpe.weight") else 0.02 * math.sqrt(768 / self.config.n_embd)
                if name.endswith("c_proj.weight"):
                    std /= math.sqrt(2 * self.config.n_layer)
                parameter.normal_(0.0, std, generator=generator)
        self.wte.weight[self.config.vocab_size :] = 0.0
        return self

    @torch.no_grad()
    def crop_block_size(self, block_size):
        """Keep the first `block_size` positions. Raises ValueError when the network has fewer."""
        if block_size > self.config.block_size:
            raise ValueError(
                f"block_size={block_size} is more than the {self.config.block_size} positions of this model"
            )
        self.config.block_size = block_size
        self.wpe.num_embeddings = block_size
        self.wpe.weight = nn.Parameter(self.wpe.weight[:block_size].clone())

    def set_dropout(self, dropout):
        """Use this probability for all dropout from now on."""
        self.config.dropout = dropout
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.p = dropout


class Linear(nn.Linear):
    def reset_parameters(self):
        """Not initialised twice; besides, doing it on the meta device costs a second and a half of imports."""


class Embedding(nn.Embedding):
    def reset_parameters(self):
        """As in Linear."""


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = MLP(config)

    def forward(self, x, cache=None, starts=None):
        x = x + self.attn(self.ln_1(x), cache, starts)
        return x + self.mlp(self.ln_2(x))


class CausalSelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.flex = False  # isolate documents by flex attention, where it works
        self.c_attn = Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = Linear(config.n_embd, config.n_embd)
        self.attn_dropout = nn.Dropout(config.dropout)  # holds the probability; flash attention applies it
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, x, cache=None, starts=None):
        B, T, C = x.shape
        q, k, v = (
            self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head).permute(2, 0, 3, 1, 4)
        )  # each (B, H, T, D)
        dropout = self.attn_dropout.p if self.training else 0.0
        y = (
            cache.attend(q, k, v)
            if cache
            else attention.attention(q, k, v, dropout_p=dropout, is_causal=True, starts=starts, flex=self.flex)
        )
        return self.resid_dropout(self.c_proj(y.transpose(1, 2).reshape(B, T, C)))


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        inner = config.n_inner or 4 * config.n_embd
        self.c_fc = Linear(config.n_embd, inner)
        self.act = nn.GELU(approximate="tanh" if config.activation_function == "gelu_new" else "none")
        self.c_proj = Linear(inner, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x):
        return self.dropout(self.c_proj(self.act(self.c_fc(x))))
