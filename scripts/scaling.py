"""Write the tables of docs/scaling.md and docs/network.md: memory, communication and time on several processes, counted
from shapes and data sheets; and tokens/s, predicted by the same formulas.

    python scripts/scaling.py              the pages
    python scripts/scaling.py --measure    first measure what this machine can, 1 to 4 gloo processes (half an hour)

The prediction for this machine takes from it the time of a micro-batch, of an update of the weights and of an
all-reduce; what it predicts for more processes is measured too, in turns with them."""

import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from finetune.config.cli import parse
from finetune.config.recipe import Recipe
from finetune.gpt.model import SHAPES, GPTConfig
from finetune.gpt.size import flops_per_token, num_parameters
from finetune.runtime.device import PEAK_TFLOPS
from finetune.runtime.memory import Workload, estimate_memory

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "docs" / name for name in ("scaling.md", "network.md")]
CARDS = (16, 24, 40, 80)  # GiB, of which nine tenths are there to be used
T = 1024
MFU, GPU = 0.4, "A100"  # what is assumed of the speed of computing
# bytes/s in one direction, of which protocols leave less
LINKS = {
    "1 Gbit Ethernet": 0.125e9,
    "10 Gbit Ethernet": 1.25e9,
    "25 Gbit Ethernet": 3.125e9,
    "100 Gbit Ethernet, InfiniBand EDR": 12.5e9,
    "PCIe 4.0 x16": 32e9,
    "PCIe 5.0 x16": 64e9,
    "NVLink 3 (A100)": 300e9,
    "NVLink 4 (H100)": 450e9,
}
PER_MACHINE, NETWORK = 8, "100 Gbit Ethernet, InfiniBand EDR"
GPUS = (1, 8, 16, 128, 1024)
BACKWARD = 2 / 3  # of computing, which hides the exchange on a GPU
# what is measured here: tokens are few, so that exchanging takes a good part of an update
SMALL = {"n_layer": 4, "n_head": 4, "n_embd": 256, "block_size": 128, "batch_size": 1}
STEPS, COUNTS, ROUNDS, UPDATES = (1, 4), (1, 2, 3, 4), 5, 8  # micro-batches a process and update, processes
MEASURED = "scaling_*.json"  # in docs/benchmarks
NAMES = {"gpt2": "small", "gpt2-medium": "medium", "gpt2-large": "large", "gpt2-xl": "xl"}  # of recipes


def sizes():
    """(name, config, recipe) of the four."""
    for name, (n_layer, n_head, n_embd) in SHAPES.items():
        recipe, _ = parse(Recipe, [str(ROOT / "recipes" / f"{NAMES[name]}.yaml")], "")
        yield name, GPTConfig(n_layer=n_layer, n_head=n_head, n_embd=n_embd), recipe


def parameters(config):
    """(of one block, of all that is no block), the padding of the vocabulary included."""
    block, padding = 12 * config.n_embd**2 + 13 * config.n_embd, config.padded_vocab_size - config.vocab_size
    return block, num_parameters(config) + padding * config.n_embd - config.n_layer * block


def whole(config, B, checkpointing=False, processes=8):
    """Bytes of a process that has all of the model."""
    recipe = Recipe(batch_size=B, gradient_accumulation_steps=2 * processes, gradient_checkpointing=checkpointing)
    return estimate_memory(Workload(recipe, config, T, compiled=True, processes=processes)).peak


def sharded(config, B, processes, checkpointing=False):
    """Bytes of a process with FSDP2: its share of weights, gradients and moments; whole, what is no block, and two
    blocks, each with its gradient; and what computing takes anyway."""
    block, rest = parameters(config)
    recipe = Recipe(batch_size=B, gradient_checkpointing=checkpointing)
    parts = estimate_memory(Workload(recipe, config, T, compiled=True)).parts
    always = 16 * num_parameters(config) // processes + 8 * rest
    computing = sum(
        parts[name] for name in ("cast weights", "activations", "logits and loss", "backward pass of a layer")
    )
    return always + max(16 * block + computing, 8 * block + parts["evaluation"])


def sent(config, mode, processes, steps):
    """Bytes that each process sends, and receives, for an update of so many micro-batches a process. The collectives
    are rings, and all is float32."""
    block, rest = parameters(config)
    blocks, share = config.n_layer * block, 4 * (processes - 1) / processes
    if mode == "DDP":  # one all-reduce of the gradients
        return 2 * share * (blocks + rest)
    if mode == "FSDP2":  # every micro-batch gathers blocks twice and the rest once, and scatters all gradients
        return steps * share * (3 * blocks + 2 * rest)
    return (
        share * (1 + steps) * (blocks + rest)
    )  # weights are gathered once, and gradients scattered by every micro-batch


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def memory():
    def row(name, config, recipe):
        B = recipe.batch_size
        figures = [
            16 * num_parameters(config),
            whole(config, B, processes=1),
            whole(config, B),
            *(sharded(config, B, n) for n in (2, 8)),
        ]
        return [f"`{name}`, {B} x 1,024", *(f"{figure / 1e9:.1f}" for figure in figures)]

    head = ["GB of a GPU", "weights, gradients, moments", "one GPU", "of several (DDP)", "FSDP2 on 2", "on 8"]
    return table(head, [row(*size) for size in sizes()])


def choice():
    def cell(config, recipe, card):
        room = 0.9 * card * 2**30
        for B, checkpointing in ((recipe.batch_size, False), (1, False), (1, True)):
            if whole(config, B, checkpointing) <= room:
                return (
                    "whole"
                    + (", batch_size=1" if recipe.batch_size > B else "")
                    + (", checkpointing" if checkpointing else "")
                )
        for processes in (2, 4, 8):
            if sharded(config, 1, processes, True) <= room:
                return f"fsdp2 on {processes}"
        return "no"

    rows = [[f"`{name}`", *(cell(config, recipe, card) for card in CARDS)] for name, config, recipe in sizes()]
    return table(["model", *(f"{card} GB" for card in CARDS)], rows)


def communication():
    rows = []
    for name, config, recipe in sizes():
        for processes in (2, 8):
            steps = recipe.gradient_accumulation_steps // processes
            figures = [f"{sent(config, mode, processes, steps) / 1e9:.2f}" for mode in ("DDP", "FSDP2", "ZeRO-2")]
            rows.append([f"`{name}`", f"{processes} x {steps}", *figures])
    return table(
        ["model", "processes x accumulation steps", "DDP", "FSDP2", "FSDP2, `fsdp_reshard_after_forward: false`"], rows
    )


def links():
    def cell(seconds):
        return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.{0 if seconds >= 0.01 else 1}f} ms"

    rows = [
        [link, *(cell(sent(config, "DDP", 8, 1) / speed) for _, config, _ in sizes())] for link, speed in LINKS.items()
    ]
    rows.append(
        [
            f"**one micro-batch on an {GPU}**",
            *(cell(seconds(config, recipe.batch_size)) for _, config, recipe in sizes()),
        ]
    )
    return table(["DDP, 8 processes", *(f"`{name}`" for name in SHAPES)], rows)


def seconds(config, B):
    """Of computing a micro-batch."""
    return B * T * flops_per_token(config) / (MFU * PEAK_TFLOPS[GPU] * 1e12)


def hidden():
    """Accumulation steps at which the exchange takes a tenth of the computing; and the blocks of a micro-batch behind
    which FSDP2 can hide."""
    rows = []
    for link, speed in LINKS.items():
        cells = []
        for _, config, recipe in sizes():
            steps = max(1, math.ceil(sent(config, "DDP", 8, 1) / speed / (0.1 * seconds(config, recipe.batch_size))))
            blocks = max(1, math.ceil(sent(config, "FSDP2", 8, 1) / speed / seconds(config, 1)))
            cells.append(f"{steps:,} / {blocks:,}")
        rows.append([link, *cells])
    return table(
        ["accumulation steps (DDP) / blocks of a micro-batch (FSDP2)", *(f"`{name}`" for name in SHAPES)], rows
    )


def update_seconds(compute, steps, weights, exchange, hides, crowd=1.0):
    """Seconds of an update: `steps` micro-batches that take `compute` each, then `weights` for the optimizer; and an
    `exchange` of gradients, of which the part that takes no longer than `hides` is hidden. `crowd` processes share
    what computes and copies."""
    return crowd * (steps * compute + weights + max(0.0, exchange - hides))


def tokens_per_second(config, B, gpus, steps):
    """Of data-parallel GPUs. Rings over several machines are as fast as their slowest link."""
    link = next(name for name in LINKS if GPU in name) if gpus <= PER_MACHINE else NETWORK
    compute, exchange = seconds(config, B), sent(config, "DDP", gpus, steps) / LINKS[link]
    return gpus * steps * B * T / update_seconds(compute, steps, 0.0, exchange, BACKWARD * compute)


def simulation():
    def cell(config, B, gpus, steps):
        speed = tokens_per_second(config, B, gpus, steps)
        share = speed / gpus / tokens_per_second(config, B, 1, steps)
        return f"{float(f'{speed:.3g}'):,.0f}, {share:.0%}"

    columns = [(name, config, recipe.batch_size, steps) for name, config, recipe in sizes() for steps in (1, 8)]
    columns = [column for column in columns if column[0] in ("gpt2", "gpt2-xl")]
    rows = [[f"{gpus:,}", *(cell(*column[1:3], gpus, column[3]) for column in columns)] for gpus in GPUS]
    head = [f"`{name}`, {steps} micro-batch{'es' * (steps > 1)}" for name, _, _, steps in columns]
    return table(["GPUs", *head], rows)


def measured():
    """What was predicted for this machine beside what was measured, from the newest file."""
    found = sorted((ROOT / "docs" / "benchmarks").glob(MEASURED), key=lambda path: path.stem[-10:])
    rows = json.loads(found[-1].read_text(encoding="utf-8"))["rows"] if found else []
    return table(list(rows[0]), [list(row.values()) for row in rows]) if rows else "| not measured yet |\n|---|"


def page(text):
    """A page with each table below its mark made anew."""
    for make in (memory, choice, communication, links, hidden, simulation, measured):
        if (mark := f"<!-- {make.__name__} -->\n") in text:
            text = re.sub(rf"({mark})(\|.*\n)*", lambda found, make=make: f"{found[1]}{make()}\n", text)
    return text


def torchrun(processes, *argv):
    """Run a module or a file to its end in so many processes of a thread each; return what it printed."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", *argv]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(launcher, check=True, env=environment, capture_output=True, text=True).stdout


def flags(work, out_dir, steps):
    """Of a run with so many micro-batches an update, over all processes."""
    values = {**SMALL, "gradient_accumulation_steps": steps, "out_dir": out_dir, "dataset": work / "data"}
    values |= {"init_from": "scratch", "max_iters": UPDATES, "eval_interval": UPDATES, "eval_iters": 1}
    values |= {"log_interval": 1, "device": "cpu", "dtype": "float32", "cpu_threads": 1}
    return [f"--{name}={value}" for name, value in values.items()]


def median_update(out_dir):
    """Seconds, without the first updates, which allocate; the run is removed."""
    events = map(json.loads, (out_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    found = [event["seconds"] for event in events if event["event"] == "iter"][2:]
    shutil.rmtree(out_dir)
    return statistics.median(found)


def beside_others(work, steps, copies):
    """Seconds of an update of one process, while each other core computes the same for itself."""
    outs = [work / f"alone-{number}" for number in range(copies)]
    argv = [sys.executable, "-m", "finetune.train"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    options = {"env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    running = [subprocess.Popen([*argv, *flags(work, out, steps)], **options) for out in outs]
    codes = [process.wait() for process in running]
    assert not any(codes)
    return statistics.mean([median_update(out) for out in outs])


def all_reduce(gradients):
    """Print the seconds of an all-reduce of float32 gradients, in DDP's buckets of 25 MB. Runs in each process."""
    import torch

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    buckets, took = torch.zeros(gradients).split(25 * 2**20 // 4), []
    for _ in range(10):
        torch.distributed.barrier()
        began = time.perf_counter()
        for bucket in buckets:
            torch.distributed.all_reduce(bucket)
        took.append(time.perf_counter() - began)
    if torch.distributed.get_rank() == 0:
        print(statistics.median(took[2:]))
    torch.distributed.destroy_process_group()


def measure(work):
    """Measure in turns what a prediction takes and what it predicts; write both to docs/benchmarks."""
    import numpy as np
    from bench import write

    from finetune.common.machine import num_cores

    (work / "data").mkdir()
    for split, size in (("train", 100_000), ("val", 2_000)):
        np.random.default_rng(0).integers(0, 50_000, size, dtype=np.uint16).tofile(work / "data" / f"{split}.bin")
    config = GPTConfig(**{name: SMALL[name] for name in ("n_layer", "n_head", "n_embd", "block_size")})
    parameters, cores = sent(config, "DDP", 2, 1) // 4, num_cores()
    taken = {name: [] for name in ["exchange", *STEPS, *((count, steps) for count in COUNTS for steps in STEPS)]}
    for turn in range(ROUNDS):
        taken["exchange"].append(float(torchrun(2, __file__, f"--all_reduce={parameters:.0f}")))
        for steps in STEPS:
            taken[steps].append(beside_others(work, steps, cores))
        for count, steps in [(count, steps) for count in COUNTS for steps in STEPS][:: 1 if turn % 2 == 0 else -1]:
            torchrun(count, "-m", "finetune.train", *flags(work, work / "out", count * steps))
            taken[count, steps].append(median_update(work / "out"))
        print(f"round {turn + 1} of {ROUNDS}", flush=True)
    middle = {name: statistics.median(values) for name, values in taken.items()}
    few, many = STEPS
    compute = (middle[many] - middle[few]) / (many - few)
    weights, rate = middle[few] - few * compute, sent(config, "DDP", 2, 1) / middle["exchange"]
    rows = []
    for count in COUNTS:
        row = {"processes": f"{count}"}
        for steps in STEPS:
            exchange = sent(config, "DDP", count, steps) / rate
            predicted = update_seconds(compute, steps, weights, exchange, 0.0, max(1.0, count / cores))
            tokens = count * steps * SMALL["batch_size"] * SMALL["block_size"]
            each = f"{steps} micro-batch{'es' * (steps > 1)}"
            row |= {f"predicted, {each}": f"{tokens / predicted:,.0f}"}
            error = middle[count, steps] / predicted - 1  # of the predicted speed
            row |= {f"measured, {each} (error)": f"{tokens / middle[count, steps]:,.0f} ({error:+.0%})"}
        rows.append(row)
    setting = (
        f"GPT-2 with {num_parameters(config) / 1e6:.0f}M parameters, micro-batches of {SMALL['batch_size']} x"
        f" {SMALL['block_size']} tokens, float32, one thread a process, gloo over the loopback device; medians of"
        f" {ROUNDS} rounds in turns. Taken from the machine: {compute:.3f} s for a micro-batch and {weights:.3f} s for"
        f" the weights by one process while each other core does the same, {rate / 1e9:.2f} GB/s of an all-reduce by 2"
    )
    result = {"what": "scaling", "title": "Tokens/s of 1 to 4 processes, predicted and measured", "setting": setting}
    result |= {"command": "python scripts/scaling.py --measure", "rows": rows}
    write(result | {"results": {str(name): values for name, values in taken.items()}}, ROOT / "docs" / "benchmarks")


if __name__ == "__main__":
    given = sys.argv[1] if len(sys.argv) > 1 else ""
    if given.startswith("--all_reduce="):
        all_reduce(int(given.partition("=")[2]))
        sys.exit()
    if given == "--measure":
        with tempfile.TemporaryDirectory() as work:
            measure(Path(work))
    for path in PAGES:
        path.write_text(page(path.read_text(encoding="utf-8")), encoding="utf-8")
        print(f"wrote {path}")
