"""A model of the Hub, as `USER/NAME` or `USER/NAME@REVISION`: in the local cache, or downloaded to it."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

from finetune.common import hub_client, network
from finetune.common.errors import UsageError
from finetune.gpt import foreign
from finetune.gpt.model import SHAPES

INCLUDE = "*.[jst][aisx]*"  # .json, .jinja, .safetensors and .txt in one pattern, as not every `hf` takes several
MODEL_FILES = ["*.json", "*.safetensors", "*.jinja", "merges.txt", "vocab.txt", "*.model"]


def split_revision(source: str) -> tuple[str, str | None]:
    """The name of a model, and its revision: a branch, a tag or a commit."""
    name, at, revision = source.partition("@")
    return name, revision if at else None


def config_file(source: str) -> Path:
    """config.json of a model. Raises UsageError."""
    repo, revision = _split(source)
    try:
        return Path(hub_client.hub_file(repo, "config.json", revision))
    except Exception as error:  # each network failure has its own class
        raise _error(source, error) from None


def download(source: str, is_whole: Callable[[Path], bool], has_weights: Callable[[Path], bool]) -> Path:
    """The directory of a model in the local cache, downloaded unless it `is_whole` and the Hub has no newer one.
    Without a network it is enough if it `has_weights`. Raises UsageError."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    repo, revision = _split(source)
    folder, is_old = None, False
    try:
        folder = hub_client.cached_folder(repo, "config.json", revision)
        if folder and is_whole(folder):
            if hub_client.is_newest(repo, revision, folder):
                return folder
            is_old = True
        hub_client.bound()
        info = hub_client.model_info(repo, revision)
        names = [file.rfilename for file in info.siblings or []]
        top = [name for name in names if "/" not in name]
        if not any(fnmatch(name, kind) for name in top for kind in ("model*.safetensors", "pytorch_model*.bin")):
            raise UsageError(f"{source}: {foreign.kind(names) or 'no model.safetensors and no pytorch_model.bin'}")
        has_safetensors = "model.safetensors" in top or "model.safetensors.index.json" in top
        patterns = MODEL_FILES if has_safetensors else [*MODEL_FILES, "pytorch_model*.bin"]
        files = {"allow_patterns": patterns, "ignore_patterns": ["*/*"]}
        return Path(snapshot_download(repo, revision=revision, etag_timeout=network.SECONDS, **files))
    except UsageError:
        raise
    except Exception as error:  # each network failure has its own class
        if folder and has_weights(folder) and not isinstance(error, RepositoryNotFoundError | RevisionNotFoundError):
            if is_old:
                hub_client.say_cached(repo, folder, error)
            return folder
        raise _error(source, error) from None


def _split(source: str) -> tuple[str, str | None]:
    repo, revision = split_revision(source)
    if revision == "":
        raise UsageError(f"{source}: no such directory; the name of a Hub model ends in @ and a branch, tag or commit")
    return repo, revision


def _error(source: str, error: Exception) -> UsageError:
    """An error of huggingface_hub as a message for the user."""
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    repo, revision = split_revision(source)
    if isinstance(error, HFValidationError):
        problem = "no such directory, and not the name of a Hub model either"
    elif isinstance(error, GatedRepoError):
        problem = "the Hub asks for permission; log in with `hf auth login` and accept its terms"
    elif isinstance(error, RepositoryNotFoundError):
        problem = "no such directory, and no such model on the Hub (or it is private: `hf auth login`)"
    elif isinstance(error, RevisionNotFoundError):
        problem = f"the model {repo} of the Hub has no branch, tag or commit {revision}"
    else:
        get = f"hf download {repo}" + (f" --revision={revision}" if revision else "") + f' --include="{INCLUDE}"'
        problem = (
            f"no such directory, not in the local cache, and the Hub {network.unreachable(error)}."
            f" Run `{get}` while online, or give the directory of a downloaded model"
        )
    close = difflib.get_close_matches(repo.lower(), [*SHAPES, "distilgpt2"], n=1, cutoff=0.7)
    return UsageError(f"{source}: {problem}" + (f". Did you mean {close[0]}?" if close and close[0] != repo else ""))
