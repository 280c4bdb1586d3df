"""SIGKILL at any moment of any command: nothing that was acknowledged is lost, and the same command goes on.

KILLS=N sets the number of kills of each command in the long variant, 200 by itself: 1,400 in all."""

import json
import os
import subprocess
import sys
from pathlib import Path

import forked
import pytest
from stand_in_hub import TOKEN, serving

MANY = pytest.param(int(os.environ.get("KILLS", 200)), marks=pytest.mark.slow)
SHAPE = "--n_layer=1 --n_head=1 --n_embd=16 --block_size=16 --batch_size=4 --gradient_accumulation_steps=1".split()
PREPARE = ["prepare", "text.txt", "--tokenizer=char", "--out_dir=data", "--doctor=false"]
TRAIN = ["train", "--init_from=scratch", "--dataset=data", "--out_dir=run", "--device=cpu", "--dtype=float32", *SHAPE]
BINS = ["data/train.bin", "data/val.bin", "data/meta.json"]
EXPORTED = [f"mine/{name}" for name in ("model.safetensors", "config.json", "tokenizer.json", "manifest.json")]
PUSHED = [path.replace("mine/", "pushed/") for path in EXPORTED]
# what is killed, and the files that must be whole after every kill
SERIES = {
    "prepare": (PREPARE, BINS),
    "cache": (["train", "--init_from=run/best", "--dataset=data", "--eval_only=true", "--device=cpu"], BINS),
    "export": (["export", "--out_dir=run", "--to=mine"], EXPORTED),
    "report": (["report", "--out_dir=run"], ["run/report.html"]),
    "training": (["train", "run/recipe.yaml", "--init_from=resume", "--max_iters=6"], ["run/best/model.safetensors"]),
}
PUSH = {"argv": ["export", "--out_dir=run", "--to=pushed", "--push_to_hub=me/mine"], "shows": PUSHED}
# a process of its own, because the client of the Hub reads its environment once
WITH_HUB = f"""import importlib, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import forked, kills
for name in forked.WARM:
    importlib.import_module(name)
kills.main(["jobs.json"])"""
# from nothing to the end, by one command: kills before, in and after the first state
FIRST = {
    "argv": [*TRAIN, "--out_dir=first", "--init_from=auto", "--max_iters=4", "--eval_interval=2"],
    "makes": "first",
}
FIRST["shows"] = ["first/best/model.safetensors", "first/last/step-00000004/optimizer.safetensors"]


@pytest.fixture
def hub():
    """A Hub that forgets all when it is asked to, so that the next push has all to send."""
    with serving() as hub:

        def before(method, path):
            if path == "forget":
                hub.held = hub.repositories.copy()
                hub.repositories.clear()
                hub.objects.clear()
                return 200

        hub.before = before
        yield hub


@pytest.mark.parametrize("kills", [pytest.param(2, marks=pytest.mark.heavy), MANY])
def test_kills(corpus, command, hub, kills):
    corpus("text.txt", words=60_000)
    for verb, *argv in (PREPARE, [*TRAIN, "--max_iters=4", "--eval_interval=2"]):
        code, _, error = command(verb, *argv)
        assert code == 0, error
    jobs = [*({"argv": argv, "shows": shows} for argv, shows in SERIES.values()), FIRST, PUSH]
    jobs = [{**job, "kills": kills, "seed": kills} for job in jobs]
    jobs[-1]["forget"] = f"{hub.url}/forget"
    Path("jobs.json").write_text(json.dumps(jobs[:-1]))
    done = forked.run("kills", "jobs.json", timeout=None)
    assert done.returncode == 0, done.stderr
    Path("jobs.json").write_text(json.dumps(jobs[-1:]))
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_HOME": str(Path("hf-home").resolve()), "HF_HUB_OFFLINE": "0"}
    pushes = subprocess.run([sys.executable, "-c", WITH_HUB], capture_output=True, text=True, env=environment)
    assert pushes.returncode == 0, pushes.stderr
    for name, found in zip([*SERIES, "first", "push"], [*json.loads(done.stdout), *json.loads(pushes.stdout)]):
        print(name, found)
        assert found["kills"] == kills and found["lost"] == [] and found["failed"] == [] and found["left"] == [], name
    pushed = hub.held["me/mine"]["files"]
    assert len(hub.commits) > 2
    assert all(pushed[Path(path).name] == Path(path).read_bytes() for path in PUSHED[:3])
