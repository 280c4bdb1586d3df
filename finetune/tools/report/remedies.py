"""Commands that would help a run."""

from __future__ import annotations

from pathlib import Path

import yaml

from finetune.common.commands import command
from finetune.config import run_directory
from finetune.config.recipe import LORA_RATE
from finetune.tools.report.record import Record

SMALLER_MODEL = {"gpt2-xl": "gpt2-large", "gpt2-large": "gpt2-medium", "gpt2-medium": "gpt2"}
Flag = str | int | float | None  # None takes back the value in the recipe


def resume(run: Record, **flags: Flag) -> str:
    """The command that resumes a run, or restarts it if there is no state to resume from."""
    return _train(run, init_from="resume", **flags) if run.states else restart(run, **flags)


def restart(run: Record, **flags: Flag) -> str:
    return _train(run, overwrite="true", **flags)


def train_another(run: Record, **flags: Flag) -> str:
    """The command that trains a run like this one into another out_dir."""
    number = 2
    while Path(f"{run.out_dir}-{number}").exists():
        number += 1
    return _train(run, **flags, out_dir=f"{run.out_dir}-{number}")


def train_at_rate(run: Record, learning_rate: float, **flags: Flag) -> str:
    """`train_another` with this learning rate, to two digits, and the min_lr that follows from it."""
    return train_another(run, **flags, learning_rate=f"{learning_rate:.2g}", min_lr=None)


def less_memory(run: Record, tries: list[str]) -> tuple[list[str], str, str]:
    """(evidence, advice, command) of the first step to less memory that neither the recipe nor the run itself (`tries`)
    has taken. Steps that do not change the result come first."""
    recipe, parameters = run.recipe, run.parameters
    sharded = "sharded" in run.started.get("machine", "")
    automatic = "" if sharded else "; memory=auto would choose what fits"
    sizes = {name: newest_size(run, name) for name in ("batch_size", "gradient_accumulation_steps")}
    batch, steps = sizes.values()
    if batch and steps and batch > 1:
        smaller = next(size for size in range(batch // 2, 0, -1) if batch % size == 0)
        command = resume(run, batch_size=smaller, gradient_accumulation_steps=steps * batch // smaller)
        return [], f"smaller micro-batches, with the same blocks in an update{automatic}", command
    if not recipe.get("gradient_checkpointing") and not any("gradient_checkpointing=true" in done for done in tries):
        command = resume(run, gradient_checkpointing="true")
        return [], f"gradient checkpointing, which recomputes activations{automatic}", command
    reached: dict[str, Flag] = {name: size for name, size in sizes.items() if size != recipe.get(name)}
    reached["gradient_checkpointing"] = "true"
    trains_all_weights = not sharded and not recipe.get("lora_rank")
    size = f"{8 * (parameters or 0) / 1e9:.2f} GB"
    if trains_all_weights and recipe.get("optimizer_dtype", "float32") == "float32":
        evidence = [f"AdamW's moments take {size} in float32, half of that in bfloat16"] if parameters else []
        advice = "moments in bfloat16; they are rounded, so training differs a little"
        return evidence, advice, resume(run, **reached, optimizer_dtype="bfloat16")
    if trains_all_weights and run.pretrained:
        evidence = [f"gradients and moments of all {parameters:,} parameters take {size}"] if parameters else []
        rate = max(recipe.get("learning_rate") or 0, LORA_RATE)
        return evidence, "LoRA instead of all weights", train_at_rate(run, rate, **reached, lora_rank=16)
    if smaller_model := SMALLER_MODEL.get(run.init_from or ""):
        return [], "a smaller model: one block does not fit", train_another(run, init_from=smaller_model)
    block_size = max(1, (recipe.get("block_size") or 1024) // 2)
    return [], "a smaller block_size: one block does not fit", train_another(run, block_size=block_size)


def newest_size(run: Record, name: str) -> int | None:
    """batch_size or gradient_accumulation_steps at the end of the run, which OOM can have changed."""
    changes = run.in_session("out_of_memory", "batch_size")
    return changes[-1][name] if changes else run.recipe.get(name)


def examine_data(run: Record) -> str | None:
    found = [str(part.directory) for part in run.data if part.directory]
    return command("doctor", found[0]) if found else None


def _train(run: Record, **flags: Flag) -> str:
    changes: dict[str, object] = {**run_directory.out_dir_flag(run.out_dir)}
    given = _keys_of_recipe(run)
    for name, value in flags.items():
        if value is not None:
            changes[name] = value
        elif name in given:
            changes[name] = "none"
    return command("train", run.out_dir / "recipe.yaml", **changes)


def _keys_of_recipe(run: Record) -> set[str]:
    """The keys that the run's recipe.yaml sets."""
    try:
        recipe = yaml.safe_load((run.out_dir / "recipe.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return set()
    return {name for name, value in recipe.items() if value is not None} if isinstance(recipe, dict) else set()
