"""The directory of a run, as arguments name it: a run is where its recipe.yaml lies."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from finetune.common.addresses import address_of
from finetune.common.commands import command
from finetune.common.files import MANIFEST
from finetune.config.options import BOOLEANS
from finetune.config.recipe_file import Entry, read_recipe

RUN_FILES = ("best", "last", "metrics.jsonl")  # by which a run is known
RECIPE = "recipe.yaml"
STATE_NAME = re.compile(r"step-\d{8,}")


def is_run(directory: str | Path) -> bool:
    return any(Path(directory, name).exists() for name in RUN_FILES)


def has_state(out_dir: str | Path) -> bool:
    """Whether a run can be resumed there."""
    return any((path / MANIFEST).is_file() for path in states(out_dir))


def states(out_dir: str | Path) -> list[Path]:
    """The directories of all resumable states, newest first, damaged ones included."""
    found = (path for path in Path(out_dir).glob("last/step-*") if STATE_NAME.fullmatch(path.name))
    return sorted((path for path in found if path.is_dir()), reverse=True)


def complete(entries: list[Entry], has_recipe: bool, problems: list[str]) -> list[Entry]:
    """The entries of a training run after what follows from its directory: the run's own recipe, where `resume` or
    `auto` is given without one, and what `auto` means there. A recipe that lies in another run is a problem."""
    start, out_dir = _last(entries, "init_from"), _last(entries, "out_dir")
    resumes = bool(start) and start.text in ("resume", "auto")
    if resumes and out_dir and not has_recipe and (own := Path(str(out_dir.text), RECIPE)).is_file():
        entries = [*(entry for entry in read_recipe(str(own), problems) if entry.key != "out_dir"), *entries]
    if out_dir and (problem := _problem_of_place(out_dir)):
        problems.append(problem)
    if start and start.text == "auto":
        return _resume_or_start(entries, start, str(out_dir.text) if out_dir else "out")
    return entries


def _resume_or_start(entries: list[Entry], auto: Entry, out_dir: str) -> list[Entry]:
    """The entries with `resume` in the place of `auto`, or with the init_from below it."""
    if has_state(out_dir):
        return [*entries, Entry("init_from", "resume", auto.origin)]
    below = [entry for entry in entries if entry.key != "init_from" or entry.text not in ("auto", "resume")]
    overwrite = _last(entries, "overwrite")
    is_given = overwrite is not None and BOOLEANS.get(str(overwrite.text).lower(), False)
    return below if is_given else [*below, Entry("overwrite", "unfinished", "--init_from")]


def _last(entries: Sequence[Entry], key: str) -> Entry | None:
    return next((entry for entry in reversed(entries) if entry.key == key), None)


def _problem_of_place(out_dir: Entry) -> str | None:
    """The problem if `out_dir` is said by the recipe of a run that lies elsewhere, because it was copied or moved."""
    path, _, line = out_dir.origin.rpartition(":")
    place = Path(path).parent
    if not line.isdigit() or Path(path).name != RECIPE or not is_run(place) or _is_same(place, str(out_dir.text)):
        return None
    ways = f"--out_dir={place} is the run here, --out_dir={out_dir.text} the other"
    return f"{out_dir.place}: {out_dir.text}, but this recipe lies in the run {place}; give one: {ways}"


def _is_same(place: str | Path, other: str | Path) -> bool:
    return os.path.realpath(place) == os.path.realpath(other)


def resume_command(out_dir: str | Path, **flags: object) -> str:
    """The command that goes on with the run in a directory, or starts it if it has saved no state yet."""
    way = "resume" if has_state(out_dir) else "auto"
    if address := address_of(out_dir):
        return command("train", out_dir=address, init_from=way, **flags)
    return command("train", Path(out_dir, RECIPE), init_from=way, **out_dir_flag(out_dir), **flags)


def out_dir_flag(out_dir: str | Path) -> dict[str, object]:
    """The flag that the recipe of a run needs after the run was copied or moved; {} where it lies as it says."""
    recipe = Path(out_dir, RECIPE)
    said = _last(read_recipe(str(recipe), []), "out_dir") if recipe.is_file() else None
    return {"out_dir": str(out_dir)} if said and not _is_same(out_dir, str(said.text)) else {}
