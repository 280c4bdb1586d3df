"""The datasets of a run, and the model and tokenizer that go with them; what does not go together is refused before
weights are read."""

import dataclasses
import hashlib
import json
from pathlib import Path

from finetune.common.errors import UsageError
from finetune.config.cli import parse
from finetune.data import dataset as datasets
from finetune.data import sources
from finetune.data import tokenizer as tokenizers
from finetune.data.prepare import find_tokenizer, prepare
from finetune.data.split import survey_documents
from finetune.gpt import GPTConfig, pretrained
from finetune.gpt.model import SHAPES


def open_dataset(value, tokenizer, val_fraction):
    """The Dataset that a recipe's `dataset` means: a prepared directory, the name of one under data/, or a text
    prepared now.

    A text is prepared once into data/, under a name that holds what it was made from. `tokenizer` is a function that
    gives the choice for that case, so that nobody looks for one that is not needed. Raises UsageError."""
    for directory in (Path(value), Path("data") / value):
        if datasets.is_prepared(directory):
            found = datasets.load(directory)
            # a named text is there for every tokenizer, not only for the one it was prepared with first
            if (
                value not in sources.NAMED
                or not found.tokenizer
                or (tokenizer() == "char") == (found.tokenizer.kind == "char")
            ):
                return found
    if Path(value).is_dir() and not list(Path(value).glob("*.bin")):
        raise UsageError(
            f"{value}: no train.bin here; prepare it with `python -m finetune.prepare TEXT --out_dir={value}`"
        )
    if Path(value).is_dir():
        return datasets.load(value)  # says which of the two is missing
    if value not in sources.NAMED and not Path(value).is_file():
        there = sorted(str(path.parent) for path in Path("data").glob("*/train.bin"))
        known = f"prepared here: {', '.join(there)}; " if there else ""
        raise UsageError(
            f"dataset {value}: no such directory or text file; {known}named texts: {', '.join(sources.NAMED)}"
        )
    choice = tokenizer()
    made_from = survey_documents(sources.find([value]), collect_alphabet=False).sources
    kind = choice if choice == "char" else (choice := find_tokenizer(choice)).fingerprint
    mark = hashlib.sha256(
        json.dumps([made_from[0]["sha256"], kind, val_fraction, datasets.FORMAT]).encode()
    ).hexdigest()[:8]
    directory = Path("data") / f"{Path(value).stem}-{choice if choice == 'char' else choice.kind}-{mark}"
    if (directory / "meta.json").is_file():
        return datasets.load(directory)
    return prepare([value], directory, choice, val_fraction)


PLANNED_CHARACTERS = 100  # of a vocabulary that nobody has seen yet


def find_shape(recipe, tokenizer, saved):
    """`(config, tokenizer)` of the model, without its weights: shapes of the four sizes are known, of another Hub model
    config.json is."""
    if saved:
        return GPTConfig(**saved["config"]), None
    if recipe.init_from == "scratch":
        config = config_from_scratch(recipe, tokenizer)
        return (
            dataclasses.replace(config, vocab_size=PLANNED_CHARACTERS)
            if not tokenizer and recipe.tokenizer == "char"
            else config
        ), tokenizer
    if recipe.init_from in SHAPES and not Path(recipe.init_from).exists():
        L, H, C = SHAPES[recipe.init_from]
        return GPTConfig(n_layer=L, n_head=H, n_embd=C, bos_token_id=50256, eos_token_id=50256), None
    if pretrained.is_hub_id(recipe.init_from):
        return pretrained.load_hub_config(recipe.init_from), None
    return model_of(recipe, None, None)


def planned_tokenizer(recipe):
    """As training's, but of a Hub model without its weights."""
    if (
        recipe.tokenizer == "auto"
        and recipe.init_from not in ("scratch", "resume")
        and pretrained.is_hub_id(recipe.init_from)
    ):
        if recipe.init_from in SHAPES:
            return "gpt2"
        raise UsageError(
            f"dataset: {recipe.dataset} is a text yet; python -m finetune.prepare {recipe.dataset}"
            f" --tokenizer={recipe.init_from} makes tokens to plan with"
        )
    return tokenizer_choice(recipe)


def data_of_run(out_dir):
    """The Dataset that a run was trained on, recognized by its sha256."""
    from finetune.config.recipe import Recipe
    from finetune.data import dataset as datasets
    from finetune.runs.events import read_metrics

    recipe, told = Path(out_dir) / "recipe.yaml", f"max_copy: the data that {out_dir} was trained on"
    identities = [event["identity"] for event in read_metrics(Path(out_dir) / "metrics.jsonl") if "identity" in event]
    if not recipe.is_file() or not identities:
        raise UsageError(f"{told} is not known (no recipe.yaml and metrics.jsonl there); give --dataset=DIR")
    value = parse(Recipe, [str(recipe)], "")[0].dataset
    if "," in value:
        raise UsageError(f"{told} are several: {value}; give one of them, --dataset=DIR")
    candidates = [
        Path(value),
        Path("data") / value,
        *sorted(Path("data").glob(f"{Path(value).stem}-*")),
    ]  # a text is prepared into such a one
    for directory in candidates:
        if datasets.is_prepared(directory):
            dataset = datasets.load(directory)
            if datasets.scan(dataset, "train").sha256 == identities[-1]["train.bin"]:
                return dataset
    raise UsageError(f"{told}, {value}, is not here any more, or another text by now; give --dataset=DIR")


def gpt2_for(config, source):
    """GPT-2's own tokenizer for a model that came without one."""
    from finetune.data import tokenizer as tokenizers

    if config.vocab_size != 50257:
        raise UsageError(f"{source}: has no tokenizer, and {config.vocab_size:,} ids are not GPT-2's")
    return tokenizers.gpt2()


def describe_model(source):
    """Which weights speak: their place and, for a run, the update and validation loss they are from."""
    import json

    try:
        facts = json.loads((source / "finetune.json").read_text(encoding="utf-8"))
        return f"{source} (step {facts['step']}, val loss {facts['val_loss']:.4f})"
    except (OSError, ValueError, KeyError):
        return str(source)


def open_datasets(recipe, tokenizer):
    """The Datasets of a recipe, which go together; `tokenizer` gives the choice for a text that is prepared now. Raises
    UsageError."""
    datasets = [open_dataset(name.strip(), tokenizer, recipe.val_fraction or 0.1) for name in recipe.dataset.split(",")]
    for dataset in datasets:
        _check_given(recipe, dataset)
    _check_alike(datasets)
    return datasets


def is_isolated(recipe, datasets):
    """Whether documents are isolated. Raises UsageError where that is asked for and nothing says where they end."""
    if recipe.isolate_documents == "auto":
        return all(dataset.mask("train") for dataset in datasets)
    if recipe.isolate_documents == "true":
        for dataset in datasets:
            if dataset.is_running_text("train"):
                raise UsageError(f"isolate_documents: {dataset.directory} holds one running text and no documents")
    return recipe.isolate_documents == "true"


def block_size_of(recipe, config):
    """Tokens of context in a run. Raises UsageError when the model has fewer positions."""
    block_size = recipe.block_size or config.block_size
    if block_size > config.block_size:
        raise UsageError(
            f"block_size: {block_size:,} is more than the {config.block_size:,} positions of {recipe.init_from}"
        )
    return block_size


def model_of(recipe, dataset, saved):
    """`(config, tokenizer)` of the model that will be trained, without its weights."""
    if saved:
        return GPTConfig(**saved[2]["config"]), _model_tokenizer(recipe)
    if recipe.init_from != "scratch":
        return pretrained.load_config(recipe.init_from), _model_tokenizer(recipe)
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
        raise UsageError(
            f"{dataset.directory} holds ids of {ours.describe()['name']}, but {recipe.init_from} works with {name};"
            f" {advice}"
        )
    return ours


def tokenizer_choice(recipe):
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
    path = pretrained.find(recipe.init_from)
    return tokenizers.from_directory(path) if path.is_dir() else None


def _check_given(recipe, dataset):
    """Keys that only matter while a text is tokenized must not contradict data that already is."""
    made_with = dataset.meta.get("val_fraction")
    if recipe.val_fraction is not None and recipe.val_fraction != made_with:
        known = f"val_fraction={made_with}" if made_with is not None else "bins that are split already"
        raise UsageError(
            f"val_fraction: {recipe.val_fraction} cannot apply, {dataset.directory} holds {known}; prepare the text"
            " again"
        )
    if recipe.tokenizer != "auto" and dataset.tokenizer is None:
        if recipe.tokenizer == "char":
            raise UsageError(
                f"tokenizer: char cannot apply, {dataset.directory} holds ids already and no characters for them"
                " (meta.json or meta.pkl)"
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
                f"tokenizer: {recipe.tokenizer} cannot apply, {dataset.directory} holds"
                f" {dataset.tokenizer.describe()['name']}; prepare the text again"
            )


def _check_alike(datasets):
    """Several datasets must hold ids of one tokenizer."""
    first = datasets[0]
    for other in datasets[1:]:
        names = [
            dataset.tokenizer.describe()["name"] if dataset.tokenizer else "an unknown tokenizer"
            for dataset in (first, other)
        ]
        same = (
            first.tokenizer.fingerprint == other.tokenizer.fingerprint
            if first.tokenizer and other.tokenizer
            else first.tokenizer is other.tokenizer
        )
        if not same:
            raise UsageError(
                f"dataset: {first.directory} holds ids of {names[0]}, and {other.directory} of {names[1]}; prepare them"
                " with the same --tokenizer"
            )
