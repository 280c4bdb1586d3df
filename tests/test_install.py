"""As a user without a checkout: the wheel of the sdist, in an environment and a directory of its own.

Its dependencies are those of this environment, so nothing is downloaded."""

import ast
import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import finetune
from finetune.runtime import device

ROOT = Path(__file__).parents[1]
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg", encoding="utf-8")
SHORT = ("--max_iters=20", "--eval_interval=20", "--max_new_tokens=20")

LOOK = "import finetune; print(finetune.__file__); print(finetune.__all__)"


def run(*command, cwd=None, ok=True):
    """Output of a command that knows nothing of this checkout."""
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=environ, capture_output=True, text=True, timeout=300)
    assert (done.returncode == 0) == ok, done.stdout + done.stderr
    return done.stdout if ok else done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The directory with the sdist, and the wheel that was built from it."""
    source, dist = tmp_path_factory.mktemp("source") / "tree", tmp_path_factory.mktemp("dist")
    for name in ("finetune", "recipes", "docs", "scripts", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "setup.cfg", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", dist, source)
    return dist


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """The bin directory of an environment with the wheel."""
    home = tmp_path_factory.mktemp("env")
    run(sys.executable, "-m", "venv", "--without-pip", home)
    python = home / "bin" / "python"
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    here = run(sys.executable, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    Path(site, "dependencies.pth").write_text(here + "\n")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--quiet"]
    run(*pip, *built.glob("*.whl"))
    return python.parent


@pytest.mark.heavy
def test_the_wheel_has_all_that_the_package_needs(built):
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    in_wheel = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "finetune").rglob("*.py")}
    data = {
        f"finetune/{path}"
        for path in (
            "py.typed",
            "flags.pyi",
            "runs/model_card.md.j2",
            "tools/report/report.html.j2",
            "publishing/space.html.j2",
        )
    }
    recipes = {path.relative_to(ROOT / "recipes") for path in (ROOT / "recipes").rglob("*.yaml")}
    recipes = {f"finetune/packaged_recipes/{path}" for path in recipes}
    assert {name for name in in_wheel if ".dist-info/" not in name} == modules | data | recipes
    in_sdist = {name.partition("/")[2] for name in tarfile.open(sdist).getnames()}
    assert in_sdist >= modules | {"LICENSE", "README.md", "tests/conftest.py", "docs/data.md", "recipes/small.yaml"}


@pytest.mark.heavy
def test_the_metadata(built):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        metadata, _, readme = archive.read(name).decode().partition("\n\n")
    assert re.search(r"^Name: finetune-gpt2$", metadata, re.M) and readme.startswith("# finetune\n")
    assert f"Version: {finetune.__version__}\n" in metadata and "Keywords: " in metadata
    needs = {found.name: found for found in map(Requirement, re.findall(r"^Requires-Dist: (.*)", metadata, re.M))}
    assert {"torch", "wandb", "evaluate"} <= {name for name in needs if needs[name].marker is None}
    for requirement in needs.values():
        assert not {"<", "<=", "==", "~="} & {part.operator for part in requirement.specifier} or requirement.marker


@pytest.mark.heavy
def test_a_user_without_a_checkout(installed, tmp_path):
    for verb in ("recipes", "env"):
        assert run(installed / "finetune", verb, cwd=tmp_path)
    copied = run(installed / "finetune", "recipes", "quickstart", "--to", "mine.yaml", cwd=tmp_path)
    assert copied == "quickstart copied to mine.yaml; finetune train mine.yaml\n"
    trained = run(installed / "finetune", "train", "quickstart", *SHORT, cwd=tmp_path)
    assert "best val loss" in trained and (tmp_path / "out-quickstart/best/model.safetensors").is_file()
    sampled = run(installed / "finetune", "sample", "--out_dir=out-quickstart", "--max_new_tokens=20", cwd=tmp_path)
    assert len(sampled) > 20
    assert "finetune 0.1.0" in run(installed / "finetune", "--version", cwd=tmp_path)
    place, names = run(installed / "python", "-c", LOOK, cwd=tmp_path).splitlines()
    assert place.startswith(str(installed.parent)) and "GPT" in names
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "mine.yaml", "out-quickstart"]


@pytest.mark.heavy
def test_the_lock_is_what_pip_finds(installed, tmp_path):
    """Oracle: pip's own resolver has nothing to add to the pinned names, and knows the same versions."""
    pins = run(installed / "finetune", "env", "--lock", cwd=tmp_path)
    assert f"# finetune-gpt2 {finetune.__version__}: not from an index" in pins
    (tmp_path / "lock.txt").write_text(pins, encoding="utf-8")
    names = {line.partition("==")[0] for line in pins.splitlines() if "==" in line}
    declared = {Requirement(line).name for line in SETUP["options"]["install_requires"].split("\n") if line}
    assert {name.replace("_", "-").lower() for name in declared} <= names and not names & {"pytest", "ruff"}
    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", "--report=-", "--quiet", "-r", "lock.txt"]
    assert json.loads(run(*pip, cwd=tmp_path))["install"] == []


def test_a_lock_needs_an_installation(monkeypatch, command):
    monkeypatch.setattr("finetune.env.DISTRIBUTION", "finetune-gpt2-of-nobody")
    code, out, error = command("env", "--lock")
    assert (code, out) == (2, "") and "is not installed in this Python; pip install finetune-gpt2-of-nobody" in error


@pytest.mark.parametrize(
    "version, is_newer",
    [("2.6.0", False), ("2.14.0+cu130", False), ("2.14.9", False), ("2.15.0a0+git1", True), ("3.0", True)],
)
def test_a_newer_torch_is_named(version, is_newer):
    wanted = f"torch {version} is newer than 2.14, the newest that finetune was tested with" if is_newer else None
    assert device.about_torch(version) == wanted


def test_training_says_so_in_one_line(tiny_run, command, monkeypatch):
    out = tiny_run("out", "--max_iters=1")
    for tested, times in (("2.5", 1), (device.TESTED_TORCH, 0)):
        monkeypatch.setattr(device, "TESTED_TORCH", tested)
        code, said, _ = command("train", f"{out}/recipe.yaml", "--init_from=resume")
        assert code == 0 and said.count("newer than") == times


@pytest.mark.parametrize("path", sorted((ROOT / "finetune").rglob("*.py")), ids=lambda path: path.stem)
def test_every_module_is_python_3_10(path):
    """Its syntax, and what it takes from the standard library of later versions."""
    tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 10))
    new = {"tomllib", "ExceptionGroup", "BaseExceptionGroup", "batched", "StrEnum", "file_digest", "override", "chdir"}
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not new & names
    of_typing = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "typing"
        for alias in node.names
    }
    later = {
        "Self",
        "Unpack",
        "NotRequired",
        "Required",
        "LiteralString",
        "Never",
        "assert_never",
        "dataclass_transform",
    }
    assert not later & of_typing, "typing_extensions has it, for the type checker"


@pytest.mark.parametrize(
    "name, version, is_right",
    [
        ("tiktoken", "0.10.0", False),  # encode_to_numpy makes tokens of names that are not in allowed_special
        ("tiktoken", "0.11.0", True),
        ("gguf", "0.10.0", False),  # imports sentencepiece, which it does not declare
        ("gguf", "0.11.0", True),
    ],
)
def test_releases_with_faults_are_not_installed(name, version, is_right):
    declared = [SETUP["options"]["install_requires"], *SETUP["options.extras_require"].values()]
    declared = [line for lines in declared for line in lines.split("\n") if line and not line.startswith("#")]
    found = [need for need in map(Requirement, declared) if need.name == name]
    assert found and all(need.specifier.contains(version) == is_right for need in found)


def test_the_versions_that_are_promised():
    promised = re.findall(r"Python :: (3\.\d+)", SETUP["metadata"]["classifiers"])
    assert promised == [f"3.{minor}" for minor in range(10, 15)]
    assert SETUP["options"]["python_requires"] == f">={promised[0]}"
