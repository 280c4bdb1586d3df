"""A directory of a run, sent whole: a snapshot of it first, each file compared with what the server holds, and its
manifest last."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from finetune.common import files
from finetune.common.files import MANIFEST
from finetune.common.json_text import parse_json
from finetune.common.storage import Sizes, Storage
from finetune.config.mirror import begun_states, staged, whole_states
from finetune.config.run_directory import SINGLE_FILES, states, step_of
from finetune.runs.checkpoints import KEEP, PARTS
from finetune.runtime import shards

WORK = ".upload"  # in the mirror: the directory that is being sent


class Changed(Exception):
    """A directory was replaced or removed while its snapshot was made."""


def send_directory(storage: Storage, sizes: Sizes, out_dir: Path, name: str) -> dict[str, Any]:
    """Make a directory at the address what it is here; return its manifest. At every moment the old or the new one is
    there in full. Raises Changed."""
    there, snapshot = storage.manifest(sizes, name), out_dir / WORK / name
    if there and there == files.read_json_object(out_dir / name / MANIFEST):
        storage.remove(file for file in _files_of(staged(name), there) if file in sizes)  # after an interruption
        return there
    shutil.rmtree(out_dir / WORK, ignore_errors=True)
    try:
        manifest = _link(out_dir / name, snapshot)
        if there is None:
            _send(storage, sizes, snapshot, name, manifest)
            storage.remove(file for file in _files_of(staged(name), manifest) if file in sizes)
            return manifest
        _send(storage, sizes, snapshot, staged(name), manifest)
        old = [f"{name}/{file}" for file in there["files"] if file not in manifest["files"]]
        storage.remove([*old, f"{name}/{MANIFEST}"])
        for file, entry in [*manifest["files"].items(), (MANIFEST, None)]:
            _copy(storage, snapshot / file, file, name, entry and entry["sha256"])
        storage.remove(_files_of(staged(name), manifest))
        return manifest
    finally:
        shutil.rmtree(out_dir / WORK, ignore_errors=True)


def prune(storage: Storage, sizes: Sizes, out_dir: Path) -> None:
    """Remove the states at the address that are old, or newer than any here: the run went back behind them."""
    if not (here := states(out_dir)):
        return
    newest, whole = step_of(here[0].name), whole_states(storage, sizes)
    kept = [step for step in whole if step <= newest][:KEEP]
    for step, manifest in whole.items():
        if step not in kept:
            storage.remove(_files_of(f"last/step-{step:08d}", manifest))
    for name in begun_states(sizes):  # what was not sent to its end, and is not here any more
        if step_of(name) not in whole and not (out_dir / "last" / name).exists():
            ours = [f"last/{name}/{file}" for file in (MANIFEST, *PARTS)]
            storage.remove(
                place for place in sizes if place in ours or place.startswith(f"last/{name}/{shards.PREFIX}")
            )


def clear(storage: Storage, sizes: Sizes) -> None:
    """Remove another run from the address: what manifests list, and its metrics first, so that it is none at once."""
    storage.remove(name for name in SINGLE_FILES if name in sizes)
    for directory in sorted({name.rpartition("/")[0] for name in sizes if name.endswith(f"/{MANIFEST}")}):
        top = directory.split("/")[0]
        if (top in ("best", "last", files.WORK) or top.startswith("iter_")) and (
            manifest := storage.manifest(sizes, directory)
        ):
            storage.remove(_files_of(directory, manifest))


def _send(storage: Storage, sizes: Sizes, snapshot: Path, name: str, manifest: dict[str, Any]) -> None:
    storage.remove([f"{name}/{MANIFEST}"] if f"{name}/{MANIFEST}" in sizes else [])
    for file, entry in manifest["files"].items():
        if sizes.get(f"{name}/{file}") == entry["bytes"]:  # sent before an interruption
            with suppress(OSError):
                storage.check(snapshot / file, f"{name}/{file}", entry["sha256"])
                continue
        storage.send(snapshot / file, f"{name}/{file}", entry["sha256"])
    storage.send(snapshot / MANIFEST, f"{name}/{MANIFEST}", files.sha256_of(snapshot / MANIFEST))


def _copy(storage: Storage, path: Path, file: str, name: str, sha256: str | None) -> None:
    """Put a file that was staged in its place; send it where the server cannot copy."""
    sha256 = sha256 or files.sha256_of(path)
    try:
        storage.copy(f"{staged(name)}/{file}", f"{name}/{file}")
        storage.check(path, f"{name}/{file}", sha256)
    except OSError:
        storage.send(path, f"{name}/{file}", sha256)


def _files_of(directory: str, manifest: dict[str, Any]) -> list[str]:
    """The files of a directory at the address, its manifest first: without it the directory does not count."""
    return [f"{directory}/{file}" for file in (MANIFEST, *manifest["files"])]


def _link(directory: Path, snapshot: Path) -> dict[str, Any]:
    """A second name for each file of a directory, which stays when the directory goes. Returns its manifest."""
    try:
        content = (directory / MANIFEST).read_bytes()
        for file in (MANIFEST, *files.files_in_manifest(directory)):
            (snapshot / file).parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(directory / file, snapshot / file)
            except FileNotFoundError:
                raise
            except OSError:  # a disk without links
                shutil.copyfile(directory / file, snapshot / file)
        if (snapshot / MANIFEST).read_bytes() != content or (directory / MANIFEST).read_bytes() != content:
            raise Changed
    except FileNotFoundError:
        raise Changed from None
    return parse_json(content)
