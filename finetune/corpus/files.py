"""The files of a corpus: local, remote (s3://, hf:// and whatever else fsspec opens) or of a dataset of the Hub."""

from __future__ import annotations

import contextlib
import glob
import tempfile
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from finetune.common import network
from finetune.common.errors import UsageError
from finetune.config.paths import fixed_part
from finetune.data import directories, sources
from finetune.data.sources import NO_TEXT, Source, is_readable

STAMPS = ("size", "mtime", "ETag", "blob_id")  # entries of fsspec that change with a file
TEXT_ALONE = "is one running text; finetune prepare without --executor splits it"


class File(NamedTuple):
    """A file of a corpus: where it is, as messages name it, the source that it belongs to, and its split if given."""

    url: str
    title: str
    source: str
    split: str | None
    size: int
    stamp: str  # another one after a change


def find_files(names: Sequence[str], val: Sequence[str], **reading: Any) -> tuple[list[File], list[str]]:
    """All files, local ones first, in the order of the names, and what is to be said of them. Those that validate are
    "val"; without any, no file has a split. Raises UsageError."""
    notes: list[str] = []
    finder = sources.make_finder(**reading)
    finder.has_val = bool(val)
    found = list(_find(names, finder, notes))
    if val:
        given = list(_find(val, finder, []))
        chosen = [file for file in given if file.split == "val"] or given
        found = [file for file in found if file.split == "train"] + [file._replace(split="val") for file in chosen]
    if not any(file.split == "train" for file in found):
        raise UsageError(NO_TEXT)
    is_alone = len({file.split for file in found}) == len(found)  # in its split
    if is_alone and all(Source("", [Path(file.url)], options=reading["read_options"]).is_one_text for file in found):
        raise UsageError(f"{found[0].source}: {TEXT_ALONE}")
    has_val = any(file.split == "val" for file in found)
    return (found if has_val else [file._replace(split=None) for file in found]), notes


def _find(names: Sequence[str], finder: sources.Finder, notes: list[str]) -> Iterator[File]:
    """The files of sources, "train" or "val" each, as `prepare` takes them. Notes are added to those."""
    local = [name for name in names if "://" not in name]
    for split, texts in (finder.find(local) if local else {}).items():
        for source in texts:
            notes += [*source.notes, *[f"{source.name}: left out: {source.left_out}"] * bool(source.left_out)]
            if source.hub:
                yield from _find_hub(source.name, source.hub)
            elif source.root or source.content is not None or not source.files:
                raise UsageError(f"{source.name}: is not read in parts; unpack it, or prepare it without --executor")
            else:
                yield from (_local(path, source.name, split) for path in source.files)
    for name in names:
        if "://" in name:
            yield from _find_remote(name, name, notes)


def _local(path: Path, name: str, split: str) -> File:
    return File(str(path.absolute()), str(path), name, split, path.stat().st_size, _stamp(path))


def _stamp(path: Path) -> str:
    facts = path.stat()
    return f"{facts.st_size} {facts.st_mtime_ns}"


def _stamp_of(info: dict[str, Any]) -> str:
    return " ".join(str(info.get(key)) for key in STAMPS)


@contextlib.contextmanager
def opened(file: File) -> Generator[Path]:
    """The file as a local one, for the time of the context. Raises UsageError if it changed since it was found, and
    OSError if it cannot be fetched."""
    if "://" not in file.url:
        _check(file, _stamp(Path(file.url)))
        yield Path(file.url)
        return
    from fsspec.core import url_to_fs

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, Path(file.url).name)
        try:
            system, place = url_to_fs(file.url)
            stamp = _stamp_of(system.info(place))
            system.get_file(place, str(path))
        except Exception as error:  # each file system has its own
            raise OSError(f"{file.url}: {network.explain(error)}") from None
        _check(file, stamp)
        yield path


def _check(file: File, stamp: str) -> None:
    if stamp != file.stamp:
        raise UsageError(f"{file.url}: changed while it was prepared; --overwrite=true begins anew")


def _find_remote(url: str, name: str, notes: list[str]) -> Iterator[File]:
    from fsspec.core import url_to_fs

    try:
        system, place = url_to_fs(url)
        if glob.has_magic(place):
            found = system.glob(place, detail=True)
        elif system.isdir(place):
            found = system.find(place, detail=True)
        else:
            found = {place: system.info(place)}
    except ImportError as error:  # such as s3fs
        raise UsageError(f"{name}: {error}") from None
    except Exception as error:  # each file system has its own
        raise UsageError(f"{name}: cannot be listed: {network.explain(error)}") from None
    facts = {path: info for path, info in found.items() if info["type"] == "file" and info["size"]}
    base = fixed_part(place) if glob.has_magic(place) else Path(place)
    taken = directories.of_splits(name, map(Path, facts), base, is_readable)
    if left_out := len(facts) - len(taken["train"]) - len(taken["val"]):
        notes.append(f"{name}: {left_out:,} files left out, of a test split or of no kind that is read")
    for split in ("train", "val"):
        for path in map(str, taken[split]):
            place = system.unstrip_protocol(path)
            yield File(place, place, name, split, facts[path]["size"], _stamp_of(facts[path]))
    if not taken["train"]:
        raise UsageError(f"{name}: no text there")


def _find_hub(name: str, wanted: dict[str, Any]) -> Iterator[File]:
    """The files of a split of a dataset of the Hub."""
    from datasets import load_dataset_builder

    try:
        builder = load_dataset_builder(wanted["path"], wanted["name"], revision=wanted["revision"])
    except Exception as error:
        raise UsageError(f"{name}: {network.explain(error)}") from None
    files = builder.config.data_files or {}
    if wanted["split"] not in files:
        raise UsageError(f"{name}: has no files of split {wanted['split']}; there are {', '.join(files) or 'none'}")
    for url in files[wanted["split"]]:
        yield from (file._replace(split="train") for file in _find_remote(url, name, []))
