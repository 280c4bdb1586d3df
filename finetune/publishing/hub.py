"""An export as a repository on the Hub: one commit, compared afterwards; none if nothing has changed."""

from __future__ import annotations

import contextlib
import hashlib
import sys
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.common import hub_client, network
from finetune.common.errors import Failure, describe_error
from finetune.common.files import MANIFEST, files_in_manifest, read_chunks, sha256_of
from finetune.common.network import SECONDS as HUB_TIMEOUT
from finetune.common.progress import in_notebook
from finetune.data import bpe_files
from finetune.publishing.export import VERIFICATION

if TYPE_CHECKING:
    from huggingface_hub import HfApi, ModelInfo
    from huggingface_hub.hf_api import RepoSibling

# files of an earlier export, removed from the repository when the next export does not have them
OPTIONAL_FILES = {*bpe_files.FILES, "loss.png"} - {"tokenizer_config.json"}


def push(directory: str | Path, repository: str, private: bool = True, again: str = "") -> None:
    """Make `repository` hold the files of an export, with the token of the environment or of `hf auth login`.

    There is one commit at the end, so an interrupted push changes nothing, and the next one sends only missing files.
    Raises Failure with exit code 4, on one line with the command `again`, unless the repository holds these files."""
    try:
        with _bars_on_a_terminal():
            _push(Path(directory), repository, private)
    except (Exception, KeyboardInterrupt) as error:  # each kind of network failure has its own class
        reason = str(error) if isinstance(error, Refused) else _reason(error)
        message = f"{repository} was not pushed: {reason}. The export in {directory} is whole; again: {again}"
        raise Failure(message, 4) from error


class Refused(Exception):
    """The push was refused."""


@contextlib.contextmanager
def _bars_on_a_terminal() -> Generator[None]:
    """No bars of huggingface_hub elsewhere; a notebook shows them."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    hide = not (sys.stderr.isatty() or in_notebook() or are_progress_bars_disabled())
    if hide:
        disable_progress_bars()
    try:
        yield
    finally:
        if hide:
            enable_progress_bars()


def _push(directory: Path, repository: str, private: bool) -> None:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
    from huggingface_hub.utils import logging as hub_logging

    hub_logging.set_verbosity_error()
    hub_client.bound()
    if not get_token():
        raise Refused("there is no token; run `hf auth login` or set HF_TOKEN")
    api = HfApi()
    info = _find_repository(api, repository)  # fails within seconds if the Hub cannot be reached
    if info is None:
        api.create_repo(repository, private=private)
        info = _find_repository(api, repository)
    if info is None:
        raise Refused("the repository was made and cannot be seen")
    if private and not info.private:
        raise Refused("it is public already; --private=false pushes to it, or choose another name")
    names = {file.rfilename for file in info.siblings or []}
    if VERIFICATION not in names and any(name.endswith((".safetensors", ".bin", "config.json")) for name in names):
        raise Refused("it holds a model that was not exported by finetune; choose another name")
    visibility = "private" if info.private else "public"
    files = {name: directory / name for name in sorted([*files_in_manifest(directory), MANIFEST])}
    stale = sorted((OPTIONAL_FILES & names) - files.keys())
    if not stale and not _different(files, info):
        print(f"{repository} ({visibility}) holds this export already; nothing to push")
        return
    size = sum(path.stat().st_size for path in files.values())
    print(f"pushing {len(files)} files, {size / 1e6:,.1f} MB, to {repository} ({visibility})")
    added = [CommitOperationAdd(name, path) for name, path in files.items()]
    removed = [CommitOperationDelete(name) for name in stale]
    commit = api.create_commit(
        repository, [*added, *removed], commit_message="Export by finetune", parent_commit=info.sha
    )
    if different := _different(files, _find_repository(api, repository)):
        raise Refused(f"what the Hub holds now is not what was sent: {', '.join(different)}")
    print(f"pushed to {commit.commit_url}; all {len(files)} hashes agree")


def _find_repository(api: HfApi, repository: str) -> ModelInfo | None:
    """A repository with the hashes of its files; None if there is none that this token can see."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return api.model_info(repository, files_metadata=True, timeout=HUB_TIMEOUT)
    except RepositoryNotFoundError:
        return None


def _different(files: dict[str, Path], info: ModelInfo | None) -> list[str]:
    """Names of the files that the Hub lacks or holds otherwise, by size and by sha256 or git's sha1."""
    held = {file.rfilename: file for file in (info and info.siblings) or []}
    return [name for name, path in files.items() if name not in held or not _equal(path, held[name])]


def _equal(path: Path, held: RepoSibling) -> bool:
    if held.size != path.stat().st_size:
        return False
    return sha256_of(path) == held.lfs["sha256"] if held.lfs else _git_sha1(path) == held.blob_id


def _git_sha1(path: Path) -> str:
    """The id of a file as a git blob."""
    summed = hashlib.sha1(f"blob {path.stat().st_size}\0".encode())
    for chunk in read_chunks(path):
        summed.update(chunk)
    return summed.hexdigest()


def _reason(error: BaseException) -> str:
    """Why a push failed, on one line."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    chain = network.causes(error)
    response = next((one for link in chain if (one := getattr(link, "response", None)) is not None), None)
    status = response.status_code if response is not None else None
    if status == 401:
        return "the Hub does not accept this token; run `hf auth login` or set another HF_TOKEN"
    if status == 403:
        return "this token may not write there; give it that permission or choose another USER/NAME"
    kinds = [type(link).__name__ for link in chain]
    words = ("Unreachable", "Connect", "Timeout", "Network", "JSON")
    if status is None and any(word in kind for kind in kinds for word in words):
        return f"the Hub cannot be reached ({network.explain(error)})"
    return ", from ".join(describe_error(link).rstrip(":. ") for link in chain[:2])
