"""The tour: each of its commands, in order; as a whole, with its Ctrl-C, in the slow variant."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from finetune import tour

ROOT = Path(__file__).parents[1]


def test_every_step_is_a_command_that_works(command):
    assert tour.write_texts(Path("texts")) == len(list(Path("texts").iterdir()))
    outputs = {}
    for _, line in tour.steps():
        name, verb, *argv = shlex.split(line)
        assert name == "finetune"
        if verb == "train":  # 300 updates take half a minute
            argv.append("--max_iters=8" if line == tour.TRAIN else "--max_iters=16")
        code, out, error = command(verb, *argv)
        assert code == 0, f"{line}\n{error}"
        outputs[line] = out
    raw, fixed, clean = list(outputs.values())[:3]
    assert "3 documents that repeat an earlier one" in raw and "read as something else, like Ã©" in raw
    assert "fixed          1 lines" in fixed and "repeat" not in clean and "Ã©" not in clean
    assert "resuming run at iteration 8" in outputs["finetune train run/recipe.yaml --init_from=resume"]
    assert Path("mine/model.safetensors").exists() and Path("run/report.html").exists()


def test_a_directory_of_the_user_is_left_alone(command):
    Path("finetune-tour").mkdir()
    code, _, error = command("tour")
    assert code == 2 and error == "out_dir: finetune-tour exists; give another, or remove it\n"
    assert not any(Path("finetune-tour").iterdir())


@pytest.mark.slow
def test_the_tour_is_interrupted_and_goes_on():
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-m", "finetune.tour"], capture_output=True, text=True, env=environ)
    assert done.returncode == 0, done.stderr
    assert "stopped by SIGINT after" in done.stderr + done.stdout and "resuming run at iteration" in done.stdout
    losses = [line for line in done.stdout.splitlines() if line.startswith("step ")]
    assert float(losses[-1].split()[-1]) < float(losses[0].split()[-1]) - 1
