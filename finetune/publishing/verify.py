"""Compares a model with what transformers itself reads: in the directory that it came from, and in its export."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import math
import warnings
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from finetune.common.errors import Failure, UsageError, first_line
from finetune.common.files import WORK, read_json_object
from finetune.data.tokenizer import CharTokenizer, Tokenizer
from finetune.gpt import GPT, GPTConfig, convert, pretrained

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ADDED_TOKENS = 100  # of a tokenizer, in one prompt
TOLERANCE = 1e-4  # of the largest logit: sums in another order differ by far less, a wrong tensor by far more
PROMPTS = (
    "Once upon a time, in a village by the sea,",
    "ROMEO:\nO, she doth teach the torches to burn bright!\n\nJULIET:\n",
    "def add(a, b):\n    return a + b  # 3.14159, 1,000,000\n",
    "User:\nWhat is GPT-2?\n\nAssistant:\n",
    (
        "Na\u00efve caf\u00e9 \u2014 \u6771\u4eac, \u041f\u0440\u0438\u0432\u0435\u0442, "
        "\u0928\u092e\u0938\u094d\u0924\u0947, e\u0301, \U0001f642\U0001f469\u200d\U0001f469\u200d\U0001f467, "
        "\u2028, \ufb01"
    ),
    " \t two  spaces,\r\n\n\n   three ends\n",
)


def versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("torch", "transformers", "tokenizers", "safetensors")}


@torch.no_grad()
def source(directory: Path, config: GPTConfig, weights: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Compare a model with the directory that it was read from, as transformers reads its config.json and its weights.
    Returns counts and the largest difference, or `not_compared`, with the reason. Raises Failure when they differ."""
    from transformers import GPT2Config, GPT2LMHeadModel

    if directory.is_file():
        return {"not_compared": "a nanoGPT checkpoint, which transformers does not read"}
    keys = read_json_object(directory / "config.json")
    try:
        their_config = GPT2Config.from_dict({key: keys[key] for key in keys if key not in convert.CODE_KEYS})
        with quiet():
            loaded: Any = GPT2LMHeadModel.from_pretrained(
                directory, config=their_config, dtype=torch.float32, local_files_only=True, output_loading_info=True
            )
    except Exception as error:  # of any library below transformers
        return {"not_compared": f"transformers cannot load it ({first_line(error).replace(str(directory), 'it')})"}
    theirs, loading = loaded
    if unread := _unread(loading):
        kind, names = next(iter(unread.items()))
        return {"not_compared": f"transformers finds {len(names)} {kind.replace('_', ' ')} in it, such as {names[0]}"}
    rows = [every_position(config)]
    difference, largest = compare(GPT.from_state(config, weights).eval(), lambda idx: theirs(idx).logits, rows)
    if not difference <= TOLERANCE * max(1.0, largest):
        problem = f"logits of its source in transformers differ by {difference:.2g} from those of the model"
        raise Failure(f"{problem} that was read; nothing was exported", 1)
    return {"logits_compared": len(rows[0]) * config.vocab_size, "max_difference": difference, "largest_logit": largest}


@torch.no_grad()
def hugging_face(directory: Path, model: GPT, tokenizer: Tokenizer, base: GPT | None = None) -> dict[str, Any]:
    """Load `directory` with transformers, with peft over `base` if it holds adapters, and compare with our model and
    tokenizer: ids of real prompts, logits of these and of a full context. Returns counts and the largest difference.
    Raises Failure when they differ."""
    from transformers import AutoTokenizer

    try:
        with quiet():
            theirs = _load_adapters(directory, base) if base else _load_model(directory)
        their_tokenizer: Any = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except (UsageError, Failure):
        raise
    except Exception as error:  # of a model of others; it raises all kinds
        reason = first_line(error).replace(str(directory), "it")
        raise UsageError(f"{_name(directory)}: transformers cannot load it ({reason}); nothing was exported") from None
    block_size, rows, ids_compared, added = model.config.block_size, [], 0, []
    for prompt in prompts_for(tokenizer):
        ours = tokenizer.encode(prompt, special=True).tolist()
        if their_tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"] != ours:
            problem = f"transformers' tokenizer gives other ids for {prompt!r}"
            raise Failure(f"{_name(directory)}: {problem}; nothing was exported", 1)
        around = their_tokenizer(prompt, verbose=False)["input_ids"]  # as pipeline() calls it
        added += [] if around == ours else their_tokenizer.convert_ids_to_tokens(_without(around, ours))
        ids_compared += len(ours)
        rows.append(torch.tensor(ours[:block_size]))
    rows = [row for row in rows if not len(row) or row.max() < model.config.vocab_size]  # a tokenizer may have more ids
    rows.append(every_position(model.config))
    difference, largest = compare(model, lambda idx: theirs(idx).logits, [row for row in rows if len(row)])
    if not difference <= TOLERANCE * max(1.0, largest):
        problem = f"logits of transformers differ by {difference:.2g} from ours"
        raise Failure(f"{_name(directory)}: {problem}; nothing was exported", 1)
    return {
        **({"special_tokens_added": sorted({*added})} if added else {}),
        "prompts": len(rows) - 1,
        "ids_compared": ids_compared,
        "logits_compared": sum(map(len, rows)) * model.config.vocab_size,
        "max_difference": difference,
        "largest_logit": largest,
        "tolerance": TOLERANCE * max(1.0, largest),
    }


def _without(around: list[int], ids: list[int]) -> list[int]:
    """The ids that stand around others."""
    start = next((at for at in range(len(around)) if around[at : at + len(ids)] == ids), len(around))
    return around[:start] + around[start + len(ids) :]


def _name(directory: Path) -> str:
    """The name of a directory, or the one that it gets where `write_directory` fills it."""
    return directory.name.partition("~")[2] if directory.parent.name == WORK else directory.name


def _load_model(directory: Path) -> PreTrainedModel:
    """The model as transformers loads it. Raises Failure when tensors are missing or left over."""
    from transformers import AutoModelForCausalLM

    theirs, loading = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, local_files_only=True, output_loading_info=True
    )
    if unread := _unread(loading):
        raise Failure(f"{_name(directory)}: transformers does not read it as it was written: {unread}", 1)
    return theirs


def _unread(loading: dict[str, Any]) -> dict[str, list[Any]]:
    """What transformers says of tensors that it did not find, did not expect, or that have another shape."""
    kinds = ("missing_keys", "unexpected_keys", "mismatched_keys")
    return {kind: sorted(loading[kind]) for kind in kinds if loading.get(kind)}


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """Context in which transformers shows no progress and no warnings."""
    from transformers.utils import logging

    had_bar, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bar:
            logging.enable_progress_bar()


def _load_adapters(directory: Path, base: GPT) -> Any:
    from peft import PeftModel

    with warnings.catch_warnings():  # peft uses a deprecated name of transformers
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        return PeftModel.from_pretrained(base.to_hf(), str(directory)).eval()


@torch.no_grad()
def nanogpt(path: Path, config: GPTConfig, state: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Read a ckpt.pt back and compare its tensors with the weights, bit by bit. Returns their count, and how far
    logits move because nanoGPT computes the exact GELU. Raises Failure."""
    read_config, read = pretrained.load(path)
    different = [name for name in state if not torch.equal(read[name], state[name])]
    if different or read_config.activation_function != config.activation_function:
        changed = ", ".join(different) or "its configuration"
        raise Failure(f"{path.name}: {changed} is not what was written; nothing was exported", 1)
    ours = GPT.from_state(config, state).eval()
    exact = GPT.from_state(dataclasses.replace(config, activation_function="gelu"), read).eval()
    difference, largest = compare(ours, exact, [every_position(config)])
    return {"tensors_compared": len(state), "max_difference_by_exact_gelu": difference, "largest_logit": largest}


def every_position(config: GPTConfig) -> torch.Tensor:
    """Ids (T,) that fill the context and are spread over the vocabulary."""
    return torch.arange(config.block_size) * 7919 % config.vocab_size


def compare(
    model: Callable[[torch.Tensor], torch.Tensor],
    other: Callable[[torch.Tensor], torch.Tensor],
    rows: Sequence[torch.Tensor],
) -> tuple[float, float]:
    """`(largest difference, largest absolute logit)` of two functions from idx (1, T) to logits (1, T, V), over rows of
    ids (T,). The difference is NaN as soon as one is."""
    difference = largest = 0.0
    for row in rows:
        logits = model(row[None])
        largest = max(largest, logits.abs().max().item())
        gap = (other(row[None]) - logits).abs().max().item()
        if math.isnan(gap):
            return gap, largest
        difference = max(difference, gap)
    return difference, largest


def prompts_for(tokenizer: Tokenizer) -> Sequence[str]:
    """The prompts, with one of the added tokens; for a character vocabulary all its characters, and the characters of
    each prompt that it has."""
    if not isinstance(tokenizer, CharTokenizer):
        special = [tokenizer.eot_text] if tokenizer.eot_text else []
        added = [*special, *list(tokenizer.added)[:ADDED_TOKENS]]
        return [*PROMPTS, *(["a" + " b".join(added) + " c"] if added else [])]
    known = set(tokenizer.chars)
    prompts = ["".join(char for char in prompt if char in known) for prompt in PROMPTS]
    return ["".join(tokenizer.chars), *filter(None, prompts)]
