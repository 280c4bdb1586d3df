"""The keywords of the functions for type checkers. Written by `python scripts/reference.py`."""

from collections.abc import Sequence
from os import PathLike
from typing import Literal, TypeAlias, TypedDict

Text: TypeAlias = str | float | PathLike[str]
Texts: TypeAlias = Text | Sequence[Text]

class PrepareFlags(TypedDict, total=False):
    text_column: Text | None
    prompt_column: Text | None
    completion_column: Text | None
    messages_column: Text | None
    prompt_template: Text | None
    separator: Text | None
    header: Literal["auto", "true", "false"] | bool
    documents: Text
    special: Literal["text", "token"]
    encoding: Text | None
    on_bad_row: Literal["error", "skip"]
    out_dir: Text
    tokenizer: Text
    add_tokens: Texts
    split: Text
    revision: Text | None
    val_fraction: float
    val: Texts | None
    keep_split: Text | None
    seed: int
    overflow: Literal["split", "drop", "error"]
    max_tokens: int
    num_proc: int
    overwrite: bool
    executor: Literal["local", "slurm", "ray"] | None
    tasks: int
    duplicates: Literal["drop", "keep"]
    slurm: Text
    doctor: Literal["auto", "true", "false"] | bool
    dry_run: bool

class TrainFlags(TypedDict, total=False):
    init_from: Text
    dataset: Texts
    dataset_weights: Texts | None
    isolate_documents: Literal["auto", "true", "false"] | bool
    out_dir: Text
    overwrite: bool | Literal["unfinished"]
    tokenizer: Text
    val_fraction: float | None
    block_size: int | None
    n_layer: int | None
    n_head: int | None
    n_embd: int | None
    dropout: float
    lora_rank: int
    lora_alpha: int | None
    lora_dropout: float
    batch_size: int | Literal["auto"]
    gradient_accumulation_steps: int
    max_iters: int
    epochs: float | None
    seed: int
    learning_rate: float
    decay_lr: bool
    warmup_iters: int | None
    lr_decay_iters: int | None
    min_lr: float | None
    weight_decay: float
    beta1: float
    beta2: float
    grad_clip: float
    optimizer_dtype: Literal["float32", "bfloat16"]
    eval_interval: int | None
    eval_iters: int | None
    eval_only: bool
    log_interval: int
    patience: int | None
    save_interval: int | None
    always_save_checkpoint: bool
    sharded_checkpoints: bool
    max_rollbacks: int
    deterministic: bool
    num_samples: int
    sample_interval: int | None
    start: Text
    max_new_tokens: int
    temperature: float
    top_k: int
    require: Texts
    log_with: Texts
    wandb_log: bool
    wandb_project: Text
    wandb_run_name: Text | None
    push_to_hub: Text | None
    push: bool
    device: Literal["auto", "cpu", "cuda", "mps"]
    dtype: Literal["auto", "float32", "bfloat16", "float16"]
    compile: Literal["auto", "true", "false"] | bool
    gradient_checkpointing: bool
    chunked_loss: Literal["auto", "true", "false"] | bool
    memory: Literal["recipe", "auto"]
    cpu_threads: int
    timeout: float

class SampleFlags(TypedDict, total=False):
    out_dir: Text | None
    init_from: Text | None
    start: Text
    prompts: Text
    chat: bool
    system: Text
    num_samples: int
    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    stop: Text
    ignore_eos: bool
    max_copy: int
    dataset: Texts
    out: Text
    overwrite: bool
    seed: int
    device: Literal["auto", "cpu", "cuda", "mps"]
    dtype: Literal["auto", "float32", "bfloat16", "float16"]

class EvaluateFlags(TypedDict, total=False):
    out_dir: Text | None
    init_from: Text | None
    dataset: Texts | None
    split: Text
    block_size: int | None
    stride: int | None
    documents: bool | None
    batch_size: int | None
    baseline: Text | None
    require: Texts
    no_worse_than: Text | None
    general: Text | None
    metrics: Texts
    completions: int
    samples: int
    start: Text
    max_new_tokens: int
    temperature: float | None
    top_k: int
    top_p: float
    seed: int
    device: Literal["auto", "cpu", "cuda", "mps"]
    dtype: Literal["float32", "bfloat16", "float16"]

class ExportFlags(TypedDict, total=False):
    out_dir: Text | None
    init_from: Text | None
    to: Text | None
    format: Literal["hf", "nanogpt", "peft", "gguf", "onnx"]
    dtype: Literal["float32", "bfloat16", "float16"]
    gguf_type: Literal["f32", "f16", "q8_0"] | None
    interpolate: Text | None
    push_to_hub: Text | None
    private: bool
    revision: Text | None
    overwrite: bool
    license: Text | None
    language: Texts | None
    tags: Texts | None
    space: Text | None
    space_sdk: Literal["static", "gradio"] | None

class PlanFlags(TrainFlags, total=False):
    tokens: int | None
    num_processes: int
    quick: bool
    explain: bool
    suggest: bool
    to: Text | None
    find_lr: bool
    trial_minutes: float
