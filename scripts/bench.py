"""Benchmarks against the tools people would otherwise use, each in its own process, written to docs/benchmarks/.

    python scripts/bench.py char --nanogpt=PATH [--text=input.txt]

char  character-level tiny Shakespeare from scratch at nanoGPT's setting for a CPU: whole commands, wall time and validation loss.
      nanoGPT's model is loaded by us and measured on the whole validation split, as ours is.
"""

import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from finetune.cli import key, parse, run

ROOT = Path(__file__).parents[1]


@dataclass
class Options:
    sources: list = key([], "what to measure: char")
    nanogpt: str = key("", "a checkout of nanoGPT to compare with")
    text: str = key("shakespeare", "the text for char: tiny Shakespeare, or a file")
    out: str = key(str(ROOT / "docs" / "benchmarks"), "directory for the results")

    def problems(self):
        if self.sources != ["char"]:
            yield "sources", "name one benchmark: char"
        if not (Path(self.nanogpt) / "train.py").is_file():
            yield "nanogpt", "give --nanogpt=PATH, a checkout of nanoGPT"


def main(argv):
    options, _ = parse(Options, argv, __doc__)
    with tempfile.TemporaryDirectory() as work:
        result = char(options, Path(work))
    write(result, Path(options.out))


def char(options, work):
    """Two contenders, one after the other on an otherwise idle machine; both train with the same bins."""
    from finetune.data.prepare import prepare

    text = options.text if options.text == "shakespeare" else str(Path(options.text).resolve())
    prepare([text], work / "data" / "char", "char")
    shape = {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64, "batch_size": 12, "max_iters": 2000, "dropout": 0.0}
    flags = [f"--{name}={value}" for name, value in shape.items()]

    recipe = ROOT / "recipes" / "shakespeare_char.yaml"
    ours = ["-m", "finetune.train", str(recipe), *flags, "--dataset=char", f"--out_dir={work / 'ours'}", "--num_samples=0"]
    seconds = {"finetune": timed([sys.executable, *ours], work)}

    checkout = work / "nanogpt"
    shutil.copytree(options.nanogpt, checkout, ignore=shutil.ignore_patterns(".git"))
    for name in ("train.bin", "val.bin", "meta.pkl"):
        shutil.copy(work / "data" / "char" / name, checkout / "data" / "shakespeare_char" / name)
    theirs = [
        "train.py",
        "config/train_shakespeare_char.py",
        *flags,
        "--device=cpu",
        "--compile=False",
        "--eval_iters=20",
        "--lr_decay_iters=2000",
        f"--out_dir={work / 'nano'}",
    ]
    seconds["nanoGPT"] = timed([sys.executable, *theirs], checkout)

    rows = []
    for name, out in (("finetune", "ours"), ("nanoGPT", "nano")):
        loss = whole_split_loss(work / out, work)
        rows.append({"tool": name, "wall_seconds": round(seconds[name], 1), "val_loss": round(loss, 4)})
    return {
        "what": "char",
        "title": "Character-level tiny Shakespeare, from scratch, on a CPU",
        "setting": "4 layers, 4 heads, 128 wide, context 64, batch 12, 2,000 iterations, dropout 0, learning rate 1e-3; "
        "wall time of the whole command, evaluations included; validation loss of the best checkpoint over the whole split (111,540 characters)",
        "command": "python scripts/bench.py char --nanogpt=PATH",
        "rows": rows,
    }


def timed(command, directory):
    began = time.perf_counter()
    done = subprocess.run(command, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    seconds = time.perf_counter() - began
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-3000:]}")
    return seconds


def whole_split_loss(model, work):
    """The validation loss that `finetune.train --eval_only` finds for any kind of checkpoint."""
    flags = [f"--init_from={model}", "--dataset=char", "--eval_only=true", "--dtype=float32", f"--out_dir={work / 'unused'}"]
    done = subprocess.run([sys.executable, "-m", "finetune.train", *flags], cwd=work, capture_output=True, text=True, check=True)
    return float(done.stdout.split("val loss ")[1].split()[0])


def write(result, directory):
    """The result as JSON and as a Markdown table, named after what, where and when."""
    hardware, today = hardware_name(), datetime.date.today().isoformat()
    result |= {"hardware": hardware, "date": today, "versions": versions()}
    base = directory / f"{result['what']}_{hardware.split(',')[0].replace(' ', '-').lower()}_{today}"
    directory.mkdir(parents=True, exist_ok=True)
    base.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    columns = list(result["rows"][0])
    lines = [
        f"# {result['title']}",
        "",
        f"{result['setting']}.",
        "",
        f"{hardware}; {today}; {', '.join(f'{k} {v}' for k, v in result['versions'].items())}.",
        "",
    ]
    lines += [f"    {result['command']}", "", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(str(row[column]) for column in columns) + " |" for row in result["rows"]]
    base.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def hardware_name():
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    model = "CPU"
    if Path("/proc/cpuinfo").exists():
        model = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), model)
    return f"{os.cpu_count()} cores of {model}, {platform.machine()}"


def versions():
    from importlib.metadata import version

    return {"python": platform.python_version(), **{name: version(name) for name in ("torch", "accelerate", "transformers", "datasets")}}


if __name__ == "__main__":
    run(main)
