"""`finetune.GPT`: the network with its tokenizer and the way to the Hub, both added here because `gpt` imports nothing
of data and publishing."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from torch import nn

from finetune.common.commands import command
from finetune.common.errors import UsageError
from finetune.common.objects import as_path
from finetune.config.recipe import repository_problem
from finetune.data.tokenizer import Tokenizer
from finetune.gpt import GPT
from finetune.publishing import export, hub
from finetune.runs import inputs

__all__ = ["GPT"]
GIVEN = "given_tokenizer"  # where a model keeps it


class NoTokenizer(UsageError, AttributeError):
    """So that `hasattr`, and what goes over all attributes, such as torch.jit.trace, can ask for it."""


def tokenizer(model: GPT) -> Tokenizer:
    """The tokenizer beside the weights that `from_pretrained` read: `encode(text)` gives ids as a numpy array,
    `decode(ids)` the text. Another model can be given one: `model.tokenizer = other.tokenizer`. Raises UsageError."""
    if found := vars(model).get(GIVEN):
        return found
    if model.source is None:
        raise NoTokenizer("this model was not loaded from files, so it has no tokenizer; set model.tokenizer")
    try:
        found = inputs.require_tokenizer(inputs.find_model(model.source))
    except UsageError as error:
        raise NoTokenizer(*error.args) from None
    give_tokenizer(model, found)
    return found


def give_tokenizer(model: GPT, given: Tokenizer) -> None:
    vars(model)[GIVEN] = given


def without(model: GPT, name: str) -> Any:
    """What Python calls after an AttributeError: torch's own would hide why there is no tokenizer."""
    return tokenizer(model) if name == "tokenizer" else nn.Module.__getattr__(model, name)


def push_to_hub(model: GPT, repository: str, private: bool = True) -> None:
    """Export the model with its tokenizer, read it back with transformers, compare, and push it to USER/NAME.

    The token is that of HF_TOKEN or of `hf auth login`. Raises UsageError before anything is written, and Failure when
    files differ or the push fails; then the export stays, and the message names it."""
    if problem := repository_problem(as_path(repository, "repository")):
        raise UsageError(f"repository: {problem}")
    own = tokenizer(model)
    work = Path(tempfile.mkdtemp(prefix="finetune-"))
    weights, to = work / "model", work / repository.split("/")[-1]
    model.save_pretrained(weights)
    own.save(weights, model.config.block_size)
    exported = export.export(weights, to, repository=repository)
    flags = {"init_from": weights, "to": to, "push_to_hub": repository, **({} if private else {"private": "false"})}
    hub.push(exported, repository, private, again=command("export", **flags))
    shutil.rmtree(work)


GPT.tokenizer = property(tokenizer, give_tokenizer)
GPT.__getattr__ = without  # pyrefly: ignore[bad-assignment]
GPT.push_to_hub = push_to_hub  # pyrefly: ignore[bad-assignment]
