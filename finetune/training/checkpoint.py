"""What survives a crash. A directory is published whole or not at all.

`publish` fills a temporary directory, syncs every file, writes a manifest of sizes and sha256 sums last, and renames. A
state whose manifest does not check is never loaded. safetensors and JSON only; nothing here can run code.

    out_dir/last/step-00000250/   model.safetensors, optimizer.safetensors, state.json, manifest.json: all that a run
    needs to go on
    out_dir/best/                 the model with the lowest validation loss, a Hugging Face directory
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file

from finetune.cli import UsageError
from finetune.gpt.weights import write_tensors
from finetune.training import sharding

MANIFEST = "manifest.json"
FORMAT = 1
KEEP = 2  # resumable states: should the newest turn out damaged, there is one before it
CHUNK_BYTES = 1 << 22


def publish(target, fill):
    """Make `target` the directory that `fill(directory)` writes. Until the rename the old one stays as it was; after it
    the new one is safely on disk. Raises OSError, and then nothing has changed."""
    target = Path(target)
    work = target.parent / f".tmp-{target.name}-{os.getpid()}"
    shutil.rmtree(work, ignore_errors=True)
    try:
        work.mkdir(parents=True)
        fill(work)
        found = sorted(work.rglob("*"))
        manifest = {
            "format": FORMAT,
            "files": {str(path.relative_to(work)): digest(path) for path in found if path.is_file()},
        }
        for path in found:  # directories as well: the names in them are theirs to keep
            _sync(path)
        (work / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        _sync(work / MANIFEST)
        _sync(work)
        if target.exists():
            _exchange(work, target)
        else:
            os.rename(work, target)
        _sync(target.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)  # after an exchange: what stood there before


def published(directory):
    """The names of the files that a directory was published with; those of none when it was not."""
    try:
        with open(Path(directory) / MANIFEST, encoding="utf-8") as file:
            return sorted(json.load(file)["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return []


def damage(directory):
    """What is wrong with a published directory, in words, or None when every file is as its manifest says."""
    try:
        with open(Path(directory) / MANIFEST, encoding="utf-8") as file:
            manifest = json.load(file)
        for name, wanted in manifest["files"].items():
            path = Path(directory) / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != wanted["bytes"]:
                return f"{name} has {path.stat().st_size:,} bytes instead of {wanted['bytes']:,}"
            if digest(path) != wanted:
                return f"{name} is not what was written (its sha256 differs)"
    except FileNotFoundError:
        return f"it has no {MANIFEST}, so it was never finished"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"its {MANIFEST} is not readable"
    return None


def save_state(out_dir, weights, optimizer, state):
    """Publish a resumable state and then remove all but the newest KEEP. `state` is plain data with its `iteration`."""

    def fill(directory):
        write_tensors(directory / "model.safetensors", weights)
        write_tensors(directory / "optimizer.safetensors", optimizer)
        (directory / "state.json").write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")

    folder = Path(out_dir) / "last"
    if not folder.is_dir():
        folder.mkdir()
        _sync(folder.parent)
    target = folder / _name(state["iteration"])
    publish(target, fill)
    found = states(out_dir)
    # newer ones are damaged, or of a future that was rolled back
    for path in [path for path in found if path.name > target.name] + [
        path for path in found if path.name <= target.name
    ][KEEP:]:
        _remove(path)


def _name(iteration):
    return f"step-{iteration:08d}"


def published_best(out_dir):
    """{"val_loss", "step"} of the model in best/, or {} when there is none or it is damaged."""
    directory = Path(out_dir) / "best"
    if not directory.is_dir() or damage(directory):
        return {}
    facts = json.loads((directory / "finetune.json").read_text(encoding="utf-8"))
    return {"val_loss": facts["val_loss"], "step": facts["step"]}


def forget(out_dir, iteration):
    """Remove the state of an iteration that has turned out to be bad."""
    _remove(Path(out_dir) / "last" / _name(iteration))


def states(out_dir):
    """The directories of all resumable states, newest first; whether they are whole is for `load_state` to find out."""
    return sorted((path for path in (Path(out_dir) / "last").glob("step-*") if path.is_dir()), reverse=True)


def load_state(out_dir, say=print):
    """`(weights, optimizer, state)` of the newest state that is whole; what is skipped is said. Raises UsageError when
    there is none."""
    found = states(out_dir)
    problems = []
    for directory in found:
        problem = damage(directory)
        if problem is None:
            try:
                with open(directory / "state.json", encoding="utf-8") as file:
                    state = json.load(file)
                loaded = (
                    load_file(directory / "model.safetensors"),
                    load_file(directory / "optimizer.safetensors"),
                    state,
                )
                if problems:
                    say(f"using {directory}")
                return loaded
            except (SafetensorError, ValueError) as error:
                problem = str(error)
        problems.append(f"{directory}: {problem}")
        say(f"skipping {problems[-1]}")
    if problems:
        raise UsageError("\n".join(["no state to resume from is whole:", *problems]))
    raise UsageError(f"{out_dir}: nothing to resume; it has no last/step-*. Start a run with another init_from")


def optimizer_tensors(optimizer, names):
    """The optimizer's state as {"exp_avg.NAME": tensor, "exp_avg_sq.NAME": tensor}, as it lies there; `names` maps
    parameters to names."""
    tensors = {}
    for parameter, state in optimizer.state.items():
        for kind in ("exp_avg", "exp_avg_sq"):
            tensors[f"{kind}.{names[parameter]}"] = state[kind]
    return tensors


def fill_optimizer(optimizer, names, tensors=None, updates=0):
    """Give an optimizer the state that `optimizer_tensors` took after so many updates, or that of none."""
    dtype = getattr(optimizer, "moments_dtype", torch.float32)
    for parameter, name in names.items():
        zeros = [torch.zeros_like(parameter, dtype=dtype) for _ in range(2)]
        if tensors:
            for kind, moment in zip(("exp_avg", "exp_avg_sq"), zeros):
                sharding.fill(moment, tensors[f"{kind}.{name}"])  # without the rows of a padded vocabulary
        step = torch.tensor(float(updates), device=parameter.device)
        optimizer.state[parameter] = {"step": step, "exp_avg": zeros[0], "exp_avg_sq": zeros[1]}


@contextlib.contextmanager
def lock(out_dir: str | Path) -> Iterator[None]:
    """Hold `out_dir` for one run. Raises UsageError if another run holds it, with that run's name, or if the directory
    cannot be written. A refused run leaves no directory behind.

    The kernel frees the lock however the process ends.
    """
    out_dir = Path(out_dir)
    is_new, path = not out_dir.is_dir(), out_dir / ".lock"
    try:
        if is_new:
            out_dir.mkdir(parents=True)
            _sync(out_dir.parent)
        held = FileLock(path, timeout=0).acquire()
    except Timeout:
        owner = path.read_text(encoding="utf-8").strip() or "another run"
        raise UsageError(f"out_dir {out_dir}: is in use by {owner}; end that run or choose another out_dir") from None
    except OSError as error:
        raise UsageError(f"out_dir {out_dir}: cannot be written: {error.strerror}") from None
    with held:
        path.write_text(
            f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%H:%M:%S')}\n", encoding="utf-8"
        )
        clean(out_dir)
        try:
            yield
        except UsageError:
            if is_new and os.listdir(out_dir) == [".lock"]:
                path.unlink()
                os.rmdir(out_dir)
            raise


def clean(out_dir):
    """Remove what a crashed run left unfinished; put back a directory that was being replaced where that takes two
    renames. Only names that `publish` gives are touched: the directory may hold other things of the user's."""
    for folder in (Path(out_dir), Path(out_dir) / "last"):
        for path in folder.glob(".old-*"):
            target = folder / path.name.removeprefix(".old-")
            if OURS.fullmatch(target.name) and not target.exists():
                os.rename(path, target)
        for path in folder.glob(".*"):
            if path.is_dir() and (UNFINISHED.fullmatch(path.name) or OURS.fullmatch(path.name.removeprefix(".old-"))):
                shutil.rmtree(path, ignore_errors=True)


OURS = re.compile(r"best|iter_\d+|step-\d+")
UNFINISHED = re.compile(r"\.tmp-(best|iter_\d+|step-\d+)-(\d+|old)")


def remove_run(out_dir):
    """Remove what an earlier run wrote into `out_dir`, and nothing else: directories with a manifest of ours, and the
    records."""
    out_dir = Path(out_dir)
    for path in [out_dir / "best", out_dir / "export", *sorted(out_dir.glob("iter_*")), *states(out_dir)]:
        if (path / MANIFEST).is_file() and not path.is_symlink():
            _remove(path)
    for name in ("metrics.jsonl", "loss.png", "report.html"):
        (out_dir / name).unlink(missing_ok=True)


def used_bytes(out_dir):
    """What the checkpoints in `out_dir` take on disk."""
    folders = [Path(out_dir) / "best", Path(out_dir) / "last"]
    return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())


def free_bytes(out_dir):
    return shutil.disk_usage(out_dir).free


def _remove(directory):
    """Delete a published directory so that no half of it can be taken for a whole one."""
    trash = directory.parent / f".tmp-{directory.name}-old"
    os.rename(directory, trash)
    _sync(directory.parent)
    shutil.rmtree(trash, ignore_errors=True)


def _exchange(work, target):
    """Swap two directories in one step (Linux), else in two, between which the old one lies at .old-NAME for `clean` to
    put back."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if hasattr(libc, "renameat2"):
            AT_FDCWD, RENAME_EXCHANGE = -100, 2
            if libc.renameat2(AT_FDCWD, os.fsencode(work), AT_FDCWD, os.fsencode(target), RENAME_EXCHANGE) == 0:
                return
    old = target.parent / f".old-{target.name}"
    shutil.rmtree(old, ignore_errors=True)
    os.rename(target, old)
    os.rename(work, target)
    _sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def digest(path):
    """{"bytes", "sha256"} of a file."""
    summed, size = hashlib.sha256(), 0
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            summed.update(chunk)
            size += len(chunk)
    return {"bytes": size, "sha256": summed.hexdigest()}


def _sync(path):
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
