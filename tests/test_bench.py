"""The benchmarks judge before they praise. The long variant (-m slow) runs lanes on a toy."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import bench

    return bench


def contender(bench, losses, tolerance=0.0):
    return bench.Contender("tool", {}, tolerance, [{"iters": range(len(losses)), "losses": losses}])


def test_no_speed_without_equal_losses(bench):
    first = contender(bench, [3.0, 2.0, 1.0])
    bench.gate([first, contender(bench, [3.01, 2.0, 1.0], 0.02)])
    with pytest.raises(SystemExit, match=r"differ from ours by 0.5000, over 0.02"):
        bench.gate([first, contender(bench, [3.0, 2.0, 1.5], 0.02)])
    with pytest.raises(SystemExit):
        bench.gate([first, contender(bench, [3.0, 2.0, float("nan")], 0.02)])


def test_losses_are_compared_by_update(bench):
    every, tenth = {"iters": range(21), "losses": range(21)}, {"iters": [0, 10, 20], "losses": [0, 10, 20.5]}
    assert bench.difference(every, tenth) == 0.5


def test_ratios_are_of_the_same_round(bench):
    assert bench.ratios([10, 20, 60], [5, 20, 20]) == "2.00x (1.00 to 3.00)"


@pytest.mark.heavy
def test_updates_are_timed_without_saves_too(bench, tmp_path):
    """As on a GPU, and where documents are isolated."""
    options = bench.Options(size="tiny", block_size=32, steps=4)
    shared = bench.prepared(options, tmp_path, tokens=640) | {"saves": False, "what": "train"}
    result = bench.Contender("finetune", {"tool": "finetune", "options": {}}).turn(shared)
    assert result["iters"] == [0, 1, 2, 3] and not list((tmp_path / "out").rglob("*.safetensors"))


def test_contenders_find_packages_on_the_path(bench, tmp_path, monkeypatch):
    """A package that only PYTHONPATH leads to, after the code of the checkout."""
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "only_here.py").write_text("found = 1\n")
    (tmp_path / "scripts").mkdir()
    program = "import json, sys, only_here; print(json.dumps(sys.path[1:3]))\n"
    (tmp_path / "scripts" / "contenders.py").write_text(program)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "packages"))
    found = bench.Contender("tool", {}, root=tmp_path).turn({"work": str(tmp_path)})
    assert found == [str(tmp_path), str(tmp_path / "packages")]


def test_what_a_benchmark_refuses_is_told(tmp_path):
    program = "import sys; from finetune.config.cli import run; run(lambda argv: sys.exit('losses differ'))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "losses differ\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    "lane", ["train", "start", "memory", "modes", "processes", "packing", "sample", "sample-memory"]
)
def test_lanes_run_on_a_toy(lane, tmp_path):
    command = [
        sys.executable,
        SCRIPTS / "bench.py",
        lane,
        "--size=tiny",
        "--rounds=1",
        "--block_size=64",
        "--steps=4",
        "--tokens=10",
        f"--out={tmp_path}",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (result,) = (json.loads(path.read_text()) for path in tmp_path.glob("*.json"))
    assert lane == "modes" or result["rows"][0]["tool"].startswith("1 process" if lane == "processes" else "finetune")


@pytest.mark.slow
def test_the_golden_record_is_the_same_twice_and_notices_a_digit(tmp_path):
    golden, record = [sys.executable, SCRIPTS / "golden.py"], tmp_path / "golden.json"
    assert subprocess.run([*golden, f"--write={record}"]).returncode == 0
    same = subprocess.run([*golden, f"--compare={record}"], capture_output=True, text=True)
    assert same.returncode == 0 and same.stdout.startswith("equal")
    changed = json.loads(record.read_text())
    changed["runs"]["bpe"]["iterations"][3][1] += 1e-7
    record.write_text(json.dumps(changed))
    other = subprocess.run([*golden, f"--compare={record}"], capture_output=True, text=True)
    assert other.returncode == 1 and "/runs/bpe/iterations/3/1" in other.stdout
