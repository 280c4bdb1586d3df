"""The key that was probably meant, for messages about unknown ones."""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection

from finetune.config.options import BOOLEANS

# short flags, and what other tools call our keys: suggested and never accepted, because units may differ
ALIASES: dict[str, tuple[str, ...]] = {
    "b": ("batch_size",),
    "c": ("config",),
    "l": ("learning_rate",),
    "m": ("init_from",),
    "n": ("num_samples", "num_processes"),
    "o": ("out_dir", "to"),
    "accumulate_grad_batches": ("gradient_accumulation_steps",),
    "accumulate_gradients": ("gradient_accumulation_steps",),
    "adam_beta1": ("beta1",),
    "adam_beta2": ("beta2",),
    "auto_find_batch_size": ("batch_size=auto",),
    "base_model": ("init_from",),
    "batch": ("batch_size",),
    "bf16": ("dtype=bfloat16",),
    "bs": ("batch_size",),
    "checkpoint": ("init_from",),
    "checkpoint_dir": ("init_from", "out_dir"),
    "checkpoint_every": ("save_interval",),
    "ckpt": ("init_from",),
    "ckpt_path": ("init_from",),
    "clip": ("grad_clip",),
    "clip_grad": ("grad_clip",),
    "context_length": ("block_size",),
    "context_size": ("block_size",),
    "continue": ("init_from=resume",),
    "cosine_min_lr_ratio": ("min_lr",),
    "cpu": ("device=cpu",),
    "ctx_len": ("block_size",),
    "cuda": ("device=cuda",),
    "cutoff_len": ("block_size",),
    "d_model": ("n_embd",),
    "data": ("dataset",),
    "data_path": ("dataset",),
    "data_seed": ("seed",),
    "dataset_name": ("dataset",),
    "device_map": ("device",),
    "devices": ("num_processes",),
    "early_stopping": ("patience",),
    "early_stopping_patience": ("patience",),
    "embed_dim": ("n_embd",),
    "eval_batch_size": ("batch_size",),
    "eval_batches": ("eval_iters",),
    "eval_data": ("val",),
    "eval_every": ("eval_interval",),
    "eval_steps": ("eval_interval",),
    "eval_strategy": ("eval_interval",),
    "evals_per_epoch": ("eval_interval",),
    "evaluation_steps": ("eval_interval",),
    "evaluation_strategy": ("eval_interval",),
    "fp16": ("dtype=float16",),
    "fp32": ("dtype=float32",),
    "full_determinism": ("deterministic",),
    "generate_every": ("sample_interval",),
    "gpu": ("device=cuda",),
    "gpus": ("num_processes",),
    "grad_accum": ("gradient_accumulation_steps",),
    "grad_accum_steps": ("gradient_accumulation_steps",),
    "gradient_accumulation": ("gradient_accumulation_steps",),
    "gradient_clip_val": ("grad_clip",),
    "gradient_clipping": ("grad_clip",),
    "heads": ("n_head",),
    "hidden_size": ("n_embd",),
    "hub_model_id": ("push_to_hub",),
    "iterations": ("max_iters",),
    "iters": ("max_iters",),
    "layers": ("n_layer",),
    "learning_rate_decay": ("decay_lr",),
    "learning_rate_schedule": ("decay_lr",),
    "limit_val_batches": ("eval_iters",),
    "log_every": ("log_interval",),
    "log_every_n_steps": ("log_interval",),
    "logging_steps": ("log_interval",),
    "logging_strategy": ("log_interval",),
    "lora": ("lora_rank",),
    "lora_r": ("lora_rank",),
    "lr": ("learning_rate",),
    "lr_decay_ratio": ("min_lr",),
    "lr_decay_style": ("decay_lr",),
    "lr_scheduler": ("decay_lr",),
    "lr_scheduler_type": ("decay_lr",),
    "lr_warmup_fraction": ("warmup_iters",),
    "max_epochs": ("epochs",),
    "max_grad_norm": ("grad_clip",),
    "max_length": ("block_size", "max_new_tokens"),
    "max_norm": ("grad_clip",),
    "max_seq_len": ("block_size",),
    "max_seq_length": ("block_size",),
    "max_steps": ("max_iters",),
    "max_tokens": ("max_new_tokens",),
    "micro_batch_size": ("batch_size",),
    "min_learning_rate": ("min_lr",),
    "min_lr_ratio": ("min_lr",),
    "mixed_precision": ("dtype",),
    "model": ("init_from",),
    "model_dir": ("init_from", "out_dir"),
    "model_id": ("init_from",),
    "model_max_length": ("block_size",),
    "model_name": ("init_from",),
    "model_name_or_path": ("init_from",),
    "model_path": ("init_from",),
    "n_ctx": ("block_size",),
    "n_positions": ("block_size",),
    "n_proc": ("num_proc", "num_processes"),
    "no_cuda": ("device=cpu",),
    "nproc_per_node": ("num_processes",),
    "num_epochs": ("epochs",),
    "num_gpus": ("num_processes",),
    "num_heads": ("n_head",),
    "num_layers": ("n_layer",),
    "num_return_sequences": ("num_samples",),
    "num_steps": ("max_iters",),
    "num_train_epochs": ("epochs",),
    "num_workers": ("num_proc", "num_processes"),
    "output": ("out_dir",),
    "output_dir": ("out_dir",),
    "output_path": ("out_dir",),
    "overwrite_output_dir": ("overwrite",),
    "per_device_eval_batch_size": ("batch_size",),
    "per_device_train_batch_size": ("batch_size",),
    "precision": ("dtype",),
    "pretrained": ("init_from",),
    "processes": ("num_processes",),
    "prompt": ("start",),
    "prompts_file": ("prompts",),
    "random_seed": ("seed",),
    "random_state": ("seed",),
    "recipe": ("config",),
    "repo_id": ("push_to_hub",),
    "report_to": ("log_with", "wandb_log"),
    "restore_from": ("init_from",),
    "resume": ("init_from=resume",),
    "resume_from": ("init_from=resume",),
    "resume_from_checkpoint": ("init_from=resume",),
    "run_name": ("wandb_run_name",),
    "sample_every": ("sample_interval",),
    "sample_length": ("max_new_tokens",),
    "save_every": ("save_interval",),
    "save_steps": ("save_interval",),
    "save_strategy": ("save_interval",),
    "saves_per_epoch": ("save_interval",),
    "scheduler": ("decay_lr",),
    "seq_len": ("block_size",),
    "sequence_len": ("block_size",),
    "steps": ("max_iters",),
    "system_prompt": ("system",),
    "temp": ("temperature",),
    "tensorboard": ("log_with=tensorboard",),
    "test_size": ("val_fraction",),
    "torch_compile": ("compile",),
    "torch_dtype": ("dtype",),
    "train_batch_size": ("batch_size",),
    "train_data": ("dataset",),
    "train_file": ("dataset",),
    "use_cpu": ("device=cpu",),
    "use_lora": ("lora_rank",),
    "use_peft": ("lora_rank",),
    "use_wandb": ("wandb_log",),
    "val_data": ("val",),
    "val_set_size": ("val_fraction",),
    "val_size": ("val_fraction",),
    "validation_file": ("val",),
    "validation_split": ("val_fraction",),
    "wandb": ("wandb_log",),
    "warmup_ratio": ("warmup_iters",),
    "warmup_steps": ("warmup_iters",),
    "wd": ("weight_decay",),
    "workers": ("num_proc", "num_processes"),
    "world_size": ("num_processes",),
}
# what other tools know and nothing here means; their letters are like those of keys with another meaning
OTHERS = frozenset(
    """
    adam_epsilon betas bias chat_template combine config_name debug_mode deepspeed do_eval do_predict do_sample
    do_train embedding_learning_rate eps eval_accumulation_steps eval_delay gpu_id hub_token keep_checkpoints
    local_rank lora_target lora_target_modules master_port max_samples min_epochs min_p model_type node_rank num_beams
    optim optimizer overwrite_cache packing quiet sample_packing stage stop_token strict tags target_modules template
    tf32 token top_p use_fast_tokenizer verbose vocab_size wandb_entity
    """.split()
)
STARTS = ("scratch", "resume", "auto")  # what init_from means besides names
WORDS_OF_STARTS = {"last": "resume", "latest": "resume", "continue": "resume", "none": "scratch", "random": "scratch"}


def nearest(name: str, names: Collection[str], prefix: str, text: str = "true", between: str = "=") -> str:
    """The end of a message about an unknown key with this text as value. `prefix` and `between` spell the key that is
    suggested as a flag, or as a line of a recipe."""
    known = [known for known in names if known != "sources"]
    whole = name.replace(".", "_").lower()  # litgpt's eval.interval, beside its train.max_steps
    key = whole if whole in known else name.rpartition(".")[2].replace("-", "_").lower()
    found = similar(key, known)
    if not found and len(key) > 2 and key not in OTHERS:
        found = next((other for other in known if other.startswith(key)), None)
    return f" Did you mean '{prefix}{spelled(found, text, between)}'?" if found else " --help lists them all."


def spelled(found: str, text: str, between: str = "=") -> str:
    """What `similar` found in place of a key with this text as value: a key, with a value if it has one."""
    key, _, value = found.partition("=")
    is_off = not BOOLEANS.get(text.lower(), True)  # `bf16: false` asks for no dtype
    return key if is_off or not value else f"{key}{between}{value}"


def meant_start(init_from: str) -> str | None:
    """The word that was meant by an `init_from` that is nothing else; None if it is one, or a name."""
    word = init_from.lower()
    if not init_from or init_from in STARTS or os.path.exists(init_from):
        return None
    return word if word in STARTS else WORDS_OF_STARTS.get(word) or similar(word, STARTS, cutoff=0.8)


def similar(name: str, names: Collection[str], cutoff: float = 0.7) -> str | None:
    """The key that another tool calls `name`, or whose letters are most like it."""
    for alias in ALIASES.get(name, ()):
        if alias.partition("=")[0] in names:
            return alias
    if name in ALIASES or name in OTHERS:
        return None
    forms = (name, name.removeprefix("no_"))
    return next((close for form in forms for close in difflib.get_close_matches(form, names, 1, cutoff)), None)
