"""What a run starts from: data, model and optimizer, checked against each other before anything is trained."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from finetune.common.errors import Failure, UsageError
from finetune.config import recipe as recipes
from finetune.config import schedule as schedules
from finetune.config.recipe import Recipe
from finetune.data import arrow_cache
from finetune.data.batches import Blocks, ConcatBlocks
from finetune.data.dataset import BinStats, Dataset, check_ids, facts_of, identity_key, scan
from finetune.data.sampler import BlockSampler, MixtureSampler
from finetune.data.tokenizer import encode_prompt
from finetune.evaluation.split_loss import blocks_of_evaluation
from finetune.gpt import GPT, lora, pretrained
from finetune.runs import checkpoints, state_format
from finetune.runs.checkpoints import SavedState
from finetune.runs.datasets import is_isolated
from finetune.runs.inputs import find_model_and_datasets, with_block_size
from finetune.runs.model_ref import ModelRef
from finetune.runs.provenance import provenance
from finetune.runtime import alike, attention_check, compiler, fsdp, memory, memory_modes, process_group, shards
from finetune.runtime.device import Device
from finetune.training.micro_batch import what_fitted
from finetune.training.optimizer import AdamW, adamw, fill_optimizer
from finetune.training.recovery import begin_loading, check_resumed, load_same_state, resume
from finetune.training.run_samples import prompt_to_keep
from finetune.training.state import Hooks, MicroBatch, Setup, TrainState

if TYPE_CHECKING:
    from datasets import Dataset as ArrowDataset

MAX_GPU_SHARE_OF_SPLIT = 0.02  # a split that takes more of a GPU's memory is not kept there
MAX_LAYERS_COMPILED_WHOLE = 12

Say = Callable[[str], None]
BuiltCaches = dict[tuple[int, str], tuple["ArrowDataset", BinStats]]


def setup_run(recipe: Recipe, device: Device, say: Say, hooks: Hooks | None = None) -> tuple[Setup, TrainState]:
    """Load all that a recipe names; return it with the state of a new run or of the resumed one. Raises UsageError."""
    saved = _saved(recipe, device, say) if recipe.init_from == "resume" else None
    previous = _previous_choice(recipe, saved, device, say) if saved else None
    find_batch_size = recipe.batch_size == "auto" and not previous
    choose_mode = recipe.memory == "auto" and not previous and not recipe.eval_only
    recipe_in_use = previous or recipe  # with what batch_size=auto or memory=auto chose
    _check_sharded(device, recipe_in_use, choose_mode, find_batch_size, say)
    with device.accelerator.local_main_process_first():  # one process downloads and prepares, the others find it
        recipe, found, datasets, prompt = _find_inputs(recipe, saved, say)
    loading = begin_loading(recipe, found.config, saved, ahead=not choose_mode)
    built = _build_caches(recipe, found, datasets, device)
    with device.accelerator.local_main_process_first():
        train, val, hashes = _prepare_splits(recipe, found, datasets, device, built)
    identity, schedule = _identity(recipe, train, hashes, device), _schedule(recipe, saved, train, val)
    if saved:
        check_resumed(recipe, identity, saved.state, say)
    if device.accelerator.is_main_process:
        checkpoints.check_disk(recipe_in_use, schedule, found.config)
    compiler.check_compiler(recipe, device, say)  # uncompiled takes more memory
    if choose_mode:
        recipe_in_use = memory_modes.choose_mode(recipe, found.config, train.block_size, device, say)
    model = loading(say)
    if recipe.lora_rank:
        _add_adapters(model, recipe, identity, saved)
    wrapped_model, optimizer = wrap_model_and_make_optimizer(model, recipe_in_use, device, train.is_isolated, say)
    setup = Setup(
        recipe=recipe,
        device=device,
        schedule=schedule,
        model=model,
        wrapped_model=wrapped_model,
        optimizer=optimizer,
        train=train,
        val=val,
        sampler=_sampler(recipe, train),
        init_from=saved.state["init_from"] if saved else recipe.init_from,
        dataset_names=[dataset.directory.resolve().name for dataset in datasets],
        dataset_facts=facts_of(datasets),
        provenance=provenance() if device.accelerator.is_main_process else {},
        identity=identity,
        tokenizer=found.tokenizer,
        prompt=prompt,
        max_eval_rows=_max_eval_rows(recipe, saved),
        chunked_loss=recipe_in_use.chunked_loss,
        optimizer_dtype=recipe_in_use.optimizer_dtype,
        find_batch_size=find_batch_size,
        hooks=hooks or Hooks(),
    )
    return setup, _initial_state(setup, recipe_in_use, saved, say)


def _saved(recipe: Recipe, device: Device, say: Say) -> SavedState:
    saved = load_same_state(recipe, device, say)
    return saved._replace(state=state_format.read_state(saved.state, recipe.out_dir))


def _previous_choice(recipe: Recipe, saved: SavedState, device: Device, say: Say) -> Recipe | None:
    """The recipe with what batch_size=auto or memory=auto chose before the run was interrupted, or with what fitted
    after it was out of memory. None without, or if this number of processes cannot share it."""
    used, processes = saved.state["recipe"], device.accelerator.num_processes
    if fitted := what_fitted(recipe, saved.state, processes, say):
        return fitted
    if recipe.batch_size == "auto" and used["gradient_accumulation_steps"] % processes == 0:
        # the same cut, because dropout is drawn per micro-batch
        same_cut = {name: used[name] for name in ("batch_size", "gradient_accumulation_steps")}
        return dataclasses.replace(recipe, **same_cut)
    if recipe.memory == "auto" and (mode := memory_modes.previous_choice(recipe, used, processes)):
        chosen = ", ".join(f"{name}={getattr(mode, name)}".lower() for name in memory_modes.CHOSEN)
        say(f"memory=auto: as it was chosen for this run, {chosen}")
        return mode
    return None


def _check_sharded(device: Device, recipe: Recipe, choose_mode: bool, find_batch_size: bool, say: Say) -> None:
    """Raise UsageError for keys that cannot apply if weights are sharded; say which cannot if they are not."""
    shards.check(recipe.sharded_checkpoints and not recipe.eval_only, device.sharding, say)
    problems = {
        "batch_size: auto cannot try what fits when weights are sharded, because a process that fails leaves the"
        " others waiting": find_batch_size,
        "lora_rank: adapters are not sharded; launch with recipes/accelerate/multi_gpu.yaml, as the frozen weights"
        " need little memory": recipe.lora_rank,
        f"optimizer_dtype: {recipe.optimizer_dtype} cannot apply to an optimizer in shards, which take less memory"
        " with every process": recipe.optimizer_dtype != "float32",
        "memory: auto counts for whole weights, not for shards; choose gradient_checkpointing by hand": choose_mode,
    }
    for problem, applies in problems.items():
        if applies and device.sharding:
            raise UsageError(problem)


def _find_inputs(
    recipe: Recipe, saved: SavedState | None, say: Say
) -> tuple[Recipe, ModelRef, list[Dataset], np.ndarray | None]:
    """`(recipe, model, datasets, prompt)`: with a pinned init_from; not loaded yet; the ids of the samples' prompt, or
    None without samples."""
    model, datasets = find_model_and_datasets(recipe, saved.state if saved else None)
    for note in [*([] if saved else model.notes), *(dataset.note for dataset in datasets if dataset.note)]:
        say(note)
    recipe = dataclasses.replace(recipe, start=prompt_to_keep(recipe))
    prompt = encode_prompt(model.tokenizer, recipe.start, "start") if recipe.num_samples and model.tokenizer else None
    lora.check_rank(recipe, model.config)
    model = with_block_size(model, recipe.block_size)
    recipe = dataclasses.replace(recipe, init_from=pretrained.pinned(recipe.init_from, model.path))
    return recipe, model, datasets, prompt


def _build_caches(recipe: Recipe, model: ModelRef, datasets: list[Dataset], device: Device) -> BuiltCaches:
    """Build the caches of several bins at once, each by one process of the machine; return those of this one, by number
    and split. `_prepare_splits` raises the errors."""
    accelerator, built = device.accelerator, {}
    if accelerator.num_processes > 1:
        parts = [(number, split) for number in range(len(datasets)) for split in ("train", "val")]
        for number, split in parts[accelerator.local_process_index :: process_group.local_size()]:
            with contextlib.suppress(UsageError):
                isolated = is_isolated(recipe, datasets)
                built[number, split] = _open_cache(datasets[number], split, model, isolated)
        accelerator.wait_for_everyone()
    return built


def _open_cache(dataset: Dataset, split: str, model: ModelRef, isolated: bool) -> tuple[ArrowDataset, BinStats]:
    """The Arrow cache of a bin, which is checked first."""
    stats = scan(dataset, split)
    check_ids(dataset, split, stats, model.config.vocab_size, model.name)
    return arrow_cache.open_cache(dataset, split, model.config.block_size, stats, isolated), stats


def _prepare_splits(
    recipe: Recipe, model: ModelRef, datasets: list[Dataset], device: Device, built: BuiltCaches
) -> tuple[Blocks | ConcatBlocks, Blocks | ConcatBlocks, dict[str, str]]:
    """`(train, val, {file: hash})`, checked and opened from the cache."""
    isolated = is_isolated(recipe, datasets)
    splits, hashes = {}, {}
    for split in ("train", "val"):
        parts = []
        for number, dataset in enumerate(datasets, 1):
            cache, stats = built.get((number - 1, split)) or _open_cache(dataset, split, model, isolated)
            blocks = Blocks.from_arrow(cache, stats.tokens)
            if blocks.num_targets(range(blocks.num_rows)) == 0:
                raise UsageError(
                    f"{dataset.mask(split)}: no token of {split}.bin is a target, so there is nothing to learn from it"
                )
            parts.append(blocks)
            hashes_of_part = {f"{split}.bin": stats.sha256, f"{split}_mask.bin": stats.mask_sha256}
            if isolated:
                hashes_of_part[f"{split} documents end by"] = stats.documents_sha256 or f"token {dataset.eot}"
            for file, sha256 in hashes_of_part.items():
                if sha256:
                    hashes[identity_key(file, number, len(datasets))] = sha256
        splits[split] = parts[0] if len(parts) == 1 else ConcatBlocks(parts)
        if device.torch_device.type == "cuda":
            total = torch.cuda.get_device_properties(device.torch_device).total_memory
            if 12 * splits[split].num_tokens <= MAX_GPU_SHARE_OF_SPLIT * total:
                splits[split].cache_on_device(device.torch_device)
    return splits["train"], splits["val"], hashes


def _identity(recipe: Recipe, train: Blocks | ConcatBlocks, hashes: dict[str, str], device: Device) -> dict[str, Any]:
    """What must not change when the run is resumed. Raises UsageError if it differs among the processes."""
    identity = {
        **hashes,
        "block_size": train.block_size,
        "isolate_documents": train.is_isolated,
        "dataset_weights": recipe.dataset_weights,
        "seed": recipe.seed,
        "rows per iteration (batch_size x gradient_accumulation_steps)": recipe.blocks_per_update,
        "lora_rank": recipe.lora_rank,
        "lora_alpha": recipes.lora_alpha(recipe),
    }
    alike.check(identity, device, "all machines need the same prepared directory, at the same path or another")
    return identity


def _add_adapters(model: GPT, recipe: Recipe, identity: dict[str, Any], saved: SavedState | None) -> None:
    """Add adapters to a model. The weights under them become part of `identity`, because a state does not hold them."""
    identity["weights under the adapters (sha256)"] = lora.fingerprint(model)
    if saved:  # checked once more, because the weights are known only now
        check_resumed(recipe, identity, saved.state, lambda line: None)
    lora.add_adapters(model, recipe)


def _sampler(recipe: Recipe, train: Blocks | ConcatBlocks) -> BlockSampler | MixtureSampler:
    if (weights := recipes.dataset_weights(recipe)) and isinstance(train, ConcatBlocks):
        sizes = [part.num_rows for part in train.parts]
        return MixtureSampler(sizes, weights, recipe.blocks_per_update, recipe.seed)
    return BlockSampler(train.num_rows, recipe.blocks_per_update, recipe.seed)


def _schedule(
    recipe: Recipe, saved: SavedState | None, train: Blocks | ConcatBlocks, val: Blocks | ConcatBlocks
) -> schedules.Schedule:
    limit = _max_eval_rows(recipe, saved)
    evaluated = blocks_of_evaluation(train.num_rows, val.num_rows, train.block_size, limit)
    return schedules.schedule(recipe, train.num_rows, sum(evaluated))


def _max_eval_rows(recipe: Recipe, saved: SavedState | None) -> int | None:
    if saved and saved.state["recipe"]["eval_iters"] == recipe.eval_iters:
        return saved.state["eval_rows"]  # batch_size may be another now
    return recipe.max_eval_rows


def _initial_state(setup: Setup, recipe_in_use: Recipe, saved: SavedState | None, say: Say) -> TrainState:
    """A new state, or the saved one."""
    micro_batch = MicroBatch(
        recipe_in_use.micro_batch_size, recipe_in_use.gradient_accumulation_steps, recipe_in_use.gradient_checkpointing
    )
    is_float16 = setup.device.dtype == torch.float16
    scaler = torch.amp.GradScaler(setup.device.torch_device.type) if is_float16 else None
    state = TrainState(micro_batch, scaler=scaler)
    try:
        fill_optimizer(setup.optimizer, setup.parameter_names)
    except (RuntimeError, MemoryError) as error:
        if not memory.is_out_of_memory(error):
            raise
        advice = memory_modes.oom_advice(setup.model.config, setup.train.block_size, recipe_in_use)
        raise Failure(advice, 1, alone=True) from error
    if setup.recipe.sharded_checkpoints and setup.device.sharding and not setup.recipe.eval_only:
        setup.saves.group = shards.new_group()
    if saved:
        resume(setup, state, saved, say)
    return state


def wrap_model_and_make_optimizer(
    model: GPT, recipe: Recipe, device: Device, isolated: bool, say: Say
) -> tuple[torch.nn.Module, AdamW]:
    """Move a model to the device, check its attention, compile it, wrap it in DDP or FSDP, and make its optimizer."""
    sharding = device.sharding
    model.gradient_checkpointing = recipe.gradient_checkpointing or bool(sharding and sharding.activation_checkpointing)
    model.chunked_loss = recipe.chunked_loss
    model.train()
    if not sharding:  # FSDP moves it itself, block by block
        model.to(device.torch_device)
    if isolated:
        attention_check.check_isolation(model, device, model.config.block_size, recipe.dropout, say)
    if device.compile:
        # flex attention is compiled block by block, as it was checked
        alone = device.accelerator.num_processes == 1 and not sharding
        whole = model.config.n_layer <= MAX_LAYERS_COMPILED_WHOLE and alone and not isolated
        compiler.compile_model(model, whole, device.torch_device)
    if sharding:
        wrapped_model = fsdp.shard(model, sharding, device.torch_device)
    elif device.accelerator.num_processes > 1:
        wrapped_model = device.accelerator.prepare_model(model)
    else:  # nothing to wrap, and accelerate would import what only several processes need: half a second
        wrapped_model = model
    return wrapped_model, adamw(model, recipe)
