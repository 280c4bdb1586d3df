"""Resolve the names in a recipe or on a command line to a model and a tokenizer (weights are not loaded), and check
that a dataset fits."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

from finetune.common.commands import command
from finetune.common.errors import UsageError
from finetune.config.recipe import Recipe
from finetune.data import nanogpt_meta
from finetune.data import tokenizer as tokenizers
from finetune.data.bpe_files import GPT2_EOT, GPT2_VOCAB
from finetune.data.dataset import Dataset
from finetune.data.tokenizer import CharTokenizer, Tokenizer, prompt_ids
from finetune.gpt import GPTConfig, lora, pretrained
from finetune.gpt.model import SHAPES
from finetune.runs.datasets import find_datasets, with_most_tokens
from finetune.runs.model_ref import ModelRef, read_facts
from finetune.runs.vocabulary import check_vocabulary, with_ids_of, with_tokens_of

ASSUMED_CHAR_VOCAB_SIZE = 100  # vocabulary of a character dataset that does not exist yet


def find_model(name: str | Path, shape_only: bool = False) -> ModelRef:
    """The model that a Hub id, a Hugging Face directory, an out_dir or a ckpt.pt means. A Hub model is downloaded
    unless `shape_only`. Raises UsageError.

    With `shape_only` nothing is downloaded but the config.json of a Hub model other than GPT-2's four sizes."""
    if shape_only and pretrained.is_hub_id(name):
        if name in SHAPES:
            n_layer, n_head, n_embd = SHAPES[str(name)]
            config = GPTConfig(
                n_layer=n_layer, n_head=n_head, n_embd=n_embd, bos_token_id=GPT2_EOT, eos_token_id=GPT2_EOT
            )
        else:
            config = pretrained.load_hub_config(str(name))
        return ModelRef(str(name), Path(name), config, None)
    path = pretrained.find(name)
    folder = _folder(path)
    config, tokenizer = pretrained.load_config(path), tokenizers.from_directory(folder)
    if isinstance(tokenizer, CharTokenizer) and (meta := folder / "meta.pkl").is_file():
        _check_characters(meta, tokenizer, path, config.vocab_size)
    return ModelRef(str(name), path, config, tokenizer, read_facts(folder))


def _model_from_scratch(recipe: Recipe, dataset: Dataset | None) -> ModelRef:
    tokenizer, vocab_size = (dataset.tokenizer, dataset.vocab_size) if dataset else (None, None)
    if vocab_size is None:  # of bins alone, or of a dataset that does not exist yet
        vocab_size = ASSUMED_CHAR_VOCAB_SIZE if recipe.tokenizer == "char" else GPT2_VOCAB
    if tokenizer:
        end = tokenizer.eot
    else:
        end = GPT2_EOT if vocab_size > GPT2_EOT else None
    config = GPTConfig(
        block_size=recipe.block_size or 1024,
        vocab_size=vocab_size,
        n_layer=recipe.n_layer or 12,
        n_head=recipe.n_head or 12,
        n_embd=recipe.n_embd or 768,
        bos_token_id=end,
        eos_token_id=end,
    )
    return ModelRef("scratch", Path("scratch"), config, tokenizer)


def find_model_of_recipe(
    recipe: Recipe, dataset: Dataset | None, saved: dict[str, Any] | None = None, shape_only: bool = False
) -> ModelRef:
    """The model that a recipe trains. Raises UsageError.

    Args:
        dataset: gives tokenizer and vocabulary to a model from scratch.
        saved: the content of the saved state's state.json, for init_from=resume.
    """
    if saved:  # init_from=resume: only config and tokenizer of this ModelRef are used
        out_dir = Path(recipe.out_dir)
        tokenizer = tokenizers.from_directory(out_dir / "best")
        if tokenizer is None and not (shape_only and pretrained.is_hub_id(saved["init_from"])):  # best/ was removed
            with contextlib.suppress(UsageError):  # the source may be gone too, and is not needed
                tokenizer = tokenizers.from_directory(_folder(pretrained.find(saved["init_from"])))
        return ModelRef(recipe.out_dir, out_dir, GPTConfig(**saved["config"]), tokenizer)
    if recipe.init_from == "scratch":
        return _model_from_scratch(recipe, dataset)
    return find_model(recipe.init_from, shape_only)


def find_model_and_datasets(
    recipe: Recipe, saved: dict[str, Any] | None = None, shape_only: bool = False
) -> tuple[ModelRef, list[Dataset]]:
    """The model and the datasets of a recipe, with the tokenizer that they share. Raises UsageError.

    The datasets come first, so that a missing one is reported before a model is downloaded. The arguments are those of
    `find_model_of_recipe`."""

    def tokenizer() -> str | Tokenizer:
        """The tokenizer for a text. Raises UsageError before it is prepared if the model cannot be trained."""
        choice = tokenizer_choice(recipe, shape_only)
        if recipe.init_from not in ("scratch", "resume"):
            model = with_block_size(find_model(recipe.init_from, shape_only), recipe.block_size)
            lora.check_rank(recipe, model.config)
            if recipe.num_samples and isinstance(choice, Tokenizer):
                prompt_ids(choice, recipe.start)
        return choice

    found = find_datasets(recipe, tokenizer)
    wanted = with_most_tokens(found)
    model = find_model_of_recipe(recipe, wanted, saved, shape_only)
    try:
        for dataset in found:
            if dataset.tokenizer is None or dataset.is_assumed:
                check_vocabulary(dataset, model)
        return with_tokens_of(wanted, model), found
    except UsageError as error:
        if saved is None:
            raise
        problem = str(error).partition(";")[0]  # without its way out, which no resumed run can take
        way = f"give its own back, or start another run with --init_from={recipe.out_dir} and another out_dir"
        raise UsageError(f"{recipe.out_dir}: cannot be resumed with other data: {problem}; {way}") from None


def tokenizer_choice(recipe: Recipe, shape_only: bool = False) -> str | Tokenizer:
    """What tokenizes a text that is not prepared yet: the recipe's tokenizer, the model's own, or GPT-2's.

    With `shape_only` no Hub model is downloaded. Raises UsageError when only its tokenizer could answer."""
    if recipe.tokenizer != "auto":
        return recipe.tokenizer
    if recipe.init_from == "scratch":
        return "gpt2"
    if recipe.init_from == "resume":
        return tokenizers.from_directory(Path(recipe.out_dir) / "best") or "gpt2"
    if shape_only and pretrained.is_hub_id(recipe.init_from):
        if recipe.init_from in SHAPES:
            return "gpt2"
        way = command("prepare", recipe.dataset, tokenizer=recipe.init_from)
        raise UsageError(f"dataset: {recipe.dataset} is a text that is not prepared; first run {way}")
    return tokenizers.from_directory(_folder(pretrained.find(recipe.init_from))) or "gpt2"


def require_tokenizer(model: ModelRef) -> Tokenizer:
    """The model's own tokenizer, or GPT-2's for GPT-2's vocabulary. Raises UsageError when there is none."""
    if model.tokenizer:
        return model.tokenizer
    meta, ids = model.folder / "meta.pkl", model.config.vocab_size
    tokens = nanogpt_meta.read_file(meta).tokens if meta.is_file() else None
    if tokens is None and ids == GPT2_VOCAB:
        return tokenizers.gpt2()
    if meta.is_file():
        holds = "words, and nothing says how a text is cut into them" if tokens else "only the number of ids"
        raise UsageError(f"{meta}: holds {holds}, so {model.path.name} has no tokenizer")
    beside = " (a nanoGPT model of characters needs its meta.pkl beside ckpt.pt)" if model.path.is_file() else ""
    beside = beside or f"; copy the tokenizer.json and tokenizer_config.json of its base model into {model.folder}"
    raise UsageError(f"{model.path}: has no tokenizer, and {ids:,} ids are not GPT-2's{beside}")


def find_baseline(name: str, model: ModelRef) -> ModelRef:
    """The model to compare with, with a row for each token that the run added; "auto" is the one the run started from.
    Raises UsageError unless both use the same tokens."""
    if name == "auto":
        name = model.facts.get("init_from", "")
        if not name:
            problem = f"{model.path} does not say what it started from (finetune.json)"
            raise UsageError(f"baseline: {problem}; give --baseline=MODEL")
        if name == "scratch":
            problem = f"{model.name} started from scratch, so there is nothing to compare with"
            raise UsageError(f"baseline: {problem}; give a model as --baseline=MODEL, or compare with none")
    baseline = find_model(name)
    comparable = with_ids_of(baseline, model)
    if comparable is None:
        uses = f"{name} uses {baseline.describe_vocabulary()}, {model.name} uses {model.describe_vocabulary()}"
        raise UsageError(f"baseline: {uses}; only losses over the same tokens can be compared")
    return comparable


def check_block_size(model: ModelRef, block_size: int) -> None:
    """Raise UsageError when the model has fewer positions."""
    positions = model.config.block_size
    if block_size > positions:
        problem = f"{block_size:,} is more than the {positions:,} positions of {model.name}"
        raise UsageError(f"block_size: {problem}; give {positions} or less")


def with_block_size(model: ModelRef, block_size: int | None) -> ModelRef:
    """The model with that many tokens of context; None is all it has. Raises UsageError as `check_block_size`."""
    if block_size is None:
        return model
    check_block_size(model, block_size)
    return dataclasses.replace(model, config=dataclasses.replace(model.config, block_size=block_size))


def _folder(path: Path) -> Path:
    return path.parent if path.is_file() else path


def _check_characters(meta: Path, tokenizer: CharTokenizer, path: Path, ids: int) -> None:
    """Raise UsageError unless the characters of a meta.pkl can be the ids of the model beside it, padding included."""
    if ids not in (tokenizer.vocab_size, nanogpt_meta.read_file(meta).vocab_size):
        raise UsageError(f"{meta}: has {tokenizer.vocab_size} characters, and {path.name} {ids:,} ids")
