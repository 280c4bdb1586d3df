"""A repository on the Hub, of a model or of a Space: opened, filled in one commit, and compared afterwards."""

from __future__ import annotations

import contextlib
import hashlib
import sys
from collections.abc import Collection, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune.common import hub_client, network
from finetune.common.console import is_terminal
from finetune.common.errors import Failure, UsageError, describe_error, first_line
from finetune.common.files import MANIFEST, read_chunks, sha256_of
from finetune.common.formatting import printable
from finetune.common.json_text import parse_json
from finetune.common.progress import in_notebook

UNREACHED = ("Unreachable", "Connect", "Timeout", "Network", "JSON", "Offline")  # in the name of an error
MOST_WORDS = 300  # characters of what the Hub says


class Refused(Exception):
    """Nothing was sent."""


class Sent(Exception):
    """The commit was made, and what came after it failed."""


@contextlib.contextmanager
def sending(what: str, way_out: str) -> Generator[None]:
    """Raise Failure with exit code 4, on one line, for whatever fails inside: `what` could not be done, and `way_out`.
    Bars of huggingface_hub are shown only on a terminal and in a notebook."""
    from huggingface_hub import get_token
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from huggingface_hub.utils import logging as hub_logging

    hide = not (is_terminal(sys.stderr) or in_notebook() or are_progress_bars_disabled())
    if hide:
        disable_progress_bars()
    try:
        hub_logging.set_verbosity_error()
        hub_client.bound()
        if not get_token():
            raise Refused("there is no token; run `hf auth login` or set HF_TOKEN")
        yield
    except Sent as error:
        raise Failure(f"{what.replace(' was not ', ' was ')}, {error}. {way_out}", 4) from error
    except (Exception, KeyboardInterrupt) as error:  # each kind of network failure has its own class
        told = str(error) if isinstance(error, Refused | UsageError) else reason(error)
        raise Failure(f"{what}: {told}. {way_out}", 4) from error
    finally:
        if hide:
            enable_progress_bars()


@dataclass
class Repository:
    """A repository at a branch, None for main. `info` is what the Hub said of it last."""

    name: str
    kind: str = "model"  # or "space"
    branch: str | None = None
    info: Any = None
    options: dict[str, Any] = field(default_factory=dict)  # of a repository to be made
    is_new: bool = False  # made by open()

    def open(self, private: bool) -> None:
        """Find the repository and its branch; make what is not there. Raises Refused for a public one if `private`."""
        from huggingface_hub import HfApi

        api = HfApi()
        self.info = self._find()  # fails within seconds if the Hub cannot be reached
        if self.info is None:
            api.create_repo(self.name, private=private, repo_type=self.kind, **self.options)
            self.is_new = True
            self.info = self._find()
        if self.info is None:
            raise Refused("the repository was made, but the Hub does not show it")
        if private and not self.info.private:
            raise Refused("it is public already; --private=false pushes to it, or choose another name")
        if not private and self.info.private and not self.is_new:
            print(f"{self.name} was private before and stays so; its settings on the Hub can make it public")
        if self.branch is not None:
            api.create_branch(self.name, branch=self.branch, exist_ok=True, repo_type=self.kind)
            self.info = self._find(self.branch) or self.info

    @property
    def files(self) -> dict[str, Any]:
        """What the Hub says of each file, by name."""
        return {file.rfilename: file for file in (self.info and self.info.siblings) or []}

    @property
    def visibility(self) -> str:
        return "private" if self.info.private else "public"

    def read(self, name: str) -> bytes | None:
        """The content of a file, None if there is none."""
        if name not in self.files:
            return None
        from huggingface_hub import constants
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        place = self.name if self.kind == "model" else f"{self.kind}s/{self.name}"
        address = f"{constants.ENDPOINT}/{place}/resolve/{self.info.sha}/{name}"
        response = get_session().get(address, headers=build_hf_headers(), timeout=network.SECONDS)
        hf_raise_for_status(response)
        return response.content

    def manifest(self) -> dict[str, dict[str, Any]]:
        """The files in the manifest there, {} without one that can be read."""
        try:
            found = parse_json(self.read(MANIFEST) or b"{}").get("files", {})
            return found if all(isinstance(entry, dict) for entry in found.values()) else {}
        except (ValueError, AttributeError):
            return {}

    def commit(self, files: dict[str, Path], removed: Collection[str], message: str) -> str:
        """Add files and remove others in one commit; return its URL. Raises Sent if the Hub holds something else
        then, or does not say what it holds."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

        added = [CommitOperationAdd(name, path) for name, path in files.items()]
        operations = [*added, *(CommitOperationDelete(name) for name in removed)]
        place: dict[str, Any] = {"repo_type": self.kind, "revision": self.branch, "parent_commit": self.info.sha}
        hub_client.ask_again(self.name)
        done = HfApi().create_commit(self.name, operations, commit_message=message, **place)
        try:
            self.info = self._find(self.branch)
            changed = self.different(files)
        except (Exception, KeyboardInterrupt) as error:
            raise Sent(f"and not compared: {reason(error)}") from error
        if changed:
            raise Sent(f"but what the Hub holds now is not what was sent: {', '.join(changed)}")
        return done.commit_url

    def different(self, files: dict[str, Path]) -> list[str]:
        """Names of the files that the Hub lacks or holds otherwise, by size and by sha256 or git's sha1."""
        held = self.files
        return [name for name, path in files.items() if name not in held or not _equal(path, held[name])]

    def _find(self, revision: str | None = None) -> Any:
        """What the Hub says, with the hashes of the files; None if this token can see no such repository."""
        from huggingface_hub import HfApi
        from huggingface_hub.errors import RepositoryNotFoundError

        asked: dict[str, Any] = {"revision": revision, "repo_type": self.kind, "files_metadata": True}
        try:
            return HfApi().repo_info(self.name, timeout=network.SECONDS, **asked)
        except RepositoryNotFoundError:
            return None


def names(files: Collection[str], most: int = 5) -> str:
    """Names of files on the Hub in a line: the first few, and how many more."""
    more = f" and {len(files) - most} more" if len(files) > most else ""
    return ", ".join(printable(name) for name in sorted(files)[:most]) + more


def _equal(path: Path, held: Any) -> bool:
    if held.size != path.stat().st_size:
        return False
    return sha256_of(path) == held.lfs["sha256"] if held.lfs else _git_sha1(path) == held.blob_id


def _git_sha1(path: Path) -> str:
    """The id of a file as a git blob."""
    summed = hashlib.sha1(f"blob {path.stat().st_size}\0".encode())
    for chunk in read_chunks(path):
        summed.update(chunk)
    return summed.hexdigest()


def reason(error: BaseException) -> str:
    """Why a push failed, on one line."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    chain = network.causes(error)
    response = next((one for link in chain if (one := getattr(link, "response", None)) is not None), None)
    status = response.status_code if response is not None else None
    if status == 401:
        return "the Hub does not accept this token; run `hf auth login` or set another HF_TOKEN"
    said = next((one for link in chain if (one := getattr(link, "server_message", None))), None)
    words = printable(" ".join(said.split()))[:MOST_WORDS] if said else ""
    if status == 403:
        why = f" ({words})" if words else ""
        return f"this token may not write there{why}; give it that permission or choose another USER/NAME"
    if status is not None:
        about = "" if hasattr(error, "response") else f"{first_line(error).rstrip('.')}: "  # metadata of the card
        return f"{about}the Hub answered {status}{words and f': {words}'}".rstrip(". ")
    kinds = [type(link).__name__ for link in chain]
    if any(word in kind for kind in kinds for word in UNREACHED):
        return f"the Hub {network.unreachable(error)}"
    return ", from ".join(describe_error(link).rstrip(":. ") for link in chain[:2])
