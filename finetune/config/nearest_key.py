"""The key that was probably meant, for messages about unknown ones."""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection

# short flags, and what other tools call our keys: suggested and never accepted, because units may differ
ALIASES: dict[str, tuple[str, ...]] = {
    "b": ("batch_size",),
    "c": ("config",),
    "l": ("learning_rate",),
    "m": ("init_from",),
    "n": ("num_samples", "num_processes"),
    "o": ("out_dir", "to"),
    "adam_beta1": ("beta1",),
    "adam_beta2": ("beta2",),
    "batch": ("batch_size",),
    "bf16": ("dtype=bfloat16",),
    "checkpoint_dir": ("init_from", "out_dir"),
    "cutoff_len": ("block_size",),
    "data": ("dataset",),
    "data_path": ("dataset",),
    "dataset_name": ("dataset",),
    "eval_steps": ("eval_interval",),
    "evaluation_steps": ("eval_interval",),
    "fp16": ("dtype=float16",),
    "fp32": ("dtype=float32",),
    "gpus": ("num_processes",),
    "gradient_accumulation": ("gradient_accumulation_steps",),
    "learning_rate_schedule": ("decay_lr",),
    "logging_steps": ("log_interval",),
    "lora_r": ("lora_rank",),
    "lr": ("learning_rate",),
    "lr_scheduler_type": ("decay_lr",),
    "max_epochs": ("epochs",),
    "max_grad_norm": ("grad_clip",),
    "max_length": ("max_new_tokens", "block_size"),
    "max_seq_len": ("block_size",),
    "max_seq_length": ("block_size",),
    "max_steps": ("max_iters",),
    "max_tokens": ("max_new_tokens",),
    "micro_batch_size": ("batch_size",),
    "model": ("init_from",),
    "model_id": ("init_from",),
    "model_name": ("init_from",),
    "model_name_or_path": ("init_from",),
    "nproc_per_node": ("num_processes",),
    "num_epochs": ("epochs",),
    "num_gpus": ("num_processes",),
    "num_return_sequences": ("num_samples",),
    "num_train_epochs": ("epochs",),
    "num_workers": ("num_proc", "num_processes"),
    "output": ("out_dir",),
    "output_dir": ("out_dir",),
    "overwrite_output_dir": ("overwrite",),
    "per_device_eval_batch_size": ("batch_size",),
    "per_device_train_batch_size": ("batch_size",),
    "prompt": ("start",),
    "recipe": ("config",),
    "repo_id": ("push_to_hub",),
    "report_to": ("log_with", "wandb_log"),
    "resume": ("init_from=resume",),
    "resume_from_checkpoint": ("init_from=resume",),
    "run_name": ("wandb_run_name",),
    "save_steps": ("save_interval",),
    "seq_len": ("block_size",),
    "sequence_len": ("block_size",),
    "steps": ("max_iters",),
    "torch_compile": ("compile",),
    "torch_dtype": ("dtype",),
    "train_batch_size": ("batch_size",),
    "train_file": ("dataset",),
    "warmup_ratio": ("warmup_iters",),
    "warmup_steps": ("warmup_iters",),
    "wd": ("weight_decay",),
}
STARTS = ("scratch", "resume", "auto")  # what init_from means besides names
WORDS_OF_STARTS = {"last": "resume", "latest": "resume", "continue": "resume", "none": "scratch", "random": "scratch"}


def nearest(name: str, names: Collection[str], prefix: str) -> str:
    """The end of a message about an unknown key."""
    known = [known for known in names if known != "sources"]
    key = name.rpartition(".")[2].replace("-", "_").lower()
    found = similar(key, known) or next((other for other in known if other.startswith(key)), None)
    return f" Did you mean '{prefix}{found}'?" if found else " --help lists them all."


def meant_start(init_from: str) -> str | None:
    """The word that was meant by an `init_from` that is nothing else; None if it is one, or a name."""
    if not init_from or init_from in STARTS or os.path.exists(init_from):
        return None
    return WORDS_OF_STARTS.get(init_from.lower()) or similar(init_from.lower(), STARTS, cutoff=0.8)


def similar(name: str, names: Collection[str], cutoff: float = 0.6) -> str | None:
    """The key that another tool calls `name`, or whose letters are most like it."""
    for alias in ALIASES.get(name, ()):
        if alias.partition("=")[0] in names:
            return alias
    forms = (name, name.removeprefix("no_"))
    return next((close for form in forms for close in difflib.get_close_matches(form, names, 1, cutoff)), None)
