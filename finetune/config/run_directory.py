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
from finetune.config.paths import as_typed
from finetune.config.recipe_file import Entry, read_recipe

METRICS = "metrics.jsonl"
RUN_FILES = ("best", "last", METRICS)  # by which a run is known
RECIPE, LOSS_PLOT, REPORT, SHARE_PICTURE = "recipe.yaml", "loss.png", "report.html", "share.png"
SINGLE_FILES = (METRICS, RECIPE, "trackers.json", LOSS_PLOT, REPORT, SHARE_PICTURE)
STATE_NAME = re.compile(r"step-\d{8,}")


def is_run(directory: str | Path) -> bool:
    return any(Path(directory, name).exists() for name in RUN_FILES)


def is_file_of_run(path: str | Path) -> bool:
    path = Path(path)
    return path.name in (RECIPE, METRICS, REPORT, LOSS_PLOT) and path.is_file() and is_run(path.parent)


def problem_of_model(out_dir: str | None, init_from: str | None) -> str | None:
    """The problem unless a command that reads one model is given one."""
    if out_dir is not None and init_from is not None:
        return f"out_dir={out_dir} and init_from={init_from} are two models; give one of them"
    is_missing = out_dir is None and init_from is None
    return "give --out_dir=OUT of a run, or --init_from=MODEL, one of them" if is_missing else None


def has_state(out_dir: str | Path) -> bool:
    """Whether a run can be resumed there."""
    return any((path / MANIFEST).is_file() for path in states(out_dir))


def states(out_dir: str | Path) -> list[Path]:
    """The directories of all resumable states, newest first, damaged ones included."""
    found = (path for path in Path(out_dir).glob("last/step-*") if STATE_NAME.fullmatch(path.name))
    return sorted((path for path in found if path.is_dir()), key=lambda path: step_of(path.name), reverse=True)


def step_of(state: str) -> int:
    return int(state.removeprefix("step-"))


def complete(entries: list[Entry], has_recipe: bool, problems: list[str]) -> list[Entry]:
    """The entries of a training run after what follows from its directory: the run's own recipe, where `resume` or
    `auto` is given without one, and what `auto` means there. A recipe that lies in another run is a problem."""
    start, out_dir = _last(entries, "init_from"), _last(entries, "out_dir")
    place = as_typed("out_dir", str(out_dir.text)) if out_dir else "out"
    resumes = bool(start) and start.text in ("resume", "auto")
    if resumes and not has_recipe and (own := Path(place, RECIPE)).is_file():
        entries = [*(entry for entry in read_recipe(str(own), problems) if entry.key != "out_dir"), *entries]
    if out_dir and (problem := _problem_of_place(out_dir)):
        problems.append(problem)
    return _resume_or_start(entries, start, place) if start and start.text == "auto" else entries


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
    if not line.isdigit():
        return None
    linked = Path(os.path.relpath(os.path.realpath(path)))  # a link to a recipe is that recipe
    place = next((file.parent for file in (Path(path), linked) if _is_recipe_of_run(file, out_dir)), None)
    if place is None or _is_same(place, str(out_dir.text)):
        return None
    ways = f"--out_dir={place} is the run here, --out_dir={out_dir.text} the other"
    return f"{out_dir.place}: {out_dir.text}, but this recipe lies in the run {place}; give one: {ways}"


def _is_recipe_of_run(file: Path, out_dir: Entry) -> bool:
    """Whether this recipe lies in the directory of its run, as recipe.yaml or under another name."""
    if file.name == RECIPE:
        return is_run(file.parent)
    said = _said(file.with_name(RECIPE)) or out_dir
    return has_state(file.parent) and said.text == out_dir.text


def _said(recipe: Path) -> Entry | None:
    return _last(read_recipe(str(recipe), []), "out_dir") if recipe.is_file() else None


def _is_same(place: str | Path, other: str) -> bool:
    return os.path.realpath(place) == os.path.realpath(as_typed("out_dir", other))


def resume_command(out_dir: str | Path, **flags: object) -> str:
    """The command that goes on with the run in a directory, or starts it if it has saved no state yet."""
    way = "resume" if has_state(out_dir) else "auto"
    if address := address_of(out_dir):
        return command("train", out_dir=address, init_from=way, **flags)
    return command("train", Path(out_dir, RECIPE), init_from=way, **out_dir_flag(out_dir), **flags)


def how_to_go_on(out_dir: str | Path) -> str:
    """What to type instead of the directory of a run alone."""
    recipe = Path(out_dir, RECIPE)
    if not recipe.is_file():
        return f"is the directory of a run without its {RECIPE}; --init_from={out_dir} starts from its model"
    if has_state(out_dir) or not Path(out_dir, "best").exists():
        return f"is the directory of a run; to go on: {resume_command(out_dir)}"
    return f"is the directory of a run that has saved no state; its recipe is {recipe}"


def out_dir_flag(out_dir: str | Path) -> dict[str, object]:
    """The flag that the recipe of a run needs after the run was copied or moved; {} where it lies as it says."""
    said = _said(Path(out_dir, RECIPE))
    return {"out_dir": str(out_dir)} if said and not _is_same(out_dir, str(said.text)) else {}
