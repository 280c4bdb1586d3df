"""What a run starts from: data, model and optimizer, checked against each other before anything is trained."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch

from finetune import recipe as recipes
from finetune.cli import Failure, UsageError
from finetune.data import bins, cache
from finetune.data import tokenizer as tokenizers
from finetune.data.batches import Blocks, Mixture, Order, WeightedOrder
from finetune.data.prepare import find_tokenizer, open_dataset
from finetune.data.tokenizer import prompt_ids
from finetune.gpt import GPT, GPTConfig, convert, weights
from finetune.training import checkpoint, guard, isolation, lora, memory, optim, sharding

RESIDENT = 0.02  # of a GPU's memory, which a split may take to be kept there
COMPILED_WHOLE = 12  # layers
SELECTIVE = 0.8  # just low enough for the compiler to compute inputs of products again (docs/log.md)


@dataclass
class Run:
    """A run at some iteration. What must survive a restart is in `state()`, the weights and the optimizer; all else follows."""

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
    best: dict = dataclasses.field(default_factory=dict)  # {"val_loss", "step"} of best/, empty before the first evaluation
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
        return {parameter: lora.plain(name) for name, parameter in self.network.named_parameters() if parameter.requires_grad}

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
    if saved and recipe.memory == "auto" and (chosen := memory.as_before(recipe, saved[2]["recipe"], machine.accelerator.num_processes)):
        recipe = chosen
        say(f"memory=auto: as it was chosen for this run, {', '.join(f'{name}={getattr(recipe, name)}'.lower() for name in memory.CHOSEN)}")
    choosing = recipe.memory == "auto" and chosen is None and not recipe.eval_only
    if machine.sharding:
        _check_sharded(recipe, choosing, recipe.auto_batch_size and not _has_found_batch_size(saved, machine))
    with machine.accelerator.local_main_process_first():  # one process prepares and builds caches, the others find them
        datasets = open_datasets(recipe, lambda: _tokenizer_choice(recipe))
        config, model_tokenizer = _plan_model(recipe, datasets[0], saved)
        tokenizer = agreed_tokenizer(recipe, datasets[0], config, model_tokenizer)
        prompt = prompt_ids(tokenizer, recipe.start) if recipe.num_samples and tokenizer else None
        block_size = block_size_of(recipe, config)
        check_rank(recipe, config)
        isolated = is_isolated(recipe, datasets)
        splits, identity = {}, {}
        for split in ("train", "val"):
            parts = []
            for number, dataset in enumerate(datasets, 1):
                contents = bins.survey(dataset, split)
                bins.check_ids(dataset, split, contents, config.vocab_size, recipe.init_from if saved is None else recipe.out_dir)
                parts.append(Blocks.from_arrow(cache.open_cache(dataset, split, block_size, contents, isolated), contents.tokens))
                if parts[-1].num_targets(range(parts[-1].num_rows)) == 0:
                    raise UsageError(f"{dataset.mask(split)}: no token of {split}.bin is a target, so there is nothing to learn from it")
                identity[bins.named(f"{split}.bin", number, len(datasets))] = contents.sha256
                if contents.mask_sha256:
                    identity[bins.named(f"{split}_mask.bin", number, len(datasets))] = contents.mask_sha256
                if isolated:
                    identity[bins.named(f"{split} documents end by", number, len(datasets))] = contents.documents_sha256 or f"token {dataset.eot}"
            splits[split] = parts[0] if len(parts) == 1 else Mixture(parts)
            if (
                machine.device.type == "cuda"
                and 12 * splits[split].num_tokens <= RESIDENT * torch.cuda.get_device_properties(machine.device).total_memory
            ):
                splits[split].keep_on(machine.device)
    identity |= {
        "block_size": block_size,
        "isolate_documents": isolated,
        "dataset_weights": recipe.dataset_weights,
        "seed": recipe.seed,
        "rows per iteration (batch_size x gradient_accumulation_steps)": recipe.batch_size * recipe.gradient_accumulation_steps,
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
        raise UsageError("batch_size: auto cannot try what fits when weights are sharded, because a process that fails leaves the others waiting")
    if recipe.lora_rank:
        raise UsageError(
            "lora_rank: adapters are not sharded; launch with recipes/accelerate/multi_gpu.yaml, as the frozen weights need little memory"
        )
    if recipe.optimizer_dtype != "float32":
        raise UsageError(
            f"optimizer_dtype: {recipe.optimizer_dtype} cannot apply to an optimizer in shards, which take less memory with every process"
        )
    if choosing_mode:
        raise UsageError("memory: auto counts for whole weights, not for shards; choose gradient_checkpointing by hand")


def ready(network, recipe, machine, block_size, isolated, say):
    """`(model, optimizer)`: a network on the device, checked, compiled and wrapped as the recipe and the machine have it."""
    sharded = machine.sharding
    network.gradient_checkpointing = bool(sharded and sharded.activation_checkpointing) or recipe.gradient_checkpointing
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


def open_datasets(recipe, tokenizer):
    """The Datasets of a recipe, which go together; `tokenizer` gives the choice for a text that is prepared now. Raises UsageError."""
    datasets = [open_dataset(name.strip(), tokenizer, recipe.val_fraction or 0.1) for name in recipe.dataset.split(",")]
    for dataset in datasets:
        _check_given(recipe, dataset)
    _check_alike(datasets)
    return datasets


def block_size_of(recipe, config):
    """Tokens of context in a run. Raises UsageError when the model has fewer positions."""
    block_size = recipe.block_size or config.block_size
    if block_size > config.block_size:
        raise UsageError(f"block_size: {block_size:,} is more than the {config.block_size:,} positions of {recipe.init_from}")
    return block_size


def check_rank(recipe, config):
    """Raise UsageError when adapters would be larger than what they are beside."""
    if recipe.lora_rank > config.n_embd:
        raise UsageError(f"lora_rank: {recipe.lora_rank:,} is more than the rank of matrices {config.n_embd:,} wide; 8 to 64 are usual")


def _order(recipe, train):
    rows = recipe.batch_size * recipe.gradient_accumulation_steps
    if weights := recipes.weights(recipe):
        return WeightedOrder([part.num_rows for part in train.parts], weights, rows, recipe.seed)
    return Order(train.num_rows, rows, recipe.seed)


def is_isolated(recipe, datasets):
    """Whether documents are isolated. Raises UsageError where that is asked for and nothing says where they end."""
    if recipe.isolate_documents == "auto":
        return all(dataset.mask("train") for dataset in datasets)
    if recipe.isolate_documents == "true":
        for dataset in datasets:
            if dataset.is_running_text("train"):
                raise UsageError(f"isolate_documents: {dataset.directory} holds one running text and no documents")
    return recipe.isolate_documents == "true"


def _check_alike(datasets):
    """Several datasets must hold ids of one tokenizer."""
    first = datasets[0]
    for other in datasets[1:]:
        names = [dataset.tokenizer.describe()["name"] if dataset.tokenizer else "an unknown tokenizer" for dataset in (first, other)]
        same = (
            first.tokenizer.fingerprint == other.tokenizer.fingerprint if first.tokenizer and other.tokenizer else first.tokenizer is other.tokenizer
        )
        if not same:
            raise UsageError(
                f"dataset: {first.directory} holds ids of {names[0]}, and {other.directory} of {names[1]}; prepare them with the same --tokenizer"
            )


def _compile(network, whole):
    """Compile in place, as a whole or by block: deep networks would take minutes as a whole, and data parallelism cuts a whole into
    pieces of its own, which in older versions of PyTorch excludes gradient checkpointing. The loss is a region of its own either way."""
    # what the compiler keeps for the backward pass, of what it would: with less it computes layer norms and GELU again
    torch._functorch.config.activation_memory_budget = SELECTIVE if network.gradient_checkpointing == "selective" else 1.0
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
    if run.recipe.auto_batch_size and _has_found_batch_size(
        saved, run.machine
    ):  # as it was found then: with dropout another cut would be another run
        sizes = {name: state["recipe"][name] for name in ("batch_size", "gradient_accumulation_steps")}
        run.recipe = dataclasses.replace(run.recipe, auto_batch_size=False, **sizes)
    if run.recipe.eval_iters == state["recipe"]["eval_iters"]:
        run.eval_rows = state["eval_rows"]  # batch_size may be another now
    if run.recipe.learning_rate != state["recipe"]["learning_rate"]:
        run.lr_scale = 1.0
    if run.lr_scale != 1.0:
        say(f"learning rates are times {run.lr_scale:g} after {run.rollbacks} rollbacks; another learning_rate would start afresh")
    run.best = checkpoint.published_best(run.recipe.out_dir)
    if not run.best:
        say(f"{run.recipe.out_dir}/best: there is none, or it is damaged; the next evaluation writes it")


def _has_found_batch_size(saved, machine):
    """Whether a saved state holds micro-batches that so many processes can share."""
    return saved is not None and saved[2]["recipe"]["gradient_accumulation_steps"] % machine.accelerator.num_processes == 0


def begin_again(run):
    """Put a run back to its start, before the first state was saved. What has happened to it so far is kept."""
    fresh = _network(run.recipe, dataclasses.replace(run.network.config), run.train.block_size, None, lambda line: None, {})
    sharding.load(run.network, fresh.state_dict())
    checkpoint.fill_optimizer(run.optimizer, run.names)
    run.iteration, run.saved_at, run.save_due, run.evaluations, run.watch = 0, None, False, [], guard.Watch()


def _tokenizer_choice(recipe):
    """The tokenizer for a text that is prepared on the fly: the one asked for, else the model's own."""
    if recipe.tokenizer != "auto":
        return recipe.tokenizer
    if recipe.init_from == "scratch":
        return "gpt2"
    return _model_tokenizer(recipe) or "gpt2"


def _model_tokenizer(recipe):
    if recipe.init_from == "resume":
        best = Path(recipe.out_dir) / "best"
        return tokenizers.from_directory(best) if best.is_dir() else None
    path = weights.find(recipe.init_from)
    return tokenizers.from_directory(path) if path.is_dir() else None


def _check_given(recipe, dataset):
    """Keys that only matter while a text is tokenized must not contradict data that already is."""
    made_with = dataset.meta.get("val_fraction")
    if recipe.val_fraction is not None and recipe.val_fraction != made_with:
        known = f"val_fraction={made_with}" if made_with is not None else "bins that are split already"
        raise UsageError(f"val_fraction: {recipe.val_fraction} cannot apply, {dataset.directory} holds {known}; prepare the text again")
    if recipe.tokenizer != "auto" and dataset.tokenizer is None:
        if recipe.tokenizer == "char":
            raise UsageError(
                f"tokenizer: char cannot apply, {dataset.directory} holds ids already and no characters for them (meta.json or meta.pkl)"
            )
        dataset.tokenizer = find_tokenizer(recipe.tokenizer)
    elif recipe.tokenizer != "auto":
        same = (
            dataset.tokenizer.kind == "char"
            if recipe.tokenizer == "char"
            else find_tokenizer(recipe.tokenizer).fingerprint == dataset.tokenizer.fingerprint
        )
        if not same:
            raise UsageError(
                f"tokenizer: {recipe.tokenizer} cannot apply, {dataset.directory} holds {dataset.tokenizer.describe()['name']}; prepare the text again"
            )


def _plan_model(recipe, dataset, saved):
    """`(config, tokenizer)` of the model that will be trained, without its weights."""
    if saved:
        return GPTConfig(**saved[2]["config"]), _model_tokenizer(recipe)
    if recipe.init_from != "scratch":
        return weights.load_config(recipe.init_from), _model_tokenizer(recipe)
    return config_from_scratch(recipe, dataset.tokenizer), dataset.tokenizer


def config_from_scratch(recipe, tokenizer):
    """The shape of a model that is trained from scratch on ids of a tokenizer; None is GPT-2's."""
    end = tokenizer.eot if tokenizer else 50256
    return GPTConfig(
        block_size=recipe.block_size or 1024,
        vocab_size=tokenizer.vocab_size if tokenizer else 50257,
        n_layer=recipe.n_layer or 12,
        n_head=recipe.n_head or 12,
        n_embd=recipe.n_embd or 768,
        bos_token_id=end,
        eos_token_id=end,
    )


def agreed_tokenizer(recipe, dataset, config, model_tokenizer):
    """The tokenizer that data and model share. Raises UsageError naming both when they do not."""
    ours, theirs = dataset.tokenizer, model_tokenizer
    if ours is None:
        return theirs
    if theirs is not None:
        fits = ours.fingerprint == theirs.fingerprint
    else:
        fits = ours.vocab_size == config.vocab_size or (ours.vocab_size, config.vocab_size) == (50257, 50304)
    if not fits:
        name = theirs.describe()["name"] if theirs else f"a vocabulary of {config.vocab_size:,} ids"
        source = recipe.out_dir if recipe.init_from == "resume" else recipe.init_from
        advice = f"prepare the text with --tokenizer={source if theirs else 'gpt2'}"
        if ours.kind == "char":
            advice += ", or train on characters with init_from=scratch"
        raise UsageError(f"{dataset.directory} holds ids of {ours.describe()['name']}, but {recipe.init_from} works with {name}; {advice}")
    return ours


def _check_resumed(recipe, identity, state, say):
    """Refuse to go on as another run; say what else has changed."""
    if state.get("format") != checkpoint.FORMAT:
        raise UsageError(f"{recipe.out_dir}: its state has format {state.get('format')!r}, not {checkpoint.FORMAT}")
    newer = {"isolate_documents": False, "dataset_weights": None, "lora_rank": 0}  # of runs from before there were these
    before = {**newer, **state["identity"], **{name: state["config"][name] for name in ("n_layer", "n_head", "n_embd")}}
    now = {**identity, **{name: getattr(recipe, name) for name in ("n_layer", "n_head", "n_embd") if getattr(recipe, name) is not None}}
    changed = [f"  {name}: {before.get(name)} in the run, {value} now" for name, value in now.items() if before.get(name) != value]
    if changed:
        raise UsageError(
            "\n".join([f"{recipe.out_dir}: cannot be resumed as another run; give these back or start with another init_from:", *changed])
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
        raise UsageError(f"out_dir {recipe.out_dir}: {free / 1e9:.1f} GB free for them, and the checkpoints of this run need {needed / 1e9:.1f} GB")


def checkpoint_bytes(recipe, schedule, config):
    """{what: bytes} that the checkpoints of a run take at most, with the one more of each that there is while it is written."""
    parameters, adapters = convert.num_parameters(config), lora.num_parameters(config, recipe.lora_rank)
    states = checkpoint.KEEP + 1
    models = 2 + (schedule.length // schedule.eval_interval if recipe.always_save_checkpoint else 0)
    return {"last/": states * state_bytes(recipe, config), "best/": 4 * models * (parameters + adapters)}


def state_bytes(recipe, config):
    """Bytes of a resumable state: what is trained, and its two moments."""
    trained = lora.num_parameters(config, recipe.lora_rank) or convert.num_parameters(config)
    return (4 + 2 * getattr(torch, recipe.optimizer_dtype).itemsize) * trained


def _network(recipe, config, block_size, saved, say, identity):
    """The network that is trained. With adapters, `identity` is told what they are trained over, which no state holds."""
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
            raise UsageError(f"{recipe.out_dir}: holds adapters and not the weights they were trained over: {error}") from None
    if recipe.init_from == "scratch":
        say("initializing a new model from scratch")
        network = GPT.from_scratch(config, recipe.seed)
        network.set_dropout(recipe.dropout)
        return network
    say(f"initializing from {recipe.init_from}")
    return GPT.from_pretrained(recipe.init_from, block_size, recipe.dropout)
