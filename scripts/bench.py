"""Benchmarks against the tools people would otherwise use, each in its own process, written to docs/benchmarks/.

    python scripts/bench.py train   --nanogpt=PATH    tokens/s of updates, at matched and at default settings
    python scripts/bench.py roofline                  rates of matrix products and of memory, and what a perfect update
    would take
    python scripts/bench.py start                     time from the start of the process to the first update
    python scripts/bench.py memory                    peak memory of training
    python scripts/bench.py modes                     the same and time with moments in bfloat16, recomputed activations
    and LoRA
    python scripts/bench.py saves                     how long a save of the state holds the loop
    python scripts/bench.py plan                      what finetune.plan says of time and memory, and what they then are
    python scripts/bench.py processes                 tokens/s of two processes that share the cores of one
    python scripts/bench.py packing                   tokens/s where documents are isolated
    python scripts/bench.py sample                    tokens/s of sampling
    python scripts/bench.py sample-memory             peak memory of 1,000 samples
    python scripts/bench.py command --nanogpt=PATH    the same of the whole command, as users run it
    python scripts/bench.py load    --nanogpt=PATH    cost of a batch
    python scripts/bench.py prepare                   a gigabyte of text to train.bin and val.bin
    python scripts/bench.py corpus   [--gb=2]         a corpus with planted duplicates, local and by Ray, killed twice
    python scripts/bench.py doctor                    what finetune.doctor says of a prepared text and of documents
    python scripts/bench.py convert                   train.bin to an Arrow cache
    python scripts/bench.py caches   [--gb=4]         bins of a gigabyte as one dataset, cached by 1 process and by 2
    python scripts/bench.py char    --nanogpt=PATH    character-level tiny Shakespeare from scratch: whole commands,
    wall time and loss
    python scripts/bench.py gpu     [--nanogpt=PATH]  everything of a CUDA device, in nine minutes; needs neither
    `datasets` nor a network

Every tool gets the same weights, blocks, order, learning rate and weight decay. Losses must agree before a speed is
printed. Tools take turns, the order rotates from round to round, and what counts is the ratio within a round. finetune
runs twice a round: the ratio of these two says how far the machine is to be trusted."""

import datetime
import json
import math
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from finetune.config.cli import parse, run
from finetune.config.options import option

ROOT = Path(__file__).parents[1]
SIZES = {
    "124M": (12, 12, 768),
    "355M": (24, 16, 1024),
    "774M": (36, 20, 1280),
    "1558M": (48, 25, 1600),
    "tiny": (2, 2, 64),
}
SAVE_EVERY = 8  # updates, in `saves`
WARM_UP = 2  # updates that are not timed: allocators, first optimizer state, compilation


@dataclass
class Options:
    sources: list = option(
        [],
        "what to measure: train, roofline, start, saves, memory, modes, plan, processes, packing,"
        " sample, sample-memory, command, load, prepare, corpus, doctor, convert, caches, char or gpu",
    )
    nanogpt: str = option("", "a checkout of nanoGPT to compare with")
    before: str = option("", "train, doctor: a checkout of an older commit of this project to compare with")
    rounds: int = option(5, "how often every tool has its turn")
    size: str = option("124M", "the shape: 124M, 355M, 774M, 1558M, or tiny to try the script itself")
    batch_size: int = option(1, "train: blocks of an update")
    block_size: int = option(1024, "train, memory, load: tokens of a block")
    steps: int = option(6, "train: updates, the first two of which are not timed")
    tokens: int = option(200, "sample, sample-memory: new tokens of each sample")
    gb: float = option(2.0, "corpus: gigabytes of text; caches: of bins", gt=0)
    text: str = option("shakespeare", "the text for char: tiny Shakespeare, or a file")
    out: str = option(str(ROOT / "docs" / "benchmarks"), "directory for the results")

    def problems(self):
        if len(self.sources) != 1 or self.sources[0] not in LANES:
            yield "sources", f"name one benchmark: {', '.join(LANES)}"
        if self.size not in SIZES:
            yield "size", f"{', '.join(SIZES)} are known"
        if self.steps <= WARM_UP + 1:
            yield "steps", f"the first {WARM_UP} are not timed, so at least {WARM_UP + 2}"
        if self.nanogpt and not (Path(self.nanogpt) / "train.py").is_file():
            yield "nanogpt", f"{self.nanogpt} is no checkout of nanoGPT"
        if self.before and not (Path(self.before) / "scripts" / "contenders.py").is_file():
            yield "before", f"{self.before} is no checkout of this project"
        if not self.nanogpt and self.sources in (["char"], ["load"], ["command"]):
            yield "nanogpt", "give --nanogpt=PATH, a checkout of nanoGPT"


def first_on_path(root):
    """PYTHONPATH with a checkout before what is on it, which may hold torch itself."""
    return os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))


@dataclass
class Contender:
    """A tool with its settings, and what its rounds came to."""

    name: str
    job: dict
    tolerance: float = 0.0  # nats that its losses may differ from the first contender's
    results: list = field(default_factory=list)
    root: Path = ROOT  # the checkout of this project whose code runs
    scripts: Path | None = None  # the checkout whose contenders.py runs it; that of `root` by default

    def turn(self, shared, timeout=None):
        job = {**shared, **self.job, "began": time.time()}
        path = Path(shared["work"], "job.json")
        path.write_text(json.dumps(job))
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": first_on_path(self.root)}
        script = (self.scripts or self.root) / "scripts" / "contenders.py"
        try:
            done = subprocess.run(
                [sys.executable, script, path], capture_output=True, text=True, env=environment, timeout=timeout
            )
        except subprocess.TimeoutExpired:
            sys.exit(f"{self.name} took more than {timeout:.0f} s")
        if done.returncode:
            sys.exit(f"{self.name} ended with {done.returncode}:\n{done.stderr[-3000:]}")
        self.results.append(json.loads(done.stdout.splitlines()[-1]))
        return self.results[-1]


def main(argv):
    options, _ = parse(Options, argv, __doc__)
    options.given = [arg for arg in argv if not arg.startswith(("--nanogpt=", "--before=", "--out=", "--text="))]
    options.given += ["--nanogpt=PATH"] * bool(options.nanogpt) + ["--before=PATH"] * bool(options.before)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as work:
        result = LANES[options.sources[0]](options, Path(work))
    if load > 0.5 * os.cpu_count():
        result["setting"] += f"; the machine was busy when it began (load {load:.1f}), so absolute figures are low"
    write(result, Path(options.out))


def train(options, work):
    """Updates of one shape, the same for all."""
    shared = prepared(options, work, tokens=max(40, 2 * options.steps * options.batch_size) * options.block_size)
    contenders = [
        Contender("finetune", {"tool": "finetune", "options": {}}),
        Contender("finetune, again", {"tool": "finetune", "options": {}}, 1e-6),
        matched_trainer("dropout 0, fused"),
        Contender("Trainer, its defaults (float32, dropout 0.1)", {"tool": "trainer", "options": {}}, 0.3),
    ]
    if options.before:
        contenders.append(
            Contender("finetune, before", {"tool": "finetune", "options": {}}, root=Path(options.before).resolve())
        )
    if options.nanogpt:
        contenders.append(
            Contender(
                "nanoGPT, its defaults on a CPU (float32)", {"tool": "nanogpt", "options": {"compile": False}}, 2e-2
            )
        )
    rotate(contenders, options.rounds, {**shared, "what": "train"})
    gate(contenders)
    tokens = options.batch_size * options.block_size
    speeds = [
        [tokens * (len(r["stamps"]) - WARM_UP) / (r["stamps"][-1] - r["stamps"][WARM_UP - 1]) for r in c.results]
        for c in contenders
    ]
    rows = [
        {
            "tool": c.name,
            "tokens/s": f"{statistics.median(speed):,.0f}",
            "finetune is faster by": ratios(speeds[0], speed) if c is not contenders[0] else "",
            "last loss": f"{c.results[0]['losses'][-1]:.4f}",
        }
        for c, speed in zip(contenders, speeds)
    ]
    name = f"train-{options.batch_size}x{options.block_size}"
    title = f"Training {options.size}: {options.batch_size} x {options.block_size} tokens an update"
    setting = (
        f"{options.rounds} rounds, {options.steps} updates each, of which the last {options.steps - WARM_UP} are"
        " timed; "
    )
    setting += "AdamW, weight decay 0.1, gradients clipped at 1; ratios are median (lowest to highest) of the rounds"
    import roofline as measured

    perfect = measured.of_an_update(SIZES[options.size], tokens)["perfect_seconds"]
    share = perfect * statistics.median(speeds[0]) / tokens
    setting += f"; a perfect update takes {perfect:.2f} s here (scripts/roofline.py), {share:.0%} of finetune's time"
    return report(options, name, title, setting, rows, contenders)


def roofline(options, work):
    """Rates of this processor at the shapes of an update."""
    import roofline as measured

    found = measured.of_an_update(SIZES[options.size], options.batch_size * options.block_size)
    rows = [
        {"what": p["product"], "ms an update": f"{1e3 * p['seconds']:.0f}", "rate": f"{p['rate'] / 1e9:,.0f} GFLOP/s"}
        for p in found["products"]
    ]
    rows += [
        {"what": "all products", "ms an update": f"{1e3 * found['products_seconds']:.0f}", "rate": ""},
        {
            "what": "optimizer and conversion of weights, at the rate of a copy",
            "ms an update": f"{1e3 * found['traffic_seconds']:.0f}",
            "rate": f"{found['bandwidth'] / 1e9:,.0f} GB/s",
        },
        {
            "what": "a perfect update: all products at the best rate, and this traffic",
            "ms an update": f"{1e3 * found['perfect_seconds']:.0f}",
            "rate": f"{found['peak'] / 1e9:,.0f} GFLOP/s",
        },
    ]
    title = f"Roofline of {options.size}: {options.batch_size} x {options.block_size} tokens an update"
    setting = f"{found['dtype']}; least of seven tries; every product and tensor alone, warm in the cache"
    name = f"roofline-{options.batch_size}x{options.block_size}"
    return report(options, name, title, setting, rows, [])


def start(options, work):
    """From the start of the process to the end of the first update, of 128 tokens, with nothing on disk but a model and
    a text."""
    from tokenizers import ByteLevelBPETokenizer

    from finetune.data import sources as data_sources

    options.block_size, options.steps = 128, 1
    shared = prepared(options, work, tokens=400 * options.block_size)
    text = "".join(piece.text for piece in data_sources.find(["python_docs"])[0].chunks())
    (work / "text.txt").write_text(text, encoding="utf-8")
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator([text], vocab_size=8000, special_tokens=["<|endoftext|>"], show_progress=False)
    tokenizer.save(str(Path(shared["weights"], "tokenizer.json")))
    contenders = [
        Contender("finetune", {"tool": "finetune"}),
        Contender("finetune, again", {"tool": "finetune"}, 1e-6),
        Contender(
            "run_clm's steps: datasets, map, Trainer at its defaults", {"tool": "run_clm"}, 0.5
        ),  # other blocks of the same text
    ]
    rotate(contenders, options.rounds, {**shared, "what": "start"})
    gate(contenders)
    seconds = [[r["stamps"][0] for r in c.results] for c in contenders]
    rows = [
        {
            "tool": c.name,
            "first update after": f"{statistics.median(s):.1f} s",
            "finetune's share of it": ratios(seconds[0], s),
            "first loss": f"{c.results[0]['losses'][0]:.2f}",
        }
        for c, s in zip(contenders, seconds)
    ]
    setting = (
        f"{options.rounds} rounds; {len(text):,} characters to tokenize, 1 x 128 tokens an update; finetune has"
        " evaluated both splits and written its first model by then, Trainer has done"
        " neither; both shuffle in their own way, so first losses agree to half a nat only"
    )
    return report(options, "start", f"From a text to the first update, {options.size}", setting, rows, contenders)


def memory(options, work):
    """Peak resident memory of the whole process, 4 blocks an update."""
    options.batch_size = 4
    shared = prepared(options, work, tokens=40 * options.block_size)
    shared["shape"]["max_iters"] = 3
    contenders = [Contender("finetune", {"tool": "finetune", "options": {}}), matched_trainer("dropout 0, fused")]
    rotate(contenders, 1, {**shared, "what": "train"})
    gate(contenders)
    first = contenders[0].results[0]["peak_mb"]
    rows = [
        {
            "tool": c.name,
            "peak MB": f"{c.results[0]['peak_mb']:,.0f}",
            "finetune's share": f"{first / c.results[0]['peak_mb']:.2f}",
        }
        for c in contenders
    ]
    title = f"Peak memory of training {options.size}: 4 x {options.block_size} tokens an update"
    return report(
        options,
        "memory",
        title,
        "the largest resident size of the process over three updates, evaluation and checkpoints included",
        rows,
        contenders,
    )


def modes(options, work):
    """Memory and time of an update in each memory mode, beside the predictions that finetune.plan and memory=auto go
    by."""
    from finetune import GPTConfig
    from finetune.config.recipe import Recipe
    from finetune.gpt import lora
    from finetune.gpt import size as sizes
    from finetune.runtime import device as devices
    from finetune.runtime import memory as memorys

    this = devices.start(Recipe(dataset="-"))
    n_layer, n_head, n_embd = SIZES[options.size]
    config = GPTConfig(n_layer=n_layer, n_head=n_head, n_embd=n_embd)
    device_type = this.torch_device.type

    def predicted(given):
        recipe = Recipe(dataset="-", batch_size=options.batch_size, gradient_accumulation_steps=1, **given)
        more = {"base_rss": memorys.BASE_RSS if device_type == "cpu" else 0, "max_eval_rows": options.batch_size}
        work = memorys.Workload(recipe, config, options.block_size, device_type, this.dtype, this.compile, **more)
        return memorys.estimate_memory(work).peak

    shared = prepared(options, work, tokens=max(40, 2 * options.steps * options.batch_size) * options.block_size)
    whole, full = {"chunked_loss": "false"}, {"gradient_checkpointing": True}
    compact, adapters = {"optimizer_dtype": "bfloat16"}, {"lora_rank": 16}
    # two groups, because adapters learn something else from the same start
    groups = [[whole, {}, full, compact, full | compact], [adapters, adapters | full]]
    groups = [
        [Contender(_flags(given) or "as it is", {"tool": "finetune", "options": given}, 2e-2) for given in group]
        for group in groups
    ]
    groups[1].append(matched_trainer("dropout 0, peft's adapters of rank 16", lora_rank=16))
    contenders = [contender for group in groups for contender in group]
    rotate(contenders, options.rounds, {**shared, "what": "train"})
    for group in groups:
        gate(group)
    rows = []
    for c in contenders:
        ours = c.job["tool"] == "finetune"
        given = c.job["options"] if ours else adapters
        peak, said = max(r["peak_mb"] for r in c.results), predicted(given) / 2**20
        seconds = [(r["stamps"][-1] - r["stamps"][WARM_UP - 1]) / (len(r["stamps"]) - WARM_UP) for r in c.results]
        trainable = lora.num_adapter_parameters(config, given.get("lora_rank", 0)) or sizes.num_parameters(config)
        rows.append(
            {
                "mode": c.name,
                "trainable parameters": f"{trainable:,}",
                "peak MB": f"{peak:,.0f}",
                "predicted": f"{said:,.0f} ({said / peak - 1:+.0%})" if ours else "",
                "seconds an update": f"{statistics.median(seconds):.2f}",
                "last loss": f"{c.results[0]['losses'][-1]:.4f}",
            }
        )
    setting = (
        f"{options.rounds} rounds, {options.steps} updates each, of which the last {options.steps - WARM_UP} are timed;"
        f" {str(this.dtype).removeprefix('torch.')}, AdamW; peak: the largest resident "
    )
    setting += (
        "size of the process, with evaluations and checkpoints (of which Trainer made none); predicted: what"
        " finetune.plan and memory=auto go by"
    )
    title = f"Memory modes of training {options.size}: {options.batch_size} x {options.block_size} tokens an update"
    return report(options, "modes", title, setting, rows, contenders)


def saves(options, work):
    """What a save of the state costs the loop, written in the background or at once, as with callbacks of the user."""
    options.steps = 3 * SAVE_EVERY
    shared = prepared(options, work, tokens=max(40, 2 * options.steps * options.batch_size) * options.block_size)
    flags = {"save_interval": SAVE_EVERY}
    contenders = [
        Contender("in the background", {"tool": "finetune", "options": flags, "at_once": False}),
        Contender("at once, as with callbacks", {"tool": "finetune", "options": flags, "at_once": True}),
    ]
    rotate(contenders, options.rounds, {**shared, "what": "saves"})
    gate(contenders)

    def shares(contender, what):
        return [seconds / result["update"] for result in contender.results for seconds in result[what]]

    rows = [
        {
            "how": c.name,
            "an update": f"{statistics.median(result['update'] for result in c.results):.2f} s",
            "the loop is held for": f"{statistics.median(each for r in c.results for each in r['held']):.3f} s",
            "of an update": f"{statistics.median(held):.1%} ({min(held):.1%} to {max(held):.1%})",
            "updates meanwhile take longer by": f"{statistics.median(shares(c, 'slowed')):.0%} of an update",
        }
        for c in contenders
        for held in [shares(c, "held")]
    ]
    setting = (
        f"{options.rounds} rounds, {options.steps} updates of {options.batch_size} x {options.block_size} tokens, with"
        f" a save every {SAVE_EVERY}, of which all but the last count; medians; held: from the call of the save to its"
        " return, and where the optimizer waits for the copies; meanwhile: updates while the state is written, which"
        " share the cores with that"
    )
    return report(options, "saves", f"A save of the state of {options.size}", setting, rows, contenders)


def _flags(given):
    return ", ".join(f"{name}={str(value).lower()}" for name, value in given.items())


def plan(options, work):
    """A plan and then the run, each in a process of its own: a small network from scratch, and five updates of the
    larger shape."""
    from finetune.data.prepare import prepare

    prepare(["python_docs"], work / "data" / "tiny", "char")
    options.steps = 5
    shared = prepared(options, work, tokens=40 * options.block_size)
    recipe = ROOT / "recipes" / "quickstart.yaml"
    few = {
        "dataset": work / "data",
        "init_from": shared["weights"],
        "block_size": options.block_size,
        "batch_size": options.batch_size,
        "max_iters": 5,
    }
    few |= {"gradient_accumulation_steps": 1, "eval_interval": 5, "eval_iters": 1}
    cases = {
        "4 layers 128 wide, 200 updates of 16 x 128": [
            str(recipe),
            f"--dataset={work / 'data' / 'tiny'}",
            "--tokenizer=auto",
            "--max_iters=200",
        ],
        f"{options.size}, 5 updates of {options.batch_size} x {options.block_size}": [
            f"--{name}={value}" for name, value in few.items()
        ],
    }
    rows, contenders = [], []
    for name, argv in cases.items():
        job = {"tool": "finetune", "argv": [*argv, f"--out_dir={work / 'out'}", "--overwrite=true"]}
        told, run = (
            Contender(f"plan of {name}", {**job, "what": "plan"}),
            Contender(f"run of {name}", {**job, "what": "run"}),
        )
        rotate([told, run], options.rounds, {"work": str(work), "what": ""})
        contenders += [told, run]
        for what, unit in (("seconds", "s"), ("peak_gb", "GB")):
            said, found = (statistics.median(result[what] for result in c.results) for c in (told, run))
            label = "wall time" if unit == "s" else "peak memory"
            rows.append(
                {
                    "run": name,
                    "what": label,
                    "plan": f"{said:.3g} {unit}",
                    "measured": f"{found:.3g} {unit}",
                    "off by": f"{said / found - 1:+.0%}",
                }
            )
    setting = (
        f"{options.rounds} rounds, medians; the whole command from the start of its process, evaluations, checkpoints"
        " and samples included; "
    )
    setting += "peak: the largest resident size"
    return report(options, "plan", "What finetune.plan says, and what it comes to", setting, rows, contenders)


def processes(options, work):
    """Updates by one process on all cores and by two with half of them each, which also exchange gradients; at 1 and at
    4 micro-batches a process between two exchanges."""
    shared = prepared(options, work, tokens=10 * options.steps * options.batch_size * options.block_size)
    runs = {
        (share, count): Contender(f"{count} process{'es' * (count > 1)}, {2 * share} micro-batches an update", {}, 1e-3)
        for share in (1, 4)
        for count in (1, 2)
    }
    for turn in range(options.rounds):
        for share, count in list(runs)[:: 1 if turn % 2 == 0 else -1]:
            out_dir = work / f"out-{turn}-{share}-{count}"
            flags = {
                **shared["shape"],
                "gradient_accumulation_steps": 2 * share,
                "out_dir": out_dir,
                "dataset": work / "data",
                "init_from": shared["weights"],
            }
            flags |= {"eval_interval": options.steps, "eval_iters": 1, "log_interval": 1, "device": "cpu"}
            launcher = [
                sys.executable,
                "-m",
                "torch.distributed.run",
                "--standalone",
                f"--nproc_per_node={count}",
                "-m",
                "finetune.train",
            ]
            timed([*launcher, *(f"--{name}={value}" for name, value in flags.items())], work)
            told = [
                event
                for event in map(json.loads, (out_dir / "metrics.jsonl").read_text().splitlines())
                if event["event"] == "iter"
            ]
            seconds = [event["seconds"] for event in told[WARM_UP:]]
            runs[share, count].results.append(
                {"iters": [e["iter"] for e in told], "losses": [e["loss"] for e in told], "seconds": seconds}
            )
            shutil.rmtree(out_dir)
    rows = []
    for share in (1, 4):
        gate([runs[share, 1], runs[share, 2]])
        each = {
            count: [statistics.median(result["seconds"]) for result in runs[share, count].results] for count in (1, 2)
        }
        for count in (1, 2):
            tokens = 2 * share * options.batch_size * options.block_size
            speed = statistics.median(tokens / seconds for seconds in each[count])
            rows.append(
                {
                    "tool": runs[share, count].name,
                    "tokens/s": f"{speed:,.0f}",
                    "speed over one process": ratios(each[1], each[count]),
                }
            )
    setting = (
        f"{options.rounds} rounds of {options.steps} updates, of which the last {options.steps - WARM_UP} count, by"
        " their median; micro-batches of "
    )
    setting += (
        f"{options.batch_size} x {options.block_size} tokens; torchrun, gloo over the loopback device; the cores are"
        " the same, so there is nothing to be gained but what threads lose"
    )
    return report(
        options,
        "processes",
        f"Training {options.size} by one process, and by two on the same cores",
        setting,
        rows,
        list(runs.values()),
    )


def packing(options, work):
    """Updates of 4 blocks of isolated documents, against TRL's way: one long row, in which transformers tells them
    apart by positions."""
    import numpy as np

    from finetune.data import arrow_cache
    from finetune.data import dataset as datasets
    from finetune.data.batches import Blocks
    from finetune.data.sampler import BlockSampler

    options.batch_size = 4
    shared = prepared(options, work, tokens=200 * options.block_size) | {"saves": False}
    rng = np.random.default_rng(1)
    for split in ("train", "val"):
        ids = np.fromfile(work / "data" / f"{split}.bin", dtype=np.uint16)
        ids[ids == datasets.GPT2_EOT] = 1
        ends = np.cumsum(rng.geometric(1 / 250, len(ids)).clip(20, options.block_size))
        ids[ends[ends < len(ids)] - 1] = datasets.GPT2_EOT
        ids.tofile(work / "data" / f"{split}.bin")
    dataset = datasets.load(work / "data")
    contents = datasets.scan(dataset, "train")
    blocks = Blocks.from_arrow(
        arrow_cache.open_cache(dataset, "train", options.block_size, contents, isolated=True), contents.tokens
    )
    np.savez(work / "packed.npz", **{name: np.concatenate(chunks) for name, chunks in blocks.columns.items()})
    order = BlockSampler(blocks.num_rows, options.batch_size, 1337)
    (work / "rows.json").write_text(json.dumps([int(row) for i in range(options.steps) for row in order.rows(i)]))
    contenders = [
        Contender("finetune, isolate_documents", {"tool": "finetune", "options": {"isolate_documents": "true"}}),
        Contender("finetune, again", {"tool": "finetune", "options": {"isolate_documents": "true"}}, 1e-6),
        matched_trainer("one row of all documents (TRL's packing)", flattened=True),
    ]
    rotate(contenders, options.rounds, {**shared, "what": "train"})
    gate(contenders)
    seconds = [
        [(r["stamps"][-1] - r["stamps"][WARM_UP - 1]) / (len(r["stamps"]) - WARM_UP) for r in c.results]
        for c in contenders
    ]
    rows = [
        {
            "tool": c.name,
            "seconds an update": f"{statistics.median(s):.1f}",
            "finetune's share of it": ratios(seconds[0], s) if c is not contenders[0] else "",
            "last loss": f"{c.results[0]['losses'][-1]:.4f}",
            "peak MB": f"{c.results[0]['peak_mb']:,.0f}",
        }
        for c, s in zip(contenders, seconds)
    ]
    setting = (
        f"{options.rounds} rounds, {options.steps} updates each, of which the last {options.steps - WARM_UP} are timed;"
        " documents of 250 tokens on average, "
    )
    setting += (
        f"packed into blocks that are {contents.tokens / (blocks.num_rows * (options.block_size + 1)):.1%} full, the"
        " same for both; dropout 0, fused AdamW"
    )
    return report(
        options,
        "packing",
        f"Training {options.size} on isolated documents: 4 x {options.block_size} tokens an update",
        setting,
        rows,
        contenders,
    )


def sample(options, work):
    """The call, after one that does not count; and whole commands."""
    shared = prepared(options, work, tokens=2**15)
    calls = {"what": "sample", "batch": 8, "tokens": options.tokens, "calls": 1}
    dtype = own_dtype()
    contenders = [
        Contender("finetune", {"tool": "finetune", "dtype": dtype}),
        Contender("finetune, again", {"tool": "finetune", "dtype": dtype}),
        Contender(f"transformers generate, {dtype}", {"tool": "generate", "dtype": dtype}),
    ]
    texts = [
        Contender(tool, {"tool": tool, "dtype": "float32"}).turn({**shared, **calls, "batch": 1, "tokens": 1})["greedy"]
        for tool in ("finetune", "generate")
    ]
    if texts[0] != texts[1]:
        sys.exit(f"greedy texts in float32 differ: {texts}")
    rotate(contenders, options.rounds, {**shared, **calls})
    speeds = [[8 * options.tokens / statistics.median(r["seconds"]) for r in c.results] for c in contenders]
    rows = [
        {
            "what": f"8 x {options.tokens} tokens",
            "tool": c.name,
            "tokens/s": f"{statistics.median(s):,.0f}",
            "finetune is faster by": ratios(speeds[0], s),
        }
        for c, s in zip(contenders, speeds)
    ]
    setting = (
        f"{options.rounds} rounds, temperature 0.8, top_k 200, the call after one that does not count; ratios are"
        " median (lowest to highest) of the rounds"
    )
    return report(options, "sample", f"Sampling from {options.size}", setting, rows, contenders)


def sample_memory(options, work):
    """Peak of the command that draws 1,000 samples, to its end."""
    from finetune import GPT, GPTConfig

    n_layer, n_head, n_embd = SIZES[options.size]
    GPT.from_scratch(GPTConfig(n_layer=n_layer, n_head=n_head, n_embd=n_embd)).save_pretrained(work / "model")
    out, new = work / "samples.jsonl", options.tokens
    flags = [f"--init_from={work / 'model'}", f"--out={out}", f"--max_new_tokens={new}", "--start=Hello"]
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "finetune.sample", *flags, "--num_samples=1000", "--ignore_eos"])
    peaks = [0]
    while process.poll() is None:
        time.sleep(5)
        status = Path("/proc", str(process.pid), "status").read_text()
        peaks += [int(found[1]) / 1e3 for found in re.finditer(r"VmHWM:\s+(\d+)", status)]
    if process.returncode:
        sys.exit(f"finetune.sample ended with exit code {process.returncode}")
    row = {"tool": "finetune sample", "samples": f"{out.read_text().count(chr(10)):,}", "peak MB": f"{max(peaks):,.0f}"}
    row["minutes"] = f"{(time.perf_counter() - began) / 60:.0f}"
    title = f"Peak memory of 1,000 samples of {options.tokens} tokens from {options.size}"
    setting = "the dtype that this processor gets by default; the largest resident size of the process"
    return report(options, "sample-memory", title, setting, [row], [])


def command(options, work):
    """`finetune.sample` and nanoGPT's sample.py as users run them, with a vocabulary of single characters that needs no
    download."""
    import pickle

    from finetune.data.tokenizer import CharTokenizer

    shared = prepared(options, work, tokens=2**15)
    chars = ["\n", *(chr(point) for point in range(0x100, 0x100 + 50256))]
    CharTokenizer(chars).save(Path(shared["weights"]), 1024)
    meta = {"vocab_size": len(chars), "stoi": {char: i for i, char in enumerate(chars)}, "itos": dict(enumerate(chars))}
    Path(work, "data", "meta.pkl").write_bytes(pickle.dumps(meta))
    Contender("", {"tool": "nanogpt", "what": "setup"}).turn(shared)
    ours = [
        sys.executable,
        "-m",
        "finetune.sample",
        f"--init_from={shared['weights']}",
        "--num_samples=10",
        f"--max_new_tokens={options.tokens * 5 // 2}",
    ]
    theirs = [sys.executable, "sample.py", f"--out_dir={work}/nanogpt", "--device=cpu", "--num_samples=1"]
    new = options.tokens * 5 // 2
    speeds = {"finetune": [], "nanoGPT": []}
    for turn in range(options.rounds):
        for name in sorted(speeds, reverse=turn % 2 == 1):
            if name == "finetune":
                seconds = timed(ours, work)
            else:
                start = timed([*theirs, "--max_new_tokens=1"], options.nanogpt)
                seconds = start + 10 * (timed([*theirs, f"--max_new_tokens={new}"], options.nanogpt) - start)
            speeds[name].append(10 * new / seconds)
            print(f"round {turn + 1}: {name}, whole command {seconds:.1f} s", file=sys.stderr, flush=True)
    rows = [
        {
            "tool": name,
            "tokens/s": f"{statistics.median(s):,.1f}",
            "finetune is faster by": ratios(speeds["finetune"], s),
        }
        for name, s in speeds.items()
    ]
    setting = f"{options.rounds} rounds, {own_dtype()} here, float32 there, which are their "
    setting += (
        "defaults; temperature 0.8, top_k 200; from start to end. nanoGPT writes one sample after the other, so its"
        " command is timed with one of the ten and "
    )
    setting += "with one token, and its start counted once"
    return report(
        options, "command", f"The command that prints 10 samples of {new} tokens from {options.size}", setting, rows, []
    )


def load(options, work):
    """Processor time of one batch of 8 blocks, in random order, from memory."""
    options.batch_size = 8
    shared = prepared(options, work, tokens=20 * 2**20)
    contenders = [Contender("finetune", {"tool": "finetune"}), Contender("finetune, again", {"tool": "finetune"})]
    contenders += [Contender("nanoGPT's get_batch", {"tool": "nanogpt"})]
    contenders += [Contender("datasets, DataLoader and run_clm's three columns", {"tool": "trainer"})]
    rotate(contenders, options.rounds, {**shared, "what": "load"})
    costs = [[r["milliseconds"] for r in c.results] for c in contenders]
    rows = [
        {
            "tool": c.name,
            "ms a batch": f"{statistics.median(cost):.3f}",
            "finetune is cheaper by": ratios(cost, costs[0]),
        }
        for c, cost in zip(contenders, costs)
    ]
    setting = (
        f"{options.rounds} rounds of 300 batches (100 of run_clm's), one thread, 20 million tokens; ratios are median"
        " (lowest to highest) of the rounds"
    )
    return report(options, "load", f"A batch of 8 x {options.block_size} tokens", setting, rows, contenders)


def prepare(options, work):
    """A gigabyte of text, and a tenth of it in a single line, to bins; beside what encoding alone takes."""
    piece = next(_pieces())
    size = 10**9 if options.size == "124M" else 10**7
    rows, results = [], []
    for name, bytes_, text in (("in lines", size, piece), ("in a single line", size // 10, piece.replace("\n", " "))):
        path = work / "text.txt"
        _write_repeated(path, text, bytes_)
        contenders = [
            Contender(f"finetune, {name}", {"tool": "finetune"}),
            Contender(f"tiktoken alone, {name}", {"tool": "tiktoken"}),
        ]
        rotate(contenders, options.rounds, {"work": str(work), "text": str(path), "what": "prepare"})
        ours, theirs = contenders
        if ours.results[0]["tokens"] < 0.9 * theirs.results[0]["tokens"]:
            sys.exit(f"tokens are missing: {ours.results[0]} {theirs.results[0]}")
        rows += [
            {
                "tool": c.name,
                "MB/s": f"{statistics.median(r['mb_per_second'] for r in c.results):.1f}",
                "finetune's speed over it": ratios(
                    [r["mb_per_second"] for r in ours.results], [r["mb_per_second"] for r in c.results]
                ),
                "peak MB": f"{max(r['peak_mb'] for r in c.results):,.0f}",
            }
            for c in contenders
        ]
        results += contenders
    setting = (
        f"{options.rounds} rounds; {size / 1e6:,.0f} MB and {size / 1e7:,.0f} MB of random words, GPT-2's BPE;"
        " finetune: the whole command, reading twice, checking, hashing and "
    )
    setting += (
        "writing; tiktoken: encode_ordinary_batch only, pieces of a megabyte on all cores, which cut words, so that its"
        " ids differ a little"
    )
    return report(options, "prepare", "A text to train.bin and val.bin", setting, rows, results)


def corpus(options, work):
    """prepare --executor: equal bins whatever runs the tasks, without the duplicates, and the rates."""
    from corpus_lane import measure

    rows, results, setting = measure(work, int(options.gb * 1e9), _pieces())
    title = "A corpus prepared in parts, by datatrove"
    return report(options, "corpus", title, setting, rows, []) | {"results": results}


def doctor(options, work):
    """What the doctor takes for a text of random words in lines, and for documents of 300 bytes to 10 kB."""
    from finetune.data.prepare import prepare

    full = options.size == "124M"
    corpora = {"one text": 250_000_000 if full else 10**7, "documents": 100_000_000 if full else 10**7}
    rows, results = [], []
    for name, size in corpora.items():
        path = work / ("text.txt" if name == "one text" else "documents.jsonl")
        if name == "one text":
            _write_repeated(path, next(_pieces()), size)
        else:
            _write_documents(path, size)
        prepare([path], work / name)
        contenders = [Contender(f"finetune, {name}", {"tool": "finetune"})]
        if options.before:
            before = Path(options.before).resolve()
            contenders.append(Contender(f"before, {name}", {"tool": "finetune"}, root=before, scripts=ROOT))
        rotate(contenders, options.rounds, {"work": str(work), "dataset": str(work / name), "what": "doctor"})
        found = [result["findings"] for contender in contenders for result in contender.results]
        if any(other != found[0] for other in found):
            sys.exit(f"the findings differ: {found}")
        rows += [
            {
                "tool": c.name,
                "MB/s": f"{statistics.median(r['mb_per_second'] for r in c.results):.1f}",
                "speed over it": ratios(
                    [r["mb_per_second"] for r in contenders[0].results], [r["mb_per_second"] for r in c.results]
                ),
                "CPU ns a byte": f"{statistics.median(r['cpu_ns_per_byte'] for r in c.results):.1f}",
                "peak MB": f"{max(r['peak_mb'] for r in c.results):,.0f}",
            }
            for c in contenders
        ]
        results += contenders
    sizes = ", ".join(f"{name} of {size / 1e6:,.0f} MB" for name, size in corpora.items())
    setting = f"{options.rounds} rounds; {sizes}, prepared with GPT-2's BPE: random words as in `bench.py prepare`,"
    setting += " documents of 300 bytes to 10 kB; the whole examination, from opening the directory on"
    return report(options, "doctor", "What finetune.doctor takes", setting, rows, results)


def _pieces():
    """Random words in lines, 24 MB at a time, always other ones."""
    import numpy as np

    rng = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    words = [
        "".join(letters[rng.geometric(0.12, size).clip(max=26) - 1]) for size in rng.geometric(0.2, 50_000).clip(1, 14)
    ]
    while True:
        chosen = rng.zipf(1.3, 4_000_000) % len(words)
        ends = rng.choice(np.array([" ", " ", " ", " ", " ", " ", ", ", ". ", ".\n"]), len(chosen))
        yield "".join(words[word] + end for word, end in zip(chosen.tolist(), ends.tolist()))


def _write_repeated(path, text, size):
    with open(path, "w", encoding="utf-8") as file:
        for _ in range(size // len(text)):
            file.write(text)
        file.write(text[: size % len(text)])


def _write_documents(path, size):
    """Rows of text of 300 to 10,000 characters; the short ones are as many as the long ones."""
    import numpy as np

    rng, pieces, written, text, place = np.random.default_rng(1), _pieces(), 0, "", 0
    with open(path, "w", encoding="utf-8") as file:
        while written < size:
            length = int(np.exp(rng.uniform(np.log(300), np.log(10_000))))
            if place + length > len(text):
                text, place = next(pieces), 0
            file.write(json.dumps({"text": text[place : place + length]}) + "\n")
            place, written = place + length, written + length


def convert(options, work):
    """train.bin of 1 GB to the Arrow cache of a first run."""
    shared = prepared(options, work, tokens=500_000_000)
    (contender,) = contenders = [Contender("finetune", {"tool": "finetune", "what": "convert"})]
    train, copy = (Path(shared["work"], "data", name) for name in ("train.bin", "copy"))
    for _ in range(options.rounds):
        _fresh_pages(copy, train.stat().st_size)
        contender.turn(shared)
        _fresh_pages(copy, train.stat().st_size)
        began = time.perf_counter()
        with open(train, "rb") as source, open(copy, "wb") as target:
            shutil.copyfileobj(source, target, 1 << 22)
        contender.results[-1]["copy_mb_per_second"] = train.stat().st_size / 1e6 / (time.perf_counter() - began)
        copy.unlink()
    medians = {name: statistics.median(r[name] for r in contender.results) for name in contender.results[0]}
    rows = [
        {
            "what": "bin to Arrow",
            "MB/s": f"{medians['mb_per_second']:,.0f}",
            "memory on top": f"{medians['grown_mb']:.0f} MB",
        },
        {
            "what": "copying the file, for comparison",
            "MB/s": f"{medians['copy_mb_per_second']:,.0f}",
            "memory on top": "",
        },
    ]
    setting = (
        f"{options.rounds} rounds, medians; not synced to the disk, which nothing waits for: a cache that is lost is"
        " built again. Before each a file of the "
    )
    setting += (
        "size was written and removed, because a virtual machine gets pages from its host at some 400 MB/s, whoever"
        " asks"
    )
    return report(options, "convert", "1 GB of tokens from bin to Arrow", setting, rows, contenders)


def caches(options, work):
    """Bins of a gigabyte each as one dataset: what a start takes that builds their caches, and one that finds them."""
    import numpy as np

    rng, names = np.random.default_rng(0), []
    for number in range(max(1, round(options.gb))):
        names.append(str(work / f"part{number}"))
        Path(names[-1]).mkdir()
        with open(Path(names[-1], "train.bin"), "wb") as file:
            for _ in range(100):
                file.write(rng.integers(0, 50257, 5_000_000, dtype=np.uint16).tobytes())
        Path(names[-1], "val.bin").write_bytes(rng.integers(0, 50257, 50_000, dtype=np.uint16).tobytes())
    rows, results, size = [], {}, len(names) * 1e9
    for processes in (1, 2):
        for found in (False, True):
            seconds, peak = _start_over(work, names, processes)
            told = f"{'finds' if found else 'builds'} the caches, {processes} process{'es' if processes > 1 else ''}"
            results[told] = {"seconds": seconds, "peak_mb": peak}
            rate = f"{size / 1e6 / seconds:,.0f}"
            rows.append({"a start that": told, "seconds": f"{seconds:.0f}", "MB/s": rate, "peak MB": f"{peak:,.0f}"})
        cached = sum(path.stat().st_size for path in work.glob("part*/.arrow/*.arrow"))
        for path in work.glob("part*/.arrow"):
            shutil.rmtree(path)
    setting = (
        f"{len(names)} bins of 1 GB in one dataset, read by a model of two layers that makes one update; the whole"
    )
    setting += " command, with the check of every bin and cache; the caches together take"
    setting += f" {cached / size:.3f} times the bins on disk"
    return report(options, "caches", "Several bins as one dataset", setting, rows, []) | {"results": results}


def _start_over(work, names, processes):
    """(seconds, peak MB of its largest process) of a run of one update."""
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 64, "block_size": 1024, "batch_size": 1, "max_iters": 1}
    flags = {**shape, "init_from": "scratch", "eval_iters": 1, "gradient_accumulation_steps": 2, "device": "cpu"}
    flags |= {"dataset": ",".join(names), "out_dir": work / "out", "overwrite": "true", "num_processes": processes}
    command = [sys.executable, "-m", "finetune", "train", *(f"--{name}={value}" for name, value in flags.items())]
    began, largest = time.perf_counter(), 0
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": first_on_path(ROOT)})
    while run.poll() is None:
        time.sleep(0.2)
        largest = max(largest, _largest_process(run.pid))
    if run.returncode:
        sys.exit(f"it ended with exit code {run.returncode}")
    return time.perf_counter() - began, largest / 1e6


def _largest_process(pid):
    """Bytes that the largest process below this one holds and that no file could give back."""
    import psutil

    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        return max(memory.rss - memory.shared for memory in (one.memory_info() for one in family))
    except psutil.Error:
        return 0


def _fresh_pages(path, size):
    """Leave the kernel with free pages for a file of this size."""
    with open(path, "wb") as file:
        for _ in range(-(-size // (1 << 22)) + 16):
            file.write(bytes(1 << 22))
    path.unlink()


def char(options, work):
    """Two contenders, one after the other on an otherwise idle machine; both train with the same bins."""
    from finetune.data.prepare import prepare

    text = options.text if options.text == "shakespeare" else str(Path(options.text).resolve())
    prepare([text], work / "data" / "char", "char")
    shape = {
        "n_layer": 4,
        "n_head": 4,
        "n_embd": 128,
        "block_size": 64,
        "batch_size": 12,
        "max_iters": 2000,
        "dropout": 0.0,
    }
    flags = [f"--{name}={value}" for name, value in shape.items()]

    recipe = ROOT / "recipes" / "shakespeare_char.yaml"
    ours = [
        "-m",
        "finetune.train",
        str(recipe),
        *flags,
        "--dataset=char",
        f"--out_dir={work / 'ours'}",
        "--num_samples=0",
    ]
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
    ]
    seconds["nanoGPT"] = timed([sys.executable, *theirs, f"--out_dir={work / 'nano'}"], checkout)

    rows = []
    for name, out in (("finetune", "ours"), ("nanoGPT", "nano")):
        loss = whole_split_loss(work / out, work)
        rows.append({"tool": name, "wall_seconds": round(seconds[name], 1), "val_loss": round(loss, 4)})
    setting = (
        "4 layers, 4 heads, 128 wide, context 64, batch 12, 2,000 iterations, dropout 0, learning rate 1e-3; wall time"
        " of the whole command, "
    )
    setting += (
        "evaluations included; validation loss of the best checkpoint over the whole split (111,540 characters), by our"
        " evaluation for both"
    )
    return report(options, "char", "Character-level tiny Shakespeare, from scratch, on a CPU", setting, rows, [])


def whole_split_loss(model, work):
    """The validation loss that `finetune.train --eval_only` finds for any kind of checkpoint."""
    flags = [
        f"--init_from={model}",
        "--dataset=char",
        "--eval_only=true",
        "--dtype=float32",
        f"--out_dir={work / 'unused'}",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "finetune.train", *flags], cwd=work, capture_output=True, text=True, check=True
    )
    return float(done.stdout.split("val loss ")[1].split()[0])


def gpu(options, work):
    """The table of a CUDA device, shortest lanes last to be cut when time is up."""
    import torch

    began, contenders, first = time.monotonic(), [], {}
    rows = [{"what": what, "tool": "the device", "figure": figure} for what, figure in ceilings().items()]
    cuda = torch.cuda.is_available()
    device, options.steps = ("cuda", 42) if cuda else ("cpu", 22)
    bf16 = {"dtype": "bfloat16", "dropout": 0.0}
    plan = [
        ("124M", 32, "finetune", {}),
        ("124M", 32, "trainer", bf16),
        ("124M", 32, "trainer", {**bf16, "compile": True}),
        ("124M", 32, "nanogpt", {}),
        ("1558M", 8, "finetune", {}),
        ("355M", 16, "finetune", {}),
        ("774M", 16, "finetune", {}),
        ("1558M", 8, "nanogpt", {}),
        ("1558M", 1, "finetune", {"gradient_checkpointing": True}),
        ("124M", 8, "finetune", {}),
        ("124M", 32, "finetune", {"compile": "false"}),
    ]
    if not cuda:  # a rehearsal: the same steps on a toy
        plan, options.block_size = (
            [("tiny", 2, tool, settings) for _, _, tool, settings in plan if "compile" not in settings],
            64,
        )
    title = "Training and sampling on one GPU"
    setting = (
        f"bfloat16, AdamW, dropout 0; one run each of {options.steps} updates, timed from the 11th, so ratios of"
        " neighbouring lines are what to read; "
    )
    setting += (
        "first line: seconds from the start of the process to the first update told of, compilation included; peak:"
        " allocated from the second update on"
    )

    def tell(what, tool, figure):
        rows.append({"what": what, "tool": tool, "figure": figure})
        print(rows[-1], file=sys.stderr, flush=True)
        write(
            report(options, "gpu", title, setting, rows, contenders), Path(options.out), quiet=True
        )  # whatever happens next, this much is there

    for size, blocks, tool, settings in plan:
        left = 8 * 60 - (time.monotonic() - began)
        what, name = f"training {size}, {blocks} x {options.block_size}", f"{tool} {settings or ''}".strip()
        if tool == "nanogpt" and not options.nanogpt:
            continue
        if left < 30:
            tell(what, name, "not measured: out of time")
            continue
        options.size, options.batch_size = size, blocks
        folder = work / size
        folder.mkdir(exist_ok=True)
        contender = Contender(name, {"tool": tool, "options": settings})
        try:
            shared = {
                **prepared(options, folder, options.steps * blocks * options.block_size, device),
                "what": "train",
                "saves": False,
                "log_interval": 10,
            }
            if tool == "nanogpt":
                Contender("setup", {"tool": "nanogpt", "what": "setup"}).turn(shared, left)
            result = contender.turn(shared, left)
            off = difference(first.setdefault((size, blocks), result), result)
        except SystemExit as failure:
            tell(what, name, str(failure).strip().splitlines()[-1][:200])
            continue
        contenders.append(contender)
        stamps = dict(zip(result["iters"], result["stamps"]))
        last = max(stamps)
        speed = blocks * options.block_size * (last - 10) / (stamps[last] - stamps[10])
        figure = (
            f"{speed:,.0f} tokens/s, peak {result['peak_mb'] / 1024:.1f} GiB, first line after"
            f" {result['stamps'][0]:.0f} s"
        )
        tell(what, name, figure if off < 5e-2 else f"losses differ by {off:.3f}, so there is no speed to tell")
    options.size = plan[0][0]
    shared = prepared(options, work / options.size, 2**16, device) | {"what": "sample", "calls": 2, "dtype": "bfloat16"}
    shared |= {"batch": 64, "tokens": 200} if cuda else {"batch": 2, "tokens": 20}
    for tool in ("finetune", "generate"):
        contender = Contender(tool, {"tool": tool})
        what = f"sampling {options.size}, {shared['batch']} x {shared['tokens']}"
        try:
            seconds = min(contender.turn(shared, 120)["seconds"])
        except SystemExit as failure:
            tell(what, tool, str(failure).strip().splitlines()[-1][:200])
            continue
        contenders.append(contender)
        tell(what, tool, f"{shared['batch'] * shared['tokens'] / seconds:,.0f} tokens/s")
    return report(options, "gpu", title, setting, rows, contenders)


def ceilings():
    """What the device does at best: a matrix product and a copy."""
    import torch

    if not torch.cuda.is_available():
        return {}
    a, b = torch.randn(2, 8192, 8192, device="cuda", dtype=torch.bfloat16)
    big = torch.empty(2**31, dtype=torch.uint8, device="cuda")
    best = {}
    for name, work, unit in (
        ("product of 8192 x 8192 matrices", lambda: a @ b, 2 * 8192**3 / 1e12),
        ("copy", big.clone, 2 * 2**31 / 1e12),
    ):
        times = []
        for _ in range(20):
            torch.cuda.synchronize()
            began = time.perf_counter()
            work()
            torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
        best[name] = f"{unit / min(times):,.1f} {'TFLOP/s' if 'product' in name else 'TB/s'}"
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        q = torch.randn(8, 12, 1024, 64, device="cuda", dtype=torch.bfloat16)
        torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True)
        torch.cuda.synchronize()
    best["attention kernel"] = ", ".join(
        event.key[:60]
        for event in seen.key_averages()
        if event.key.lower().count("attention") or "flash" in event.key.lower()
    )
    del big
    torch.cuda.empty_cache()
    return best


def prepared(options, work, tokens, device="cpu"):
    """What all contenders share: random tokens with the frequencies of words, random weights, and the order of the
    blocks."""
    import numpy as np
    import torch

    from finetune import GPT, GPTConfig
    from finetune.data.sampler import BlockSampler

    data = work / "data"
    data.mkdir(exist_ok=True)
    rng, vocabulary = np.random.default_rng(0), np.arange(1, 50257)
    words = rng.choice(vocabulary.astype(np.uint16), 2**20, p=(1 / vocabulary) / (1 / vocabulary).sum())
    with open(data / "train.bin", "wb") as file:
        for first in range(0, tokens + 1, len(words)):
            file.write(words[: tokens + 1 - first].tobytes())
    words[: 2 * options.block_size + 1].tofile(data / "val.bin")
    weights = work / "weights"
    n_layer, n_head, n_embd = SIZES[options.size]
    if not weights.is_dir():
        config = GPTConfig(n_layer=n_layer, n_head=n_head, n_embd=n_embd, block_size=max(options.block_size, 1024))
        GPT.from_scratch(config, 0).save_pretrained(weights)
    torch.manual_seed(0)
    shape = {
        "batch_size": options.batch_size,
        "block_size": options.block_size,
        "gradient_accumulation_steps": 1,
        "max_iters": options.steps,
    }
    order = BlockSampler(-(-tokens // options.block_size), options.batch_size, 1337)
    (work / "rows.json").write_text(json.dumps([int(row) for i in range(options.steps) for row in order.rows(i)]))
    return {
        "work": str(work),
        "weights": str(weights),
        "nanogpt": options.nanogpt,
        "shape": shape,
        "device": device,
        "saves": True,
        "log_interval": 1,
    }


def rotate(contenders, rounds, shared):
    """Every contender's turn in every round, beginning with another one each time."""
    if any(c.job["tool"] == "nanogpt" for c in contenders) and shared["what"] == "train":
        Contender("", {"tool": "nanogpt", "what": "setup"}).turn(shared)
    for turn in range(rounds):
        for contender in contenders[turn % len(contenders) :] + contenders[: turn % len(contenders)]:
            result = contender.turn(shared)
            brief = {name: value for name, value in result.items() if not isinstance(value, list)}
            print(f"round {turn + 1}: {contender.name} {brief}", file=sys.stderr, flush=True)


def gate(contenders):
    """End here when losses do not agree with the first contender's."""
    for contender in contenders[1:]:
        for result in contender.results:
            off = difference(contenders[0].results[0], result)
            if off > contender.tolerance:
                sys.exit(
                    f"losses of {contender.name} differ from ours by {off:.4f}, over {contender.tolerance}: {result}"
                )


def difference(one, other):
    """The largest difference between the losses of two results, over the updates that both told of, which must be
    some."""
    first, second = (dict(zip(result["iters"], result["losses"])) for result in (one, other))
    each = [abs(first[step] - second[step]) for step in first.keys() & second.keys()]
    return float("inf") if any(math.isnan(off) for off in each) else max(each)


def ratios(above, below):
    """`1.41x (1.38 to 1.45)`: the median of the ratios within each round, and their range."""
    each = [one / other for one, other in zip(above, below)]
    return f"{statistics.median(each):.2f}x ({min(each):.2f} to {max(each):.2f})"


def timed(command, directory):
    began = time.perf_counter()
    done = subprocess.run(command, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    seconds = time.perf_counter() - began
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout[-3000:]}")
    return seconds


def report(options, what, title, setting, rows, contenders):
    results = {c.name: c.results for c in contenders}
    command = " ".join(["python scripts/bench.py", *options.given])
    return {"what": what, "title": title, "setting": setting, "command": command, "rows": rows, "results": results}


def slug(hardware):
    """`2-cores-of-intel-xeon` of a description of the machine."""
    return re.sub(r"\(r\)|\(tm\)| processor", "", hardware.split(",")[0].lower()).strip().replace(" ", "-")


def write(result, directory, quiet=False):
    """The result as JSON and as a Markdown table, named after what, where and when."""
    hardware, today = hardware_name(), datetime.date.today().isoformat()
    result |= {"hardware": hardware, "date": today, "versions": versions()}
    base = directory / f"{result['what']}_{slug(hardware)}_{today}"
    directory.mkdir(parents=True, exist_ok=True)
    base.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
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
    if not quiet:
        print("\n".join(lines))


def matched_trainer(how, **more):
    """Hugging Face's Trainer with our dtype and without dropout."""
    dtype = own_dtype()
    options = {"dtype": dtype, "dropout": 0.0} | more
    return Contender(f"Trainer, {dtype}, {how}", {"tool": "trainer", "options": options}, 2e-2)


def own_dtype():
    """The name of the dtype that finetune computes in here by default, which others get where settings are matched."""
    from finetune.runtime.device import best_dtype, choose_device

    return str(best_dtype("auto", choose_device())).removeprefix("torch.")


def hardware_name():
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    model, units = "CPU", ""
    if Path("/proc/cpuinfo").exists():
        facts = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
        facts = {name.strip(): value.strip() for name, value in facts.items()}
        model, flags = facts.get("model name", model), facts.get("flags", "").split()
        # several processors go by one name in virtual machines
        units = next((f" with {name}" for flag, name in UNITS.items() if flag in flags), "")
    return f"{os.cpu_count()} cores of {model}{units}, {platform.machine()}"


def versions():
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for name in ("torch", "accelerate", "transformers", "datasets"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


# of products, the fastest first
UNITS = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16", "avx512f": "AVX512", "avx2": "AVX2"}

LANES = {
    "train": train,
    "roofline": roofline,
    "start": start,
    "memory": memory,
    "modes": modes,
    "saves": saves,
    "plan": plan,
    "processes": processes,
    "packing": packing,
    "sample": sample,
    "sample-memory": sample_memory,
    "command": command,
    "load": load,
    "prepare": prepare,
    "corpus": corpus,
    "doctor": doctor,
    "convert": convert,
    "caches": caches,
    "char": char,
    "gpu": gpu,
}

if __name__ == "__main__":
    run(main)
