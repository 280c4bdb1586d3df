"""GPT-2, written out. Parameters have the names of the Hugging Face Hub, but weights have the layout of nn.Linear,
(out, in), and the embedding has `padded_vocab_size` rows.

Shapes: B batch, T tokens, C n_embd, H n_head, D head size (C / H), V vocabulary, L n_layer, N tokens of a batch (B T).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from finetune.gpt import attention, loss, recompute

if TYPE_CHECKING:
    from typing_extensions import Self

# the largest model that anybody has published is far below these; a forged config.json is not
LIMITS = {
    "block_size": 1 << 24,
    "vocab_size": 1 << 24,
    "n_layer": 1000,
    "n_head": 1 << 14,
    "n_embd": 1 << 16,
    "n_inner": 1 << 18,
}


@dataclass
class GPTConfig:
    """The shape of a network. The defaults are GPT-2 small: 124,439,808 parameters without vocabulary padding."""

    block_size: int = 1024
    vocab_size: int = 50257
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    n_inner: int | None = None  # width of the MLP; None is 4 * n_embd
    activation_function: str = "gelu_new"  # GPT-2's tanh GELU; "gelu" is the exact one, as in nanoGPT
    layer_norm_epsilon: float = 1e-5
    scale_attn_weights: bool = True  # divides the scores of attention by the root of the head size
    scale_attn_by_inverse_layer_idx: bool = False  # divides them by the number of the layer too, counted from 1
    dropout: float = 0.0
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    generation_config: dict[str, Any] | None = None  # generation_config.json of the model that this one came from
    new_tokens: int = 0  # ids at the end of the vocabulary that a run adds to those of the model it starts from
    other_keys: dict[str, Any] = field(default_factory=dict)  # of its config.json, without a meaning here

    def __post_init__(self) -> None:
        for name, most in LIMITS.items():
            value = getattr(self, name)
            is_default = name == "n_inner" and value is None
            if not is_default and not (type(value) is int and 1 <= value <= most):
                raise ValueError(f"{name} must be a whole number from 1 to {most:,}, got {value!r:.80}")
        for name in ("layer_norm_epsilon", "dropout"):
            if not (type(value := getattr(self, name)) in (int, float) and 0 <= value <= 1):
                raise ValueError(f"{name} must be a number from 0 to 1, got {value!r:.80}")
        for name in ("scale_attn_weights", "scale_attn_by_inverse_layer_idx"):
            if type(value := getattr(self, name)) is not bool:
                raise ValueError(f"{name} must be true or false, got {value!r:.80}")
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd={self.n_embd} cannot be divided among n_head={self.n_head} heads")
        if self.activation_function not in ("gelu_new", "gelu"):
            raise ValueError(f"activation_function={self.activation_function!r:.80}: gelu_new and gelu are known")

    @property
    def mlp_width(self) -> int:
        return self.n_inner or 4 * self.n_embd

    def q_scale(self, layer: int) -> float:
        """What queries of a layer are multiplied by, beside the kernels' division by the root of the head size; 1 in
        OpenAI's models."""
        scale = 1.0 if self.scale_attn_weights else math.sqrt(self.n_embd // self.n_head)
        return scale / (layer + 1) if self.scale_attn_by_inverse_layer_idx else scale

    @property
    def has_own_scale(self) -> bool:
        """Whether scores of attention are scaled unlike in OpenAI's models."""
        return any(self.q_scale(layer) != 1 for layer in range(self.n_layer))

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The ids that end a text, as transformers finds them: those of generation_config.json, else of config.json."""
        found = (self.generation_config or {}).get("eos_token_id")
        if found is None:
            found = self.eos_token_id
        return tuple(found if isinstance(found, list) else [] if found is None else [found])

    @property
    def pad_id(self) -> int | None:
        """The id that fills a batch, as transformers finds it."""
        found = (self.generation_config or {}).get("pad_token_id")
        return self.other_keys.get("pad_token_id") if found is None else found

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding: the next multiple of 64, which makes matrix products faster (50257 -> 50304)."""
        return math.ceil(self.vocab_size / 64) * 64


# n_layer, n_head, n_embd
SHAPES = {"gpt2": (12, 12, 768), "gpt2-medium": (24, 16, 1024), "gpt2-large": (36, 20, 1280), "gpt2-xl": (48, 25, 1600)}


class Transformer(nn.Module):
    """The network alone, its head tied to the token embedding; `finetune.GPT` adds loading and generation.

    Unlike those of a GPT, the weights of a new one are uninitialized until `init_weights` or `load_state_dict`."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        self.chunked_loss: Literal["auto", "true", "false"] = "auto"
        # training may compile it
        self.linear_cross_entropy: Callable[[Tensor, Tensor, Tensor, int], Tensor] = loss.linear_cross_entropy
        self.wte = UninitializedEmbedding(config.padded_vocab_size, config.n_embd)
        self.wpe = UninitializedEmbedding(config.block_size, config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)

    def forward(
        self, idx: Tensor, targets: Tensor | None = None, position_ids: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logits (B, T, V) of the token ids `idx` (B, T), or with `targets` (B, T) their loss `(sum, count)`, computed
        here because DDP and FSDP wrap only `forward`.

        The loss is cross entropy in nats, summed over all targets but -100, so that the caller divides once over all
        micro-batches. With `position_ids` (B, T), which start at 0 in each document, attention stays within documents.
        Raises ValueError if T is above block_size."""
        x = self.hidden(idx, position_ids=position_ids)
        if targets is None:
            return self.head(x)
        x, targets = x.flatten(0, 1), targets.flatten()  # (N, C), (N)
        chunked = loss.is_chunked(self.chunked_loss, x.device.type, x.size(0) * self.config.padded_vocab_size)
        linear_cross_entropy = loss.chunked_linear_cross_entropy if chunked else self.linear_cross_entropy
        summed = linear_cross_entropy(x, self.wte.weight, targets, self.config.vocab_size)
        return summed, (targets != loss.IGNORE_INDEX).sum()

    def hidden(self, idx: Tensor, cache: attention.KVCache | None = None, position_ids: Tensor | None = None) -> Tensor:
        """Hidden states (B, T, C) after the last layer norm.

        With a `cache`, `idx` continues the tokens in it: a prompt if it is empty, else one token. Keys and values are
        written to it, but its `length` stays: the caller adds T. A cache holds one document: no `position_ids` then."""
        T = idx.size(1)
        length = T + (cache.length if cache is not None else 0)
        if length > self.config.block_size:
            raise ValueError(f"{length} tokens are more than block_size={self.config.block_size}")
        document_starts = None if position_ids is None else attention.find_document_starts(position_ids)  # (B, T)
        if position_ids is None:
            position_ids = cache.positions(T) if cache is not None else torch.arange(T, device=idx.device)
        x = self.drop(self.wte(idx) + self.wpe(position_ids))  # (B, T, C)
        for block in self.h:
            if self.gradient_checkpointing and self.training:
                x = checkpoint(block, x, None, document_starts, use_reentrant=False)  # None: no cache
            else:
                x = block(x, cache, document_starts)
        return self.ln_f(x)

    def head(self, x: Tensor) -> Tensor:
        """Logits (..., V) of hidden states (..., C), without the padding of the vocabulary."""
        return F.linear(x, self.wte.weight)[..., : self.config.vocab_size]

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> Self:
        """Random weights: embeddings normal(0, 0.02), matrices normal(0, 0.02 sqrt(768 / C)), projections into the
        residual stream divided by sqrt(2 L), biases 0.

        GPT-2 uses 0.02 at every width. With it a network narrower than 768 would lose hundreds of updates
        (docs/log.md)."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif "ln_" in name:
                parameter.fill_(1.0)
            else:
                std = 0.02 if name in ("wte.weight", "wpe.weight") else 0.02 * math.sqrt(768 / self.config.n_embd)
                if name.endswith("c_proj.weight"):
                    std /= math.sqrt(2 * self.config.n_layer)
                parameter.normal_(0.0, std, generator=generator)
        self.wte.weight[self.config.vocab_size :] = 0.0
        return self

    @torch.no_grad()
    def crop_block_size(self, block_size: int) -> None:
        """Keep the first `block_size` positions, at least one. Raises ValueError if the model has fewer."""
        if block_size < 1:
            raise ValueError(f"block_size must be at least 1, got {block_size}")
        if block_size > self.config.block_size:
            raise ValueError(f"block_size={block_size} is above the model's {self.config.block_size} positions")
        self.config.block_size = block_size
        self.wpe.num_embeddings = block_size
        self.wpe.weight = nn.Parameter(self.wpe.weight[:block_size].clone())

    def set_dropout(self, dropout: float) -> None:
        """Set the probability of every dropout. Raises ValueError for what is none."""
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout must be a number from 0 to 1, got {dropout}")
        self.config.dropout = dropout
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.p = dropout


class UninitializedLinear(nn.Linear):
    def reset_parameters(self) -> None:
        """Do nothing: `init_weights` or `load_state_dict` sets the weights. PyTorch's own initialization
        costs 1.5 seconds of imports on the meta device."""


class UninitializedEmbedding(nn.Embedding):
    def reset_parameters(self) -> None:
        """As in UninitializedLinear."""


class Block(nn.Module):
    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = CausalSelfAttention(config, layer)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = MLP(config)

    def forward(
        self, x: Tensor, cache: attention.KVCache | None = None, document_starts: Tensor | None = None
    ) -> Tensor:
        x = x + self.attn(x, self.ln_1, cache, document_starts)
        return x + self.mlp(x, self.ln_2)


class CausalSelfAttention(nn.Module):
    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer  # index in the cache
        self.n_head = config.n_head
        scale = config.q_scale(layer)
        self.q_scale: float | Tensor | None = None if scale == 1 else scale  # runtime.compiler makes it a tensor
        self.use_flex_attention = False  # within documents; set by runtime.attention_check
        self.c_attn = UninitializedLinear(config.n_embd, 3 * config.n_embd)
        self.c_proj = UninitializedLinear(config.n_embd, config.n_embd)
        # holds the probability for the attention kernel and is never called; a module, so that `set_dropout` finds it
        self.attn_dropout = nn.Dropout(config.dropout)
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        norm: nn.LayerNorm,
        cache: attention.KVCache | None = None,
        document_starts: Tensor | None = None,
    ) -> Tensor:
        B, T, C = x.shape
        qkv = recompute.linear(self.c_attn, norm, x).view(B, T, 3, self.n_head, C // self.n_head)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, T, D)
        if self.q_scale is not None:
            q = (q * self.q_scale).to(q.dtype)
        if cache is not None:
            y = cache.attend(self.layer, q, k, v)
        else:
            dropout = self.attn_dropout.p if self.training else 0.0
            y = attention.causal_attention(q, k, v, document_starts, dropout, self.use_flex_attention)
        y = y.transpose(1, 2).reshape(B, T, C)
        return self.resid_dropout(self.c_proj(y))


class MLP(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc = UninitializedLinear(config.n_embd, config.mlp_width)
        self.act = nn.GELU(approximate="tanh" if config.activation_function == "gelu_new" else "none")
        self.c_proj = UninitializedLinear(config.mlp_width, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        hidden = recompute.linear(self.c_fc, norm, x)
        return self.dropout(recompute.linear(self.c_proj, self.act, hidden))
