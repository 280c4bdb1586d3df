"""An export as a repository on the Hub: one commit, compared afterwards; none if nothing has changed."""

from __future__ import annotations

import contextlib
import hashlib
import sys
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.common import hub_client, network
from finetune.common.errors import Failure, UsageError, describe_error
from finetune.common.files import MANIFEST, files_in_manifest, read_chunks, read_json_object, sha256_of
from finetune.common.progress import in_notebook
from finetune.data import bpe_files
from finetune.publishing import hub_card
from finetune.publishing.export import VERIFICATION

if TYPE_CHECKING:
    from huggingface_hub import HfApi, ModelInfo
    from huggingface_hub.hf_api import RepoSibling

# files of an earlier export, removed from the repository when the next export does not have them
OPTIONAL_FILES = {*bpe_files.FILES, "loss.png"} - {"tokenizer_config.json"}
MODELS = (".safetensors", ".bin", "config.json")  # names of another program's model


def push(
    directory: str | Path,
    repository: str,
    private: bool = True,
    again: str = "",
    revision: str | None = None,
    overwrite: bool = False,
) -> None:
    """Make `repository`, or its branch `revision`, hold the files of an export, with the token of the environment or of
    `hf auth login`, and tag them. Words of the owner in the card there are taken into the card of the export.
    `overwrite` replaces a model that another program pushed.

    There is one commit at the end, so an interrupted push changes nothing, and the next one sends only missing files.
    Raises Failure with exit code 4, on one line with the command `again`, unless the repository holds these files."""
    try:
        with _bars_on_a_terminal():
            _push(Path(directory), Target(repository, revision), private, overwrite)
    except (Exception, KeyboardInterrupt) as error:  # each kind of network failure has its own class
        reason = str(error) if isinstance(error, Refused | UsageError) else _reason(error)
        message = f"{repository} was not pushed: {reason}. The export in {directory} is whole; again: {again}"
        raise Failure(message, 4) from error


class Refused(Exception):
    """The push was refused."""


@dataclass(frozen=True)
class Target:
    """A repository, and its branch; None is main."""

    repository: str
    revision: str | None


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


def _push(directory: Path, target: Target, private: bool, overwrite: bool) -> None:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
    from huggingface_hub.utils import logging as hub_logging

    hub_logging.set_verbosity_error()
    hub_client.bound()
    if not get_token():
        raise Refused("there is no token; run `hf auth login` or set HF_TOKEN")
    api = HfApi()
    info = _open(api, target, private)
    names = {file.rfilename for file in info.siblings or []}
    visibility = "private" if info.private else "public"
    foreign = [] if VERIFICATION in names else sorted(name for name in names if name.endswith(MODELS))
    if foreign and not overwrite:
        replaced = f"{', '.join(foreign[:5])} would be replaced"
        way_out = "--overwrite=true does that, or choose another name"
        raise Refused(f"it holds a model that was not exported by finetune; {replaced}: {way_out}")
    if foreign:
        print(f"{target.repository}: replacing {', '.join(sorted(names & {*files_in_manifest(directory)}))}")
    earlier = hub_card.files_of_export(api, target.repository, info)
    hub_card.take_over(api, target.repository, info, directory, earlier)
    files = {name: directory / name for name in sorted([*files_in_manifest(directory), MANIFEST])}
    stale = sorted(((OPTIONAL_FILES | earlier.keys()) & names) - files.keys())
    if not stale and not _different(files, info):
        print(f"{target.repository} ({visibility}) holds this export already; nothing to push")
        return _tag(api, target, info, directory)
    size = sum(path.stat().st_size for path in files.values())
    print(f"pushing {len(files)} files, {size / 1e6:,.1f} MB, to {target.repository} ({visibility})")
    added = [CommitOperationAdd(name, path) for name, path in files.items()]
    removed = [CommitOperationDelete(name) for name in stale]
    message = {"commit_message": "Export by finetune", "revision": target.revision, "parent_commit": info.sha}
    commit = api.create_commit(target.repository, [*added, *removed], **message)
    now = _find_repository(api, target.repository, target.revision)
    if different := _different(files, now):
        raise Refused(f"what the Hub holds now is not what was sent: {', '.join(different)}")
    print(f"pushed to {commit.commit_url}; all {len(files)} hashes agree")
    if now is not None:
        _tag(api, target, now, directory)


def _open(api: HfApi, target: Target, private: bool) -> ModelInfo:
    """The repository at the branch, both made if needed. Raises Refused."""
    repository, revision = target.repository, target.revision
    info = _find_repository(api, repository)  # fails within seconds if the Hub cannot be reached
    if info is None:
        api.create_repo(repository, private=private)
        info = _find_repository(api, repository)
    if info is None:
        raise Refused("the repository was made and cannot be seen")
    if private and not info.private:
        raise Refused("it is public already; --private=false pushes to it, or choose another name")
    if revision is not None:
        api.create_branch(repository, branch=revision, exist_ok=True)
        info = _find_repository(api, repository, revision) or info
    return info


def _tag(api: HfApi, target: Target, info: ModelInfo, directory: Path) -> None:
    """Give what the Hub holds a tag of its own, by which this export can be loaded later. It is no part of the push: a
    Hub that gives none is told of."""
    step = read_json_object(directory / "finetune.json").get("step")
    kind = f"step-{step}" if isinstance(step, int) else "export"
    tag = f"{kind}-{sha256_of(directory / MANIFEST)[:8]}"
    try:
        refs = api.list_repo_refs(target.repository)
        if tag not in {one.name for one in refs.tags}:
            api.create_tag(target.repository, tag=tag, revision=info.sha, exist_ok=True)
            print(f"tagged {tag}")
    except Exception as error:  # each kind of network failure has its own class
        print(f"without the tag {tag}: {_reason(error)}")


def _find_repository(api: HfApi, repository: str, revision: str | None = None) -> ModelInfo | None:
    """A repository with the hashes of its files; None if there is none that this token can see."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return api.model_info(repository, revision=revision, files_metadata=True, timeout=network.SECONDS)
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
