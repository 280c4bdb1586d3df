"""The datasets of a run, and the model and tokenizer that go with them; what does not go together is refused before
weights are read."""

from pathlib import Path

from finetune.cli import UsageError
from finetune.data import tokenizer as tokenizers
from finetune.data.prepare import find_tokenizer, open_dataset
from finetune.gpt import GPTConfig, weights


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
    path = weights.find(recipe.init_from)
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
