"""Large tables are read row by row: one odd row late in a file is found in the first pass, in little memory."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = 'A row of a large file: "the river", said she; it is long and rather dull. ' * 60
# prints the peak memory of a command in bytes; of a process of its own, because a fork inherits its parent's peak
MEASURE = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:])
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print("peak", peak * (1 if sys.platform == "darwin" else 1024))
sys.exit(code)
"""


def write_rows(kind, size):
    """Write a table of about `size` bytes whose row of number n - 50, of n, is odd; return its path and that number."""
    path, line = Path(f"large.{kind}"), json.dumps({"text": TEXT, "number": 1})
    count = size // len(line)
    odd = count - 50
    with open(path, "w", encoding="utf-8") as file:
        if kind == "csv":
            file.write("number,text\n")
            line = '1,"' + TEXT.replace('"', '""') + '"'
        elif kind == "json":
            file.write("[\n")
        for number in range(1, count + 1):
            odd_line = "1,one,two" if kind == "csv" else json.dumps({"text": 7, "number": 1})
            comma = "," if kind == "json" and number < count else ""
            file.write((odd_line if number == odd else line) + comma + "\n")
        if kind == "json":
            file.write("]\n")
    return path, odd


def prepare(path, tokenizer):
    """(exit code, error, peak memory in bytes, seconds) of finetune.prepare in a process of its own."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "finetune.prepare", path, "--out_dir=out", f"--tokenizer={tokenizer}"]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, command)],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "HF_HUB_OFFLINE": "1"},
    )
    peak = int(done.stdout.rsplit("peak ", 1)[1])
    return done.returncode, done.stderr.strip(), peak, time.perf_counter() - began


@pytest.mark.parametrize(
    "kind, size",
    [
        ("jsonl", 30_000_000),
        ("json", 30_000_000),
        ("csv", 30_000_000),
        pytest.param("jsonl", 1_000_000_000, marks=pytest.mark.slow),
        pytest.param("json", 300_000_000, marks=pytest.mark.slow),
        pytest.param("csv", 300_000_000, marks=pytest.mark.slow),
    ],
)
def test_a_late_odd_row_is_named_in_little_memory(kind, size, bpe_directory):
    path, odd = write_rows(kind, size)
    code, error, peak, seconds = prepare(path, bpe_directory(TEXT))
    print(f"{path.stat().st_size / 1e6:,.0f} MB of {kind}: {seconds:.1f} s, {peak / 1e6:,.0f} MB of memory")
    assert code == 2 and len(error.splitlines()) == 1
    # the header is a line of its own, and so is [
    line = odd if kind == "jsonl" else odd + 1
    assert f"line {line:,}" in error and f"{path}: " in error
    assert peak < 500_000_000
    assert not Path("out").exists()  # it comes with the second pass
