"""The commands as a user types them, in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

import forked
import pytest

from finetune import __main__ as entry
from finetune.common.errors import Failure, UsageError
from finetune.config import cli
from finetune.config.verbs import VERBS

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[1]
TINY = "--n_layer=1 --n_head=1 --n_embd=16 --block_size=16 --batch_size=2 --max_iters=3 --log_interval=1".split()
SAMPLE = ("--num_samples=2", "--max_new_tokens=30", "--start=Some")


def shell(*command, **env):
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env={**os.environ, **env}, timeout=120
    )
    return done.returncode, done.stdout, done.stderr


def test_the_quickstart_recipe_through_accelerate_launch_then_sample():
    code, out, error = shell(
        BIN / "accelerate",
        "launch",
        "-m",
        "finetune.train",
        ROOT / "recipes/quickstart.yaml",
        *TINY,
        "--max_new_tokens=20",
    )
    assert code == 0, error
    assert f"({os.cpu_count()} threads)" in out or len(os.sched_getaffinity(0)) != os.cpu_count()
    assert out.count("\nThe ") == 2
    code, out, error = shell(sys.executable, "-m", "finetune.sample", "--out_dir=out-quickstart", *SAMPLE)
    assert code == 0, error
    assert out.count("---------------\nSome") == 2
    assert "(step " in out and "val loss" in out
    again = forked.run("finetune.sample", "--out_dir=out-quickstart", *SAMPLE)
    assert out == again.stdout


def test_a_mistake_ends_with_exit_code_2_and_one_line():
    code, out, error = shell(sys.executable, "-m", "finetune.train", "--dataset=nowhere", "--init_from=scratch")
    assert (code, out) == (2, "")
    assert error == "dataset nowhere: no such directory or text file; named texts: shakespeare, python_docs\n"


def test_a_working_directory_that_was_deleted(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    start = [sys.executable, "-c", "import os, sys; os.rmdir(os.getcwd()); os.execv(sys.executable, sys.argv[1:])"]
    command = [sys.executable, "-m", "finetune", "eval", "--out_dir=out"]
    path = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*start, *command], cwd=gone, env=path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "the working directory was deleted; cd into another\n"


def test_a_full_disk_is_named_with_the_file():
    """The limit of a file's size is the full disk; Python ignores its signal."""
    source = Path("long.txt")
    source.write_text("word after word and so on\n" * 2000, encoding="utf-8")
    prepare = [sys.executable, "-m", "finetune.prepare", source, "--out_dir=data/full", "--tokenizer=char"]
    code, _, error = shell("bash", "-c", 'ulimit -f 4; exec "$0" "$@"', *prepare, PYTHONPATH=str(ROOT))
    assert code == 1 and "File too large: 'data/full'" in error and error.count("\n") == 1
    assert not list(Path("data/full").glob("**/*"))


@pytest.mark.parametrize("failure", [UsageError("wrong"), *(Failure("wrong", code) for code in (1, 3, 4, 5, 143))])
def test_debug_adds_the_traceback_and_leaves_the_exit_code(failure, monkeypatch, capsys):
    def main(argv):
        assert argv == ["a", "--seed=1", "b"]
        raise failure

    ends = []
    for flags in ([], ["--debug=false"], ["--debug"], ["--debug=true"], ["--debug", "true"], ["--DEBUG", "True"]):
        monkeypatch.setattr("sys.argv", ["finetune", "a", *flags, "--seed=1", "b"])
        with pytest.raises(SystemExit) as end:
            cli.run(main)
        error = capsys.readouterr().err
        ends.append((end.value.code, error.count("Traceback"), error.count("wrong\n")))
    code = getattr(failure, "code", 2)
    assert {(code, said) for code, _, said in ends} == {(code, 1)}
    assert [traces for _, traces, _ in ends] == [0, 0, 1, 1, 1, 1]


def test_ctrl_c_during_the_imports_is_no_traceback(monkeypatch, capsys):
    def main(argv):
        raise RuntimeError("Error calling __set_name__") from KeyboardInterrupt()

    class Interrupted:
        @staticmethod
        def find_spec(name, path=None, target=None):
            raise KeyboardInterrupt

    monkeypatch.setattr("sys.argv", ["finetune"])
    with pytest.raises(SystemExit) as end:
        cli.run(main)
    assert (end.value.code, capsys.readouterr().err) == (130, "")
    monkeypatch.delitem(sys.modules, "finetune.config.cli")
    monkeypatch.setattr(sys, "meta_path", [Interrupted])
    with pytest.raises(SystemExit) as end:
        entry.main()
    assert end.value.code == 130


def test_what_debug_cannot_be_is_refused():
    assert cli.take_debug(["--debug", "small", "--", "--debug"]) == (["small", "--", "--debug"], True)
    assert cli.take_debug(["--debug", "--no-debug", "x"]) == (["x"], False)
    with pytest.raises(UsageError, match="--debug: expected true or false, got 'maybe'"):
        cli.take_debug(["--debug=maybe"])


def test_finetune_lists_and_runs_the_verbs():
    code, out, _ = shell(BIN / "finetune")
    assert code == 0 and all(f"  {verb} " in out for verb in VERBS)
    code, out, _ = shell(BIN / "finetune", "prepare", "python_docs", "--tokenizer=char", "--out_dir=d")
    assert code == 0 and "train has " in out
    code, _, error = shell(BIN / "finetune", "fly")
    assert code == 2 and "no such verb" in error


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_through_finetune(verb):
    code, out, _ = shell(BIN / "finetune", verb, "--help")
    assert code == 0 and "usage:" in out
