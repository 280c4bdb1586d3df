"""Files that are named as parts of a set, such as train-00000-of-00002.parquet, and those of it that are not there."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable
from pathlib import Path

from finetune.common.errors import UsageError

# as datasets, TFDS and C4 number them, from 0 or from 1; the Hub once put a hash behind the numbers
NAME = re.compile(r"(?P<stem>.*?)(?P<number>\d{3,})-of-(?P<count>\d{3,})(?P<hash>-[0-9a-f]{16})?(?P<suffix>\.[^/]*)")
PartsOf = tuple[Path, str, str, str]  # directory, stem, count and suffix


def check_whole(name: str, chosen: Iterable[Path], present: Iterable[Path], is_unpacked: bool = False) -> None:
    """Raise UsageError if one of the `chosen` files of a directory belongs to a set of which parts are not `present`.
    `is_unpacked` says that the directory is that of an archive, in which nobody can name files."""
    numbers: dict[PartsOf, set[int]] = {}
    for path in present:
        if part := NAME.fullmatch(path.name):
            numbers.setdefault(_set_of(path, part), set()).add(int(part["number"]))
    sets = dict.fromkeys(_set_of(path, part) for path in chosen if (part := NAME.fullmatch(path.name)))
    for folder, stem, count, suffix in sets:
        found, size = numbers.get((folder, stem, count, suffix), set()), int(count)
        first = int(0 not in found and size in found)
        missing = size - len(found)
        if missing <= 0 or max(found, default=0) >= size + first:
            continue
        # whether they begin with 0 is not known where both 0 and the last are missing
        number = next((number for number in range(1, size) if number not in found), 0)
        example = folder / f"{stem}{number:0{len(count)}}-of-{count}{suffix}"
        pattern = f"{glob.escape(str(folder / stem))}*-of-{count}*{suffix}"
        way = "unpack it and name them" if is_unpacked else f"name them by a pattern: '{pattern}'"
        are = "is" if missing == 1 else "are"
        raise UsageError(
            f"{name}: {missing:,} of {size:,} parts {are} not there, such as {example}; to read the others alone, {way}"
        )


def _set_of(path: Path, part: re.Match[str]) -> PartsOf:
    return path.parent, part["stem"], part["count"], part["suffix"]
