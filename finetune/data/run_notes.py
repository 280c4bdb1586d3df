"""Which runs were trained on a prepared directory: each run notes itself there, as far as the directory is writable."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune.common.errors import UsageError
from finetune.common.files import open_append, read_json_object, sha256_of

NOTES = ".runs"  # a line is the path of an out_dir, relative to the prepared directory


def note_run(directory: str | Path, out_dir: str | Path) -> None:
    """Note that a run trains on a prepared directory. Does nothing if that cannot be written."""
    notes = Path(directory) / NOTES
    with contextlib.suppress(OSError, ValueError):  # ValueError: another drive of Windows
        line = os.path.relpath(Path(out_dir).resolve(), Path(directory).resolve())
        if line not in _read(notes):
            with open_append(notes) as file:
                file.write(f"{line}\n")


def runs_on(directory: str | Path) -> Iterator[Path]:
    """The runs that are still there and were trained on the train.bin that a directory holds now."""
    directory = Path(directory)
    lines = _read(directory / NOTES)
    if not lines or not (directory / "train.bin").is_file():
        return
    sha256 = _hashes(read_json_object(directory / "meta.json"))["train"][0] or sha256_of(directory / "train.bin")
    for line in lines:
        out_dir = Path(os.path.relpath((directory.resolve() / line).resolve()))
        with contextlib.suppress(OSError):
            if sha256.encode() in (out_dir / "metrics.jsonl").read_bytes():
                yield out_dir


def check_unused(directory: str | Path, meta: dict[str, Any], overwrite: bool) -> None:
    """Raise UsageError if a run was trained on what a directory holds and `meta`, the new meta.json or a part of it,
    describes other data, unless that is to be overwritten."""
    new, old = _hashes(meta), _hashes(read_json_object(Path(directory) / "meta.json"))
    if overwrite or all(old[key] == value for key, value in new.items() if any(value)):
        return
    if run := next(runs_on(directory), None):
        problem = f"the run {run} was trained on what it holds, and this would be other data"
        advice = "choose another --out_dir, or replace it with --overwrite=true"
        raise UsageError(f"out_dir {directory}: {problem}; {advice}")


def _hashes(meta: dict[str, Any]) -> dict[str, list[str | None]]:
    """The hashes in a meta.json: of sources, tokenizer, and files of each split; None for what is no hash."""
    listed = {key: found if isinstance(found := meta.get(key), list) else [] for key in ("sources", "val_sources")}
    hashes = {key: [_hash(source, "sha256") for source in found] for key, found in listed.items()}
    hashes["tokenizer"] = [_hash(meta.get("tokenizer"), "sha256")]
    splits = meta.get("splits")
    for split in ("train", "val"):
        facts = splits.get(split) if isinstance(splits, dict) else None
        hashes[split] = [_hash(facts, key) for key in ("sha256", "mask_sha256", "documents_sha256")]
    return hashes


def _hash(part: Any, key: str) -> str | None:
    found = part.get(key) if isinstance(part, dict) else None
    return found if isinstance(found, str) else None


def _read(notes: Path) -> list[str]:
    with contextlib.suppress(OSError, ValueError):
        return notes.read_text(encoding="utf-8").splitlines()
    return []
