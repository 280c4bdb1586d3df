"""The options of a training run in one flat dataclass: keys, defaults, help, bounds and rules.

`resume` is the meaning of a changed key when a run is resumed:
identity  it would be another run: refused, and the difference is shown
schedule  applied from the resumed iteration on, and logged
free      does not influence what is learned
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from importlib.util import find_spec
from typing import Literal

from finetune.config.gate import problems_of_conditions
from finetune.config.nearest_key import meant_start
from finetune.config.options import option
from finetune.config.paths import split_paths
from finetune.config.trackers import problems_of_trackers

FIGURES = ("val_loss", "train_loss", "perplexity", "improvement")  # of the best model, for `require`

MANY = 1_000_000  # more blocks in an update, passes or tokens of a sample are a slip
LORA_RATE = 2e-4  # the learning rate at which GPT-2 was adapted first (Hu et al. 2021, arXiv 2106.09685)


@dataclass(frozen=True)
class Recipe:
    init_from: str = option(
        "gpt2",
        "the weights to start from: gpt2|gpt2-medium|gpt2-large|gpt2-xl, the Hub id of any GPT-2 model, id@revision, a "
        "Hugging Face directory, a run's out_dir, or a nanoGPT ckpt.pt; scratch: random weights; resume: continue the "
        "run in out_dir; auto: resume if out_dir has a checkpoint, else start as the recipe says",
        resume="free",
    )
    dataset: str = option(
        "",
        "a prepared directory, its name under data/, a text file, or shakespeare|python_docs; several: with commas",
        resume="identity",
    )
    dataset_weights: str | None = option(
        None, "sampling weights of several datasets, such as 0.7,0.3; else each block once per pass", resume="identity"
    )
    isolate_documents: Literal["auto", "true", "false"] = option(
        "auto", "pack whole documents, without attention between them; auto: for instruction data", resume="identity"
    )
    out_dir: str = option("out", "directory of the run", resume="free")
    overwrite: bool | Literal["unfinished"] = option(
        False,
        "let a new run replace the run in out_dir; unfinished: only one that ended before it saved a checkpoint",
        resume="free",
        flag_only=True,
    )

    tokenizer: str = option(
        "auto", "for a text: auto (that of init_from), gpt2, char, or a model directory", resume="identity"
    )
    val_fraction: float | None = option(
        None, "for a text: fraction kept for validation [0.1]", gt=0, le=0.5, resume="identity", derived=True
    )
    block_size: int | None = option(
        None, "context length, at most the model's [1024 from scratch]", ge=1, le=65535, resume="identity", derived=True
    )
    n_layer: int | None = option(None, "number of layers, from scratch only (12)", ge=1, le=1000, resume="identity")
    n_head: int | None = option(None, "attention heads, from scratch only (12)", ge=1, le=16384, resume="identity")
    n_embd: int | None = option(None, "embedding width, from scratch only (768)", ge=1, le=65536, resume="identity")
    dropout: float = option(0.0, "dropout of embeddings, attention and residuals", ge=0, le=0.99, resume="schedule")
    lora_rank: int = option(
        0, "rank of LoRA adapters of c_attn, c_proj and c_fc; 0: the weights", ge=0, le=65536, resume="identity"
    )
    lora_alpha: int | None = option(
        None, "scales the adapters by lora_alpha / lora_rank [2 x lora_rank]", ge=1, resume="identity", derived=True
    )
    lora_dropout: float = option(0.0, "dropout of the input of the adapters", ge=0, le=0.99, resume="schedule")

    batch_size: int | Literal["auto"] = option(
        8, "blocks per micro-batch; auto: the most that fit, same blocks per update", ge=1, le=MANY, resume="free"
    )
    gradient_accumulation_steps: int = option(
        8,
        "micro-batches per update, over all processes; beside batch_size=auto in a recipe, blocks per update",
        ge=1,
        le=MANY,
        resume="free",
    )
    max_iters: int = option(5000, "number of updates", ge=0, resume="schedule")
    epochs: float | None = option(
        None, "stop after this many passes over the data, if before max_iters", ge=0, le=MANY, resume="schedule"
    )
    seed: int = option(1337, "seed of block order, dropout and initial weights", ge=0, lt=2**63, resume="identity")

    learning_rate: float = option(3e-5, "peak learning rate", ge=0, resume="schedule")
    decay_lr: bool = option(True, "cosine decay to min_lr; false: constant after the warmup", resume="schedule")
    warmup_iters: int | None = option(
        None, "updates of linear warmup [100, at most a tenth of the run]", ge=0, resume="schedule", derived=True
    )
    lr_decay_iters: int | None = option(
        None, "update at which the decay reaches min_lr [the end of the run]", ge=1, resume="schedule", derived=True
    )
    min_lr: float | None = option(
        None, "learning rate after the decay [a tenth of learning_rate]", ge=0, resume="schedule", derived=True
    )
    weight_decay: float = option(0.1, "AdamW weight decay, of matrices and embeddings only", ge=0, resume="schedule")
    beta1: float = option(0.9, "AdamW beta1", ge=0, lt=1, resume="schedule")
    beta2: float = option(0.95, "AdamW beta2", ge=0, lt=1, resume="schedule")
    grad_clip: float = option(1.0, "largest gradient norm; 0 disables clipping", ge=0, resume="schedule")
    optimizer_dtype: Literal["float32", "bfloat16"] = option(
        "float32", "dtype of AdamW's two moments; bfloat16 saves 4 bytes per parameter", resume="schedule"
    )

    eval_interval: int | None = option(
        None, "updates between evaluations [a twentieth to a tenth of the run]", ge=1, resume="free", derived=True
    )
    eval_iters: int | None = option(
        None,
        "evaluate this many fixed micro-batches, not the whole split; beside batch_size=auto in a recipe, blocks",
        ge=1,
        resume="free",
    )
    eval_only: bool = option(False, "evaluate once and write nothing", resume="free")
    log_interval: int = option(10, "updates between log lines", ge=1, resume="free")
    patience: int | None = option(None, "evaluations without a new best before early stopping", ge=1, resume="free")
    save_interval: int | None = option(
        None,
        "updates between checkpoints [eval_interval, or a twentieth of the run]",
        ge=1,
        resume="free",
        derived=True,
    )
    always_save_checkpoint: bool = option(False, "keep the model of every evaluation in out_dir/iter_N", resume="free")
    sharded_checkpoints: bool = option(False, "under FSDP2 each rank writes its shard of a checkpoint", resume="free")

    max_rollbacks: int = option(
        3, "most rollbacks after divergence, each to the last checkpoint at half the rate", ge=0, resume="free"
    )
    deterministic: bool = option(False, "bit-identical results on a GPU, slower; always so on a CPU", resume="free")

    num_samples: int = option(0, "number of samples to print at the end of training", ge=0, le=10_000, resume="free")
    sample_interval: int | None = option(
        None, "updates between samples during training, num_samples each; none: only at the end", ge=1, resume="free"
    )
    start: str = option("\n", "prompt of the samples", resume="free")
    max_new_tokens: int = option(200, "length of the samples in tokens", ge=1, le=MANY, resume="free")
    temperature: float = option(0.8, "temperature of the samples", ge=0, resume="free")
    top_k: int = option(200, "sample from the k most likely tokens; 0 is all", ge=0, resume="free")

    require: str = option(
        "",
        "conditions on the best model, separated by commas, such as 'val_loss<3.2'; exit code 5 at the end if one is "
        "not met",
        resume="free",
    )
    log_with: str = option(
        "",
        "experiment trackers, separated by commas: tensorboard, wandb, trackio, comet_ml, aim, mlflow, clearml, "
        "dvclive, swanlab; all is every one that is installed",
        resume="free",
    )
    wandb_log: bool = option(
        False, "short for log_with=wandb: Weights & Biases, offline if it cannot be reached", resume="free"
    )
    wandb_project: str = option("finetune", "project of the trackers' runs", resume="free")
    wandb_run_name: str | None = option(
        None, "name of the trackers' runs [the name of out_dir]", resume="free", derived=True
    )

    push_to_hub: str | None = option(
        None, "USER/NAME: private Hub repository for the exported best model; needs --push=true too", resume="free"
    )
    push: bool = option(
        False, "push to push_to_hub at the end of training; on the command line only", resume="free", flag_only=True
    )

    device: Literal["auto", "cpu", "cuda", "mps"] = option("auto", "device to train on", resume="free")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "dtype of matrix products; weights stay float32", resume="free"
    )
    compile: Literal["auto", "true", "false"] = option("auto", "torch.compile; auto is on for CUDA", resume="free")
    gradient_checkpointing: bool = option(
        False, "recompute activations in the backward pass: less memory, slower", resume="free"
    )
    chunked_loss: Literal["auto", "true", "false"] = option(
        "auto", "loss in chunks, never all logits at once; auto: on a CPU, or for gigabytes of logits", resume="free"
    )
    memory: Literal["recipe", "auto"] = option(
        "recipe",
        "auto takes the first mode that is predicted to fit, each with smaller micro-batches: chunked_loss, "
        "gradient_checkpointing, optimizer_dtype=bfloat16",
        resume="free",
    )
    cpu_threads: int = option(0, "CPU threads per process; 0 shares the cores", ge=0, le=1024, resume="free")
    timeout: float = option(600, "seconds until a rank that hangs ends the run", ge=5, le=MANY, resume="free")

    def as_recipe(self) -> Recipe:
        """The keys of a recipe alone, of options that have more."""
        return Recipe(**{field.name: getattr(self, field.name) for field in fields(Recipe)})

    @property
    def micro_batch_size(self) -> int:
        """batch_size as a number; 1 for auto, which starts with one block."""
        return 1 if self.batch_size == "auto" else self.batch_size

    @property
    def blocks_per_update(self) -> int:
        return self.micro_batch_size * self.gradient_accumulation_steps

    @property
    def max_eval_rows(self) -> int | None:
        """Blocks of an evaluation; None for the whole split."""
        return self.eval_iters and self.eval_iters * self.micro_batch_size

    def problems(self) -> Iterator[tuple[str, str]]:
        """(key, message) of each value that cannot be used and of each contradiction."""
        meant = meant_start(self.init_from)  # then what follows from init_from is no problem yet
        if not self.dataset and not meant:
            choices = "give --dataset=DIR, a text file, or --dataset=python_docs, which needs no download"
            no_run = f"there is no recipe.yaml in {self.out_dir}; give the out_dir of a run, or its recipe"
            yield "dataset", f"nothing to train on; {no_run if self.init_from == 'resume' else choices}"
        if self.dataset_weights is not None:
            yield from _problems_of_weights(self.dataset_weights, len(split_paths(self.dataset)))
        if not self.init_from:
            yield "init_from", "must not be empty; gpt2 and scratch are the common choices"
        elif meant:
            yield "init_from", f"there is no {self.init_from}. Did you mean {meant}?"
        if not self.out_dir:
            yield "out_dir", "must not be empty"
        if self.init_from not in ("scratch", "resume") and not meant:
            for name in ("n_layer", "n_head", "n_embd"):
                if getattr(self, name) is not None:
                    yield name, f"init_from={self.init_from} has its own {name}; set it with init_from=scratch only"
        n_embd, n_head = self.n_embd or 768, self.n_head or 12
        if n_head > 0 and n_embd % n_head:
            yield "n_embd", f"{n_embd} cannot be divided among n_head={n_head} heads"
        if self.min_lr is not None and self.min_lr > self.learning_rate:
            yield "min_lr", f"{self.min_lr} is above learning_rate={self.learning_rate}; --min_lr=none makes it a tenth"
        if idle := [k for k in ("min_lr", "lr_decay_iters") if not self.decay_lr and getattr(self, k) is not None]:
            yield "decay_lr", f"false leaves nothing for {' and '.join(idle)} to do; add --{'=none --'.join(idle)}=none"
        if self.sample_interval and not self.num_samples:
            yield "sample_interval", "has no effect without num_samples; add --num_samples=1"
        if self.memory == "auto" and self.batch_size == "auto":
            yield "memory", "auto chooses batch_size too; give one of memory=auto and batch_size=auto"
        if self.require and self.eval_only:
            yield "require", "has no effect with eval_only; finetune eval takes it too"
        for problem in problems_of_conditions(self.require, FIGURES):
            yield "require", problem
        for problem in problems_of_trackers(self.log_with):
            yield "log_with", problem
        yield from self._problems_of_lora()
        yield from self._problems_of_push()

    def _problems_of_lora(self) -> Iterator[tuple[str, str]]:
        if self.lora_rank and self.init_from == "scratch":
            yield "lora_rank", "adapters would leave random weights as they are; choose a pretrained init_from"
        for name in ("lora_alpha", "lora_dropout"):
            if getattr(self, name) and not self.lora_rank:
                yield name, "has no effect without lora_rank"
        if self.lora_rank and find_spec("peft") is None:
            yield "lora_rank", "adapters need the package peft: pip install 'finetune-gpt2[lora]'"

    def _problems_of_push(self) -> Iterator[tuple[str, str]]:
        if self.push_to_hub is not None and (problem := repository_problem(self.push_to_hub)):
            yield "push_to_hub", problem
        if self.push and not self.push_to_hub:
            yield "push", "there is nowhere to push to; give push_to_hub=USER/NAME too"
        if self.push and self.eval_only:
            yield "push", "eval_only=true leaves nothing to push"


def lora_alpha(recipe: Recipe) -> int | None:
    """lora_alpha of a recipe; None without adapters."""
    return (recipe.lora_alpha or 2 * recipe.lora_rank) or None


def dataset_weights(recipe: Recipe) -> list[float] | None:
    """dataset_weights as numbers; None if not given."""
    return None if recipe.dataset_weights is None else [float(weight) for weight in recipe.dataset_weights.split(",")]


def _problems_of_weights(text: str, num_datasets: int) -> Iterator[tuple[str, str]]:
    try:
        weights = [float(weight) for weight in text.split(",")]
    except ValueError:
        yield "dataset_weights", f"expected numbers separated by commas, got {text!r}"
        return
    if len(weights) != num_datasets or num_datasets == 1:
        yield "dataset_weights", f"{len(weights)} for {num_datasets} datasets; give each of several its own"
    elif not all(0 < weight < math.inf and weight >= sum(weights) / 1000 for weight in weights):
        yield "dataset_weights", f"each must be above 0 and at least a thousandth of their sum, got {text}"


def repository_problem(name: str) -> str | None:
    """Why `name` cannot be the name of a Hub repository; None if it can."""
    well_formed = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name, re.ASCII)
    if well_formed and not re.search(r"--|\.\.|[.-](/|$)|\.git$", name) and len(name) <= 96:
        return None
    form = "it is USER/NAME, of letters, digits and single - _ . between them"
    return f"{name!r} is not the name of a repository; {form}"
