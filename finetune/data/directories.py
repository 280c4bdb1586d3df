"""The files of a directory or of a pattern, by split, and what is left out of it."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote

from finetune.common.errors import UsageError
from finetune.common.files import read_json_object
from finetune.common.opened import leads_out
from finetune.config.paths import fixed_part
from finetune.data import compressed, own_files
from finetune.data.card_configs import files_of_default
from finetune.data.encodings import is_binary, is_utf8
from finetune.data.row_shape import shortened
from finetune.data.split_names import CARD, find_splits
from finetune.data.text_files import TEXT_SUFFIXES, suffix_of
from finetune.data.whole_sets import check_whole

# of the Hub, of datasets.save_to_disk, of the doctor
RECORDS = (
    "dataset_info.json dataset_infos.json dataset_dict.json removed.jsonl requirements.txt package.json"
    " package-lock.json config.json generation_config.json tokenizer_config.json"
).split()
BROKEN, MAX_KINDS = "broken link", 20
SAVED = ("dataset_info.json", "state.json")  # together, beside the .arrow files of datasets.save_to_disk
# what programs keep among the files of people: packages of others, previews, what was deleted
FOLDERS = frozenset(
    ("node_modules", "site-packages", "dist-packages", "__pycache__", "__MACOSX", "@eaDir", "lost+found")
    + ("$RECYCLE.BIN", "System Volume Information")
)
HIDDEN = (".", "~$")  # the second are locks of Office
SYSTEM = ("/", "/proc", "/sys", "/dev")  # to walk them takes minutes, and texts are elsewhere


@dataclass
class Found:
    """Files of a directory or pattern in order, by split, and the number of those left out, by suffix or name.

    Without names of splits all files are in "train". Those of "test" are not trained on."""

    files: dict[str, list[Path]] = field(default_factory=lambda: {"train": [], "val": [], "test": []})
    left_out: Counter[str] = field(default_factory=Counter)
    others: list[Path] = field(default_factory=list)  # that are not readable
    outside: list[Path] = field(default_factory=list)  # links out of it, which are not followed

    def describe_left_out(self) -> str:
        """`2 .docx, 1 .pdf, README.md`; empty if nothing is left out."""
        said = [
            name
            if count == 1 and not re.match(r"[.]|other |broken ", name)
            else f"{count:,} {name}{'s' * (count > 1 and name == BROKEN)}"
            for name, count in sorted(self.left_out.items())
        ]
        return shortened(said, MAX_KINDS)

    def describe_outside(self) -> str:
        """`2 files are elsewhere, behind links, such as /home/me/b.txt, and left out; ...`; empty if none is."""
        if not self.outside:
            return ""
        count = len(self.outside)
        files = f"{count:,} files are" if count > 1 else "one file is"
        where = f"{files} elsewhere, behind links, such as {self.outside[0].resolve()}"
        return f"{where}, and left out; name them, or put the files themselves there"

    def card_of_others(self, place: str) -> str | None:
        """The name of a README or a licence that is all there is to read of a directory with other texts."""
        files = [path for found in self.files.values() for path in found]
        is_alone = bool(files) and all(CARD.match(path.name) for path in files) and bool(self._other_texts(place))
        return files[0].name if is_alone else None

    def _other_texts(self, place: str) -> list[Path]:
        """Texts of other suffixes in a directory."""
        return [
            path for path in self.others if os.path.isdir(place) and not CARD.match(path.name) and _may_be_text(path)
        ]

    def way_in(self, place: str, is_unpacked: bool) -> str:
        """What a directory leaves out where nothing is read, and the pattern that takes the texts among it.
        `is_unpacked` says that the directory is that of an archive, in which nobody can name files."""
        suffixes = Counter(map(_whole_suffix, self._other_texts(place)))
        folder, way = "DIRECTORY" if is_unpacked else place, ""
        if suffixes:
            way = "; unpack it to DIRECTORY" if is_unpacked else ""
            way += f"; texts of other suffixes are named by a pattern: '{folder}/**/*{suffixes.most_common(1)[0][0]}'"
        bins = [path.parent for path in self.others if path.name == "train.bin"]
        if bins and not is_unpacked:
            train = f"finetune train --dataset={quote(str(bins[0]))}"
            way += f"; train.bin holds token ids, which need no preparation: {train}"
        way += f"; left out: {self.describe_left_out()}" if self.left_out else ""
        return way + (f"; {self.describe_outside()}" if self.outside else "")


def find_files(name: str, is_readable: Callable[[Path], bool], is_unpacked: bool = False) -> Found:
    """The files of a directory or a pattern that `is_readable`, sorted; each file once, also behind links within it.

    Without hidden and empty files. A pattern with a suffix, such as src/**/*.py, takes every file that it matches, and
    so does one that matches none of the known suffixes.
    Names of splits are followed. Raises UsageError for a directory that cannot be listed, or that lacks parts of a set.
    `is_unpacked` says that the directory is that of an archive."""
    name = os.path.expanduser(name)
    is_directory = os.path.isdir(name)
    base = Path(name) if is_directory else fixed_part(name)
    if (is_directory or "**" in Path(name).parts) and str(base.resolve()) in SYSTEM:
        raise UsageError(f"{name}: is a system directory; name the directory of your texts")
    skipped: Counter[str] = Counter()
    paths = list(_walk(base, skipped) if is_directory else _expand(name, skipped))
    written = own_files.written(paths, base) if is_directory or "**" in Path(name).parts else set()
    present = [path for path in paths if path not in written and os.path.isfile(path)]
    files = _once(path for path in present if path.stat().st_size)
    real = base.resolve()
    outside = [path for path in files if leads_out(path, real)]
    files = sorted({*files}.difference(outside))
    names_suffix = bool(Path(name).suffix) and not glob.has_magic(Path(name).suffix)
    takes_all = not is_directory and (names_suffix or not any(map(is_readable, files)))
    readable = [path for path in files if takes_all or is_readable(path)]
    others = sorted(set(files).difference(readable))
    found = Found(left_out=Counter(map(_kind, others)), others=others, outside=outside)
    found.left_out.update(skipped)
    found.left_out.update(path.name for path in written if is_readable(path))
    found.left_out.update(BROKEN for path in paths if not os.path.exists(path))
    data = _without_records(readable)
    found.left_out.update(
        path.name for path in set(readable).difference(data) if path.name not in (*SAVED, "dataset_dict.json")
    )
    chosen = files_of_default(name, base, data) if is_directory else data
    found.files = _by_split(name, chosen, base, is_readable)
    _check_empty(name, {path for path in present if not path.stat().st_size}, found.files["train"], base, is_readable)
    if is_directory:
        read = [*found.files["train"], *found.files["val"]]
        check_whole(name, read, present, is_unpacked)
    for path in set(data).difference(*found.files.values()):
        found.left_out[path.name if CARD.match(path.name) else f"other {suffix_of(path)}"] += 1
    return found


def of_splits(
    name: str, files: Iterable[Path], base: Path, is_readable: Callable[[Path], bool]
) -> dict[str, list[Path]]:
    """The readable ones of files below `base`, which need not be on this machine, by split. Raises UsageError."""
    return _by_split(name, _without_records(sorted(filter(is_readable, files))), base, is_readable)


def _by_split(name: str, data: list[Path], base: Path, is_readable: Callable[[Path], bool]) -> dict[str, list[Path]]:
    below = {path: path.relative_to(base) if path.is_relative_to(base) else path for path in data}
    splits = find_splits(below, is_readable)
    if {*splits.values()} == {"val", "test"}:
        raise UsageError(
            f"{name}: has files for validation and test, and none that is named train; name the files to train on"
        )
    if not splits:
        return {"train": data, "val": [], "test": []}
    return {split: [path for path in data if splits[path] == split] for split in ("train", "val", "test")}


def _check_empty(
    name: str, empty: set[Path], train: list[Path], base: Path, is_readable: Callable[[Path], bool]
) -> None:
    """Raise UsageError if all files that are named train are empty, and others would be trained on."""
    paths = sorted({*train, *filter(is_readable, empty)})
    splits = find_splits({path: path.relative_to(base) for path in paths if path.is_relative_to(base)}, is_readable)
    named = [path for path, split in splits.items() if split == "train" and path.name.lower().startswith("train.")]
    if named and train and empty.issuperset(named):
        raise UsageError(
            f"{name}: {named[0].name} is empty, so there is nothing to train on; to train on the others, name them"
        )


def _walk(directory: Path, skipped: Counter[str]) -> Iterator[Path]:
    """The files in a directory and below it, also behind links. Hidden names are left out."""
    for folder in _folders(directory, skipped):
        yield from (Path(entry.path) for entry in _entries(folder) if not os.path.isdir(entry))


def _folders(directory: Path, skipped: Counter[str]) -> Iterator[Path]:
    """A directory and those below it, also behind links, but each real one once. Hidden ones are left out, those of
    FOLDERS, which `skipped` counts, and those above it, to which a link may lead."""
    seen, level = {directory.resolve(), *directory.resolve().parents}, [directory]
    while level:
        yield from level
        below = sorted(Path(entry.path) for folder in level for entry in _entries(folder) if os.path.isdir(entry))
        level = []
        skipped.update(folder.name for folder in below if folder.name in FOLDERS)
        for folder in below:
            if folder.name not in FOLDERS and folder.resolve() not in seen:
                seen.add(folder.resolve())
                level.append(folder)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What a directory holds under names that are not hidden."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(HIDDEN)]
    except OSError as error:
        raise UsageError(f"{folder}: cannot be read: {error.strerror}") from None


def _expand(pattern: str, skipped: Counter[str]) -> Iterator[Path]:
    """What a pattern matches, without hidden names; ** enters each real directory once, so links may go in circles."""
    parts = Path(pattern).parts
    if "**" not in parts:
        matched = map(Path, glob.glob(pattern))
        yield from (path for path in matched if not path.name.startswith(HIDDEN))
        return
    place = parts.index("**")
    rest = parts[place + 1 :]
    for start in glob.glob(os.path.join(*parts[:place])) if place else ["."]:
        for folder in _folders(Path(start), skipped) if os.path.isdir(start) else []:
            yield from _expand(os.path.join(glob.escape(str(folder)), *(rest or ["*"])), skipped)


def _once(paths: Iterable[Path]) -> list[Path]:
    """The paths sorted, each real file once, under the shortest of its paths."""
    real: dict[Path, Path] = {}
    for path in sorted(paths, key=lambda path: (len(path.parts), path)):
        real.setdefault(path.resolve(), path)
    return sorted(real.values())


def _without_records(files: list[Path]) -> list[Path]:
    """The files without cards and records of the data, which are read as data if nothing else is there."""
    saved = {folder: _saved_files(folder) for folder in {path.parent for path in files if suffix_of(path) == ".arrow"}}
    data = []
    for path in files:
        listed = saved.get(path.parent)
        is_cache = suffix_of(path) == ".arrow" and listed is not None and path.name not in listed
        is_saved = path.name in SAVED and all((path.parent / name).is_file() for name in SAVED)
        if not (path.name in RECORDS or is_saved or is_cache):
            data.append(path)
    # a card lies above tables, or beside the files of splits
    tables = [path for path in data if suffix_of(path) not in ("", *TEXT_SUFFIXES)]
    above = {folder for path in tables for folder in path.parents}
    rest = [path for path in data if path in tables or not (CARD.match(path.name) and path.parent in above)]
    return _in_saved_order(rest or data or files, saved)


def _saved_files(folder: Path) -> list[str] | None:
    """The names of the .arrow files that datasets.save_to_disk wrote into a directory, in order; None if it did not."""
    if not (folder / "dataset_info.json").is_file():
        return None
    entries = read_json_object(folder / "state.json").get("_data_files")
    return [str(entry["filename"]) for entry in entries] if isinstance(entries, list) else None


def _in_saved_order(files: list[Path], saved: dict[Path, list[str] | None]) -> list[Path]:
    def key(path: Path) -> tuple[Path, int, Path]:
        names = saved.get(path.parent) or []
        return path.parent, names.index(path.name) if path.name in names else -1, path

    return sorted(files, key=key) if any(saved.values()) else files


def _kind(path: Path) -> str:
    """How a file that is left out is counted: by its suffix, else its name."""
    return suffix_of(path) or path.name


def _whole_suffix(path: Path) -> str:
    """The suffix, with that of a compression: `.sql.gz`."""
    packed = path.suffix if path.suffix.lower() in compressed.SUFFIXES else ""
    return Path(path.name.removesuffix(packed)).suffix + packed


def _may_be_text(path: Path) -> bool:
    try:
        with compressed.open_decompressed(path) as file:
            head = file.read(1 << 12)
    except compressed.READ_ERRORS:
        return False
    return is_utf8(head) and not is_binary(head)


def names(files: list[Path], place: str) -> str:
    """The names of some files in a directory, in short."""
    name = files[0].relative_to(place) if files[0].is_relative_to(place) else files[0].name
    return str(name) if len(files) == 1 else f"{name} and {len(files) - 1:,} more"
