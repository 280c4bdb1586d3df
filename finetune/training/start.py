"""What a run starts from: data, model and optimizer, checked against each other before anything is trained."""

import dataclasses
from dataclasses import dataclass

import torch

from finetune import recipe as recipes
from finetune.cli import UsageError
from finetune.data import bins, cache
from finetune.data import tokenizer as tokenizers
from finetune.data.batches import Blocks, Order
from finetune.data.prepare import find_tokenizer, open_dataset
from finetune.gpt import GPT, GPTConfig, weights
from finetune.training import checkpoint, optim
from finetune.training import machine as machines


@dataclass
class Run:
    """A run at some iteration. What must survive a restart is in `iteration`, `best`, the weights and the optimizer."""

    recipe: recipes.Recipe
    schedule: recipes.Schedule
    machine: object
    network: GPT  # the model itself
    model: torch.nn.Module  # the same as the launcher wraps it
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler | None  # float16 only
    train: Blocks
    val: Blocks
    order: Order
    tokenizer: object | None
    identity: dict  # what makes the run this run and no other
    init_from: str  # where the first weights came from
    iteration: int = 0  # updates made
    peak: tuple = (float("inf"), "")  # FLOP/s that mfu is measured against, and where the figure is from
    best: dict = dataclasses.field(default_factory=dict)  # {"val_loss", "step"} of best/, empty before the first evaluation

    @property
    def names(self):
        return {parameter: name for name, parameter in self.network.named_parameters()}

    def state(self):
        """What state.json keeps; weights and optimizer lie beside it."""
        return {
            "format": checkpoint.FORMAT,
            "iteration": self.iteration,
            "best": self.best,
            "init_from": self.init_from,
            "identity": self.identity,
            "config": dataclasses.asdict(self.network.config),
            "recipe": dataclasses.asdict(self.recipe),
            "scaler": self.scaler.state_dict() if self.scaler else None,
        }


def assemble(recipe, machine, say):
    """The Run that a recipe describes, at its first iteration or where it is resumed. Raises UsageError."""
    saved = checkpoint.load_state(recipe.out_dir, say) if recipe.init_from == "resume" else None
    with machine.accelerator.local_main_process_first():  # one process prepares and builds caches, the others find them
        dataset = open_dataset(recipe.dataset, lambda: _tokenizer_choice(recipe), recipe.val_fraction or 0.1)
        _check_given(recipe, dataset)
        config, model_tokenizer = _plan_model(recipe, dataset, saved)
        tokenizer = _agreed_tokenizer(recipe, dataset, config, model_tokenizer)
        block_size = recipe.block_size or config.block_size
        if block_size > config.block_size:
            raise UsageError(f"block_size: {block_size:,} is more than the {config.block_size:,} positions of {recipe.init_from}")
        splits, identity = {}, {}
        for split in ("train", "val"):
            contents = bins.survey(dataset, split)
            bins.check_ids(dataset, split, contents, config.vocab_size, recipe.init_from if saved is None else recipe.out_dir)
            splits[split] = Blocks.from_arrow(cache.open_cache(dataset, split, block_size, contents), contents.tokens)
            identity[f"{split}.bin"] = contents.sha256
    identity |= {
        "block_size": block_size,
        "seed": recipe.seed,
        "rows per iteration (batch_size x gradient_accumulation_steps)": recipe.batch_size * recipe.gradient_accumulation_steps,
    }
    schedule = recipes.schedule(recipe, splits["train"].num_rows)
    if saved:
        _check_resumed(recipe, identity, saved[2], say)
    _check_disk(recipe, config)

    machine.dtype = machines.best_dtype(recipe.dtype, machine.device, config.n_embd)
    network = _network(recipe, config, block_size, saved, say)
    network.gradient_checkpointing = recipe.gradient_checkpointing
    network.to(machine.device).train()
    optimizer = optim.adamw(network, recipe)
    if machine.compile:
        network.compile()
    model = machine.accelerator.prepare_model(network)
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
        order=Order(splits["train"].num_rows, recipe.batch_size * recipe.gradient_accumulation_steps, recipe.seed),
        tokenizer=tokenizer,
        identity=identity,
        init_from=recipe.init_from,
    )
    if saved:
        _, moments, state = saved
        moments = {name: _padded(name, tensor, config) for name, tensor in moments.items()}
        checkpoint.restore_optimizer(optimizer, run.names, moments, state["iteration"])
        run.iteration, run.best, run.init_from = state["iteration"], state["best"], state["init_from"]
        if run.scaler and state["scaler"]:
            run.scaler.load_state_dict(state["scaler"])
    return run


def _tokenizer_choice(recipe):
    """The tokenizer for a text that is prepared on the fly: the one asked for, else the model's own."""
    if recipe.tokenizer != "auto":
        return recipe.tokenizer
    if recipe.init_from == "scratch":
        return "gpt2"
    return _model_tokenizer(recipe) or "gpt2"


def _model_tokenizer(recipe):
    path = weights.find(recipe.out_dir if recipe.init_from == "resume" else recipe.init_from)
    return tokenizers.from_directory(path) if path.is_dir() else None


def _check_given(recipe, dataset):
    """Keys that only matter while a text is tokenized must not contradict data that already is."""
    made_with = dataset.meta.get("val_fraction")
    if recipe.val_fraction is not None and recipe.val_fraction != made_with:
        known = f"val_fraction={made_with}" if made_with is not None else "bins that are split already"
        raise UsageError(f"val_fraction: {recipe.val_fraction} cannot apply, {dataset.directory} holds {known}; prepare the text again")
    if recipe.tokenizer != "auto" and dataset.tokenizer:
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
    tokenizer = dataset.tokenizer
    end = tokenizer.eot if tokenizer else 50256
    config = GPTConfig(
        block_size=recipe.block_size or 1024,
        vocab_size=tokenizer.vocab_size if tokenizer else 50257,
        n_layer=recipe.n_layer or 12,
        n_head=recipe.n_head or 12,
        n_embd=recipe.n_embd or 768,
        bos_token_id=end,
        eos_token_id=end,
    )
    return config, tokenizer


def _agreed_tokenizer(recipe, dataset, config, model_tokenizer):
    """The tokenizer that data and model share. Raises UsageError naming both when they do not."""
    ours, theirs = dataset.tokenizer, model_tokenizer
    if ours is None:
        return theirs
    if theirs is not None:
        fits = ours.fingerprint == theirs.fingerprint
    else:
        fits = ours.vocab_size == config.vocab_size or (ours.kind == "bpe" and ours.vocab_size <= config.vocab_size)
    if not fits:
        name = theirs.describe()["name"] if theirs else f"a vocabulary of {config.vocab_size:,} ids"
        advice = f"prepare the text with --tokenizer={recipe.init_from if theirs and theirs.vocab_size != 50257 else 'gpt2'}"
        if ours.kind == "char":
            advice += ", or train on characters with init_from=scratch"
        raise UsageError(f"{dataset.directory} holds ids of {ours.describe()['name']}, but {recipe.init_from} works with {name}; {advice}")
    return ours


def _check_resumed(recipe, identity, state, say):
    """Refuse to go on as another run; say what else has changed."""
    if state.get("format") != checkpoint.FORMAT:
        raise UsageError(f"{recipe.out_dir}: its state has format {state.get('format')!r}, not {checkpoint.FORMAT}")
    before = {**state["identity"], **{name: state["config"][name] for name in ("n_layer", "n_head", "n_embd")}}
    now = {**identity, **{name: getattr(recipe, name) for name in ("n_layer", "n_head", "n_embd") if getattr(recipe, name) is not None}}
    changed = [f"  {name}: {before.get(name)} in the run, {value} now" for name, value in now.items() if before.get(name) != value]
    if changed:
        raise UsageError(
            "\n".join([f"{recipe.out_dir}: cannot be resumed as another run; give these back or start with another init_from:", *changed])
        )
    for field in dataclasses.fields(recipe):
        old, new = state["recipe"].get(field.name), getattr(recipe, field.name)
        if field.metadata["resume"] == "schedule" and old != new:
            say(f"resuming with {field.name} {old} -> {new} from iteration {state['iteration']}")


def _check_disk(recipe, config):
    """Raise UsageError when the checkpoints of this run will not fit."""
    if recipe.eval_only:
        return
    with torch.device("meta"):
        parameters = GPT(config).num_parameters()
    needed = parameters * (12 * (checkpoint.KEEP + 1) + 4 * 2)  # states of weights and two moments, one more while saving; best/ twice
    free = checkpoint.free_bytes(recipe.out_dir)
    if free < needed:
        raise UsageError(f"out_dir {recipe.out_dir}: {free / 1e9:.1f} GB free, and the checkpoints of this run need {needed / 1e9:.1f} GB")


def _network(recipe, config, block_size, saved, say):
    if saved:
        say(f"resuming {recipe.out_dir} at iteration {saved[2]['iteration']}")
        return GPT.from_state(config, saved[0], dropout=recipe.dropout)
    if recipe.init_from == "scratch":
        say("initializing a new model from scratch")
        network = GPT.from_scratch(config, recipe.seed)
        network.set_dropout(recipe.dropout)
        return network
    say(f"initializing from {recipe.init_from}")
    return GPT.from_pretrained(recipe.init_from, block_size, recipe.dropout)


def _padded(name, tensor, config):
    """An optimizer tensor with the rows that the vocabulary's padding has in memory but not on disk."""
    if not name.endswith(".wte.weight"):
        return tensor
    return torch.cat([tensor, tensor.new_zeros(config.padded_vocab_size - tensor.size(0), tensor.size(1))])
