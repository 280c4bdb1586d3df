"""The card of a repository on the Hub, with what its owner wrote there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.common.commands import join
from finetune.common.errors import UsageError
from finetune.common.files import MANIFEST, read_json_object, read_text, write_file
from finetune.publishing import card as cards
from finetune.publishing.export import CARD, VERIFICATION, chosen_keys
from finetune.publishing.repository import Repository


def take_over(target: Repository, directory: Path, earlier: Mapping[str, dict[str, Any]]) -> None:
    """Write the card of the export in `directory` anew with the words of the card on the Hub. `earlier` are the
    files of the export there. Raises UsageError if both were edited."""
    theirs = target.read(CARD)
    if theirs is None or not (directory / CARD).is_file():
        return
    pushed = earlier.get(CARD, {}).get("sha256")
    is_edited = hashlib.sha256(theirs).hexdigest() != pushed
    old, ours = cards.decoded(theirs), read_text(directory / CARD)
    words = cards.owner_words(ours)
    if not is_edited and (words or not cards.has_sections(old)):
        return
    if is_edited and words and words != cards.owner_words(old):
        download = join(["hf", "download", target.name, CARD, f"--local-dir={directory}"])
        way_out = f"take it over with `{download}` and export again"
        raise UsageError(f"{CARD} was edited both there and in {directory}; {way_out}")
    merged = cards.merge(old, ours, chosen_keys(read_json_object(directory / VERIFICATION)))
    if merged != ours:
        _write(directory, merged.encode())


def _write(directory: Path, content: bytes) -> None:
    """Replace the card of an export and its entry in the manifest."""
    manifest = read_json_object(directory / MANIFEST)
    manifest["files"][CARD] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    write_file(directory / CARD, content)
    write_file(directory / MANIFEST, json.dumps(manifest, indent=2) + "\n")
