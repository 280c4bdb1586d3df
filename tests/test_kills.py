"""SIGKILL at any moment of any command: nothing that was acknowledged is lost, and the same command goes on.

KILLS=N sets the number of kills of each command in the long variant, 200 by itself: 1,000 in all."""

import json
import os
from pathlib import Path

import forked
import pytest

MANY = pytest.param(int(os.environ.get("KILLS", 200)), marks=pytest.mark.slow)
SHAPE = "--n_layer=1 --n_head=1 --n_embd=16 --block_size=16 --batch_size=4 --gradient_accumulation_steps=1".split()
PREPARE = ["prepare", "text.txt", "--tokenizer=char", "--out_dir=data", "--doctor=false"]
TRAIN = ["train", "--init_from=scratch", "--dataset=data", "--out_dir=run", "--device=cpu", "--dtype=float32", *SHAPE]
BINS = ["data/train.bin", "data/val.bin", "data/meta.json"]
EXPORTED = [f"mine/{name}" for name in ("model.safetensors", "config.json", "tokenizer.json", "manifest.json")]
# what is killed, and the files that must be whole after every kill
SERIES = {
    "prepare": (PREPARE, BINS),
    "cache": (["train", "--init_from=run/best", "--dataset=data", "--eval_only=true", "--device=cpu"], BINS),
    "export": (["export", "--out_dir=run", "--to=mine"], EXPORTED),
    "report": (["report", "--out_dir=run"], ["run/report.html"]),
    "training": (["train", "run/recipe.yaml", "--init_from=resume", "--max_iters=6"], ["run/best/model.safetensors"]),
}


@pytest.mark.parametrize("kills", [2, MANY])
def test_kills(corpus, command, kills):
    corpus("text.txt", words=60_000)
    for verb, *argv in (PREPARE, [*TRAIN, "--max_iters=4", "--eval_interval=2"]):
        code, _, error = command(verb, *argv)
        assert code == 0, error
    jobs = [{"argv": argv, "kills": kills, "seed": kills, "shows": shows} for argv, shows in SERIES.values()]
    Path("jobs.json").write_text(json.dumps(jobs))
    done = forked.run("kills", "jobs.json", timeout=None)
    assert done.returncode == 0, done.stderr
    for name, found in zip(SERIES, json.loads(done.stdout)):
        print(name, found)
        assert found["kills"] == kills and found["lost"] == [] and found["failed"] == [] and found["left"] == [], name
