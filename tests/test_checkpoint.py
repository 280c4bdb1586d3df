"""The protocol of a save: whatever is interrupted, and wherever, a state that was acknowledged can be loaded again."""

import ctypes
import errno
import itertools
import os
import random
import resource
import shutil
import signal
from pathlib import Path

import forked
import pytest
import torch

from finetune.common import files
from finetune.common.errors import UsageError
from finetune.runs import checkpoints


def tensors(step):
    return {"w": torch.full((64,), float(step)), "b": torch.arange(8.0) + step}


def save(out_dir, step):
    checkpoints.save_state(out_dir, tensors(step), {"exp_avg.w": torch.ones(64) * step}, {"iteration": step})


def newest(out_dir):
    """The step that a new start would go on with, after it has cleaned up; 0 when there is none. Its content is
    checked."""
    files.sweep(out_dir)
    files.sweep(out_dir / "last")
    try:
        weights, optimizer, state = checkpoints.load_state(out_dir, log=lambda line: None)
    except UsageError:
        return 0
    step = state["iteration"]
    assert torch.equal(weights["w"], tensors(step)["w"]) and optimizer["exp_avg.w"][0] == step
    return step


def test_the_newest_two_states_are_kept(tmp_path):
    for step in (1, 2, 3, 10):
        save(tmp_path, step)
    assert [path.name for path in checkpoints.states(tmp_path)] == ["step-00000010", "step-00000003"]
    assert newest(tmp_path) == 10
    save(tmp_path, 99_999_999)
    save(tmp_path, 100_000_000)
    assert [path.name for path in checkpoints.states(tmp_path)] == ["step-100000000", "step-99999999"]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_state_is_skipped_by_name_and_the_one_before_it_used(tmp_path, name, damage):
    save(tmp_path, 1)
    save(tmp_path, 2)
    path = tmp_path / "last" / "step-00000002" / name
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    path.write_bytes(content if damage == "flip" else content[:-3])
    if damage == "remove":
        path.unlink()
    said = []
    state = checkpoints.load_state(tmp_path, said.append)[2]
    assert state["iteration"] == 1
    assert "step-00000002" in said[0] and "using" in said[1] and "step-00000001" in said[1]


def test_nothing_whole_to_resume_lists_why(tmp_path):
    save(tmp_path, 1)
    (tmp_path / "last" / "step-00000001" / "model.safetensors").unlink()
    with pytest.raises(UsageError, match="model.safetensors is missing"):
        checkpoints.load_state(tmp_path, print)


class Interrupted(BaseException):
    pass


OPERATIONS = ("mkdir", "rename", "fsync", "unlink", "rmdir", "open")


def interrupt_at(monkeypatch, number):
    """Raise at the `number`th operation on files, and at every later one: the process is gone."""
    count = itertools.count()

    def wrap(original):
        def operation(*args, **kwargs):
            if next(count) >= number:
                raise Interrupted
            return original(*args, **kwargs)

        return operation

    for name in OPERATIONS:
        monkeypatch.setattr(os, name, wrap(getattr(os, name)))
    monkeypatch.setattr(checkpoints, "write_tensors", wrap(checkpoints.write_tensors))
    monkeypatch.setattr(files, "exchange", wrap(files.exchange))
    monkeypatch.setattr(Path, "write_text", wrap(Path.write_text))
    return count


def test_every_crash_point_of_a_save(tmp_path, monkeypatch):
    """Saving step 4 over steps 2 and 3 is stopped before each single operation; always 3 or 4 is whole, and 4 once
    acknowledged."""
    for point in range(1000):
        out = tmp_path / str(point)
        out.mkdir()
        save(out, 1), save(out, 2), save(out, 3)
        acknowledged = 3
        with monkeypatch.context() as patch:
            interrupt_at(patch, point)
            try:
                save(out, 4)
                acknowledged = 4
            except Interrupted:
                pass
        assert newest(out) >= acknowledged
        assert all(files.find_damage(state) is None for state in checkpoints.states(out))
        assert not list(out.rglob(".*"))
        save(out, 5)  # and the next save works
        assert newest(out) == 5
        shutil.rmtree(out)
        if acknowledged == 4:
            assert point > 20
            return
    raise AssertionError("the save never came to its end")


@pytest.mark.parametrize("exchange", [True, False], ids=["one rename", "two renames"])
def test_every_crash_point_of_replacing_best(tmp_path, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr(files.sys, "platform", "other")

    def write(value):
        return lambda directory: (directory / "model").write_text(value)

    for point in range(1000):
        out = tmp_path / str(point)
        out.mkdir()
        files.write_directory(out / "best", write("old"))
        done = False
        with monkeypatch.context() as patch:
            interrupt_at(patch, point)
            if exchange:
                patch.setattr(files, "exchange", files.exchange)
            try:
                files.write_directory(out / "best", write("new"))
                done = True
            except Interrupted:
                pass
        files.sweep(out)
        assert files.find_damage(out / "best") is None
        assert (out / "best" / "model").read_text() in (("new",) if done else ("old", "new"))
        assert [path.name for path in out.iterdir()] == ["best"]
        if done:
            assert point > 5
            return
    raise AssertionError("it never came to its end")


class Disk:
    """What a disk may hold after the power fails: of each directory's changes since its last sync only the first so
    many, of a file that was not synced nothing, half or all."""

    def __init__(self):
        self.content, self.synced = {}, set()  # of files, by inode
        self.entries, self.pending = {0: {}}, {0: []}  # of directories, by inode: what is on disk, what is on its way
        self.now = {0: {}}
        self.numbers = itertools.count(1)

    def find(self, path):
        inode = 0
        for part in Path(path).parts:
            inode = self.now[inode][part]
        return inode

    def change(self, directory, *operations):
        """Operations of one change are atomic: (name, inode or None)."""
        inode = self.find(directory)
        for name, target in operations:
            if target is None:
                self.now[inode].pop(name, None)
            else:
                self.now[inode][name] = target
        self.pending[inode].append(operations)

    def mkdir(self, path):
        new = next(self.numbers)
        self.now[new], self.entries[new], self.pending[new] = {}, {}, []
        self.change(Path(path).parent, (Path(path).name, new))

    def write(self, path, content):
        new = next(self.numbers)
        self.content[new] = content
        self.change(Path(path).parent, (Path(path).name, new))

    def sync(self, path):
        inode = self.find(path)
        if inode in self.content:
            self.synced.add(inode)
        else:
            self.entries[inode], self.pending[inode] = dict(self.now[inode]), []

    def rename(self, a, b):
        inode = self.find(a)
        self.change(Path(b).parent, (Path(b).name, inode))
        self.change(Path(a).parent, (Path(a).name, None))

    def exchange(self, a, b):
        first, second = self.find(a), self.find(b)
        self.change(Path(b).parent, (Path(b).name, first))
        self.change(Path(a).parent, (Path(a).name, second))

    def unlink(self, path):
        self.change(Path(path).parent, (Path(path).name, None))

    def after_power_loss(self, directory, rng, inode=0):
        """Write one of the legal outcomes below `directory`."""
        directory.mkdir(exist_ok=True)
        entries = dict(self.entries[inode])
        for operations in self.pending[inode][: rng.randint(0, len(self.pending[inode]))]:
            for name, target in operations:
                entries.pop(name, None) if target is None else entries.update({name: target})
        for name, target in entries.items():
            if target in self.content:
                content = self.content[target]
                kept = len(content) if target in self.synced else rng.choice([0, len(content) // 2, len(content)])
                (directory / name).write_bytes(content[:kept])
            else:
                self.after_power_loss(directory / name, rng, target)


def recorded(out_dir, monkeypatch, steps, drop=()):
    """[(operation, arguments)] of saving these steps one after the other, with ("acknowledged", step) after each.
    `drop` weakens the protocol: "file sync", "directory sync", "sync before removal"."""
    log = []
    relative = lambda path: os.path.relpath(path, out_dir) if not isinstance(path, int) else path  # noqa: E731
    real = {name: getattr(os, name) for name in ("mkdir", "rename", "unlink", "rmdir")}

    def mkdir(path, *args, **kwargs):
        existed = os.path.exists(path)
        real["mkdir"](path, *args, **kwargs)
        if not existed:
            log.append(("mkdir", relative(path)))

    def rename(a, b, **kwargs):
        real["rename"](a, b)
        log.append(("rename", relative(a), relative(b)))

    def removed(name):
        def remove(path, *args, dir_fd=None, **kwargs):
            place = os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), path) if dir_fd is not None else path
            real[name](path, *args, dir_fd=dir_fd, **kwargs)
            log.append(("unlink", relative(place)))

        return remove

    def sync(path):
        kind = "file sync" if os.path.isfile(path) else "directory sync"
        removing = (
            kind == "directory sync" and log and log[-1][0] == "rename" and Path(log[-1][2]).name.startswith("removed~")
        )
        if kind not in drop and not (removing and "sync before removal" in drop):
            log.append(("sync", relative(path)))

    def written(write, path_of):
        def wrapper(*args, **kwargs):
            result = write(*args, **kwargs)
            path = path_of(*args)
            log.append(("write", relative(path), Path(path).read_bytes()))
            return result

        return wrapper

    with monkeypatch.context() as patch:
        patch.setattr(os, "mkdir", mkdir)
        patch.setattr(os, "rename", rename)
        patch.setattr(os, "unlink", removed("unlink"))
        patch.setattr(os, "rmdir", removed("rmdir"))
        patch.setattr(files, "sync", sync)
        patch.setattr(checkpoints, "sync", sync, raising=False)
        patch.setattr(checkpoints, "write_tensors", written(checkpoints.write_tensors, lambda path, tensors: path))
        patch.setattr(Path, "write_text", written(Path.write_text, lambda path, *args: path))
        for step in steps:
            save(out_dir, step)
            log.append(("acknowledged", step))
    return log


def after_every_power_loss(log, tmp_path, tries):
    """(states tried, invalid, lost): every prefix of the log, several outcomes each."""
    rng, states, invalid, lost = random.Random(0), 0, 0, 0
    for end in range(len(log) + 1):
        disk, acknowledged = Disk(), 0
        for operation, *arguments in log[:end]:
            if operation == "acknowledged":
                acknowledged = arguments[0]
            else:
                getattr(disk, operation)(*arguments)
        for _ in range(tries):
            out = tmp_path / "disk"
            shutil.rmtree(out, ignore_errors=True)
            disk.after_power_loss(out, rng)
            states += 1
            published = checkpoints.states(out)
            invalid += any(files.find_damage(state) for state in published)
            whole = [int(state.name.split("-")[1]) for state in published if files.find_damage(state) is None]
            lost += max(whole, default=0) < acknowledged
    return states, invalid, lost


def test_power_loss_at_any_moment(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    log = recorded(tmp_path / "out", monkeypatch, [1, 2, 3, 4])
    states, invalid, lost = after_every_power_loss(log, tmp_path, tries=8)
    assert states > 500
    assert (invalid, lost) == (0, 0)


@pytest.mark.parametrize(
    "weakness", ["file sync", "directory sync", pytest.param("sync before removal", marks=pytest.mark.heavy)]
)
def test_the_power_loss_test_catches_weaker_protocols(tmp_path, monkeypatch, weakness):
    (tmp_path / "out").mkdir()
    log = recorded(tmp_path / "out", monkeypatch, [1, 2, 3, 4], drop=(weakness,))
    _, invalid, lost = after_every_power_loss(log, tmp_path, tries=8)
    assert invalid + lost > 0


def test_a_full_disk_leaves_the_state_before(tmp_path):
    """The largest file a process may write is lowered step by step: each failing save says so and leaves what was
    there."""
    save(tmp_path, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    failed = 0
    try:
        for limit in (0, 10, 100, 200, 300, 400, 500, 600, 700, 1000, 5000):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
            try:
                save(tmp_path, 2)
            except Exception as error:
                failed += 1
                assert isinstance(error, OSError) and error.errno in (errno.EFBIG, errno.ENOSPC, None), repr(error)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)
            assert newest(tmp_path) in (1, 2)
    finally:
        signal.signal(signal.SIGXFSZ, ignored)
    assert failed >= 5 and newest(tmp_path) == 2


def test_replacing_a_directory_is_one_step_on_linux(tmp_path):
    if not hasattr(ctypes.CDLL(None), "renameat2"):
        pytest.skip("this C library has no renameat2")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "new").touch()
    inode = (tmp_path / "b").stat().st_ino
    files.exchange(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b" / "new").exists() and (tmp_path / "a").stat().st_ino == inode


def _write_many(directory, number):
    """Write, replace and remove beside others; return the errors."""
    errors = []
    for turn in range(150):
        try:
            files.write_file(directory / f"file{number}", "x")
            files.write_directory(directory / f"directory{number}", lambda place: (place / "a").write_text("1"))
            if turn % 3 == 0:
                files.remove(directory / f"directory{number}")
        except OSError as error:
            errors.append(repr(error))
    return errors


def test_processes_that_write_beside_each_other_do_not_disturb(tmp_path):
    """Each removes the folder of what is unfinished when it is empty, which another is about to use."""
    with forked.pool(3) as pool:
        assert pool.starmap(_write_many, [(tmp_path, number) for number in range(3)]) == [[], [], []]
    assert not (tmp_path / files.WORK).exists()
