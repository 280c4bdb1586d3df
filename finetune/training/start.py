"""What a run starts from: data, model and optimizer, checked against each other before anything is trained."""

import dataclasses
from dataclasses import dataclass

import torch

from finetune import recipe as recipes
from finetune.cli import Failure, UsageError
from finetune.data import bins, cache
from finetune.data.batches import Blocks, Mixture, Order, WeightedOrder
from finetune.data.tokenizer import prompt_ids
from finetune.gpt import GPT, convert
from finetune.training import checkpoint, corpus, guard, isolation, lora, memory, optim, sharding

RESIDENT = 0.02  # of a GPU's memory, which a split may take to be kept there
COMPILED_WHOLE = 12  # layers


@dataclass
class Run:
    """A run at some iteration. What must survive a restart is in `state()`, the weights and the optimizer; all else
    follows."""

    recipe: recipes.Recipe
    schedule: recipes.Schedule
    machine: object
    network: GPT  # the model itself
    model: torch.nn.Module  # the same as data parallelism wraps it
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler | None  # float16 only
    train: Blocks | Mixture
    val: Blocks | Mixture
    order: Order | WeightedOrder
    names_of_data: list  # of the datasets, whose splits are the parts of train and val where there are several
    tokenizer: object | None
    prompt: object | None  # ids of the samples' prompt, when samples are asked for
    eval_rows: int | None  # how many rows an evaluation reads at most, where the recipe limits it
    identity: dict  # what makes the run this run and no other
    data: dict  # the facts of its dataset
    init_from: str  # where the first weights came from
    iteration: int = 0  # updates made
    best: dict = dataclasses.field(
        default_factory=dict
    )  # {"val_loss", "step"} of best/, empty before the first evaluation
    evaluations: list = dataclasses.field(default_factory=list)  # [{"step", "train_loss", "val_loss"}]
    watch: guard.Watch = dataclasses.field(default_factory=guard.Watch)
    lr_scale: float = 1.0  # halved by every rollback
    rollbacks: int = 0
    saved_at: int | None = None  # the iteration of the newest state in last/
    save_due: bool = False  # a save that waits until the losses are as usual
    returned_to: int | None = None  # where the last rollback led
    signals: guard.Signals = dataclasses.field(default_factory=guard.Signals)
    peak: tuple = (float("inf"), "")  # FLOP/s that mfu is measured against, and where the figure is from

    @property
    def names(self):
        """{parameter: name} of what is trained."""
        return {
            parameter: lora.plain(name)
            for name, parameter in self.network.named_parameters()
            if parameter.requires_grad
        }

    def state(self):
        """What state.json keeps; weights and optimizer lie beside it."""
        return {
            "format": checkpoint.FORMAT,
            "iteration": self.iteration,
            "updates": int(next(iter(self.optimizer.state.values()))["step"]),  # fewer where float16 overflowed
            "evaluations": self.evaluations,
            "watch": self.watch.state(),
            "eval_rows": self.eval_rows,
            "lr_scale": self.lr_scale,
            "rollbacks": self.rollbacks,
            "init_from": self.init_from,
            "identity": self.identity,
            "config": dataclasses.asdict(self.network.config),
            "recipe": dataclasses.asdict(self.recipe),
            "scaler": self.scaler.state_dict() if self.scaler else None,
        }


def assemble(recipe, machine, say):
    """The Run that a recipe describes, at its first iteration or where it is resumed. Raises UsageError."""
    saved = checkpoint.load_state(recipe.out_dir, say) if recipe.init_from == "resume" else None
    chosen = None
    if (
        saved
        and recipe.memory == "auto"
        and (chosen := memory.as_before(recipe, saved[2]["recipe"], machine.accelerator.num_processes))
    ):
        recipe = chosen
        say(
            "memory=auto: as it was chosen for this run,"
            f" {', '.join(f'{name}={getattr(recipe, name)}'.lower() for name in memory.CHOSEN)}"
        )
    choosing = recipe.memory == "auto" and chosen is None and not recipe.eval_only
    if machine.sharding:
        _check_sharded(recipe, choosing, recipe.auto_batch_size and not _has_found_batch_size(saved, machine))
    with machine.accelerator.local_main_process_first():  # one process prepares and builds caches, the others find them
        datasets = corpus.open_datasets(recipe, lambda: corpus.tokenizer_choice(recipe))
        config, model_tokenizer = corpus.model_of(recipe, datasets[0], saved)
        tokenizer = corpus.agreed_tokenizer(recipe, datasets[0], config, model_tokenizer)
        prompt = prompt_ids(tokenizer, recipe.start) if recipe.num_samples and tokenizer else None
        block_size = corpus.block_size_of(recipe, config)
        check_rank(recipe, config)
        isolated = corpus.is_isolated(recipe, datasets)
        splits, identity = {}, {}
        for split in ("train", "val"):
            parts = []
            for number, dataset in enumerate(datasets, 1):
                contents = bins.survey(dataset, split)
                bins.check_ids(
                    dataset, split, contents, config.vocab_size, recipe.init_from if saved is None else recipe.out_dir
                )
                parts.append(
                    Blocks.from_arrow(cache.open_cache(dataset, split, block_size, contents, isolated), contents.tokens)
                )
                if parts[-1].num_targets(range(parts[-1].num_rows)) == 0:
                    raise UsageError(
                        f"{dataset.mask(split)}: no token of {split}.bin is a target, so there is nothing to learn"
                        " from it"
                    )
                identity[bins.named(f"{split}.bin", number, len(datasets))] = contents.sha256
                if contents.mask_sha256:
                    identity[bins.named(f"{split}_mask.bin", number, len(datasets))] = contents.mask_sha256
                if isolated:
                    identity[bins.named(f"{split} documents end by", number, len(datasets))] = (
                        contents.documents_sha256 or f"token {dataset.eot}"
                    )
            splits[split] = parts[0] if len(parts) == 1 else Mixture(parts)
            if (
                machine.device.type == "cuda"
                and 12 * splits[split].num_tokens
                <= RESIDENT * torch.cuda.get_device_properties(machine.device).total_memory
            ):
                splits[split].keep_on(machine.device)
    identity |= {
        "block_size": block_size,
        "isolate_documents": isolated,
        "dataset_weights": recipe.dataset_weights,
        "seed": recipe.seed,
        "rows per iteration (batch_size x gradient_accumulation_steps)": (
            recipe.batch_size * recipe.gradient_accumulation_steps
        ),
        "lora_rank": recipe.lora_rank,
        "lora_alpha": recipes.alpha(recipe),
    }
    eval_rows = recipe.eval_iters and recipe.eval_iters * recipe.batch_size
    schedule = recipes.schedule(recipe, splits["train"].num_rows)
    if saved:
        _check_resumed(recipe, identity, saved[2], say)
    if machine.accelerator.is_main_process:
        _check_disk(recipe, schedule, config)
    if choosing:
        recipe = memory.choose_mode(recipe, config, block_size, machine, say)

    network = _network(recipe, config, block_size, saved, say, identity)
    model, optimizer = ready(network, recipe, machine, block_size, isolated, say)
    run = Run(
        recipe=recipe,
        schedule=schedule,
        machine=machine,
        network=network,
        model=model,
        optimizer=optimizer,
        scaler=torch.amp.GradScaler(machine.device.type) if machine.dtype == torch.float16 else None,
        train=splits["train"],
        val=splits["val"],
        order=_order(recipe, splits["train"]),
        names_of_data=[dataset.directory.resolve().name for dataset in datasets],
        tokenizer=tokenizer,
        prompt=prompt,
        eval_rows=eval_rows,
        identity=identity,
        data=bins.facts_of(datasets),
        init_from=recipe.init_from,
    )
    try:
        checkpoint.fill_optimizer(optimizer, run.names)
    except (RuntimeError, MemoryError) as error:
        if not memory.is_out_of_memory(error):
            raise
        raise Failure(memory.what_would_fit(config, block_size, recipe), 1, alone=True) from error
    if saved:
        _resume(run, saved, say)
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


def ready(network, recipe, machine, block_size, isolated, say):
    """`(model, optimizer)`: a network on the device, checked, compiled and wrapped as the recipe and the machine have
    it."""
    sharded = machine.sharding
    network.gradient_checkpointing = recipe.gradient_checkpointing or bool(sharded and sharded.activation_checkpointing)
    network.chunked_loss = recipe.chunked_loss
    network.train()
    if not sharded:  # which moves it itself, piece by piece
        network.to(machine.device)
    if isolated:
        isolation.check(network, machine, block_size, recipe.dropout, say)
    if machine.compile:
        # flex attention is compiled block by block, as it was checked
        alone = machine.accelerator.num_processes == 1 and not sharded
        _compile(network, whole=network.config.n_layer <= COMPILED_WHOLE and alone and not isolated)
    model = sharding.shard(network, sharded, machine.device) if sharded else machine.accelerator.prepare_model(network)
    return model, optim.adamw(network, recipe)


def check_rank(recipe, config):
    """Raise UsageError when adapters would be larger than what they are beside."""
    if recipe.lora_rank > config.n_embd:
        raise UsageError(
            f"lora_rank: {recipe.lora_rank:,} is more than the rank of matrices {config.n_embd:,} wide; 8 to 64 are"
            " usual"
        )


def _order(recipe, train):
    rows = recipe.batch_size * recipe.gradient_accumulation_steps
    if weights := recipes.weights(recipe):
        return WeightedOrder([part.num_rows for part in train.parts], weights, rows, recipe.seed)
    return Order(train.num_rows, rows, recipe.seed)


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


def take_up(run, saved):
    """Put a run where a saved state (`checkpoint.load_state`) is."""
    tensors, moments, state = saved
    if run.recipe.lora_rank:
        lora.load(run.network, tensors)
    else:
        sharding.load(run.network, convert.with_padding(tensors, run.network.config))
    checkpoint.fill_optimizer(run.optimizer, run.names, moments, state["updates"])
    run.iteration, run.evaluations, run.watch = state["iteration"], state["evaluations"], guard.Watch(**state["watch"])
    run.saved_at, run.save_due = state["iteration"], False
    if run.scaler and state["scaler"]:
        run.scaler.load_state_dict(state["scaler"])


def _resume(run, saved, say):
    take_up(run, saved)
    state = saved[2]
    run.init_from, run.lr_scale, run.rollbacks = state["init_from"], state["lr_scale"], state["rollbacks"]
    # as it was found then: with dropout another cut would be another run
    if run.recipe.auto_batch_size and _has_found_batch_size(saved, run.machine):
        sizes = {name: state["recipe"][name] for name in ("batch_size", "gradient_accumulation_steps")}
        run.recipe = dataclasses.replace(run.recipe, auto_batch_size=False, **sizes)
    if run.recipe.eval_iters == state["recipe"]["eval_iters"]:
        run.eval_rows = state["eval_rows"]  # batch_size may be another now
    if run.recipe.learning_rate != state["recipe"]["learning_rate"]:
        run.lr_scale = 1.0
    if run.lr_scale != 1.0:
        say(
            f"learning rates are times {run.lr_scale:g} after {run.rollbacks} rollbacks; another learning_rate would"
            " start afresh"
        )
    run.best = checkpoint.published_best(run.recipe.out_dir)
    if not run.best:
        say(f"{run.recipe.out_dir}/best: there is none, or it is damaged; the next evaluation writes it")


def _has_found_batch_size(saved, machine):
    """Whether a saved state holds micro-batches that so many processes can share."""
    return (
        saved is not None and saved[2]["recipe"]["gradient_accumulation_steps"] % machine.accelerator.num_processes == 0
    )


def begin_again(run):
    """Put a run back to its start, before the first state was saved. What has happened to it so far is kept."""
    fresh = _network(
        run.recipe, dataclasses.replace(run.network.config), run.train.block_size, None, lambda line: None, {}
    )
    sharding.load(run.network, fresh.state_dict())
    checkpoint.fill_optimizer(run.optimizer, run.names)
    run.iteration, run.saved_at, run.save_due, run.evaluations, run.watch = 0, None, False, [], guard.Watch()


def _check_resumed(recipe, identity, state, say):
    """Refuse to go on as another run; say what else has changed."""
    if state.get("format") != checkpoint.FORMAT:
        raise UsageError(f"{recipe.out_dir}: its state has format {state.get('format')!r}, not {checkpoint.FORMAT}")
    newer = {
        "isolate_documents": False,
        "dataset_weights": None,
        "lora_rank": 0,
    }  # of runs from before there were these
    before = {**newer, **state["identity"], **{name: state["config"][name] for name in ("n_layer", "n_head", "n_embd")}}
    now = {
        **identity,
        **{
            name: getattr(recipe, name) for name in ("n_layer", "n_head", "n_embd") if getattr(recipe, name) is not None
        },
    }
    changed = [
        f"  {name}: {before.get(name)} in the run, {value} now"
        for name, value in now.items()
        if before.get(name) != value
    ]
    if changed:
        raise UsageError(
            "\n".join(
                [
                    (
                        f"{recipe.out_dir}: cannot be resumed as another run; give these back or start with another"
                        " init_from:"
                    ),
                    *changed,
                ]
            )
        )
    for field in dataclasses.fields(recipe):
        old, new = state["recipe"].get(field.name, field.default), getattr(recipe, field.name)
        if field.metadata["resume"] == "schedule" and old != new:
            say(f"resuming with {field.name} {old} -> {new} from iteration {state['iteration']}")


def _check_disk(recipe, schedule, config):
    """Raise UsageError when the checkpoints of this run will not fit."""
    if recipe.eval_only:
        return
    needed = sum(checkpoint_bytes(recipe, schedule, config).values())
    free = checkpoint.free_bytes(recipe.out_dir) + checkpoint.used_bytes(recipe.out_dir)
    if free < needed:
        raise UsageError(
            f"out_dir {recipe.out_dir}: {free / 1e9:.1f} GB free for them, and the checkpoints of this run need"
            f" {needed / 1e9:.1f} GB"
        )


def checkpoint_bytes(recipe, schedule, config):
    """{what: bytes} that the checkpoints of a run take at most, with the one more of each that there is while it is
    written."""
    parameters, adapters = convert.num_parameters(config), lora.num_parameters(config, recipe.lora_rank)
    states = checkpoint.KEEP + 1
    models = 2 + (schedule.length // schedule.eval_interval if recipe.always_save_checkpoint else 0)
    return {"last/": states * state_bytes(recipe, config), "best/": 4 * models * (parameters + adapters)}


def state_bytes(recipe, config):
    """Bytes of a resumable state: what is trained, and its two moments."""
    trained = lora.num_parameters(config, recipe.lora_rank) or convert.num_parameters(config)
    return (4 + 2 * getattr(torch, recipe.optimizer_dtype).itemsize) * trained


def _network(recipe, config, block_size, saved, say, identity):
    """The network that is trained. With adapters, `identity` is told what they are trained over, which no state
    holds."""
    network = _weights(recipe, config, block_size, saved, say)
    if recipe.lora_rank:
        identity["weights under the adapters (sha256)"] = lora.fingerprint(network)
        if saved:
            _check_resumed(recipe, identity, saved[2], lambda line: None)
        lora.adapt(network, recipe)
    return network


def _weights(recipe, config, block_size, saved, say):
    if saved:
        say(f"resuming {recipe.out_dir} at iteration {saved[2]['iteration']}")
        if not recipe.lora_rank:
            return GPT.from_state(config, saved[0], dropout=recipe.dropout)
        try:
            return GPT.from_pretrained(saved[2]["init_from"], block_size, recipe.dropout)
        except UsageError as error:
            raise UsageError(
                f"{recipe.out_dir}: holds adapters and not the weights they were trained over: {error}"
            ) from None
    if recipe.init_from == "scratch":
        say("initializing a new model from scratch")
        network = GPT.from_scratch(config, recipe.seed)
        network.set_dropout(recipe.dropout)
        return network
    say(f"initializing from {recipe.init_from}")
    return GPT.from_pretrained(recipe.init_from, block_size, recipe.dropout)
