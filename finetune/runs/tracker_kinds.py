"""What differs between experiment trackers: how a run is named and goes on, and how samples and pictures are logged.

Everything else is accelerate's own tracker classes."""

from __future__ import annotations

import contextlib
import copy
import os
import struct
import threading
import urllib.error
import urllib.request
import uuid
from dataclasses import dataclass
from http.client import HTTPException
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.common.errors import describe_error, first_line
from finetune.common.network import SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from accelerate import Accelerator

    Say = Callable[[str], object]

Tracker = Any  # a class of accelerate.tracking
WITHOUT_LOGIN = ("offline", "disabled", "dryrun")  # values of WANDB_MODE


@dataclass(frozen=True)
class Place:
    """Where the points of a run go."""

    out_dir: Path
    project: str
    name: str  # of the run
    config: dict[str, Any]  # the values of its recipe


def start(
    kind: str, accelerator: Accelerator, place: Place, kept: dict[str, Any], say: Say
) -> tuple[Tracker, dict[str, Any]]:
    """`(tracker, what identifies its run)`. With `kept`, which an earlier start returned, that run goes on."""
    if kind == "wandb":
        return _start_wandb(accelerator, place, kept, say)
    options = _options(kind, place, kept)
    tracker = _init(kind, accelerator, place, options, is_new=not kept)
    if kind == "comet_ml" and not kept:
        tracker.tracker.set_name(place.name)
    return tracker, {"id": _run_id(kind, tracker, options)}


def _init(kind: str, accelerator: Accelerator, place: Place, options: dict[str, Any], is_new: bool = True) -> Tracker:
    """Start a tracker as accelerate does; a copy of the accelerator, because several threads do so at once."""
    from accelerate.utils import LoggerType

    own = copy.copy(accelerator)
    own.log_with, own.trackers = [LoggerType(kind)], []  # pyrefly: ignore[bad-assignment]
    config = {name: value for name, value in place.config.items() if value is not None} if is_new else None
    project = place.project
    if kind == "tensorboard":  # of the project a folder; its hparams would be a run beside the run
        project, config = "tensorboard", None
    own.project_configuration = copy.copy(own.project_configuration)
    own.project_configuration.logging_dir = "." if kind == "aim" else str(place.out_dir)
    own.init_trackers(project, config=config, init_kwargs={kind: options})
    tracker = own.trackers[0]
    if kind == "tensorboard" and is_new:
        lines = [f"    {name}: {value}" for name, value in place.config.items()]
        tracker.log({"recipe": "\n".join(lines)}, step=0)
    return tracker


def _options(kind: str, place: Place, kept: dict[str, Any]) -> dict[str, Any]:
    """Arguments of accelerate's tracker."""
    known, fresh = kept.get("id"), uuid.uuid4().hex
    if kind == "tensorboard":
        return {"purge_step": kept["purge_step"]} if kept else {}
    if kind == "trackio":
        return {"name": known or _unused_trackio_name(place), "resume": "allow" if known else "never"}
    if kind == "comet_ml":
        return {"experiment_key": known or fresh}
    if kind == "aim":
        return {"run_hash": known}
    if kind == "mlflow":
        return {"run_id": known, "run_name": place.name}
    if kind == "clearml":
        return {"task_name": place.name, "continue_last_task": known or False, "reuse_last_task_id": False}
    if kind == "dvclive":
        return {"dir": str(place.out_dir / "dvclive"), "resume": bool(known)}
    return {
        "experiment_name": place.name,
        "id": known or fresh[:21],
        "resume": "allow",
        "logdir": str(place.out_dir / "swanlog"),
    }


def _run_id(kind: str, tracker: Tracker, options: dict[str, Any]) -> str:
    """What `_options` needs to go on with the run of a tracker."""
    run = tracker.tracker
    if kind == "clearml":
        run.set_initial_iteration(0)  # our steps count from the start of the run
        return run.id
    ids = {"aim": lambda: run.hash, "mlflow": lambda: run.info.run_id}
    return (
        ids[kind]() if kind in ids else options.get("experiment_key") or options.get("id") or options.get("name", kind)
    )


def _unused_trackio_name(place: Place) -> str:
    """The run's name, with digits behind it if another run has that name: a run goes on by its name."""
    import trackio

    names = set()
    with contextlib.suppress(ValueError):  # no such project yet
        names = {run.name for run in trackio.Api().runs(place.project)}
    return place.name if place.name not in names else f"{place.name}-{uuid.uuid4().hex[:6]}"


def _start_wandb(
    accelerator: Accelerator, place: Place, kept: dict[str, Any], say: Say
) -> tuple[Tracker, dict[str, Any]]:
    """Start Weights & Biases; offline without a login or a network, and after an error of its server."""
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    identity = {"id": kept.get("id") or uuid.uuid4().hex[:8]}
    settings = wandb.Settings(init_timeout=2 * SECONDS)
    options = {"name": place.name, "dir": str(place.out_dir), "settings": settings, "resume": "allow", **identity}
    mode, problem = os.environ.get("WANDB_MODE"), ""
    if not mode:
        problem = wandb_problem() if _has_wandb_login() else "no login"
        mode = "offline" if problem else "online"
    if mode not in WITHOUT_LOGIN:
        try:
            return _init("wandb", accelerator, place, {**options, "mode": mode}, not kept), identity
        except Exception as error:  # wandb raises errors of many kinds
            problem, mode = describe_error(error), "offline"
            if kept:
                wandb.teardown()  # its service holds the id
            else:
                identity["id"] = options["id"] = uuid.uuid4().hex[:8]
    tracker = _init("wandb", accelerator, place, {**options, "mode": mode}, not kept)
    if mode == "offline":
        why = f" ({problem})" if problem else ""
        say(f"wandb: logging offline{why} into {place.out_dir}/wandb; `wandb sync` uploads it later")
    return tracker, identity


def _has_wandb_login() -> bool:
    import wandb

    with contextlib.suppress(TypeError):  # an older wandb has no prompt
        return wandb.login(prompt=False, verify=False)
    return bool(wandb.api.api_key)


def wandb_problem() -> str:
    """Why the server of Weights & Biases cannot be used, within seconds; wandb itself would try for 90. "" if it
    answers."""
    url, found = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"), ["no answer"]

    def ask() -> None:
        try:
            urllib.request.build_opener().open(url, timeout=SECONDS).close()
            found[0] = ""
        except urllib.error.HTTPError as error:  # of the server, or of a proxy that does not reach it
            error.close()
            found[0] = str(error) if error.code in (403, 407, 408, 429) or error.code >= 500 else ""
        except (OSError, ValueError, HTTPException) as error:
            found[0] = first_line(getattr(error, "reason", error))

    thread = threading.Thread(target=ask, daemon=True)  # looking up a name has no time limit
    thread.start()
    thread.join(SECONDS)
    return found[0]


def last_step(kind: str, tracker: Tracker, place: Place) -> int | None:
    """The last step that a run that goes on has; None if its tracker does not say. A killed run loses points that
    trackio or wandb had not written yet."""
    run = tracker.tracker
    if kind == "trackio":
        return getattr(run, "_next_step", 0) - 1
    if kind == "wandb" and run.starting_step:  # the server's
        return run.starting_step - 1
    if kind == "wandb":
        with contextlib.suppress(Exception):  # the files of a newer wandb may be others
            files = place.out_dir.glob(f"wandb/*run-*-{run.id}/*.wandb")
            return max((step for path in files for step in _wandb_steps(path.read_bytes())), default=-1)
    return None


def _wandb_steps(data: bytes) -> Iterator[int]:
    """The steps in a file of wandb: a head of 7 bytes, then LevelDB's log format, in blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record  # pyrefly: ignore[missing-module-attribute]

    place, parts = 7, b""
    while place + 7 <= len(data):
        if (left := 0x8000 - place % 0x8000) < 7:  # padding of a block
            place += left
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4) and place <= len(data):  # a whole record, or the last part of one
            items = Record.FromString(parts).history.item
            yield from (int(item.value_json) for item in items if "_step" in (item.key, *item.nested_key))
            parts = b""


def purge(tracker: Tracker, step: int) -> None:
    """Let tensorboard's readers drop the points from `step` on."""
    tracker.finish()
    tracker.init_kwargs["purge_step"] = step
    tracker.start()


def log_samples(kind: str, tracker: Tracker, samples: list[tuple[str, str]], step: int) -> None:
    """Log samples, (prompt, text) each, as a table or, where there is none, as a text."""
    package, run = import_module(kind), tracker.tracker
    columns, rows = ["step", "prompt", "text"], [[step, prompt, text] for prompt, text in samples]
    text = "\n\n---\n\n".join("\n".join(f"    {line}" for line in text.split("\n")) for _, text in samples)
    if kind in ("wandb", "clearml"):
        tracker.log_table("samples", columns=columns, data=rows, step=step)
    elif kind == "trackio":
        import pandas

        tracker.log({"samples": package.Table(dataframe=pandas.DataFrame(rows, columns=columns))}, step=step)
    elif kind == "mlflow":
        package.log_table(dict(zip(columns, map(list, zip(*rows)))), "samples.json")
    elif kind == "comet_ml":
        run.log_table(f"samples-{step}.csv", [columns, *rows])
    elif kind == "aim":
        run.track(package.Text(text), name="samples", step=step)
    elif kind == "swanlab":
        tracker.log({"samples": [package.Text(text) for _, text in samples]}, step=step)
    elif kind == "tensorboard":
        tracker.log({"samples": text}, step=step)


def log_picture(kind: str, tracker: Tracker, path: Path, step: int) -> None:
    """Log the picture of the losses."""
    from matplotlib.image import imread

    package, run = import_module(kind), tracker.tracker
    pixels = (imread(path)[..., :3] * 255).astype("uint8")
    if kind in ("wandb", "swanlab"):
        tracker.log_images({"losses": [pixels]}, step=step)
    elif kind in ("aim", "clearml"):
        tracker.log_images({"losses": pixels}, step=step)
    elif kind == "tensorboard":
        tracker.log_images({"losses": pixels[None]}, step=step, dataformats="NHWC")
    elif kind == "trackio":
        tracker.log({"losses": package.Image(str(path))}, step=step)
    elif kind == "mlflow":
        tracker.log_artifact(str(path))
    elif kind == "comet_ml":
        run.log_image(str(path), name="losses", step=step)
    elif kind == "dvclive":
        run.log_image("losses.png", str(path))
