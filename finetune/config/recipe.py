"""Everything a training run can be told, in one flat dataclass: its keys, defaults, help and rules.

`resume` says what changing a key means when a run is resumed:
identity  the run would be another one: refused, with the difference shown
schedule  applied from the resumed iteration on, and logged
free      has no influence on what is learned
"""

import math
import re
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from finetune.config.cli import convert, option


@dataclass
class Recipe:
    init_from: str = option(
        "gpt2",
        "where the weights come from: gpt2|gpt2-medium|gpt2-large|gpt2-xl, any GPT-2-shaped Hub id, a Hugging Face"
        " directory, a run's out_dir, a nanoGPT ckpt.pt, scratch, or resume (go on with out_dir)",
        resume="free",
        path=True,
    )
    dataset: str = option(
        "",
        "a prepared directory, the name of one under data/, a text file, or shakespeare|python_docs; several with"
        " commas between them",
        resume="identity",
        path=True,
    )
    dataset_weights: str | None = option(
        None,
        "of several datasets: how often each is drawn, such as 0.7,0.3; without, every block once in a pass",
        resume="identity",
    )
    isolate_documents: Literal["auto", "true", "false"] = option(
        "auto",
        "pack whole documents into blocks, and let none see another; auto is on for instruction data",
        resume="identity",
    )
    out_dir: str = option("out", "where the run is written", resume="free", path=True)
    overwrite: bool = option(False, "let a new run replace the one that out_dir holds", resume="free")

    tokenizer: str = option(
        "auto",
        "for a text file as dataset: auto (that of init_from), gpt2, char, or a model directory",
        resume="identity",
        path=True,
    )
    val_fraction: float | None = option(
        None, "for a text file as dataset: the share kept for validation [0.1]", resume="identity", derived=True
    )
    block_size: int | None = option(
        None, "tokens of context: at most that of the model [1024 from scratch]", resume="identity", derived=True
    )
    n_layer: int | None = option(None, "layers, from scratch only (12)", resume="identity")
    n_head: int | None = option(None, "attention heads, from scratch only (12)", resume="identity")
    n_embd: int | None = option(None, "width, from scratch only (768)", resume="identity")
    dropout: float = option(0.0, "dropout of embeddings, attention and residuals", resume="schedule")
    lora_rank: int = option(
        0,
        "train adapters of this rank on c_attn, c_proj and c_fc, and none of the weights; 0 trains the weights",
        resume="identity",
    )
    lora_alpha: int | None = option(
        None,
        "what the adapters add counts lora_alpha / lora_rank times [2 x lora_rank]",
        resume="identity",
        derived=True,
    )
    lora_dropout: float = option(0.0, "dropout of what goes into the adapters", resume="schedule")

    batch_size: int | Literal["auto"] = option(
        8,
        "blocks in one forward pass (the micro-batch); auto: the largest that fits and pays, at the same blocks an"
        " update",
        resume="free",
    )
    gradient_accumulation_steps: int = option(
        8,
        "forward passes in one update, over all processes together; beside batch_size=auto in a recipe, blocks in one"
        " update",
        resume="free",
    )
    max_iters: int = option(5000, "end after this many updates", resume="schedule")
    epochs: float | None = option(
        None, "end after this many passes over the data, if that comes before max_iters", resume="schedule"
    )
    seed: int = option(1337, "decides the order of the blocks, dropout and initial weights", resume="identity")

    learning_rate: float = option(3e-5, "peak learning rate", resume="schedule")
    decay_lr: bool = option(
        True, "cosine decay to min_lr; false keeps learning_rate after the warmup", resume="schedule"
    )
    warmup_iters: int | None = option(
        None, "updates of linear warmup [100, at most a tenth of the run]", resume="schedule", derived=True
    )
    lr_decay_iters: int | None = option(
        None, "where the decay reaches min_lr [the end of the run]", resume="schedule", derived=True
    )
    min_lr: float | None = option(
        None, "learning rate after the decay [a tenth of learning_rate]", resume="schedule", derived=True
    )
    weight_decay: float = option(0.1, "AdamW's weight decay of the matrices and embeddings", resume="schedule")
    beta1: float = option(0.9, "AdamW", resume="schedule")
    beta2: float = option(0.95, "AdamW", resume="schedule")
    grad_clip: float = option(1.0, "largest gradient norm; 0 switches clipping off", resume="schedule")
    optimizer_dtype: Literal["float32", "bfloat16"] = option(
        "float32", "what AdamW's two moments rest in; bfloat16 takes 4 bytes a parameter less", resume="schedule"
    )

    eval_interval: int | None = option(
        None, "updates between evaluations [a twentieth of the run, at most 250]", resume="free", derived=True
    )
    eval_iters: int | None = option(
        None,
        "evaluate on this many fixed batches of batch_size blocks (beside batch_size=auto in a recipe, on this many"
        " blocks) instead of the whole split",
        resume="free",
    )
    eval_only: bool = option(False, "evaluate once and write nothing", resume="free")
    log_interval: int = option(10, "updates between log lines", resume="free")
    patience: int | None = option(None, "end after this many evaluations without a new best", resume="free")
    save_interval: int | None = option(
        None, "updates between resumable checkpoints [eval_interval]", resume="free", derived=True
    )
    always_save_checkpoint: bool = option(
        False, "keep the model of every evaluation as out_dir/iter_N, not only the best", resume="free"
    )

    max_rollbacks: int = option(
        3,
        "when training diverges, go back to the last state and halve the learning rate this often, then give up",
        resume="free",
    )
    deterministic: bool = option(
        False, "the same bits in every run on a GPU too, slower; on a CPU runs are anyway", resume="free"
    )

    num_samples: int = option(0, "samples to print when training is done", resume="free")
    sample_interval: int | None = option(
        None,
        "updates between samples while training, of num_samples each; without, there are those at the end only",
        resume="free",
    )
    start: str = option("\n", "prompt of these samples", resume="free")
    max_new_tokens: int = option(200, "length of these samples", resume="free")
    temperature: float = option(0.8, "temperature of these samples", resume="free")
    top_k: int = option(200, "draw these samples from the k likeliest tokens; 0 is all", resume="free")

    wandb_log: bool = option(False, "log to Weights & Biases (offline when it cannot be reached)", resume="free")
    wandb_project: str = option("finetune", "Weights & Biases project", resume="free")
    wandb_run_name: str | None = option(None, "Weights & Biases run [the name of out_dir]", resume="free", derived=True)

    push_to_hub: str | None = option(
        None,
        "USER/NAME: a private Hub repository for the exported best model; nothing is pushed without --push=true",
        resume="free",
    )
    push: bool = option(
        False, "push to push_to_hub when training is done; on the command line only", resume="free", flag_only=True
    )

    device: Literal["auto", "cpu", "cuda", "mps"] = option("auto", "where to compute", resume="free")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "arithmetic of the matrix products; weights stay float32", resume="free"
    )
    compile: Literal["auto", "true", "false"] = option("auto", "torch.compile; auto is on for CUDA", resume="free")
    gradient_checkpointing: bool = option(
        False, "compute activations again in the backward pass: less memory, slower", resume="free"
    )
    chunked_loss: Literal["auto", "true", "false"] = option(
        "auto",
        "never hold all logits at once; auto is on for a CPU, and where they would take gigabytes",
        resume="free",
    )
    memory: Literal["recipe", "auto"] = option(
        "recipe",
        "auto takes the first that is predicted to fit, each with smaller micro-batches: chunked_loss,"
        " gradient_checkpointing, optimizer_dtype=bfloat16",
        resume="free",
    )
    cpu_threads: int = option(0, "threads of each process on CPU; 0 shares out all cores", resume="free")

    @property
    def micro_batch_size(self) -> int:
        """batch_size as a number: 1 for auto, which begins with one block and is then made larger."""
        return 1 if self.batch_size == "auto" else self.batch_size

    @property
    def blocks_per_update(self) -> int:
        return self.micro_batch_size * self.gradient_accumulation_steps

    @property
    def max_eval_rows(self) -> int | None:
        """Blocks of an evaluation; None for the whole split."""
        return self.eval_iters and self.eval_iters * self.micro_batch_size

    @classmethod
    def combine(cls, values: dict, given: list[tuple[str, str | None, str]]) -> None:
        """Change parsed `values` where `batch_size=auto` took the place of a number: keys that counted micro-batches of
        so many blocks count blocks then, so that updates and evaluations stay the same. `given`: (key, text, origin)
        in order. Beside an `auto` in a recipe file they count blocks already."""
        if values.get("batch_size") != "auto":
            return
        size, counts_blocks = None, False
        for name, text, origin in given:
            if name == "batch_size" and str(text).lower() == "auto":
                counts_blocks |= size is None and not origin.startswith("--")
            elif name == "batch_size":
                with suppress(ValueError):  # reported as a problem already
                    size = convert(text, int)
        for name in ("gradient_accumulation_steps", "eval_iters"):
            count = values.get(name, getattr(cls, name))
            if count is not None and (size or name not in values or not counts_blocks):
                values[name] = count * (size or cls.batch_size)

    def problems(self):
        """(key, message) for each value that cannot be used, and each contradiction."""
        for name, low, high in RANGES:
            value = getattr(self, name)
            if value not in (None, "auto") and not low <= value <= high:
                bound = f"at least {low}" if high == math.inf else f"between {low} and {high}"
                yield name, f"must be {bound}, got {value}"
        if not self.dataset:
            yield (
                "dataset",
                (
                    "nothing to train on; give --dataset=DIR, a text file, or --dataset=python_docs, which needs no"
                    " download"
                ),
            )
        if self.dataset_weights is not None:
            yield from _problems_of_weights(self.dataset_weights, len(self.dataset.split(",")))
        if not self.init_from:
            yield "init_from", "must not be empty; gpt2 and scratch are the common choices"
        if not self.out_dir:
            yield "out_dir", "must not be empty"
        if self.init_from not in ("scratch", "resume"):
            for name in ("n_layer", "n_head", "n_embd"):
                if getattr(self, name) is not None:
                    yield (
                        name,
                        f"init_from={self.init_from} brings its own {name}; it can be set with init_from=scratch only",
                    )
        n_embd, n_head = self.n_embd or 768, self.n_head or 12
        if n_head > 0 and n_embd % n_head:
            yield "n_embd", f"{n_embd} cannot be divided among n_head={n_head} heads"
        if self.min_lr is not None and self.min_lr > self.learning_rate:
            yield "min_lr", f"{self.min_lr} is above learning_rate={self.learning_rate}"
        if self.push_to_hub is not None and (problem := repository_problem(self.push_to_hub)):
            yield "push_to_hub", problem
        if self.push and not self.push_to_hub:
            yield "push", "there is nowhere to push to; give push_to_hub=USER/NAME too"
        if self.push and self.eval_only:
            yield "push", "eval_only=true leaves nothing to push"
        if not self.decay_lr and (self.min_lr is not None or self.lr_decay_iters is not None):
            yield "decay_lr", "false leaves nothing for min_lr and lr_decay_iters to do; remove them"
        if self.sample_interval and not self.num_samples:
            yield "sample_interval", "has no effect without num_samples; add --num_samples=1"
        if self.lora_rank and self.init_from == "scratch":
            yield (
                "lora_rank",
                (
                    "adapters on init_from=scratch would leave random weights as they are; finetune a model that was"
                    " trained"
                ),
            )
        for name in ("lora_alpha", "lora_dropout"):
            if getattr(self, name) and not self.lora_rank:
                yield name, "has no effect without lora_rank"
        if self.lora_rank and find_spec("peft") is None:
            yield "lora_rank", "adapters need the package peft: pip install -e '.[lora]' where finetune was cloned to"
        if self.memory == "auto" and self.batch_size == "auto":
            yield "memory", "auto chooses batch_size too; give one of memory=auto and batch_size=auto"


LORA_RATE = 2e-4  # the learning rate at which GPT-2 was adapted first (Hu et al. 2021, arXiv 2106.09685)


def lora_alpha(recipe):
    """lora_alpha of a recipe; None where there are no adapters."""
    return (recipe.lora_alpha or 2 * recipe.lora_rank) or None


def dataset_weights(recipe):
    """dataset_weights as numbers; None where there are none."""
    return None if recipe.dataset_weights is None else [float(weight) for weight in recipe.dataset_weights.split(",")]


def _problems_of_weights(text, datasets):
    try:
        numbers = [float(weight) for weight in text.split(",")]
    except ValueError:
        yield "dataset_weights", f"numbers with commas between them are wanted, got {text!r}"
        return
    if len(numbers) != datasets or datasets == 1:
        yield (
            "dataset_weights",
            f"{len(numbers)} for {datasets} dataset{'s' * (datasets > 1)}; give each of several its own",
        )
    elif not all(0 < number < math.inf and number >= sum(numbers) / 1000 for number in numbers):
        yield "dataset_weights", f"each must be above 0 and at least a thousandth of them all, got {text}"


POSITIVE = 5e-324  # the smallest float above zero
RANGES = [
    ("val_fraction", POSITIVE, 0.5),
    ("block_size", 1, 65535),
    ("n_layer", 1, math.inf),
    ("n_head", 1, math.inf),
    ("n_embd", 1, math.inf),
    ("dropout", 0, 0.99),
    ("lora_rank", 0, math.inf),
    ("lora_alpha", 1, math.inf),
    ("lora_dropout", 0, 0.99),
    ("batch_size", 1, math.inf),
    ("gradient_accumulation_steps", 1, math.inf),
    ("max_iters", 0, math.inf),
    ("epochs", 0, math.inf),
    ("seed", 0, 2**63 - 1),
    ("learning_rate", 0, math.inf),
    ("warmup_iters", 0, math.inf),
    ("lr_decay_iters", 1, math.inf),
    ("min_lr", 0, math.inf),
    ("weight_decay", 0, math.inf),
    ("beta1", 0, 1 - 2**-53),
    ("beta2", 0, 1 - 2**-53),
    ("grad_clip", 0, math.inf),
    ("eval_interval", 1, math.inf),
    ("eval_iters", 1, math.inf),
    ("patience", 1, math.inf),
    ("max_rollbacks", 0, math.inf),
    ("log_interval", 1, math.inf),
    ("save_interval", 1, math.inf),
    ("num_samples", 0, math.inf),
    ("sample_interval", 1, math.inf),
    ("max_new_tokens", 1, math.inf),
    ("temperature", 0, math.inf),
    ("top_k", 0, math.inf),
    ("cpu_threads", 0, math.inf),
]


def repository_problem(name):
    """Why `name` cannot be that of a Hub repository, None when it can."""
    if (
        re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name, re.ASCII)
        and not re.search(r"--|\.\.|[.-](/|$)|\.git$", name)
        and len(name) <= 96
    ):
        return None
    return (
        f"{name!r} is not the name of a repository; it is USER/NAME, of letters, digits and single - _ . between them"
    )
