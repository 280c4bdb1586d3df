"""The commands about finetune itself: recipes, env, completion, --version, and how fast they answer."""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import psutil
import pytest
import yaml

import finetune
from finetune import completion, env, recipes
from finetune.__main__ import dispatch
from finetune.common.errors import UsageError
from finetune.config.cli import parse
from finetune.config.recipe import Recipe
from finetune.config.recipe_names import launch_names, recipe_names
from finetune.config.verbs import VERBS

ROOT = Path(__file__).parents[1]


def test_version(capsys):
    for flag in ("--version", "-V"):
        assert dispatch([flag]) == 0
        assert capsys.readouterr().out == f"finetune {finetune.__version__}\n"


@pytest.mark.parametrize("typed, meant", [("trian", "train"), ("Train", "train"), ("recipe", "recipes")])
def test_a_mistyped_verb_names_the_nearest(typed, meant):
    with pytest.raises(UsageError, match=f"^{typed}: no such verb. Did you mean {meant}\\?$"):
        dispatch([typed])


def test_recipes_are_listed_with_a_line_each(capsys):
    recipes.main([])
    rows = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert [name for name, _ in rows] == [*recipe_names(), *launch_names()]
    assert all(what.endswith(".") and len(what) < 140 for _, what in rows)


@pytest.mark.parametrize("name", [*recipe_names(), *launch_names()])
def test_a_copy_is_the_recipe_and_its_command_names_the_copy(name, capsys):
    recipes.main([name])
    shown = capsys.readouterr().out
    recipes.main([name, "--to=my copy.yaml"])
    copy = Path("my copy.yaml").read_text(encoding="utf-8")
    assert copy.splitlines()[1:] == shown.splitlines()[1:] and yaml.safe_load(copy) == yaml.safe_load(shown)
    assert copy.splitlines()[0].count("'my copy.yaml'") == 1
    if name in recipe_names():
        from_copy, from_name = (
            parse(Recipe, [path], "")[0] for path in ("my copy.yaml", f"{ROOT}/recipes/{name}.yaml")
        )
        assert from_copy == from_name


@pytest.mark.parametrize(
    "argv, message",
    [
        (["small", "--to=mine.yaml"], "to: mine.yaml exists; --overwrite=true replaces it"),
        (["small", "--to=folder.yaml"], "folder.yaml is a directory"),
        (["small", "--to=mine.txt"], "a recipe is a .yaml file, got mine.txt"),
        (["small", "--to=no/mine.yaml"], "there is no directory no"),
        (["--to=new.yaml"], "which recipe?"),
        (["small", "xl"], "one recipe at a time, got small, xl"),
        (["smal"], "Did you mean small?"),
    ],
)
def test_recipes_are_not_copied_over_anything(argv, message):
    Path("mine.yaml").write_text("epochs: 1\n", encoding="utf-8")
    Path("folder.yaml").mkdir()
    with pytest.raises(UsageError) as error:
        recipes.main(argv)
    assert message in str(error.value) and Path("mine.yaml").read_text() == "epochs: 1\n"
    assert sorted(path.name for path in Path(".").iterdir()) == ["folder.yaml", "mine.yaml"]


def test_overwrite_replaces_a_recipe():
    Path("mine.yaml").touch()
    recipes.main(["small", "--to=mine.yaml", "--overwrite=true"])
    assert "init_from: gpt2" in Path("mine.yaml").read_text(encoding="utf-8")


def test_env_is_one_screen_without_names_or_secrets(capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("WANDB_API_KEY", "secret-key")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("NCCL_P2P_DISABLE", "/home/ada/x")
    env.main([])
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) <= 24 and max(map(len, shown.splitlines())) <= 120
    facts = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in shown.splitlines())
    assert facts["finetune"] == finetune.__version__ and facts["torch"] == metadata.version("torch")
    assert sys.version.startswith(facts["Python"].split()[0])
    assert facts["memory"].startswith(f"{psutil.virtual_memory().total / 1e9:.2f} GB")
    assert facts["environment"] == "NCCL_P2P_DISABLE=~/x OMP_NUM_THREADS=3"
    for secret in ("secret", "ada", os.uname().nodename, str(Path(sys.prefix))):
        assert secret not in shown
    env.main(["--json=true"])
    again = json.loads(capsys.readouterr().out)
    changing = ("memory",)
    assert {key: again[key] for key in again if key not in changing} == {
        key: facts[key] for key in facts if key not in changing
    }


def test_the_driver_and_its_failures(monkeypatch, capsys):
    """A stand-in for nvidia-smi, as it answers with two GPUs and with a broken driver."""
    smi = Path("bin/nvidia-smi")
    smi.parent.mkdir()
    monkeypatch.setenv("PATH", f"{smi.parent.resolve()}:{os.environ['PATH']}")
    for script, wanted in (
        ("echo '570.1, NVIDIA X'; echo '570.1, NVIDIA X'", "570.1, NVIDIA X; 570.1, NVIDIA X"),
        ("exit 9", "nvidia-smi fails: CalledProcessError: "),
    ):
        smi.write_text(f"#!/bin/sh\n{script}\n")
        smi.chmod(0o755)
        env.main(["--json=true"])
        assert json.loads(capsys.readouterr().out)["driver"].startswith(wanted)


@pytest.fixture
def completed(capsys):
    """What bash, with our script and its own word breaks, would put in place of the word under the cursor."""
    completion.main(["bash"])
    script = Path("finetune.bash")
    script.write_text(capsys.readouterr().out, encoding="utf-8")

    def complete(line):
        words = line.split() + [""] * line.endswith(" ")
        lines = [
            f"source {script}",
            f"COMP_LINE='{line}' COMP_POINT={len(line)} COMP_WORDS=({' '.join(word or repr('') for word in words)})",
            f'COMP_CWORD={len(words) - 1}; _finetune; printf "%s\\n" "${{COMPREPLY[@]}}"',
        ]
        found = subprocess.run(["bash", "-c", "\n".join(lines)], capture_output=True, text=True, timeout=20)
        assert (found.returncode, found.stderr) == (0, ""), found.stderr
        return found.stdout.split()

    return complete


def test_completion_in_bash(completed):
    assert completed("finetune ") == [*VERBS, "--help", "--version"]
    assert completed("finetune tr") == ["train"]
    assert completed("finetune train --learning_r") == ["--learning_rate="]
    assert completed("finetune train --device=") == ["auto", "cpu", "cuda", "mps"]
    assert completed("finetune train --overwrite=t") == ["true"]
    assert completed("finetune train --dataset=") == []  # then bash lists files
    assert completed("finetune plan small_") == ["small_domain"]
    Path("small_and_mine.yaml").touch()
    assert completed("finetune train small_") == ["small_domain", "small_and_mine.yaml"]
    assert set(completed("finetune recipes f")) == {"fsdp2", "fsdp2_multi_node", "finetune.bash"}
    assert completed("finetune completion z") == ["zsh"]
    assert completed("finetune sample --chat=f") == ["false"]
    for verb in VERBS:
        cls = sys.modules[f"finetune.{verb}"].Options
        flags = {f"--{name}=" for name in cls.__dataclass_fields__ if name != "sources"}
        assert set(completed(f"finetune {verb} --")) == {*flags, "--debug=", "--help"}


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_completion_is_read_by_other_shells(shell, capsys):
    completion.main([shell])
    script = capsys.readouterr().out
    for word in ("learning_rate", "quickstart", "cuda", *VERBS):
        assert word in script
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    checked = subprocess.run([shell, "-n"], input=script, capture_output=True, text=True, timeout=20)
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize("argv", [[], ["tcsh"], ["bash", "zsh"]])
def test_completion_knows_three_shells(argv):
    with pytest.raises(UsageError, match="must be bash, zsh or fish"):
        completion.main(argv)


def seconds(*command):
    """Of processor time, which is the same on a busy machine."""
    before = os.times()
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL, env={"PYTHONPATH": str(ROOT)})
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def test_help_and_import_are_fast():
    """Bounds 0.3 s and 0.1 s, of what they add to a bare Python; the fastest of five, as others use the machine too."""
    bare = min(seconds("-c", "pass") for _ in range(5))
    assert min(seconds("-m", "finetune", "--help") for _ in range(5)) - bare < 0.3
    assert min(seconds("-c", "import finetune") for _ in range(5)) - bare < 0.1


def test_neither_help_nor_completion_imports_torch():
    code = (
        "import sys; from finetune import completion; completion.main(['bash']); heavy = 'torch transformers datasets"
        " wandb evaluate scipy matplotlib'.split(); assert not {*heavy} & set(sys.modules)"
    )
    seconds("-c", code)


def test_nothing_is_overwritten_without_a_file(command):
    assert "overwrite: has no effect without --to" in command("recipes", "small", "--overwrite")[2]


def test_flags_of_train_alone_are_completed(completed):
    assert completed("finetune train --lau") == ["--launch="] and "fsdp2" in completed("finetune train --launch=f")
