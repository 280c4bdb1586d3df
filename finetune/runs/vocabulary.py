"""Whether data and models hold ids of one vocabulary, where either may have added tokens."""

from __future__ import annotations

import dataclasses

from finetune.common.errors import UsageError
from finetune.data.bpe_files import GPT2_PADDED_VOCAB, GPT2_VOCAB
from finetune.data.dataset import Dataset
from finetune.data.tokenizer import Tokenizer, with_template
from finetune.runs.model_ref import ModelRef


def check_vocabulary(dataset: Dataset, model: ModelRef) -> None:
    """Raise UsageError unless the ids of a dataset mean the same to the model's tokenizer, as far as both tell. A
    tokenizer that is only assumed gives way to the model's."""
    tokens, size = dataset.tokenizer, dataset.vocab_size
    if size is None or (_fits(tokens, model) if tokens else _sizes_fit(size, model)):
        return
    if dataset.is_assumed:
        dataset.forget_tokenizer()
        return
    if model.tokenizer or model.config.vocab_size == GPT2_VOCAB:
        advice = f"prepare the text with --tokenizer={model.name if model.tokenizer else 'gpt2'}"
        if tokens is None or tokens.kind == "char":
            advice += ", or train on these ids with --init_from=scratch"
    else:
        advice = "give the bins that it was trained on, or train on these ids with --init_from=scratch"
    holds = tokens.describe()["name"] if tokens else f"a vocabulary of {size:,} ids"
    uses = model.describe_vocabulary()
    if holds == uses:
        uses = "another vocabulary of that size"
    raise UsageError(f"{dataset.directory} holds ids of {holds}, but {model.name} uses {uses}; {advice}")


def with_tokens_of(dataset: Dataset, model: ModelRef) -> ModelRef:
    """The model for training on a dataset, with the tokenizer that goes into best/: the larger one, with the chat
    template of the model if it has one. Tokens of the dataset that the model lacks become rows of its embedding. Raises
    UsageError as `check_vocabulary`."""
    tokens, own = dataset.tokenizer, model.tokenizer
    if tokens is None:
        return model
    before, now = _known_ids(tokens, model), tokens.vocab_size
    if before is None or before >= now:
        check_vocabulary(dataset, model)
        chosen, other, notes = own or tokens, tokens, []
    else:
        chosen, other, notes = tokens, own, [_describe_growth(before, now, model)]
        rows = max(now, model.config.vocab_size)
        config = dataclasses.replace(model.config, vocab_size=rows, new_tokens=now - before)
        model = dataclasses.replace(model, config=config)
    if own and own.chat_template and dataset.meta.get("chat_template") not in (None, own.chat_template):
        notes.append(
            f"warning: {dataset.directory} was rendered by another chat template than that of {model.name}, which stays"
            f" in best/; --tokenizer={model.name} prepares conversations with it"
        )
    preferred = own.chat_template if own else None
    chosen = with_template(chosen, preferred or chosen.chat_template or (other.chat_template if other else None))
    return dataclasses.replace(model, tokenizer=chosen, notes=tuple(notes))


def with_ids_of(baseline: ModelRef, model: ModelRef) -> ModelRef | None:
    """The baseline with a row for each id of the model, so that their losses can be compared; None if the same ids mean
    other tokens to it."""
    ours, theirs = model.tokenizer, baseline.tokenizer
    sizes = (baseline.config.vocab_size, model.config.vocab_size)
    if (ours and theirs and ours.fingerprint == theirs.fingerprint) or (not (ours and theirs) and sizes[0] == sizes[1]):
        return baseline
    if ours is None or not (ours.extends(theirs) if theirs else sizes[0] == _base_size(ours)):
        return None
    if sizes[0] >= sizes[1]:
        return baseline
    return dataclasses.replace(baseline, config=dataclasses.replace(baseline.config, vocab_size=sizes[1]))


def _fits(tokens: Tokenizer, model: ModelRef) -> bool:
    if model.tokenizer:
        return model.tokenizer.extends(tokens)
    if _sizes_fit(tokens.vocab_size, model):
        return True
    # a model of the Hub that is not downloaded, whose tokenizer may have more tokens
    return not model.path.exists() and _base_size(tokens) == GPT2_VOCAB < model.config.vocab_size


def _sizes_fit(size: int, model: ModelRef) -> bool:
    return size == model.config.vocab_size or (size, model.config.vocab_size) == (GPT2_VOCAB, GPT2_PADDED_VOCAB)


def _known_ids(tokens: Tokenizer, model: ModelRef) -> int | None:
    """How many of the first ids of a dataset's tokenizer mean the same to the model; None if neither extends the
    other's."""
    own, rows = model.tokenizer, model.config.vocab_size
    if own is not None:
        if not tokens.extends(own):
            return None
        # a tokenizer may have more ids than its model has rows, as after adding a pad token
        return min(own.vocab_size, rows)
    base = _base_size(tokens)
    if rows == base or (base, rows) == (GPT2_VOCAB, GPT2_PADDED_VOCAB):
        return base
    return None


def _base_size(tokens: Tokenizer) -> int:
    """The size of a vocabulary without the added tokens."""
    return min([tokens.vocab_size, *tokens.added.values()])


def _describe_growth(before: int, now: int, model: ModelRef) -> str:
    rows, added = model.config.vocab_size, now - before
    tokens = f"vocabulary: {added:,} token{'s' * (added > 1)} added"
    if now <= rows:
        return f"{tokens}, in rows that {model.name} has already: {before:,} to {now - 1:,} of {rows:,}"
    return f"{tokens}, {rows:,} -> {now:,}"
