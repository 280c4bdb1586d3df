"""Proof that a refactor changed nothing: six small runs, every --help and the events of metrics.jsonl, recorded and
compared.

    python scripts/golden.py --write=golden.json       # before, on this machine
    python scripts/golden.py --compare=golden.json     # after; exit code 1 and a line for each difference

Only commands are called, so a record made by an old commit can be compared with a new one. Losses and hashes depend on
the processor and on torch, so both records come from one machine."""

import hashlib
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
VERBS = ("prepare", "doctor", "plan", "train", "sample", "eval", "export", "diagnose", "report", "compare")
VARYING = {"seconds", "tokens_per_second", "mfu", "memory", "time", "peak_memory", "evaluation_seconds"}
SMALL = [
    "--init_from=scratch",
    "--n_layer=2",
    "--n_head=2",
    "--n_embd=32",
    "--block_size=32",
    "--batch_size=2",
    "--gradient_accumulation_steps=4",
    "--dropout=0.1",
    "--max_iters=12",
    "--learning_rate=1e-2",
    "--log_interval=1",
    "--eval_interval=4",
    "--save_interval=4",
    "--dtype=float32",
    "--device=cpu",
    "--cpu_threads=1",
]


def call(*command, launcher=(sys.executable, "-m")):
    """Run a command of the package in the current directory; its standard output."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(PACKAGE),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "120",
    }
    done = subprocess.run([*launcher, *command], env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr}")
    return done.stdout


def write_inputs():
    """A text, instruction data and a small BPE, the same on every machine."""
    from tokenizers import ByteLevelBPETokenizer

    rng = random.Random(7)
    words = ["".join(rng.choice("abcdefghij") for _ in range(rng.randint(2, 7))) for _ in range(60)]
    lines = [" ".join(rng.choices(words, k=8)).capitalize() + "." for _ in range(400)]
    Path("text.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    rows = [{"prompt": f"Q: {line[:20]}", "completion": f" {line[20:]}"} for line in lines]
    Path("answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    Path("bpe").mkdir()
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(
        lines, vocab_size=400, min_frequency=1, special_tokens=["<|endoftext|>"], show_progress=False
    )
    tokenizer.save("bpe/tokenizer.json")
    call("finetune.prepare", "text.txt", "--tokenizer=char", "--out_dir=data/char")
    call("finetune.prepare", "text.txt", "--tokenizer=bpe", "--out_dir=data/bpe")
    call("finetune.prepare", "answers.jsonl", "--tokenizer=bpe", "--out_dir=data/answers")


def runs():
    """Make the six runs and yield (name, out_dir)."""
    for name, flags in {
        "character": ["--dataset=data/char"],
        "bpe": ["--dataset=data/bpe"],
        "packed_instruction": ["--dataset=data/answers"],
        "lora": [
            "--dataset=data/bpe",
            "--init_from=bpe_run/best",
            "--lora_rank=4",
            "--n_layer=none",
            "--n_head=none",
            "--n_embd=none",
        ],
    }.items():
        out_dir = "bpe_run" if name == "bpe" else name
        call("finetune.train", *SMALL, f"--out_dir={out_dir}", *flags)
        yield name, Path(out_dir)
    launch = [
        "--multi_gpu",
        "--num_processes=2",
        "--num_machines=1",
        "--mixed_precision=no",
        "--dynamo_backend=no",
        "--same_network",
    ]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", *launch, "-m"]
    call("finetune.train", *SMALL, "--dataset=data/char", "--out_dir=two", launcher=launcher)
    yield "two_processes", Path("two")
    call(
        "finetune.train",
        *SMALL,
        "--dataset=data/char",
        "--out_dir=resumed",
        "--max_iters=6",
        "--lr_decay_iters=12",
        "--warmup_iters=1",
    )
    flags = ["--init_from=resume", "--max_iters=12"]
    call("finetune.train", "resumed/recipe.yaml", *flags)
    yield "resumed", Path("resumed")


def digest(path):
    """sha256 of the tensors of a safetensors file, without its metadata."""
    from safetensors import safe_open

    total = hashlib.sha256()
    with safe_open(path, "numpy") as file:
        for key in sorted(file.keys()):
            total.update(key.encode() + file.get_tensor(key).tobytes())
    return total.hexdigest()


def described(out_dir):
    """What must not change of a run."""
    events = [json.loads(line) for line in (out_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    kept = [{k: v for k, v in event.items() if k not in VARYING} for event in events]
    return {
        "iterations": [[e["iter"], e["loss"], e["grad_norm"], e["lr"]] for e in events if e["event"] == "iter"],
        "evaluations": [[e["step"], e["train_loss"], e["val_loss"]] for e in events if e["event"] == "eval"],
        "events": [[event["event"], *sorted(event.keys() - {"event"})] for event in kept],
        "files": sorted(str(path.relative_to(out_dir)) for path in out_dir.rglob("*") if path.is_file()),
        "weights": {
            str(path.relative_to(out_dir)): digest(path)
            for path in sorted([*out_dir.glob("best/model.safetensors"), *out_dir.glob("last/*/*.safetensors")])
        },
    }


def machine():
    """What losses and hashes depend on."""
    import torch

    names = [line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
    flags = {word for line in open("/proc/cpuinfo") if line.startswith("flags") for word in line.split()}
    found = sorted(flags & {"avx2", "avx512f", "avx512_bf16", "amx_bf16"})
    return {"processor": [*names[:1], *found], "python": platform.python_version(), "torch": torch.__version__}


def record():
    """Everything, made in a temporary directory."""
    here = os.getcwd()
    with tempfile.TemporaryDirectory() as work:
        os.chdir(work)
        write_inputs()
        bins = {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(Path("data").rglob("*.bin"))}
        made = {name: described(out_dir) for name, out_dir in runs()}
        os.chdir(here)
    return {
        "machine": machine(),
        "bins": bins,
        "runs": made,
        "help": {verb: call(f"finetune.{verb}", "--help").splitlines() for verb in VERBS},
    }


def differences(old, new, path=""):
    """A line for each place in which two records differ."""
    if type(old) is dict is type(new):
        for key in sorted({*old, *new}):
            yield from differences(old.get(key), new.get(key), f"{path}/{key}")
    elif type(old) is list is type(new) and len(old) == len(new):
        for number, (one, other) in enumerate(zip(old, new)):
            yield from differences(one, other, f"{path}/{number}")
    elif old != new:
        yield f"{path}: {str(old)[:100]} -> {str(new)[:100]}"


def main(argv):
    if len(argv) != 1 or not argv[0].startswith(("--write=", "--compare=")):
        sys.exit(__doc__)
    flag, name = argv[0].split("=", 1)
    made = record()
    if flag == "--write":
        Path(name).write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
        return
    # through JSON, as the old record was
    found = list(differences(json.loads(Path(name).read_text(encoding="utf-8")), json.loads(json.dumps(made))))
    print("\n".join(found) or f"equal to {name}")
    sys.exit(1 if any(not line.startswith("/help/") for line in found) else 0)


if __name__ == "__main__":
    main(sys.argv[1:])
