"""A directory of files that belong together: it stays the same one while it is read, though a run may replace it at any
moment, and its links do not lead out of it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import TypeVar

from finetune.common.errors import UsageError
from finetune.common.files import MANIFEST, find_damage

T = TypeVar("T")
TRIES = 20


def read_whole(directory: Path, read: Callable[[Path], T], kinds: Iterable[str] = ("*",)) -> T:
    """`read(place)`, where `place` is `directory` as it was opened: all its files belong together. It is called again
    if the directory was replaced and removed meanwhile. Raises UsageError, also for files of these kinds that differ
    from a manifest."""
    for _ in range(TRIES):
        with contextlib.suppress(FileNotFoundError), _opened(directory) as place:
            has_manifest = (place / MANIFEST).is_file()
            try:
                result = read(place)
                problem = find_damage(place, kinds) if has_manifest else None
            except (UsageError, OSError) as error:
                if _is_replaced(place, directory):
                    continue
                raise UsageError(str(error).replace(str(place), str(directory))) from None
            if not _is_replaced(place, directory) or has_manifest and not problem:
                if problem:
                    raise UsageError(f"{directory}: {problem}")
                return result
    raise UsageError(f"{directory}: is replaced faster than it can be read; try again when its run has ended")


def refuse_links_out(directory: Path, paths: Iterable[Path]) -> None:
    """Raise UsageError for a link, among the `paths` in a directory, to a file elsewhere: a directory that came from
    somebody else could show and send any file so. The blobs of the Hub's cache are no such place."""
    for path in paths:
        if not path.is_symlink() and (path.parent == directory or not path.parent.is_symlink()):
            continue
        target = path.resolve()
        if target.is_file() and leads_out(path, directory.resolve()):
            raise UsageError(f"{path}: is a link to {target}, outside its directory; put the file itself there")


def leads_out(path: Path, directory: Path) -> bool:
    """Whether a path leads to a file that is not in a real directory, and no blob of the snapshot that the directory
    belongs to, or of the user's own cache."""
    target = path.resolve()
    if target.is_relative_to(directory):
        return False
    snapshots = [place for place in (directory, *directory.parents) if place.parent.name == "snapshots"]
    if any(target.parent == place.parents[1] / "blobs" for place in snapshots):
        return False

    from huggingface_hub.constants import HF_HUB_CACHE

    return target.parent.name != "blobs" or not target.is_relative_to(Path(HF_HUB_CACHE).resolve())


@contextlib.contextmanager
def _opened(directory: Path) -> Generator[Path]:
    """A path that stays this directory when another one gets its name; the path itself where there is no /proc."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        place = Path(f"/proc/self/fd/{handle}")
        yield place if place.is_dir() else directory
    finally:
        os.close(handle)


def _is_replaced(place: Path, directory: Path) -> bool:
    try:
        return not os.path.samefile(place, directory)
    except OSError:
        return True
