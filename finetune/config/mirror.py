"""A run, or a model, that lies at an address: what is there is fetched into its mirror, the directory here.

Where a run was trained here and the mirror is as far as the address, the mirror is what counts."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from finetune.common import files
from finetune.common.addresses import address_of, is_address, mirror_of, problem_of_address
from finetune.common.commands import command
from finetune.common.errors import UsageError
from finetune.common.json_text import parse_json
from finetune.common.lock import is_locked
from finetune.common.network import Unreachable
from finetune.common.storage import Sizes, Storage, fetch_sealed
from finetune.config.recipe_file import Entry
from finetune.config.run_directory import METRICS, RUN_FILES, SINGLE_FILES, STATE_NAME, is_run, states, step_of

PROBE = f"{files.WORK}/probe"  # shows whether an address can be written to
SOURCE = ".source.json"  # in the mirror of a directory without a manifest: what was fetched


@contextmanager
def storage_lock(mirror: Path) -> Generator[None]:
    """Held while files go between a mirror and its address."""
    mirror.mkdir(parents=True, exist_ok=True)
    with FileLock(mirror / ".storage.lock"):
        yield


def staged(directory: str) -> str:
    """Where the new content of a directory lies until it has replaced the old."""
    return f"{files.WORK}/{directory}"


def begin_time(metrics: bytes) -> float | None:
    """When the run of a metrics.jsonl was started, by which it is known; None if that does not say."""
    with suppress(ValueError, AttributeError):
        event = parse_json(metrics.partition(b"\n")[0])
        return event.get("time") if event.get("event") == "start" else None
    return None


def is_trained_here(mirror: Path) -> bool:
    return (mirror / ".lock").exists()


def whole_states(storage: Storage, sizes: Sizes) -> dict[int, dict[str, Any]]:
    """{step: manifest} of the states that are at an address in full, newest first."""
    found = {}
    for name in sorted(begun_states(sizes), key=step_of, reverse=True):
        if manifest := storage.manifest(sizes, f"last/{name}"):
            found[step_of(name)] = manifest
    return found


def begun_states(sizes: Sizes) -> set[str]:
    """The names of the states of which an address holds any file."""
    return {found[1] for name in sizes if (found := re.match(rf"last/({STATE_NAME.pattern})/", name))}


def fetch_run(mirror: Path, to_resume: bool = False, model: str = "best") -> None:
    """Bring a mirror up to date: a model, the metrics, and, `to_resume`, the newest state. Raises UsageError."""
    address = address_of(mirror)
    assert address
    with storage_lock(mirror):
        if is_locked(mirror):  # a run on this machine writes it
            return
        storage = Storage(address)
        try:
            sizes = storage.files()
            if METRICS not in sizes:  # which is sent first, and removed first
                if not to_resume and not is_run(mirror):
                    raise UsageError(f"{address}: holds no run")
                return
            _fetch(storage, sizes, mirror, to_resume, model)
        except Unreachable as error:
            _go_on_without(error, not to_resume and is_run(mirror))


def _fetch(storage: Storage, sizes: Sizes, mirror: Path, to_resume: bool, model: str) -> None:
    _check_same_run(storage, sizes, mirror)
    there = whole_states(storage, sizes)
    newest = next(iter(there), -1)
    if to_resume and there and os.environ.get("GROUP_WORLD_SIZE", "1") != "1":  # machines: all go on from one state
        for path in states(mirror):
            if step_of(path.name) > newest:
                files.remove(path)
    here = next((step_of(path.name) for path in states(mirror) if not files.find_damage(path)), -1)
    is_newer = not is_trained_here(mirror) or newest > here
    if is_newer or files.find_damage(mirror / model):
        _fetch_model(storage, sizes, mirror, model)
    for name in SINGLE_FILES if is_newer else ():
        if name in sizes:
            with files.replacing(mirror / name) as path:
                storage.fetch(name, path)
    for step, manifest in there.items() if to_resume else ():
        name = f"last/step-{step:08d}"
        if step <= here or _fetch_directory(storage, name, manifest, mirror / name):
            return


def _check_same_run(storage: Storage, sizes: Sizes, mirror: Path) -> None:
    """Forget what was fetched of another run. Raises UsageError if one was trained here, which may not be there."""
    path = mirror / METRICS
    here = begin_time(path.read_bytes()) if path.is_file() else None
    there = begin_time(storage.read(METRICS)) if METRICS in sizes else None
    if here is None or there is None or here == there:
        return
    if is_trained_here(mirror):
        raise UsageError(
            f"{storage.address}: holds another run than {mirror}, which was trained here; move that directory away to"
            " go on with the one there"
        )
    for directory in states(mirror):
        files.remove(directory)


def _fetch_model(storage: Storage, sizes: Sizes, mirror: Path, model: str) -> None:
    for place in (model, staged(model)):  # the second if its replacement was interrupted
        if manifest := storage.manifest(sizes, place):
            same = files.read_json_object(mirror / model / files.MANIFEST) == manifest
            if same and not files.find_damage(mirror / model):
                return
            if _fetch_directory(storage, place, manifest, mirror / model):
                return


def _fetch_directory(storage: Storage, name: str, manifest: dict[str, Any], target: Path) -> bool:
    """Fetch a directory with a manifest; say whether it is what was sent."""
    print(f"fetching {storage.address}/{name}", file=sys.stderr)
    try:
        files.write_directory(target, lambda work: fetch_sealed(storage, name, manifest, work))
    except Unreachable as error:
        if "sha256" not in str(error):
            raise
        print(f"skipping {error}", file=sys.stderr)
        return False
    return True


def local_copy(name: str) -> str:
    """What an address holds, fetched into its mirror; any other name as it is. Raises UsageError."""
    if not is_address(name):
        return name
    if problem := problem_of_address(name):
        raise UsageError(problem)
    fetch(mirror := mirror_of(name))
    return str(mirror)


def fetch(path: Path) -> None:
    """Bring the mirror of any address up to date: a run, a model of a run, another directory, or a file. Raises
    UsageError."""
    run = path.parent if path.name == "best" or path.name.startswith("iter_") else path
    address = address_of(path)
    assert address
    storage = Storage(str(address_of(run)))
    try:
        sizes = storage.files()
        is_of_run = METRICS in sizes
        if not is_of_run and run != path:
            storage = Storage(address)
            sizes = storage.files()
    except Unreachable as error:
        return _go_on_without(error, path.exists())
    if is_of_run:
        fetch_run(run, model=path.name if run != path else "best")
    elif sizes:
        _fetch_others(storage, sizes, path)
    else:
        _fetch_file(storage, path)


def _go_on_without(error: Unreachable, is_here: bool) -> None:
    """Warn that an older copy is used, if one `is_here`; else raise UsageError."""
    if not is_here:
        raise UsageError(f"{error}; nothing has changed, the same command tries again") from None
    print(f"warning: {error}; what was fetched before is used", file=sys.stderr)


def _fetch_others(storage: Storage, sizes: Sizes, path: Path) -> None:
    """Fetch what no run wrote, unless it is here as it is there."""

    def fill(work: Path) -> None:
        print(f"fetching {storage.address}", file=sys.stderr)
        for name in sizes:
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            storage.fetch(name, work / name)
        files.write_json(work / SOURCE, now)

    try:
        now = {name: storage.key(name) for name in sizes}
        with storage_lock(path.parent):
            if files.read_json_object(path / SOURCE) != now:
                files.write_directory(path, fill)
    except Unreachable as error:
        _go_on_without(error, False)


def _fetch_file(storage: Storage, path: Path) -> None:
    try:
        with storage_lock(path.parent), files.replacing(path) as work:
            storage.fetch("", work)
    except Unreachable as error:
        raise UsageError(str(error)) from None  # it may just not be there


def fetch_out_dir(entries: list[Entry], problems: list[str]) -> list[Entry]:
    """The entries of a training run with mirrors in the place of addresses, the one of a run that goes on fetched."""
    last = next((entry for entry in reversed(entries) if entry.key == "out_dir"), None)
    if last and is_address(last.text):
        if problem := problem_of_address(str(last.text)) or _problem_of_recipe(last):
            problems.append(f"{last.place}: {problem}")
            return [entry for entry in entries if entry.key != "out_dir"]
        last = last._replace(text=str(mirror_of(str(last.text))))
        entries = [*(entry for entry in entries if entry.key != "out_dir"), last]
    start = next((entry.text for entry in reversed(entries) if entry.key == "init_from"), None)
    if last and address_of(str(last.text)) and start in ("resume", "auto") and not problems:
        fetch_run(Path(str(last.text)), to_resume=True)
    return entries


def _problem_of_recipe(out_dir: Entry) -> str | None:
    """Why a recipe, which may come from somebody else, cannot send a run away; that of the run itself can."""
    is_own = Path(out_dir.origin.rpartition(":")[0]).absolute().parent == mirror_of(str(out_dir.text))
    if not out_dir.in_recipe or is_own:
        return None
    return f"a recipe must not send a run to {out_dir.text}; give it as --out_dir={out_dir.text}"


def check_storage(mirror: Path, overwrite: bool | str | None) -> None:
    """Raise UsageError if a run cannot be sent to its address, or would mix with what is there. `overwrite` is None if
    it goes on."""
    address = address_of(mirror)
    if not address:
        return
    storage = Storage(address)
    try:
        sizes = storage.files()
        problem = None if overwrite is None else _problem_there(address, sizes, overwrite)
        if not problem:
            storage.write(PROBE, b"finetune")
            storage.remove([PROBE])
            return
    except Unreachable as error:
        raise UsageError(f"out_dir {error}") from None
    raise UsageError(f"out_dir {address}: {problem}")


def _problem_there(address: str, sizes: Sizes, overwrite: bool | str) -> str | None:
    """Why a new run cannot be sent to an address that holds these files."""
    tops = {name.split("/")[0] for name in sizes}
    if METRICS in tops:
        found, way = sorted(tops & set(RUN_FILES)), command("train", out_dir=address, init_from="auto")
        held = f"holds a run already ({', '.join(found)})"
        return None if overwrite else f"{held}; go on: {way}, start anew with --overwrite=true"
    if "best" in tops and f"best/{files.MANIFEST}" not in sizes:
        return "its best/ was not written by a run, so it is not overwritten; move it away, or choose another out_dir"
    others = sorted(tops & {*RUN_FILES, *SINGLE_FILES})
    if others and overwrite is not True:
        held = f"holds {', '.join(others)} without the {METRICS} of a run"
        return f"{held}; replace with --overwrite=true, or choose another out_dir"
    return None
