"""What a run starts from: data, model and optimizer, checked against each other before anything is trained."""

import torch

from finetune.common.errors import Failure, UsageError
from finetune.config import recipe as recipes
from finetune.config import schedule as schedules
from finetune.data import arrow_cache
from finetune.data import dataset as data_dataset
from finetune.data.batches import Blocks, Mixture
from finetune.data.sampler import BlockSampler, MixtureSampler
from finetune.data.tokenizer import prompt_ids
from finetune.gpt.lora import check_rank
from finetune.runs import checkpoints
from finetune.runs.checkpoints import check_disk
from finetune.runs.datasets import is_isolated
from finetune.runs.inputs import find_model_and_datasets, with_block_size
from finetune.runtime import attention_check, fsdp, memory, memory_modes
from finetune.training import optimizer as optimizers
from finetune.training.recovery import check_resumed, has_found_batch_size, make_model, resume
from finetune.training.state import Run

RESIDENT = 0.02  # of a GPU's memory, which a split may take to be kept there
COMPILED_WHOLE = 12  # layers


def setup_run(recipe, machine, say):
    """The Run that a recipe describes, at its first iteration or where it is resumed. Raises UsageError."""
    saved = checkpoints.load_state(recipe.out_dir, say) if recipe.init_from == "resume" else None
    chosen = None
    if (
        saved
        and recipe.memory == "auto"
        and (chosen := memory_modes.previous_choice(recipe, saved[2]["recipe"], machine.accelerator.num_processes))
    ):
        recipe = chosen
        say(
            "memory=auto: as it was chosen for this run,"
            f" {', '.join(f'{name}={getattr(recipe, name)}'.lower() for name in memory_modes.CHOSEN)}"
        )
    choosing = recipe.memory == "auto" and chosen is None and not recipe.eval_only
    if machine.sharding:
        _check_sharded(recipe, choosing, recipe.auto_batch_size and not has_found_batch_size(saved, machine))
    with machine.accelerator.local_main_process_first():  # one process prepares and builds caches, the others find them
        found, datasets = find_model_and_datasets(recipe, saved[2]["config"] if saved else None)
        config, tokenizer = found.config, found.tokenizer
        prompt = prompt_ids(tokenizer, recipe.start) if recipe.num_samples and tokenizer else None
        block_size = with_block_size(found, recipe.block_size).config.block_size
        check_rank(recipe, config)
        isolated = is_isolated(recipe, datasets)
        splits, identity = {}, {}
        for split in ("train", "val"):
            parts = []
            for number, dataset in enumerate(datasets, 1):
                contents = data_dataset.scan(dataset, split)
                data_dataset.check_ids(dataset, split, contents, config.vocab_size, found.name)
                parts.append(
                    Blocks.from_arrow(
                        arrow_cache.open_cache(dataset, split, block_size, contents, isolated), contents.tokens
                    )
                )
                if parts[-1].num_targets(range(parts[-1].num_rows)) == 0:
                    raise UsageError(
                        f"{dataset.mask(split)}: no token of {split}.bin is a target, so there is nothing to learn"
                        " from it"
                    )
                identity[data_dataset.identity_key(f"{split}.bin", number, len(datasets))] = contents.sha256
                if contents.mask_sha256:
                    identity[data_dataset.identity_key(f"{split}_mask.bin", number, len(datasets))] = (
                        contents.mask_sha256
                    )
                if isolated:
                    identity[data_dataset.identity_key(f"{split} documents end by", number, len(datasets))] = (
                        contents.documents_sha256 or f"token {dataset.eot}"
                    )
            splits[split] = parts[0] if len(parts) == 1 else Mixture(parts)
            if (
                machine.torch_device.type == "cuda"
                and 12 * splits[split].num_tokens
                <= RESIDENT * torch.cuda.get_device_properties(machine.torch_device).total_memory
            ):
                splits[split].cache_on_device(machine.torch_device)
    identity |= {
        "block_size": block_size,
        "isolate_documents": isolated,
        "dataset_weights": recipe.dataset_weights,
        "seed": recipe.seed,
        "rows per iteration (batch_size x gradient_accumulation_steps)": (
            recipe.batch_size * recipe.gradient_accumulation_steps
        ),
        "lora_rank": recipe.lora_rank,
        "lora_alpha": recipes.lora_alpha(recipe),
    }
    eval_rows = recipe.eval_iters and recipe.eval_iters * recipe.batch_size
    schedule = schedules.schedule(recipe, splits["train"].num_rows)
    if saved:
        check_resumed(recipe, identity, saved[2], say)
    if machine.accelerator.is_main_process:
        check_disk(recipe, schedule, config)
    if choosing:
        recipe = memory_modes.choose_mode(recipe, config, block_size, machine, say)

    network = make_model(recipe, config, block_size, saved, say, identity)
    model, optimizer = wrap_model_and_make_optimizer(network, recipe, machine, block_size, isolated, say)
    run = Run(
        recipe=recipe,
        schedule=schedule,
        machine=machine,
        network=network,
        model=model,
        optimizer=optimizer,
        scaler=torch.amp.GradScaler(machine.torch_device.type) if machine.dtype == torch.float16 else None,
        train=splits["train"],
        val=splits["val"],
        order=_order(recipe, splits["train"]),
        names_of_data=[dataset.directory.resolve().name for dataset in datasets],
        tokenizer=tokenizer,
        prompt=prompt,
        eval_rows=eval_rows,
        identity=identity,
        data=data_dataset.facts_of(datasets),
        init_from=recipe.init_from,
    )
    try:
        optimizers.fill_optimizer(optimizer, run.names)
    except (RuntimeError, MemoryError) as error:
        if not memory.is_out_of_memory(error):
            raise
        raise Failure(memory_modes.oom_advice(config, block_size, recipe), 1, alone=True) from error
    if saved:
        resume(run, saved, say)
    return run


def _check_sharded(recipe, choosing_mode, trying_batch_size):
    """Raise UsageError for what does not go with weights in shards."""
    if trying_batch_size:
        raise UsageError(
            "batch_size: auto cannot try what fits when weights are sharded, because a process that fails leaves the"
            " others waiting"
        )
    if recipe.lora_rank:
        raise UsageError(
            "lora_rank: adapters are not sharded; launch with recipes/accelerate/multi_gpu.yaml, as the frozen weights"
            " need little memory"
        )
    if recipe.optimizer_dtype != "float32":
        raise UsageError(
            f"optimizer_dtype: {recipe.optimizer_dtype} cannot apply to an optimizer in shards, which take less memory"
            " with every process"
        )
    if choosing_mode:
        raise UsageError("memory: auto counts for whole weights, not for shards; choose gradient_checkpointing by hand")


def wrap_model_and_make_optimizer(network, recipe, machine, block_size, isolated, say):
    """`(model, optimizer)`: a network on the device, checked, compiled and wrapped as the recipe and the machine have
    it."""
    sharded = machine.sharding
    network.gradient_checkpointing = recipe.gradient_checkpointing or bool(sharded and sharded.activation_checkpointing)
    network.chunked_loss = recipe.chunked_loss
    network.train()
    if not sharded:  # which moves it itself, piece by piece
        network.to(machine.torch_device)
    if isolated:
        attention_check.check_isolation(network, machine, block_size, recipe.dropout, say)
    if machine.compile:
        # flex attention is compiled block by block, as it was checked
        alone = machine.accelerator.num_processes == 1 and not sharded
        _compile(network, whole=network.config.n_layer <= COMPILED_WHOLE and alone and not isolated)
    model = (
        fsdp.shard(network, sharded, machine.torch_device) if sharded else machine.accelerator.prepare_model(network)
    )
    return model, optimizers.adamw(network, recipe)


def _order(recipe, train):
    rows = recipe.batch_size * recipe.gradient_accumulation_steps
    if weights := recipes.dataset_weights(recipe):
        return MixtureSampler([part.num_rows for part in train.parts], weights, rows, recipe.seed)
    return BlockSampler(train.num_rows, rows, recipe.seed)


def _compile(network, whole):
    """Compile in place, as a whole or by block: deep networks would take minutes as a whole, and data parallelism cuts
    a whole into pieces of its own, which in older versions of PyTorch excludes gradient checkpointing. The loss is a
    region of its own either way."""
    if whole:
        network.hidden = torch.compile(network.hidden, dynamic=False)
    else:
        for block in network.h:
            block.compile(dynamic=False)
    network.cross_entropy = torch.compile(network.cross_entropy, dynamic=False)
