"""What a terminal shows of a run. A real run writes to a pseudo-terminal, and an emulator reads the screen."""

import contextlib
import fcntl
import os
import re
import signal
import struct
import sys
import termios
import threading
from importlib import import_module

import pytest

from finetune.common.errors import Failure
from finetune.config.cli import parse
from finetune.config.recipe import Recipe
from finetune.train import train_and_push
from finetune.training.state import Hooks

pyte = pytest.importorskip("pyte")
ROWS = 400
BAR = re.compile(r"iter [\d,]+/[\d,]+ ")


class Terminal:
    """A terminal of so many columns, as stdout and stderr."""

    def __init__(self, columns):
        self.columns = columns
        self.written = b""

    @contextlib.contextmanager
    def attached(self, monkeypatch):
        reader, writer = os.openpty()
        fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 50, self.columns, 0, 0))
        thread = threading.Thread(target=self._read, args=(reader,))
        thread.start()
        with open(writer, "w", encoding="utf-8", buffering=1) as stream, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stream)
            patch.setattr(sys, "stderr", stream)
            yield stream
        thread.join()
        os.close(reader)

    def _read(self, reader):
        with contextlib.suppress(OSError):  # the writer is closed
            while part := os.read(reader, 65536):
                self.written += part

    def screens(self):
        """The rows of the screen after each write that moves the cursor home."""
        screen = pyte.Screen(self.columns, ROWS)
        stream = pyte.ByteStream(screen)
        for part in re.split(rb"(?<=.)(?=\r)", self.written):
            stream.feed(part)
            yield [row.rstrip() for row in screen.display]


class Guest:
    """Prints while the run goes on, as trackers do, and may press Ctrl-C."""

    def __init__(self, ctrl_c_at=None):
        self.ctrl_c_at = ctrl_c_at

    def __call__(self, event):
        done = getattr(event, "step", None)
        if done == 3:
            print("tracker: a notice", file=sys.stderr)
            sys.stdout.write("tracker: a notice in ")
            sys.stdout.write("two parts\n")
        if done == self.ctrl_c_at:
            os.write(sys.stdout.fileno(), b"^C")  # the echo of a terminal
            os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def shown(corpus, monkeypatch):
    """A function that trains on a terminal and returns its screens."""

    def train(columns, guest):
        terminal = Terminal(columns)
        flags = """--init_from=scratch --tokenizer=char --n_layer=1 --n_head=1 --n_embd=16 --block_size=16
            --batch_size=2 --gradient_accumulation_steps=1 --max_iters=12 --eval_interval=4 --log_interval=1
            --dtype=float32 --num_samples=1 --sample_interval=8 --max_new_tokens=10 --seed=3""".split()
        recipe, origins = parse(Recipe, [f"--dataset={corpus()}", *flags], "")
        with terminal.attached(monkeypatch):
            try:
                train_and_push(recipe, origins, Hooks(notify=guest))
            except Failure as error:
                print(error, file=sys.stderr)
        return list(terminal.screens())

    return train


def bars_of(screens):
    """The rows with a bar, of screens that never show two, or anything below one."""
    bars = []
    for rows in screens:
        found = [number for number, row in enumerate(rows) if BAR.search(row)]
        assert len(found) <= 1, "a bar that wrapped, or an old one"
        bars += [rows[number] for number in found]
        assert not any(any(rows[number + 1 :]) for number in found), "the bar is at the bottom"
    return bars


@pytest.mark.parametrize(
    ("columns", "last"),
    [
        (60, r"loss \d\.\d{4}"),
        pytest.param(80, r"best val loss \d\.\d{4} at \d+", marks=pytest.mark.heavy),
        pytest.param(120, r"mfu \d+\.\d%", marks=pytest.mark.heavy),
    ],
)
def test_one_bar_that_fits_and_none_at_the_end(shown, columns, last):
    screens = shown(columns, Guest())
    bars = bars_of(screens)
    timed = [bar for bar in bars if " left, " in bar]
    assert len(timed) > 3
    for bar in timed:
        assert re.match(r"\d+s left, iter \d+/12 ", bar) and len(bar) <= columns - 3
    assert any(re.search(f", {last}$", bar) for bar in timed), "what fits, whole"
    assert any(", evaluating 100%" in bar for bar in bars)
    rows = screens[-1]
    assert not any("iter " in row for row in rows)
    assert [row for row in rows if row.startswith("tracker")] == ["tracker: a notice", "tracker: a notice in two parts"]
    place = rows.index("samples at step 8")
    assert rows[place - 1] == "" and rows[place + 1] == "-" * 15, "set off from the run's own lines"
    assert rows[rows.index("-" * 15, place + 2) + 1] == ""


def test_what_takes_long_without_a_run_has_a_bar(corpus, tiny_run, monkeypatch):
    tiny_run("base", "--max_iters=2")
    tiny_run("out", "--max_iters=2", "--init_from=base", *(f"--n_{of}=none" for of in ("layer", "head", "embd")))
    terminal = Terminal(100)
    with terminal.attached(monkeypatch):
        import_module("finetune.prepare").main([str(corpus()), "--out_dir=data/again", "--tokenizer=char"])
        train_and_push(*parse(Recipe, [f"--dataset={corpus()}", "--init_from=out", "--eval_only=true"], ""))
        import_module("finetune.export").main(["--out_dir=out", "--to=mine", "--interpolate=0.5"])
    shown = terminal.written.decode()
    assert "reading:" in shown and shown.count("evaluating:") >= 2 + 3  # two splits; weights of 0, 0.5 and 1
    rows = list(terminal.screens())[-1]
    assert any(row.startswith("interpolate 0.50: val loss") for row in rows)
    assert not any(row.startswith(("reading", "evaluating")) for row in rows)


def test_ctrl_c_leaves_no_bar(shown):
    screens = shown(60, Guest(ctrl_c_at=5))
    assert bars_of(screens)
    rows = [row for row in screens[-1] if row]
    assert not any("iter " in row or "^C" in row for row in rows)
    assert rows[-3].startswith("stopped by SIGINT after 6 updates; to go on: finetune train")
