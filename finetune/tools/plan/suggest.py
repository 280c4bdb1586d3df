"""A recipe for this data and this machine: the guide's choices, corrected, each with its reason."""

import dataclasses
import math
from pathlib import Path

from finetune.common.errors import UsageError
from finetune.config import recipe as recipes
from finetune.config import recipe_file
from finetune.gpt import size as sizes
from finetune.gpt.model import SHAPES
from finetune.tools.plan import advice, estimate

UPDATES_OF_A_PASS = 256  # as far as updates need be neither too small nor too large for that
UPDATES_FROM_SCRATCH = 5000  # which nanoGPT gives its small networks
CEILING = 5000  # the guide's max_iters
TOKENS_PER_PARAMETER = 20  # that training from scratch makes the most of (Hoffmann et al. 2022, arXiv 2203.15556)


def check_target(path):
    """Raise UsageError when a recipe cannot be written there."""
    if not path.endswith((".yaml", ".yml")):
        raise UsageError(f"--to: {path} is no recipe; its name ends with .yaml")
    if Path(path).exists():
        raise UsageError(f"--to: {path} is there already; name another file")
    if not Path(path).resolve().parent.is_dir():
        raise UsageError(f"--to: there is no directory {Path(path).resolve().parent}")


def recipe(plan, path="FILE.yaml", learning_rate=None):
    """The text of a YAML recipe, to be written to `path`. Keys that were given as flags stay as they are;
    `learning_rate` is one that was found by trial."""
    chosen = _chosen(plan, learning_rate)
    for name, origin in plan.origins.items():
        if name in recipes.Recipe.__dataclass_fields__:
            if origin.startswith("--"):
                chosen[name] = getattr(plan.recipe, name), "as asked on the command line"
            else:
                chosen.setdefault(name, (getattr(plan.recipe, name), f"as in {origin}"))
    if plan.data.name == estimate.IMAGINED:
        chosen["dataset"] = "data/mine", "yours; there is no text yet"
        chosen["out_dir"] = "out-mine", "where the run is written"
    pairs = {
        field.name: f"{field.name}: {recipe_file.scalar(chosen[field.name][0])}"
        for field in dataclasses.fields(recipes.Recipe)
        if field.name in chosen and chosen[field.name][0] is not None
    }
    width = max(map(len, pairs.values()))
    where = f"{plan.device} with {plan.available / 1e9:.0f} GB free" if plan.available is not None else plan.device
    head = [
        f"# accelerate launch -m finetune.train {path}",
        "#",
        f"# Suggested for {plan.data.tokens['train']:,} tokens to train on, on {where}.",
        "",
    ]
    return "\n".join([*head, *(f"{pair:<{width}}  # {chosen[name][1]}" for name, pair in pairs.items())]) + "\n"


def _chosen(plan, learning_rate):
    """{key: (value, reason)} of what is suggested."""
    kept = {name for name, origin in plan.origins.items() if origin.startswith("--")}
    plan, chosen = _sized(plan, "init_from" in kept)
    tokens, T = plan.data.tokens["train"], plan.block_size
    asked, rows = (
        {name: getattr(plan.recipe, name) for name in kept & {"batch_size", "gradient_accumulation_steps"}},
        _rows(plan),
    )
    plan = dataclasses.replace(
        plan, recipe=dataclasses.replace(plan.recipe, batch_size=1, gradient_accumulation_steps=rows)
    )
    size, checkpointing = plan.largest_batch(gradient_checkpointing=False), False
    if size is None:
        size, checkpointing = plan.largest_batch(gradient_checkpointing=True) or 1, True
        chosen["gradient_checkpointing"] = True, "activations do not fit beside weights and optimizer"
    elif plan.recipe.gradient_checkpointing:
        chosen["gradient_checkpointing"] = False, "activations fit, and recomputing them takes time"
    size = asked.get("batch_size", min(size, max(1, rows // asked.get("gradient_accumulation_steps", 1))))
    steps = asked.get("gradient_accumulation_steps", plan.processes * max(1, rows // size // plan.processes))
    rows = size * steps
    takes = plan.takes(batch_size=size, gradient_checkpointing=checkpointing) / 1e9
    chosen["batch_size"] = size, f"the largest that fits and pays: {takes:.1f} GB"
    chosen["gradient_accumulation_steps"] = (
        steps,
        (
            f"{size} x {steps} x {T:,} = {rows * T:,} tokens an update, {-(-plan.data.rows['train'] // rows):,} updates"
            " a pass"
        ),
    )
    chosen |= _length(plan, rows)
    low, high = advice.rates_for(plan)
    if learning_rate:
        chosen["learning_rate"] = learning_rate, "the best of the rates that were tried"
    elif plan.recipe.lora_rank:
        chosen["learning_rate"] = recipes.LORA_RATE, f"{low:g} to {high:g} is usual for LoRA"
    elif plan.pretrained:
        rate = high if tokens < 1_000_000 else float(f"{math.sqrt(low * high):.2g}")
        chosen["learning_rate"] = rate, f"{low:g} to {high:g} is usual for {tokens:,} tokens"
    else:
        chosen["learning_rate"] = float(f"{low * 3:.2g}"), f"usual for a network {plan.config.n_embd} wide from scratch"
    for name in ("warmup_iters", "lr_decay_iters", "min_lr", "eval_interval", "save_interval"):
        chosen[name] = None, "follows the length"
    chosen["patience"] = 5, "a quarter of the run without a better validation loss ends it"
    return chosen


def _sized(plan, stays):
    """`(plan, {key: (value, reason)})`: with the model that the guide takes for this much text, or the largest below it
    that fits."""
    if stays or plan.recipe.init_from not in SHAPES:
        return plan, {}
    tokens, models = plan.data.tokens["train"], advice.MODELS
    wanted, _ = advice.size_for(tokens)
    reason = f"what the guide takes for {tokens:,} tokens"
    if plan.device == "cpu" and wanted != "gpt2":
        wanted, reason = "gpt2", "on a CPU larger ones take days"
    for name in reversed(models[: models.index(wanted) + 1]):
        L, H, C = SHAPES[name]
        config = dataclasses.replace(plan.config, n_layer=L, n_head=H, n_embd=C, n_inner=None)
        sized = dataclasses.replace(
            plan, config=config, recipe=dataclasses.replace(plan.recipe, init_from=name), timing=None
        )
        if name == "gpt2" or sized.largest_batch(gradient_checkpointing=True):
            return sized, {
                "init_from": (
                    name,
                    reason if name == wanted else f"{wanted}, for {tokens:,} tokens, does not fit into memory",
                )
            }


def _rows(plan):
    """Blocks of an update, a power of two times the number of processes. For pretrained weights as few tokens as the
    guide keeps to, more where that leaves a pass enough updates; from scratch as many as make UPDATES_FROM_SCRATCH of
    all that is worth reading."""
    low, high = advice.TOKENS_OF_UPDATE
    if plan.pretrained:
        wanted = plan.data.tokens["train"] / UPDATES_OF_A_PASS
    else:
        low, wanted = low // 8, _epochs(plan) * plan.data.tokens["train"] / UPDATES_FROM_SCRATCH
    rows = min(high, max(low, wanted)) / plan.block_size
    return plan.processes * 2 ** max(0, round(math.log2(rows / plan.processes)))


def _epochs(plan):
    if plan.pretrained:
        return advice.PASSES
    worth = TOKENS_PER_PARAMETER * sizes.num_parameters(plan.config) / plan.data.tokens["train"]
    return max(1, min(advice.PASSES_FROM_SCRATCH, round(worth)))


def _length(plan, rows):
    """max_iters and epochs with their reasons."""
    epochs = _epochs(plan)
    length = math.ceil(epochs * plan.data.rows["train"] / rows)
    ceiling = CEILING if plan.pretrained else max(CEILING, length)
    why = "a pretrained model is at its best within them"
    if not plan.pretrained:
        why = f"{TOKENS_PER_PARAMETER} tokens a parameter, at most {advice.PASSES_FROM_SCRATCH} passes"
    return {
        "epochs": (epochs, f"{min(length, ceiling):,} updates; {why}"),
        "max_iters": (
            ceiling,
            "a ceiling" if length <= ceiling else f"ends the run before {epochs} passes, which are {length:,}",
        ),
    }
