"""Trackers hold the curve of metrics.jsonl, read back by their own readers; a killed run goes on in the same one."""

import json
import os
import signal
import struct
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.util import find_spec
from pathlib import Path

import forked
import pytest
from test_network import FAULTS, serving

from finetune.runs.events import read_metrics
from finetune.runs.trackers import rows_of

KINDS = [kind for kind in ("tensorboard", "trackio", "wandb") if find_spec(kind)]
RUN = """--init_from=scratch --dataset=corpus.txt --tokenizer=char --out_dir=out --n_layer=1 --n_head=2
 --n_embd=16 --block_size=16 --batch_size=4 --gradient_accumulation_steps=1 --max_iters=60 --learning_rate=1e-2
 --log_interval=1 --eval_interval=30 --dtype=float32 --num_samples=1 --sample_interval=20 --max_new_tokens=5""".split()


def curve(metrics):
    """{name: {step: value}} of a metrics.jsonl."""
    found = {}
    for row in rows_of(read_metrics(metrics)):
        for name, value in row.numbers.items():
            found.setdefault(name, {})[row.step] = value
    return found


def tensorboard_points(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0, "images": 0})
    accumulator.Reload()
    tags = accumulator.Tags()
    assert "samples/text_summary" in tags["tensors"] and tags["images"] == ["losses"]
    return [(tag, point.step, point.value) for tag in tags["scalars"] for point in accumulator.Scalars(tag)]


def trackio_points(home):
    """The points of the only run, read by trackio in a process of its own: it reads TRACKIO_DIR when imported."""
    code = """if True:
        import json, trackio
        from trackio.sqlite_storage import SQLiteStorage
        runs = [run.name for run in trackio.Api().runs("finetune")]
        print(json.dumps([runs, SQLiteStorage.get_logs("finetune", runs[0])]))"""
    Path("read.py").write_text(code)
    answer = forked.run("read.py", env={**os.environ, "TRACKIO_DIR": str(home)})
    assert answer.returncode == 0, answer.stderr
    runs, logs = json.loads(answer.stdout.splitlines()[-1])
    assert runs == ["out"] and any("samples" in row for row in logs) and any("losses" in row for row in logs)
    return [
        (name, row["step"], value)
        for row in logs
        for name, value in row.items()
        if "/" in name and isinstance(value, (int, float))
    ]


def wandb_records(path):
    """The records of an offline run: LevelDB's log format, blocks of 32 KiB with records of wandb's own protobuf."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, offset, parts = path.read_bytes(), 7, []
    while offset + 7 <= len(data):
        if 0x8000 - offset % 0x8000 < 7:
            offset += 0x8000 - offset % 0x8000
            continue
        length, kind = struct.unpack_from("<HB", data, offset + 4)
        parts.append(data[offset + 7 : offset + 7 + length])
        offset += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield Record.FromString(b"".join(parts))
            parts = []


def wandb_points(folder):
    files, points, ids = sorted(folder.glob("offline-run-*/*.wandb")), [], set()
    for file in files:
        for record in wandb_records(file):
            if record.WhichOneof("record_type") == "run":
                ids.add(record.run.run_id)
            if record.WhichOneof("record_type") == "history":
                row = {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
                }
                points += [(name, row["_step"], value) for name, value in row.items() if "/" in name]
    assert len(ids) == 1, "one run"
    return points


def points_of(kind):
    """(name, step, value) of all points that a tracker holds of the run in `out`."""
    if kind == "tensorboard":
        return tensorboard_points("out/tensorboard")
    return trackio_points("trackio") if kind == "trackio" else wandb_points(Path("out/wandb"))


@pytest.fixture(scope="module")
def killed_and_resumed(tmp_path_factory):
    """The folder of a run that was killed after update 34, whose last state was of 30, and was resumed."""
    folder = tmp_path_factory.mktemp("trackers")
    (folder / "corpus.txt").write_text("the quick brown fox jumps over the lazy dog.\n" * 200)
    env = {**os.environ, "TRACKIO_DIR": str(folder / "trackio"), "WANDB_MODE": "offline"}
    env.pop("WANDB_SERVICE", None)  # another test's, in which the killed run would go on
    command = ["finetune.train", *RUN, f"--log_with={','.join(KINDS)}"]
    with forked.Process(*command, cwd=folder, env=env) as run:
        for line in run.stdout:
            if line.startswith("iter 34:"):
                run.send_signal(signal.SIGKILL)
    former = curve(folder / "out/metrics.jsonl")
    again = [part.replace("--init_from=scratch", "--init_from=resume") for part in command]
    resumed = forked.run(*again, cwd=folder, env=env)
    assert resumed.returncode == 0, resumed.stderr
    return folder, former, resumed.stdout


@pytest.mark.heavy
@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_and_resumed_run_is_one_curve(killed_and_resumed, kind, monkeypatch):
    folder, former, output = killed_and_resumed
    monkeypatch.chdir(folder)
    assert max(former["iter/loss"]) >= 33 and "at iteration 30" in output and "warning: " + kind not in output
    points, wanted = points_of(kind), curve("out/metrics.jsonl")
    places = [(name, step) for name, step, _ in points if name.startswith(("iter/", "eval/"))]
    assert len(places) == len(set(places)), "no point twice"
    for name, values in wanted.items():
        held = {step: value for tag, step, value in points if tag == name}
        assert sorted(held) == sorted(values), name
        if name in ("iter/loss", "iter/lr", "iter/grad_norm", "eval/val_loss", "eval/train_loss"):
            assert held == pytest.approx(values, rel=1e-6), name  # tensorboard keeps float32
    assert {(tag, step) for tag, step, _ in points if tag == "best/val_loss"} == {("best/val_loss", 60)}


def losses(out):
    return [event["loss"] for event in read_metrics(f"{out}/metrics.jsonl") if event["event"] == "iter"]


def fail(*_, **__):
    raise OSError(28, "No space left on device")


@pytest.mark.skipif("tensorboard" not in KINDS, reason="tensorboard is not installed")
@pytest.mark.parametrize("method", ["start", "log", "log_images", "finish"])
def test_a_tracker_that_fails_costs_one_line(tiny_run, capsys, monkeypatch, method):
    from accelerate.tracking import TensorBoardTracker

    monkeypatch.setattr(TensorBoardTracker, method, fail)
    lines = []
    monkeypatch.setattr("builtins.print", lambda *parts, **_: lines.append(" ".join(map(str, parts))))
    tiny_run("out", "--log_with=tensorboard")
    assert [line for line in lines if "tensorboard" in line and "No space left" in line] == [
        line for line in lines if line.startswith("warning: tensorboard")
    ]
    assert len(losses("out")) == 10 and sum(line.startswith("warning: tensorboard") for line in lines) == 1


@pytest.mark.skipif("tensorboard" not in KINDS, reason="tensorboard is not installed")
def test_a_tracker_that_hangs_delays_nothing(tiny_run, monkeypatch):
    from accelerate.tracking import TensorBoardTracker

    from finetune.runs import trackers

    end = threading.Event()
    monkeypatch.setattr(trackers, "FINISH_SECONDS", 0.5)
    monkeypatch.setattr(TensorBoardTracker, "log", lambda *_, **__: end.wait(60))
    monkeypatch.setattr(trackers, "START_SECONDS", 0.5)
    began = time.monotonic()
    tiny_run("out", "--log_with=tensorboard")
    seconds = time.monotonic() - began
    end.set()
    for thread in threading.enumerate():
        if thread.name == "tensorboard":
            thread.join(60)
    assert len(losses("out")) == 10 and seconds < 50


def test_a_tracker_that_is_unknown_or_not_installed_is_refused(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    code, _, error = command("train", "--dataset=x", "--log_with=trackio,tensorbord,twitter")
    assert code == 2
    assert error.splitlines() == [
        "--log_with: trackio is not installed: pip install trackio",
        "--log_with: 'tensorbord' is no tracker. Did you mean 'tensorboard'?",
        "--log_with: 'twitter' is no tracker; known are tensorboard, wandb, trackio, comet_ml, aim, mlflow, clearml,"
        " dvclive, swanlab, and all",
    ]


def test_the_names_are_those_that_accelerate_knows():
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    from finetune.config.trackers import TRACKERS

    assert set(TRACKERS) == set(LOGGER_TYPE_TO_CLASS)


class Refuses(BaseHTTPRequestHandler):
    """A proxy without a way out."""

    def do_CONNECT(self):
        self.send_error(503)

    do_GET = do_CONNECT

    def log_message(self, *_):
        pass


@pytest.mark.parametrize("url", ["https://api.wandb.ai", "http://wandb.example"])
def test_a_proxy_without_network_means_offline_at_once(monkeypatch, url):
    from finetune.runs.tracker_kinds import wandb_problem

    with HTTPServer(("127.0.0.1", 0), Refuses) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for name in ("http_proxy", "https_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{server.server_port}")
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("WANDB_BASE_URL", url)
        began = time.monotonic()
        assert "503" in wandb_problem() and time.monotonic() - began < 15
        server.shutdown()


# the first question is answered, and what follows is not
ANSWERS = ("a page of a proxy", "a cut body", "no JSON", "other JSON", "a body that drips", "a body without an end")


@pytest.mark.parametrize("name", FAULTS)
def test_a_bad_server_of_wandb_is_a_line_within_seconds(name, monkeypatch):
    from finetune.runs import tracker_kinds

    monkeypatch.setattr(tracker_kinds, "SECONDS", 1)
    with serving(FAULTS[name][0]) as url:
        monkeypatch.setenv("WANDB_BASE_URL", url)
        began = time.monotonic()
        problem = tracker_kinds.wandb_problem()
    assert time.monotonic() - began < 5 and problem.isprintable() and len(problem) < 300
    assert problem or name in ANSWERS or "redirects" in name or "bomb" in name


@pytest.mark.parametrize(
    "name",
    [
        "garbage",
        *(pytest.param(name, marks=pytest.mark.heavy) for name in ("429 for an hour", "silence", "other JSON")),
    ],
)
def test_a_bad_server_of_wandb_means_offline(tiny_run, monkeypatch, name):
    """What it answers to the first question, or to the start of a run, is no point of the run."""
    import wandb

    from finetune.runs import tracker_kinds

    wandb.teardown()  # it reads the environment once in a process
    monkeypatch.setattr(tracker_kinds, "SECONDS", 3)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    lines = []
    monkeypatch.setattr("builtins.print", lambda *parts, **_: lines.append(" ".join(map(str, parts))))
    with serving(FAULTS[name][0]) as url:
        monkeypatch.setenv("WANDB_BASE_URL", url)
        tiny_run("out", "--log_with=wandb", "--max_iters=3")
    [said] = [line.strip() for line in lines if line.startswith(("wandb: logging", "warning: wandb"))]
    assert said.startswith("wandb: logging offline (") and said.isprintable(), said
    assert len(losses("out")) == 3 and list(Path("out/wandb").glob("offline-run-*"))
    wandb.teardown()


@pytest.mark.skipif("tensorboard" not in KINDS, reason="tensorboard is not installed")
def test_a_run_that_ended_goes_on_without_a_gap(tiny_run, corpus, monkeypatch):
    """A tracker that is new to a run gets all of it."""
    import wandb

    wandb.teardown()  # it reads the environment once in a process
    monkeypatch.setenv("WANDB_MODE", "offline")
    data, on = corpus(), "--log_with=wandb,tensorboard"
    tiny_run("out", on, "--num_samples=1", "--max_new_tokens=5", text=data)
    more = ("--init_from=resume", "--max_iters=14", "--num_samples=1", "--max_new_tokens=5")
    tiny_run("out", on, *more, text=data)
    for points in (tensorboard_points("out/tensorboard"), wandb_points(Path("out/wandb"))):
        steps = [step for name, step, _ in points if name == "iter/loss"]
        assert sorted(steps) == list(range(14))
