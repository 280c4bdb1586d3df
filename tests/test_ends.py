"""What ends a run, and what must not: signals, a failed save, broken lines of metrics.jsonl, runs of others."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.common.errors import Failure, disk_errors
from finetune.config import cli
from finetune.data import bpe_files
from finetune.evaluation import table
from finetune.runs import checkpoints
from finetune.runs.events import read_metrics
from finetune.runs.logger import RunLogger
from finetune.training import trainer as trainers
from finetune.training.monitor import SignalCatcher
from finetune.training.state import Hooks

resource = pytest.importorskip("resource")  # Windows has none, nor SIGHUP
ENDING = [(signal.SIGHUP, 129), (signal.SIGTERM, 143), (signal.SIGINT, 130)]


def events(out_dir, kind):
    return [event for event in read_metrics(Path(out_dir) / "metrics.jsonl") if event["event"] == kind]


def send_at(step, *numbers):
    def before_update(setup, state):
        if state.step == step:
            for number in numbers:
                os.kill(os.getpid(), number)

    return Hooks(before_update)


@pytest.fixture(autouse=True)
def signals_of_a_terminal():
    """Whoever started the tests may ignore SIGHUP, as nohup does."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number, code", ENDING)
@pytest.mark.parametrize("place", ["update", "evaluation", "sampling", "save"])
def test_a_signal_saves_wherever_it_comes(place, number, code, tiny, monkeypatch):
    recipe, hooks = tiny(max_iters=8, eval_interval=3, save_interval=4, num_samples=1, sample_interval=3), Hooks()
    recipe = dataclasses.replace(recipe, start="a", max_new_tokens=4)
    places = {
        "evaluation": (trainers, "validate"),
        "sampling": (trainers, "sample"),
        "save": (checkpoints, "save_state"),
    }
    if place == "update":
        hooks = send_at(3, number)
    else:
        module, name = places[place]
        real, sent = getattr(module, name), []

        def interrupted(*args, **options):
            if not sent and (place == "save" or args[1].step == 3):
                sent.append(os.kill(os.getpid(), number))
            return real(*args, **options)

        monkeypatch.setattr(module, name, interrupted)
    with pytest.raises(Failure, match=f"stopped by {number.name} after . updates") as failure:
        trainers.train(recipe, hooks=hooks)
    assert failure.value.code == code
    [stop] = events("out", "stop")
    assert stop["signal"] == number.name and not events("out", "failed")
    assert [path.name for path in checkpoints.states("out")][0] == f"step-{stop['step']:08d}"
    _, state = trainers.train(dataclasses.replace(recipe, init_from="resume"))
    assert state.step == 8


@pytest.mark.parametrize("second", [signal.SIGHUP, signal.SIGTERM])
def test_a_second_signal_does_not_spoil_the_save(second, tiny, monkeypatch):
    real = checkpoints.save_state

    def interrupted(*args):
        os.kill(os.getpid(), second)  # as from a launcher that loses its patience
        real(*args)

    monkeypatch.setattr(checkpoints, "save_state", interrupted)
    with pytest.raises(Failure, match="stopped by SIGHUP") as failure:
        trainers.train(tiny(save_interval=100), hooks=send_at(3, signal.SIGHUP))
    assert failure.value.code == 129 and [path.name for path in checkpoints.states("out")] == ["step-00000004"]


def test_a_second_ctrl_c_ends_at_once(tiny):
    with pytest.raises(KeyboardInterrupt):
        trainers.train(tiny(save_interval=100), hooks=send_at(3, signal.SIGINT, signal.SIGINT))
    assert [event["signal"] for event in events("out", "stop")] == ["SIGINT"] and not checkpoints.states("out")


@pytest.fixture
def listening():
    """Ctrl-C is heard: where the tests run in the background it is ignored, and children inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def run_interrupted(error):
    """The exit code of a command that raises an error after Ctrl-C."""

    def interrupted(argv):
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            raise error from None

    with pytest.raises(SystemExit) as end:
        cli.run(interrupted)
    return end.value.code


def test_what_ctrl_c_leaves_half_imported_is_no_error_of_ours(capsys, listening):
    assert run_interrupted(ImportError("cannot load module more than once per process")) == 130
    assert capsys.readouterr().err == "" and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_error_long_after_ctrl_c_is_told(capsys, listening, monkeypatch):
    """As in a chat, in which Ctrl-C ends one answer."""
    monkeypatch.setattr(cli, "SOON_SECONDS", 0)
    assert run_interrupted(OSError("No space left on device")) == 1
    assert "No space left on device" in capsys.readouterr().err


CTRL_C = """
import os, signal, sys

def interrupt(event, args):
    if event == "import" and args[0] == "finetune.common.console":
        os.kill(os.getpid(), signal.SIGINT)

sys.addaudithook(interrupt)
"""


@pytest.mark.parametrize("module", ["finetune.train", "finetune"])
def test_ctrl_c_while_a_command_is_imported_shows_no_traceback(module, tmp_path, listening):
    (tmp_path / "sitecustomize.py").write_text(CTRL_C)
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[1])])
    command = [sys.executable, "-m", module, "recipes"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode in (130, -signal.SIGINT) and done.stderr == ""


def test_another_program_that_imports_us_hears_ctrl_c(tmp_path, listening):
    Path(tmp_path, "mine").mkdir()
    Path(tmp_path, "mine/__init__.py").write_text("import finetune\n")
    Path(tmp_path, "mine/go.py").write_text("import signal\nprint(signal.getsignal(signal.SIGINT).__name__)\n")
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[1])])
    command = [sys.executable, "-m", "mine.go", "finetune.yaml"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert done.stdout == "default_int_handler\n", done.stderr


def test_a_hangup_that_nohup_ignores_stays_ignored(tiny):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        _, state = trainers.train(tiny(max_iters=4), hooks=send_at(2, signal.SIGHUP))
        assert state.step == 4 and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_former_handlers_come_back():
    before = {number: signal.getsignal(number) for number, _ in ENDING}
    with SignalCatcher().caught():
        assert all(signal.getsignal(number) != handler for number, handler in before.items())
    assert {number: signal.getsignal(number) for number, _ in ENDING} == before


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux tells it")
def test_a_process_whose_launcher_dies_is_told():
    def process_of_a_run():
        signal.signal(signal.SIGTERM, lambda *_: os._exit(os.write(told, b"SIGTERM") - len("SIGTERM")))
        signal.alarm(30)
        cli.die_with_launcher()
        os.write(told, b"ready ")
        while True:
            signal.pause()

    heard, told = os.pipe()
    if not (launcher := os.fork()):
        try:
            os.environ["TORCHELASTIC_RUN_ID"] = "1"
            if not os.fork():
                process_of_a_run()
            os.read(heard, len("ready "))
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.close(told)
    os.waitpid(launcher, 0)
    with os.fdopen(heard, "rb") as pipe:
        assert pipe.read() == b"SIGTERM"


def test_after_a_failed_save_the_next_try_is_the_next_save(tiny, monkeypatch, capsys):
    real, full = checkpoints.save_state, [True]

    def save(*args):
        if full[0]:
            raise OSError(28, "No space left on device")
        real(*args)

    def make_room(setup, state):
        full[0] = state.step < 14

    monkeypatch.setattr(checkpoints, "save_state", save)
    trainers.train(tiny(save_interval=5), hooks=Hooks(make_room))
    assert [event["step"] for event in events("out", "save_failed")] == [5, 10]
    assert capsys.readouterr().out.count("could not be saved") == 2
    assert [path.name for path in checkpoints.states("out")] == ["step-00000020", "step-00000015"]


def test_a_curve_that_does_not_fit_is_no_failed_run(tiny, monkeypatch, capsys):
    from finetune.runs import loss_plot

    def full(out_dir):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(loss_plot, "plot_loss", full)
    trainers.train(tiny(max_iters=2, num_samples=1, start="a", max_new_tokens=4))
    warning, rest = capsys.readouterr().out.split("loss.png cannot be written: No space left on device\n")
    assert "best val loss" in rest and "---------------" in rest and len(events("out", "samples")) == 1
    assert events("out", "end") and not events("out", "failed")


@pytest.mark.parametrize("room", [0, 2])
def test_a_last_state_that_cannot_be_saved_says_what_there_is(room, tiny, monkeypatch):
    real, saved = checkpoints.save_state, []

    def save(*args):
        if len(saved) == room:
            raise OSError(28, "No space left on device")
        saved.append(real(*args))

    monkeypatch.setattr(checkpoints, "save_state", save)
    told = "the previous one is complete" if room else "there is no previous one"
    with pytest.raises(Failure, match=f"the state after 4 updates could not be saved; {told}"):
        trainers.train(tiny(max_iters=4, save_interval=1))


def limited(size, write):
    """Call `write` while no file may become larger."""
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limit[1]))
    try:
        write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, ignored)


def test_a_disk_that_fills_while_a_tokenizer_is_written_is_an_error_of_the_disk(tmp_path):
    with pytest.raises(OSError, match="File too large"):
        limited(100, lambda: bpe_files.write_characters(tmp_path, list("abcdefghijklmnopqrstuvwxyz")))
    with pytest.raises(OSError, match="No space left") as error, disk_errors():
        raise Exception("No space left on device (os error 28)")
    assert error.value.errno == 28
    with pytest.raises(KeyError, match="other"), disk_errors():
        raise KeyError("other")


def test_training_goes_on_when_the_tokenizer_of_best_does_not_fit(tiny, monkeypatch, capsys):
    from finetune.data.char_tokenizer import CharTokenizer

    save, tries = CharTokenizer.save, []

    def full(self, directory, block_size=None):
        tries.append(directory)
        if len(tries) < 3:
            with disk_errors():
                raise Exception("No space left on device (os error 28)")
        save(self, directory, block_size)

    monkeypatch.setattr(CharTokenizer, "save", full)
    _, state = trainers.train(tiny(max_iters=15, eval_interval=5))
    assert "best at step 0 could not be saved: No space left on device" in capsys.readouterr().out
    assert state.best["step"] >= 10 and Path("out/best/tokenizer.json").exists() and len(tries) >= 3


BROKEN = {
    "not UTF-8": b"\xff\n",
    "half a line": b'{"event": "iter", "ite',
    "deep": b'{"event": "iter", "iter": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n",
    "no object": b"[1, 2]\n",
    "no name": b'{"event": ["iter"], "time": 1}\n',
    "an update without its number": b'{"event": "iter", "time": 1, "loss": 1}\n',
    "a loss that is a text": b'{"event": "eval", "time": 1, "step": 3, "train_loss": "x", "val_loss": 1}\n',
    "a recipe that is a list": b'{"event": "start", "time": 1, "recipe": []}\n',
    "a long number": b'{"event": "iter", "time": 1, "loss": 1, "iter": ' + b"9" * 5000 + b"}\n",
    "zeros": b"\0" * 1000 + b"\n",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_line_that_cannot_be_read_is_left_out_and_told(name, tmp_path):
    path, told = tmp_path / "metrics.jsonl", []
    whole = [{"event": "iter", "time": 1.0, "iter": 0, "loss": "nan"}, {"event": "anything", "time": 2.0}]
    path.write_bytes(json.dumps(whole[0]).encode() + b"\n" + json.dumps(whole[1]).encode() + b"\n" + BROKEN[name])
    assert read_metrics(path, told.append) == whole
    assert told == [f"{path}: line 3 cannot be read and is left out"]
    logger = RunLogger(tmp_path, write=True)
    logger.append()
    logger.record("evaluation", loss=1.0)
    logger.close()
    assert [event["event"] for event in read_metrics(path)] == ["iter", "anything", "evaluation"]


def test_every_command_goes_on_behind_a_broken_line(tiny_run, command):
    tiny_run("out", "--max_iters=4")
    tiny_run("other", "--max_iters=4")
    for verb, argv in {
        "report": ["--out_dir=out"],
        "diagnose": ["--out_dir=out"],
        "compare": ["out", "other"],
        "export": ["--out_dir=out", "--to=exported"],
        "eval": ["--out_dir=out"],
        "train": ["out/recipe.yaml", "--init_from=resume", "--max_iters=6"],
    }.items():
        with open("out/metrics.jsonl", "ab") as file:
            file.write(b'\xff{"event"\n')
        code, out, error = command(verb, *argv)
        assert code == 0, (verb, error)
        assert "metrics.jsonl: line " in out + error and "cannot be read and is left out" in out + error, verb
    assert [event["iter"] for event in events("out", "iter")] == list(range(6))
    assert len(events("out", "evaluation")) == 1


STRANGE = [  # events of no release, one value of each strange
    {"event": "end", "best": {"val_loss": "nan", "step": 3}},
    {"event": "end", "best": [1]},
    {"event": "end", "best": {"val_loss": 1.0}},
    {"event": "evaluation", "baseline": 3},
    {"event": "evaluation", "baseline": {"name": ["x"], "loss": 1.0}},
    {"event": "evaluation", "loss": {"a": 1}},
    {"event": "evaluation", "general": {"name": "x", "loss": 1.0, "baseline_loss": "much", "kl": 1.0}},
    {"event": "evaluation", "memorisation": {"copied": 0.5}},
    {"event": "evaluation", "difference": {"mean": "x", "low": 1, "high": "y"}},
    {"event": "rollback", "step": 1},
    {"event": "batch_size", "batch_size": "x"},
    {"event": "out_of_memory", "done": [1]},
    {"event": "warning", "line": {"a": 1}},
    {"event": "failed", "code": 1},
    {"event": "diverged", "problem": {}},
    {"event": "stop", "signal": 3},
    {"event": "stop", "step": 10**400},
    {"event": "resume", "step": "x"},
    {"event": "start", "recipe": {"dataset": 3}},
    {"event": "start", "recipe": {"learning_rate": []}},
    {"event": "start", "data": {"splits": 3}},
    {"event": "start", "data": {"splits": {}, "sources": [1]}},
    {"event": "start", "machine": {"a": 1}},
    {"event": "samples", "step": 1, "start": "x", "texts": [3, None]},
    {"event": "base_samples", "texts": "abc"},
    {"event": "eval", "step": 1, "train_loss": 1, "val_loss": 2, "val_losses": {"a": "x"}},
    {"event": "iter", "iter": 1, "loss": 1, "seconds": {}},
    {"event": "iter", "iter": 10**400, "loss": 1},
    {"event": "iter", "iter": True, "loss": 1},
]


def test_an_event_without_a_time_has_that_of_the_one_before(tmp_path):
    Path(tmp_path, "m").write_text('{"event": "a"}\n{"event": "b", "time": 2.5}\n{"event": "c", "time": null}\n')
    assert [event["time"] for event in read_metrics(tmp_path / "m")] == [0.0, 2.5, 2.5]


def test_strange_events_end_no_command(tiny_run, command):
    tiny_run("out", "--max_iters=4")
    tiny_run("other", "--max_iters=4")
    path = Path("out/metrics.jsonl")
    whole = path.read_text()
    lines = "".join(json.dumps({"time": 1.0, **event}) + "\n" for event in STRANGE)
    lines += '{"event": "stop", "time": true}\n'
    for content in (whole + lines, lines + whole):
        path.write_text(content)
        assert len(read_metrics(path)) == whole.count("\n")
        for argv in (["report", "--out_dir=out"], ["diagnose", "--out_dir=out"], ["compare", "out", "other"]):
            code, out, error = command(*argv)
            assert code == 0 and f"and {len(STRANGE)} more cannot be read" in out + error, (argv, error)


def test_figures_that_cannot_be_kept_are_told(capsys):
    event = {"event": "evaluation", "loss": 1.0}
    table.record("/proc", event)  # a place where nobody writes
    out = capsys.readouterr().out
    assert out.startswith("/proc/metrics.jsonl cannot be written: ") and len(out.splitlines()) == 1


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="becomes another user")
def test_eval_of_a_run_that_others_own(tiny_run, tmp_path, command):
    tiny_run("out", "--max_iters=4")
    assert command("eval", "--out_dir=out")[0] == 0  # imports what another user may not read
    for place in [tmp_path, *tmp_path.parents[:2]]:
        place.chmod(0o755)
    before = Path("out/metrics.jsonl").read_bytes()
    os.seteuid(65534)
    try:
        code, out, error = command("eval", "--out_dir=out")
    finally:
        os.seteuid(0)
    assert code == 0 and error == "" and "loss" in out
    assert out.count("out/metrics.jsonl cannot be written: Permission denied; these figures are not kept there\n") == 1
    assert Path("out/metrics.jsonl").read_bytes() == before
