"""Files and directories that are named after splits: train.jsonl, test/, split=validation/, "test set.csv"."""

from __future__ import annotations

import glob
import os
import re
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path

from finetune.common.errors import UsageError
from finetune.data.text_files import TEXT_SUFFIXES, suffix_of

SPLITS: dict[str, str] = {
    **dict.fromkeys("train training trainset".split(), "train"),
    **dict.fromkeys("validation valid val dev eval evaluation validset valset devset evalset".split(), "val"),
    **dict.fromkeys("test testing testset holdout heldout".split(), "test"),
}
NO_SPLIT = (".md", ".markdown")  # notes: training.md is not a split
# about the data, not data
CARD = re.compile(
    r"(readme|license|licence|copying|notice|citation|changelog|dataset_?card)\b[^.]*(\.\w+)?$", re.IGNORECASE
)
WORD = re.compile(r"[0-9]+|[A-Z]?[^\W\d_A-Z]+|[A-Z]+(?![^\W\d_A-Z])")  # also of dataTrain
# words that say nothing beside the name of a split
PLAIN = re.compile(
    r"(data|datasets?|set|split|subset|partition|fold|part|files?|texts?|corpus|samples?|examples?|records|rows|full"
    r"|clean|cleaned|raw|processed|copy|txt|jsonl?|csv|parquet|of|v|[0-9]+)"
)
JOINED = re.compile(r"([a-z]+?)(data|dataset)")  # such as traindata
BETWEEN = "([-_.]|(?<=[a-z])(?=[A-Z]))"  # words of a name
BETWEEN_OF_TABLES = "([-_. ()]|(?<=[a-z])(?=[A-Z]))"
PARTITIONS = ("", "split", "subset", "partition", "fold", "set")  # keys of directories that Spark and Hive write
COMPANION = re.compile(rf"{CARD.pattern}|sample_?submission", re.IGNORECASE)  # of files with splits
Splits = dict[Path, str | None]


def find_splits(below: dict[Path, Path], is_readable: Callable[[Path], bool]) -> Splits:
    """The split of each file; {} if the files are not named after splits. `below` has the path of each file below what
    the user named.

    Where no names say it alone, as train.jsonl does, they may say it among other words, as "test set.jsonl" does."""
    strict = _without_notes(_splits_within({path: _split_of(below[path]) for path in below}), below)
    loose = {path: split or _loose_split(below[path]) for path, split in strict.items()}
    loose = _without_notes(_splits_by_family(loose, below), below)
    named = {*strict.values()}
    if named == {"val", "test"} or ({"val", "test"} & named and _has_splits(strict, is_readable)):
        return strict
    data = {path: split for path, split in loose.items() if split or not COMPANION.match(path.name)}
    if None not in data.values() and len({*data.values()}) > 1:
        return loose
    return strict if _has_splits(strict, is_readable) else {}


def check_apart(names: Iterable[str], is_readable: Callable[[Path], bool]) -> None:
    """Raise UsageError if files or directories, named one by one, are the splits of a corpus. A shell makes that of a
    pattern without quotes, and all of them would train."""
    paths = [Path(name) for name in map(os.path.expanduser, names) if os.path.exists(name)]
    if len(paths) < 2:
        return
    found = {(path / _unnamed(path) if path.is_dir() else path): path for path in paths}
    below = {file: Path(path.absolute().name, file.name if path.is_dir() else "") for file, path in found.items()}
    splits = find_splits(below, is_readable)
    named = [str(found[file]) for file, split in splits.items() if split]
    has_others = any(not split and not COMPANION.match(file.name) for file, split in splits.items())  # such as essays
    if has_others or "train" not in splits.values() or not {"val", "test"} & {*splits.values()}:
        return
    together = _named_together(paths, is_readable)
    raise UsageError(
        f"{', '.join(named[:3])}{', ...' if len(named) > 3 else ''}: are named after splits, and all would train;"
        f" {together and f'{together}, to train on train alone; or '}name the files to train on, and with --val= those"
        " to validate on; to train on all of them, give them other names"
    )


def _named_together(paths: list[Path], is_readable: Callable[[Path], bool]) -> str:
    """How to name the same files by a directory or a pattern, of which the splits are followed; "" if there is none."""
    folders, suffixes = {path.parent for path in paths}, {path.suffix for path in paths}
    if len(folders) == 1 and all(path.is_dir() for path in paths):
        return f"name their directory, {shlex.quote(str(folders.pop()))}"
    if len(folders) == len(suffixes) == 1 and all(map(is_readable, paths)):  # not archives, which no pattern unpacks
        return f"put the pattern in quotes, '{Path(glob.escape(str(folders.pop())), f'*{suffixes.pop()}')}'"
    return ""


def _unnamed(directory: Path) -> str:
    """A name that says no split, with the suffix of a file in a directory."""
    names = (name for _, _, names in os.walk(directory) for name in sorted(names) if not CARD.match(name))
    return f"_{suffix_of(Path(next(names, '')))}"


def _split_of(path: Path) -> str | None:
    """The split that a path, relative to what the user named, belongs to: that of a directory, else of its name."""
    for part in path.parts[:-1]:
        if split := _split_of_directory(part):
            return split
    if suffix_of(path) in NO_SPLIT:
        return None
    # xyz_train.jsonl and train-00000-of-00001.parquet, but not "testing the water.txt"
    words = [word.rstrip("0123456789") for word in re.split("[-_.]", _stem(path).lower())]
    words = [word for word in words if word and word != "of"]
    return next((SPLITS[word] for word in [*words[:1], *words[-1:]] if word in SPLITS), None)


def _split_of_directory(name: str) -> str | None:
    """The split of a directory named train, or split=train as Spark writes it."""
    key, _, value = name.lower().rpartition("=")
    return SPLITS.get(value) if key in PARTITIONS else None


def _stem(path: Path) -> str:
    """The name of a file without its suffixes."""
    suffix, name = suffix_of(path), path.name.lower()
    stem = name.partition(f"{suffix}.")[0] if suffix else name
    return path.name[: len(stem.removesuffix(suffix))]


def _splits_within(splits: Splits) -> Splits:
    """The splits, also those within names that differ in nothing else: sft_train_v2 and sft_test_v2."""
    families: dict[str, dict[Path, str]] = {}
    for path, split in splits.items():
        words = re.split("([-_.])", path.name.lower())
        inner = [word for word in words[1:] if word in SPLITS]
        if split is None and len(inner) == 1 and suffix_of(path) not in NO_SPLIT:
            family = str(path.parent / "".join("*" if word == inner[0] else word for word in words))
            families.setdefault(family, {})[path] = SPLITS[inner[0]]
    return splits | _complete(families)


def _complete(families: dict[str, dict[Path, str]]) -> dict[Path, str]:
    """The splits of families that have train and another."""
    found = [family for family in families.values() if "train" in family.values() and len({*family.values()}) > 1]
    return {path: split for family in found for path, split in family.items()}


def _loose_split(path: Path) -> str | None:
    """The split of a path whose directory or name holds, beside it, only words that say nothing."""
    names = [*path.parts[:-1], *([] if suffix_of(path) in NO_SPLIT else [_stem(path)])]
    for name in names:
        words = [word.lower() for word in WORD.findall(name)]
        words = [joined[1] if (joined := JOINED.fullmatch(word)) else word for word in words]
        found = {SPLITS[word] for word in words if word in SPLITS}
        if len(found) == 1 and all(word in SPLITS or PLAIN.fullmatch(word) for word in words):
            return found.pop()
    return None


def _splits_by_family(splits: Splits, below: dict[Path, Path]) -> Splits:
    """The splits, also those within names of directories, or of words in other ways, that differ in nothing else."""
    families: dict[str, dict[Path, str]] = {}
    for path, split in splits.items():
        parts = below[path].parts if split is None and suffix_of(path) not in NO_SPLIT else ()
        between = BETWEEN if suffix_of(path) in TEXT_SUFFIXES else BETWEEN_OF_TABLES
        for number, part in enumerate(parts):
            words = re.split(between, part)
            inner = [word for word in words if word.lower() in SPLITS]
            if len(inner) == 1:
                family = "/".join([*parts[:number], "".join("*" if word == inner[0] else word for word in words)])
                families.setdefault(family, {})[path] = SPLITS[inner[0].lower()]
                break
    return splits | _complete(families)


def _without_notes(splits: Splits, below: dict[Path, Path]) -> Splits:
    """The splits, or none if they are directories of notes, such as training/ and testing/ beside guide/."""
    named = [path for path, split in splits.items() if split]
    parts = {part.lower() for path in named for part in below[path].parts}
    others = [path for path, split in splits.items() if not split and len(below[path].parts) > 1]
    are_notes = all(suffix_of(path) in NO_SPLIT for path in named) and not {"train", "split=train"} & parts
    if are_notes and any(suffix_of(path) in NO_SPLIT and not CARD.match(path.name) for path in others):
        return dict.fromkeys(splits)
    return splits


def _has_splits(splits: Splits, is_readable: Callable[[Path], bool]) -> bool:
    """Whether names of splits mean splits: if there are others beside train, or a table has no other name than train.
    Among files such as programs, every one must have a split."""
    if "train" not in splits.values():
        return False
    if {"val", "test"} & set(splits.values()):
        return all(map(is_readable, splits)) or None not in splits.values()
    return any(
        split == "train" and is_readable(path) and suffix_of(path) not in TEXT_SUFFIXES and _is_exact(path)
        for path, split in splits.items()
    )


def _is_exact(path: Path) -> bool:
    """Whether a file is named after a split and nothing else, such as train-00000-of-00001.parquet, or lies in such a
    directory."""
    words = re.findall("[a-z]+", path.name.lower().partition(".")[0])
    return _split_of_directory(path.parent.name) is not None or bool(words) and {*words} <= {*SPLITS, "of"}
