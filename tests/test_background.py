"""Saves in the background: training goes on, nothing is told before it is on disk, and the files are the same."""

import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import signal
import threading
from pathlib import Path

import forked
import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune.common.errors import Failure
from finetune.gpt.pretrained import write_tensors
from finetune.runs import checkpoints
from finetune.runs.events import read_metrics
from finetune.runtime import memory
from finetune.training import background, saving
from finetune.training import trainer as trainers
from finetune.training.state import Hooks


@pytest.fixture(autouse=True)
def also_of_small_models(monkeypatch):
    monkeypatch.setattr(saving, "SMALL", 0)


def events(out_dir, kind):
    return [event for event in read_metrics(Path(out_dir) / "metrics.jsonl") if event["event"] == kind]


AT_ONCE = Hooks(notify=lambda moment: False)  # as with callbacks of the user


def saved_files(out):
    """{path: content} of all that a run saved, without the time in a card."""
    paths = [path for name in ("best", "last") for path in Path(out, name).rglob("*") if path.is_file()]
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(paths)}


@pytest.mark.parametrize(
    "tensors",
    [
        {"b": torch.randn(3, 5), "a": torch.randn(7), "ü": torch.zeros(0, 4), "one": torch.tensor(1.0)},
        {"half": torch.randn(3, 2).bfloat16(), "whole": torch.randn(5), "other": torch.randn(4).half()},
        {f"h.{i}": torch.randn(500, 1000) for i in range(9)},  # 18 MB: several chunks and a rest
        {"w": torch.randn(6, 4).t()},
        {},
    ],
    ids=["shapes", "dtypes", "large", "transposed", "empty"],
)
def test_a_file_is_that_of_safetensors_with_its_sum(tensors, tmp_path):
    sha256 = write_tensors(tmp_path / "ours", tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "theirs", {"format": "pt"})
    content = (tmp_path / "theirs").read_bytes()
    assert (tmp_path / "ours").read_bytes() == content and sha256 == hashlib.sha256(content).hexdigest()


def held_back(monkeypatch, begun, go):
    """Let every save of a state tell that it has begun and wait until it may go on."""
    real = checkpoints.save_state

    def save(*args):
        begun.append((args[-1]["iteration"], threading.current_thread() is threading.main_thread()))
        assert go.wait(60)
        real(*args)

    monkeypatch.setattr(checkpoints, "save_state", save)


def test_updates_go_on_and_nothing_is_told_before_it_is_on_disk(tiny, monkeypatch):
    begun, go, seen = [], threading.Event(), []
    held_back(monkeypatch, begun, go)

    def look(setup, state):
        if state.step == 6:
            seen.append((list(begun), checkpoints.states("out"), [save.step for save in setup.saves.begun]))
            go.set()

    trainers.train(tiny(max_iters=8, save_interval=4, eval_interval=8), hooks=Hooks(before_update=look))
    [(first, states, waiting)] = seen
    assert first == [(4, False)] and states == [] and waiting == [4]
    assert [step for step, _ in begun] == [4, 8]  # the last one is waited for
    assert [path.name for path in checkpoints.states("out")] == ["step-00000008", "step-00000004"]


def test_the_first_model_is_on_disk_and_not_copied_when_the_first_update_begins(tiny, monkeypatch):
    """A copy would be there when an update asks for most memory."""
    copied, seen, real = [], [], background.copies_of
    monkeypatch.setattr(background, "copies_of", lambda tensors: copied.append(1) or real(tensors))

    def look(setup, state):
        if state.step == 0:
            seen.append((load_file("out/best/model.safetensors"), list(setup.saves.begun), list(copied)))

    trainers.train(tiny(max_iters=2), hooks=Hooks(before_update=look))
    [(first, begun, copies)] = seen
    assert first and not begun and not copies


def test_what_is_saved_is_what_it_was_when_the_save_began(tiny):
    shape = {"max_iters": 9, "save_interval": 4, "eval_interval": 3, "always_save_checkpoint": True}
    trainers.train(tiny("one", **shape))
    trainers.train(tiny("other", **shape), hooks=AT_ONCE)
    one, other = saved_files("one"), saved_files("other")
    assert one.keys() == other.keys() and len(one) > 15
    weights = [name for name in one if name.endswith(".safetensors")]
    assert len(weights) >= 5 and all(one[name] == other[name] for name in weights)
    for name in [name for name in one if name.endswith("state.json")]:
        without = [{**json.loads(files[name]), "recipe": None} for files in (one, other)]
        assert without[0] == without[1]
    kept = [(Path(out, f"iter_{step:06d}") / "model.safetensors") for out in ("one", "other") for step in (3, 6)]
    assert all(path.is_file() for path in kept)
    for out in ("one", "other"):
        best = [(event["step"], event["val_loss"]) for event in events(out, "best")]
        assert best and best == [(event["step"], event["val_loss"]) for event in events("one", "best")]


def test_a_save_that_is_slow_is_finished_before_the_next_begins(tiny, monkeypatch):
    order, real = [], checkpoints.save_state

    def save(*args):
        order.append(("begin", args[-1]["iteration"]))
        threading.Event().wait(0.3)
        real(*args)
        order.append(("end", args[-1]["iteration"]))

    monkeypatch.setattr(checkpoints, "save_state", save)
    trainers.train(tiny(max_iters=6, save_interval=2, eval_interval=6))
    assert order == [(what, step) for step in (2, 4, 6) for what in ("begin", "end")]


def test_without_memory_for_copies_a_save_is_made_at_once(tiny, monkeypatch):
    begun, go = [], threading.Event()
    go.set()
    held_back(monkeypatch, begun, go)

    def use_memory(setup, state):
        monkeypatch.setattr(memory, "available_bytes", lambda device: 1000)

    trainers.train(tiny(max_iters=4, save_interval=2, eval_interval=4), hooks=Hooks(before_update=use_memory))
    assert begun == [(2, True), (4, True)]


def test_a_small_model_is_written_before_the_next_update(tiny, monkeypatch):
    """So its events are in the order of the steps."""
    monkeypatch.setattr(saving, "SMALL", 1 << 24)
    trainers.train(tiny(max_iters=3, save_interval=2, eval_interval=1))
    kinds = [event["event"] for event in read_metrics(Path("out/metrics.jsonl"))]
    assert all(kinds[place - 1] == "eval" for place, kind in enumerate(kinds) if kind == "best")


def test_callbacks_find_the_files_of_a_save(tiny):
    found = []

    def notify(moment):
        if path := getattr(moment, "path", None):
            found.append((moment.step, (path / "manifest.json").is_file()))
        return False

    trainers.train(tiny(max_iters=4, save_interval=2, eval_interval=4), hooks=Hooks(notify=notify))
    assert [step for step, _ in found][:2] == [0, 2] and all(is_there for _, is_there in found)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_waits_for_the_state_that_is_being_written(number, tiny, monkeypatch):
    begun, go = [], threading.Event()
    held_back(monkeypatch, begun, go)
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever started the tests may ignore it

    def stop(setup, state):
        if state.step == 5:
            os.kill(os.getpid(), number)
            threading.Timer(0.2, go.set).start()

    try:
        with pytest.raises(Failure, match=f"stopped by {number.name} after 6 updates"):
            trainers.train(tiny(max_iters=9, save_interval=4, eval_interval=9), hooks=Hooks(before_update=stop))
    finally:
        signal.signal(signal.SIGHUP, before)
    assert [step for step, _ in begun] == [4, 6]
    assert [path.name for path in checkpoints.states("out")] == ["step-00000006", "step-00000004"]


def test_an_error_that_is_none_of_the_disk_ends_the_run(tiny, monkeypatch):
    def broken(*args):
        raise ZeroDivisionError("mine")

    monkeypatch.setattr(checkpoints, "save_state", broken)
    with pytest.raises(ZeroDivisionError, match="mine"):
        trainers.train(tiny(max_iters=8, save_interval=2, eval_interval=8))
    assert events("out", "failed")


def test_a_run_that_fails_finishes_what_it_writes(tiny, monkeypatch):
    begun, go = [], threading.Event()
    held_back(monkeypatch, begun, go)

    def fail(setup, state):
        if state.step == 5:
            threading.Timer(0.2, go.set).start()
            raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        trainers.train(tiny(max_iters=8, save_interval=4, eval_interval=8), hooks=Hooks(before_update=fail))
    assert [path.name for path in checkpoints.states("out")] == ["step-00000004"]
    recipe = tiny(max_iters=8, save_interval=4, eval_interval=8, init_from="resume")
    _, state = trainers.train(dataclasses.replace(recipe, n_layer=None, n_head=None, n_embd=None))
    assert state.step == 8


def test_a_run_that_was_killed_while_its_first_state_was_written_starts_anew(tiny, monkeypatch):
    begun, go = [], threading.Event()
    held_back(monkeypatch, begun, go)
    found = []

    def look(setup, state):
        if state.step == 6:  # two updates after the state began to be written
            found.append(checkpoints.is_unfinished("out"))
            go.set()

    trainers.train(tiny(max_iters=8, save_interval=4, eval_interval=4), hooks=Hooks(before_update=look))
    assert found == [True] and not checkpoints.is_unfinished("out")
    assert load_file(Path("out/last/step-00000008/model.safetensors"))


def test_a_disk_that_fills_up_is_told_in_the_loop(tiny, monkeypatch, capsys):
    real = checkpoints.save_state

    def full(*args):
        if args[-1]["iteration"] == 2:
            raise OSError(28, "No space left on device")
        real(*args)

    monkeypatch.setattr(checkpoints, "save_state", full)
    _, state = trainers.train(tiny(max_iters=6, save_interval=2, eval_interval=6))
    assert capsys.readouterr().out.count("last at step 2 could not be saved: No space left on device") == 1
    assert [event["step"] for event in events("out", "save_failed")] == [2] and state.last_saved == 6


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
@pytest.mark.parametrize("hooks", [AT_ONCE, Hooks()], ids=["at once", "behind"])
@pytest.mark.parametrize("broken_step", [4, 6])
def test_an_error_within_a_save_is_waited_for_by_nobody(error, hooks, broken_step, tiny, monkeypatch):
    """Such as a second Ctrl-C while the last state is written, which once was waited for without an end."""
    real = checkpoints.save_state

    def broken(*args):
        if args[-1]["iteration"] == broken_step:
            raise error("mine")
        real(*args)

    monkeypatch.setattr(checkpoints, "save_state", broken)
    with pytest.raises(error, match="mine"):
        trainers.train(tiny(max_iters=6, save_interval=2, eval_interval=6), hooks=hooks)
    assert [path.name for path in checkpoints.states("out")][0] == f"step-{broken_step - 2:08d}"


def test_a_thread_that_cannot_be_started_is_waited_for_by_nobody(tiny, monkeypatch):
    def start(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        trainers.train(tiny(max_iters=6, save_interval=2, eval_interval=6))


@pytest.mark.parametrize("works", [0, 1], ids=["the first", "the second"])
def test_without_an_address_for_copies_what_is_saved_is_not_torn(works, tiny, monkeypatch):
    """As under `ulimit -v`: the loop waits until the weights themselves are written."""
    recipe = tiny("other", max_iters=8, save_interval=4, eval_interval=4)
    trainers.train(recipe, hooks=AT_ONCE)
    real, asked = background.copies_of, []

    def copies_of(tensors):
        asked.append(1)
        if len(asked) <= works:
            return real(tensors)
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(background, "copies_of", copies_of)
    trainers.train(tiny("out", max_iters=8, save_interval=4, eval_interval=4))
    assert len(asked) > works and not events("out", "save_failed")
    one, other = saved_files("out"), saved_files("other")
    weights = [name for name in one if name.endswith(".safetensors")]
    assert len(weights) >= 5 and all(one[name] == other[name] for name in weights)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP, errno.EIO])
def test_a_disk_that_refuses_direct_writes_is_written_through_the_cache(number, tmp_path, monkeypatch):
    real, tensors = os.write, {f"h.{i}": torch.randn(500, 1000) for i in range(9)}

    def write(handle, content):
        if fcntl.fcntl(handle, fcntl.F_GETFL) & getattr(os, "O_DIRECT", 0):
            raise OSError(number, os.strerror(number))
        return real(handle, content)

    monkeypatch.setattr(os, "write", write)
    sha256 = write_tensors(tmp_path / "ours", tensors)
    assert sha256 == hashlib.sha256((tmp_path / "ours").read_bytes()).hexdigest()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in load_file(tmp_path / "ours").items())


def test_a_file_is_written_and_summed_where_no_thread_can_be_had(tmp_path, monkeypatch):
    def start(thread):
        raise RuntimeError("can't start new thread")

    tensors = {f"h.{i}": torch.randn(500, 1000) for i in range(9)}
    monkeypatch.setattr(threading.Thread, "start", start)
    sha256 = write_tensors(tmp_path / "ours", tensors)
    assert sha256 == hashlib.sha256((tmp_path / "ours").read_bytes()).hexdigest()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in load_file(tmp_path / "ours").items())


@pytest.mark.parametrize("last", [0, 1, 2])
def test_a_disk_that_is_full_after_some_chunks_is_told_and_no_thread_is_left(last, tmp_path, monkeypatch):
    real, written, threads = os.write, [], threading.active_count()

    def write(handle, content):
        if len(written) == last:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(len(content))
        return real(handle, content)

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(OSError, match="No space"):
        write_tensors(tmp_path / "ours", {f"h.{i}": torch.randn(500, 1000) for i in range(9)})
    assert len(written) == last and threading.active_count() <= threads


@pytest.mark.heavy
def test_only_rank_0_may_have_callbacks(tiny):
    """All ranks acknowledge a save together, whether theirs have callbacks or not."""
    code = """
import json, sys
import harness
from finetune.config.recipe import Recipe
from finetune.training import saving
from finetune.training.state import Hooks

saving.SMALL = 0
print(harness.run(Recipe(**json.loads(sys.argv[1])), 2, hooks=lambda rank: Hooks() if rank else Hooks(notify=print)))
"""
    Path("ranks.py").write_text(code)
    recipe = tiny(max_iters=6, save_interval=2, eval_interval=3, gradient_accumulation_steps=2, timeout=30)
    done = forked.run("ranks.py", json.dumps(dataclasses.asdict(recipe)), timeout=100)
    assert done.stdout.split("\n")[-2] == "[0, 0]", done.stderr
    assert [path.name for path in checkpoints.states("out")] == ["step-00000006", "step-00000004"]
