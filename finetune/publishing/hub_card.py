"""The card of a repository on the Hub, with what its owner wrote there."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.common import network
from finetune.common.errors import UsageError
from finetune.common.files import MANIFEST, parse_json, read_json_object, read_text, write_file
from finetune.publishing import card as cards
from finetune.publishing.export import CARD, VERIFICATION, chosen_keys

if TYPE_CHECKING:
    from huggingface_hub import HfApi, ModelInfo


def take_over(
    api: HfApi, repository: str, info: ModelInfo, directory: Path, earlier: Mapping[str, dict[str, Any]]
) -> None:
    """Write the card of the export in `directory` anew with the words of the card on the Hub. `earlier` are the
    files of the export there. Raises UsageError if both were edited."""
    theirs = _read(api, repository, info, CARD)
    if theirs is None or not (directory / CARD).is_file():
        return
    pushed = earlier.get(CARD, {}).get("sha256")
    is_edited = hashlib.sha256(theirs).hexdigest() != pushed
    old, ours = theirs.decode("utf-8", "replace").replace("\r\n", "\n"), read_text(directory / CARD)
    words = cards.owner_words(ours)
    if not is_edited and (words or not cards.has_sections(old)):
        return
    if is_edited and words and words != cards.owner_words(old):
        download = shlex.join(["hf", "download", repository, CARD, f"--local-dir={directory}"])
        way_out = f"take it over with `{download}` and export again"
        raise UsageError(f"{CARD} was edited both there and in {directory}; {way_out}")
    merged = cards.merge(old, ours, chosen_keys(read_json_object(directory / VERIFICATION)))
    if merged != ours:
        _write(directory, merged.encode())


def files_of_export(api: HfApi, repository: str, info: ModelInfo) -> dict[str, Any]:
    """The files in the manifest of an export in a repository, {} without one."""
    if VERIFICATION not in {file.rfilename for file in info.siblings or []}:
        return {}
    try:
        found = parse_json(_read(api, repository, info, MANIFEST) or b"{}")
        files = found.get("files", {})
        return files if all(isinstance(entry, dict) for entry in files.values()) else {}
    except (ValueError, AttributeError):
        return {}


def _read(api: HfApi, repository: str, info: ModelInfo, name: str) -> bytes | None:
    """The content of a file on the Hub, None if there is none."""
    if name not in {file.rfilename for file in info.siblings or []}:
        return None
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    address = f"{api.endpoint}/{repository}/resolve/{info.sha}/{name}"
    response = get_session().get(address, headers=build_hf_headers(), timeout=network.SECONDS)
    hf_raise_for_status(response)
    return response.content


def _write(directory: Path, content: bytes) -> None:
    """Replace the card of an export and its entry in the manifest."""
    manifest = read_json_object(directory / MANIFEST)
    manifest["files"][CARD] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    write_file(directory / CARD, content)
    write_file(directory / MANIFEST, json.dumps(manifest, indent=2) + "\n")
