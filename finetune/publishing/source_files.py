"""The files that an export reads: whether they are whole, and whether they are those of an earlier export."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import finetune
from finetune.common import files
from finetune.common.errors import UsageError
from finetune.config.run_directory import REPORT, SHARE_PICTURE
from finetune.data import bpe_files
from finetune.gpt import pretrained
from finetune.publishing import verify

# of the files of a model that are read
KINDS = (
    *(*pretrained.MODEL_FILES, "pytorch_model*.bin", *bpe_files.FILES, "meta.pkl"),
    *("adapter/*", "additional_chat_templates/*"),
)


def is_commit(source: Path) -> bool:
    """Whether a directory is a commit in the Hub's cache: nothing replaces it, and it lacks files that were not asked
    for, or were changed on the Hub, so that a manifest in it does not describe it."""
    return source.parent.name == "snapshots" and source.parent.parent.name.startswith("models--")


def check(place: Path) -> None:
    """Raise UsageError if a file of a model is not what its manifest says."""
    has_manifest = (place / files.MANIFEST).is_file() and not is_commit(place)
    if has_manifest and (problem := files.find_damage(place, KINDS)):
        raise UsageError(f"{place}: {problem}; if you changed it, remove {files.MANIFEST} there")


def describe(source: Path, run_dir: Path | None, asked: dict[str, Any]) -> dict[str, Any]:
    """Everything that decides the content of an export, to recognize the same one."""
    paths = [source]
    if source.is_dir():
        paths = sorted({path for pattern in KINDS for path in source.glob(pattern)})
    if run_dir:
        paths += [run_dir / name for name in ("metrics.jsonl", REPORT, SHARE_PICTURE)]
    sums = {path.name: _sha256(source, path) for path in paths if path.is_file()}
    made_from = hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()
    return {"made_from": made_from, "versions": {"finetune": finetune.__version__, **verify.versions()}, **asked}


def _sha256(source: Path, path: Path) -> str:
    """The sha256 of a file, as the manifest of its directory says, which was compared before."""
    is_compared = path.is_relative_to(source) and path != source and not is_commit(source)
    known = files.sha256_in_manifest(source, str(path.relative_to(source))) if is_compared else None
    return known or files.sha256_of(path)
