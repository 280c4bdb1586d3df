"""What standard output, standard error and the environment are does not end a command: no reader, no space, no letters.

Most of these run a program without torch in a process of its own: the streams are those of the system."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from finetune.common import machine
from finetune.runs.logger import RunLogger
from finetune.training import trainer as trainers

ROOT = Path(__file__).parents[1]
PROGRAM = """
import sys
from finetune.common import console
from finetune.config.cli import run
def main(argv):
    {before}
    for number in range({lines}):
        print("line 東 \\udc80 é", number, flush=True)
    with open("done", "w") as file:
        file.write("all of it")
    print("end")
run(main)
"""


def run(redirected, lines=3, before="pass", **environment):
    """(exit code, stdout, stderr) of a command whose streams the shell redirects; `done` is what it had to do."""
    Path("program.py").write_text(PROGRAM.format(lines=lines, before=before), encoding="utf-8")
    done = subprocess.run(
        f'"{sys.executable}" program.py {redirected}',
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr.decode("latin-1")


@pytest.mark.parametrize(
    "encoding, seen",
    [
        ({"PYTHONIOENCODING": "latin-1"}, b"line ? ? \xe9 0"),
        ({"PYTHONIOENCODING": "ascii"}, b"line ? ? ? 0"),
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, b"line ? ? ? 0"),
        ({"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, b"line ? ? ? 0"),
        ({"PYTHONIOENCODING": "utf-8"}, "line 東 ? é 0".encode()),  # a half of a surrogate pair is no character
    ],
    ids=["latin-1", "ascii", "C", "POSIX", "utf-8"],
)
def test_letters_that_a_console_lacks_are_replaced(encoding, seen):
    code, out, error = run("", **encoding)
    assert code == 0 and error == "" and out.splitlines()[0] == seen and Path("done").exists()


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&-", ">&- 2>&- <&-"])
def test_closed_streams_end_nothing(closed):
    assert run(f"{closed}; echo code $?")[1].endswith(b"code 0\n")
    assert Path("done").read_text() == "all of it"


@pytest.mark.parametrize("reader", ["true", "head -1", "head -c 3"])
def test_a_reader_that_goes_does_not_end_the_work(reader):
    code, _, error = run(f"| {reader}; exit ${{PIPESTATUS[0]}}", lines=20_000)
    assert code == 0 and error == "" and Path("done").exists()
    code, _, error = run(f"2>&1 >/dev/null | {reader}; exit ${{PIPESTATUS[0]}}", before="sys.stdout = sys.stderr")
    assert code == 0 and Path("done").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has /dev/full")
def test_output_on_a_full_disk_is_told_and_training_goes_on():
    told = "standard output cannot be written: No space left on device"
    code, _, error = run("> /dev/full")
    assert code == 1 and error == f"{told}\n" and not Path("done").exists()
    code, _, error = run("> /dev/full", lines=0)  # known only when the buffer is written, at the end
    assert code == 1 and error == f"{told}\n"
    Path("done").unlink()
    code, _, error = run("> /dev/full", before="console.go_on_without_output()")
    assert code == 0 and error == f"{told}; its lines are lost until it can\n" and Path("done").exists()
    code, out, _ = run("2> /dev/full", before="print('lost', file=sys.stderr, flush=True)")
    assert code == 0 and out.endswith(b"end\n")


@pytest.mark.parametrize("left", [("LOCAL_RANK",), ("RANK",), ("RANK", "LOCAL_RANK"), ("RANK", "WORLD_SIZE")])
def test_ranks_that_no_launcher_gave_are_ignored_in_one_line(left, monkeypatch, capsys):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    for name in left:
        monkeypatch.setenv(name, "1")
    machine.drop_stray_ranks()
    assert not {"RANK", "LOCAL_RANK"} & os.environ.keys()
    assert capsys.readouterr().err.count("left by a launcher, ignored\n") == 1
    machine.drop_stray_ranks()
    assert capsys.readouterr().err == ""


def test_ranks_of_a_launcher_stay(monkeypatch, capsys):
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_ADDR", "127.0.0.1")):
        monkeypatch.setenv(name, value)
    machine.drop_stray_ranks()
    assert os.environ["RANK"] == "0" and capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["LOCAL_RANK", "RANK"])
def test_train_with_a_rank_left_in_the_environment(name, tiny, monkeypatch):
    monkeypatch.setenv(name, "1")
    trainers.train(tiny(max_iters=2))
    assert Path("out/best/model.safetensors").exists()


def test_a_thread_can_train(tiny):
    failed = []

    def target():
        try:
            trainers.train(tiny(max_iters=2))
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
    assert not failed and Path("out/best/model.safetensors").exists()


class Stream:
    """What a notebook or an embedding program may have put in the place of standard output."""

    def __init__(self, encoding, error=None):
        self.encoding, self.error, self.text = encoding, error, ""

    def write(self, text):
        if self.error:
            raise self.error
        text.encode(self.encoding or "utf-8")
        self.text += text

    def flush(self):
        pass


@pytest.mark.parametrize("error", [None, BrokenPipeError(32, "Broken pipe"), OSError(28, "full"), OSError(5, "gone")])
@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-8", None])
def test_a_logger_prints_into_any_stream(error, encoding, monkeypatch):
    stream = Stream(encoding, error)
    monkeypatch.setattr("sys.stdout", stream)
    RunLogger("out", write=True).print("東 é \udc80")
    assert error or len(stream.text) == 6
    monkeypatch.setattr("sys.stdout", None)
    RunLogger("out", write=True).print("nobody listens")
