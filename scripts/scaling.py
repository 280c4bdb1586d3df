"""Write the tables of docs/scaling.md: memory, communication and time on several processes, counted from shapes and
data sheets.

python scripts/scaling.py
"""

import math
import re
from pathlib import Path

from finetune.config.cli import parse
from finetune.config.recipe import Recipe
from finetune.gpt.model import SHAPES, GPTConfig
from finetune.gpt.size import flops_per_token, num_parameters
from finetune.runtime.device import PEAK_TFLOPS
from finetune.runtime.memory import Workload, estimate_memory

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "scaling.md"
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


def page(text):
    """The page with each table below its mark made anew."""
    for make in (memory, choice, communication, links, hidden):
        text, found = re.subn(
            rf"(<!-- {make.__name__} -->\n)(\|.*\n)*", lambda mark, make=make: f"{mark[1]}{make()}\n", text
        )
        assert found == 1, make.__name__
    return text


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"wrote {PAGE}")
