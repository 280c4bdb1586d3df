"""Which dataset a name means, for every command: a prepared directory, or a text that is prepared once."""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from finetune.common.commands import command
from finetune.common.errors import UsageError
from finetune.config.paths import split_paths, stem_of
from finetune.config.recipe import Recipe
from finetune.data import chat_template, directories, sources, token_folders
from finetune.data import dataset as prepared
from finetune.data.bin_formats import other_files
from finetune.data.dataset import Dataset
from finetune.data.prepare import find_texts, find_tokenizer, prepare
from finetune.data.split import survey_documents
from finetune.data.tokenizer import Tokenizer
from finetune.runs.events import read_metrics

DATA = Path("data")  # where named datasets lie and texts are prepared
texts_directory = ContextVar("directory that new texts are prepared in", default=DATA)


@contextlib.contextmanager
def temporary_texts() -> Generator[None]:
    """Context in which texts are prepared into a temporary directory, if they were not prepared before."""
    with tempfile.TemporaryDirectory() as directory:
        token = texts_directory.set(Path(directory))
        try:
            yield
        finally:
            texts_directory.reset(token)


def find_prepared(name: str) -> Dataset | None:
    """The prepared directory of that name, or the one under data/. Raises UsageError when it is damaged."""
    return next(_load_prepared((Path(name), DATA / name)), None)


def find_dataset(name: str, tokenizer: Callable[[], str | Tokenizer], val_fraction: float = 0.1) -> Dataset:
    """A prepared directory, a name under data/, or a text, which is prepared once. Raises UsageError.

    Args:
        tokenizer: called only when a text has to be prepared.
    """
    path = Path(name)
    for found in _load_prepared((path, DATA / name)):
        # a named text can be prepared by characters and with a BPE
        is_char = found.tokenizer is not None and found.tokenizer.kind == "char"
        if name not in sources.NAMED or not found.tokenizer or (tokenizer() == "char") == is_char:
            return found
    if path.is_dir():
        if (path / "val.bin").is_file():
            return prepared.load(path)  # raises: one of the two bins is missing
        if token_folders.token_paths(path):
            return _prepare_tokens_once(path, val_fraction)
        if problem := other_files(path):
            raise UsageError(problem)
        if not _holds_text(path):
            raise UsageError(f"{name}: holds neither train.bin nor a text; name a text, or what finetune prepare wrote")
        return _prepare_once(name, tokenizer(), val_fraction)
    if (DATA / name).is_dir():
        if token_folders.token_paths(DATA / name):
            return _prepare_tokens_once(DATA / name, val_fraction)
        if problem := other_files(DATA / name):
            raise UsageError(problem)
    if path.suffix in (".bin", ".ds") and path.is_file():
        raise UsageError(f"dataset {name}: is a file of token ids; name the directory of train.bin and val.bin")
    if path.is_fifo():  # it can be read only once
        raise UsageError(f"dataset {name}: is a pipe; write it into a file, or give the pipe to finetune prepare")
    if name not in sources.NAMED and not path.is_file():
        known = ", ".join(sorted(str(place.parent) for place in DATA.glob("*/train.bin")))
        here = f"prepared here: {known}; " if known else ""
        named = ", ".join(sources.NAMED)
        raise UsageError(f"dataset {name}: no such directory or text file; {here}named texts: {named}")
    return _prepare_once(name, tokenizer(), val_fraction)


def find_datasets(recipe: Recipe, tokenizer: Callable[[], str | Tokenizer]) -> list[Dataset]:
    """The datasets of a recipe, all with the ids of one tokenizer. Raises UsageError."""
    found = [find_dataset(name, tokenizer, recipe.val_fraction or 0.1) for name in split_paths(recipe.dataset)]
    for dataset in found:
        _check_val_fraction(recipe, dataset)
        _check_tokenizer(recipe, dataset)
    with_most_tokens(found)
    return found


def find_datasets_of_run(out_dir: str | Path, split: str = "train") -> list[Dataset]:
    """The datasets that a run was trained on, recognized by the sha256 of a split. Raises UsageError."""
    started = newest_start(out_dir)
    identity, recorded = started.get("identity", {}), started.get("data", {}).get("directories") or []
    names = split_paths(started.get("recipe", {}).get("dataset"))
    if not names:
        raise UsageError(f"dataset: {out_dir}/metrics.jsonl does not say what it was trained on; give --dataset=DIR")
    found = []
    for number, name in enumerate(names, 1):
        wanted = identity.get(prepared.identity_key(f"{split}.bin", number, len(names)))
        places = [*map(Path, recorded[number - 1 : number]), *places_of(name)]
        dataset = next((one for one in _load_prepared(places) if _sha256(one, split) == wanted), None)
        if dataset is None:
            problem = f"{name}, on which {out_dir} was trained, is not here"
            if prepared.is_prepared(places[0]):
                problem = f"{places[0]} changed since {out_dir} was trained on it (its {split}.bin)"
            elif Path(name).exists() or name in sources.NAMED:
                again = command("eval", out_dir=out_dir, dataset=name)
                raise UsageError(
                    f"dataset: {name} is not prepared here as {out_dir} was trained on it; {again} prepares it"
                )
            raise UsageError(f"dataset: {problem}; give --dataset=DIR")
        found.append(dataset)
    return found


def changed_since(out_dir: str | Path, directory: str | Path, say: Callable[[str], object] = print) -> str | None:
    """A line if a run was trained on a prepared directory and it holds other data now; None otherwise. `say` is told
    of lines of its metrics.jsonl that cannot be read."""
    started = newest_start(out_dir, say)
    recorded = started.get("data", {}).get("directories") or []
    for number, place in enumerate(recorded, 1):
        if Path(place).resolve() != Path(directory).resolve():
            continue
        keys = [prepared.identity_key(f"{split}.bin", number, len(recorded)) for split in ("train", "val")]
        dataset, identity = prepared.load(directory), started.get("identity", {})
        if [_sha256(dataset, split) for split in ("train", "val")] != [identity.get(key) for key in keys]:
            return f"{directory}: the data changed since {out_dir} was trained on them"
    return None


def find_dataset_of_run(out_dir: str | Path) -> Dataset:
    """The only dataset that a run was trained on. Raises UsageError when it trained on several."""
    names = split_paths(newest_start(out_dir).get("recipe", {}).get("dataset"))
    if len(names) > 1:
        flags = ", ".join(f"--dataset={name}" for name in names)
        raise UsageError(f"dataset: {out_dir} was trained on several; give one of them: {flags}")
    return find_datasets_of_run(out_dir)[0]


def newest_start(out_dir: str | Path, say: Callable[[str], object] = lambda line: None) -> dict[str, Any]:
    """The newest `start` or `resume` event of a run, {} if there is none."""
    events = read_metrics(Path(out_dir) / "metrics.jsonl", say)
    return next((event for event in reversed(events) if "identity" in event), {})


def places_of(name: str) -> list[Path]:
    """Where a dataset of that name can lie; a text was prepared under data/, by a longer name."""
    return [Path(name), DATA / name, *sorted(DATA.glob(f"{glob.escape(stem_of(name))}-*"))]


def is_isolated(recipe: Recipe, found: list[Dataset]) -> bool:
    """Whether tokens attend to their own document only. Raises UsageError for a dataset without documents."""
    if recipe.isolate_documents == "auto":
        return all(dataset.mask("train") for dataset in found)
    if recipe.isolate_documents == "false":
        return False
    for dataset in found:
        if dataset.is_running_text("train"):
            raise UsageError(f"isolate_documents: {dataset.directory} holds one running text and no documents")
    return True


def _sha256(dataset: Dataset, split: str) -> str:
    """The sha256 of a split, from meta.json or else computed."""
    return dataset.meta.get("splits", {}).get(split, {}).get("sha256") or prepared.scan(dataset, split).sha256


def _load_prepared(places: Iterable[Path]) -> Iterator[Dataset]:
    return (prepared.load(place) for place in places if prepared.is_prepared(place))


def _holds_text(directory: Path) -> bool:
    """Whether there are texts or tables in a directory."""
    return bool(directories.find_files(str(directory), sources.is_readable).files["train"])


def _prepare_once(name: str, choice: str | Tokenizer, val_fraction: float) -> Dataset:
    """A prepared text, by `_prepare_into`. Raises UsageError that says how to prepare it by hand."""
    try:
        return _prepare_into(name, choice, val_fraction)
    except UsageError as error:
        raise _with_way_out(error, name) from None


def _prepare_into(name: str, choice: str | Tokenizer, val_fraction: float) -> Dataset:
    """Prepare a text into data/, under a name with a digest of everything the result depends on."""
    texts = find_texts([name], ())
    digests = [found["sha256"] for split in texts.values() for found in survey_documents(split, False).sources]
    made_from, kind = [*digests, "char", val_fraction], "char"
    if choice != "char":
        choice = find_tokenizer(choice)
        made_from, kind = [*digests, choice.fingerprint, val_fraction], choice.kind
        if template := chat_template.of_tokenizer(choice):  # it renders conversations
            made_from += [template.source, dict(template.special)]
    directory = _place_of(name, kind, made_from)
    if (directory / "meta.json").is_file():
        return prepared.load(directory)
    return prepare([name], texts_directory.get() / directory.name, choice, val_fraction)


def _prepare_tokens_once(folder: Path, val_fraction: float) -> Dataset:
    """The same of a folder of tokens. Raises UsageError."""
    tokenizer = token_folders.known_tokenizer(folder)
    made_from = [token_folders.describe(folder)["sha256"], tokenizer.fingerprint, val_fraction]
    directory = _place_of(str(folder), tokenizer.kind, made_from)
    if (directory / "meta.json").is_file():
        return prepared.load(directory)
    return token_folders.prepare_tokens(folder, texts_directory.get() / directory.name, tokenizer, val_fraction)


def _place_of(name: str, kind: str, made_from: list[Any]) -> Path:
    """Where a text or a folder of tokens is prepared, whose name changes with the content."""
    digest = hashlib.sha256(json.dumps([*made_from, prepared.FORMAT]).encode()).hexdigest()
    stem = stem_of(name).encode()[:200].decode(errors="ignore")  # a name has 255 bytes at most
    return DATA / f"{stem}-{kind}-{digest[:8]}"


def _with_way_out(error: UsageError, name: str) -> UsageError:
    """The error of a text that has to be prepared by its own command, whose flags are named in it."""
    keys = {field.name for field in dataclasses.fields(Recipe)}
    if all(flag in keys for flag in re.findall(r"--(\w+)", str(error))):
        return error
    place = DATA / stem_of(name)
    way = command("prepare", name, out_dir=place)
    return UsageError(f"{error}. Flags of preparing are given to `{way}`; then train with --dataset={place}")


def _check_val_fraction(recipe: Recipe, dataset: Dataset) -> None:
    """Raise UsageError when a dataset was already split in another proportion."""
    made_with = dataset.meta.get("val_fraction")
    if recipe.val_fraction is None or recipe.val_fraction == made_with:
        return
    known = f"val_fraction={made_with}" if made_with is not None else "bins that are already split"
    raise UsageError(
        f"val_fraction: {recipe.val_fraction} cannot apply, {dataset.directory} holds {known}; prepare the text again"
    )


def _check_tokenizer(recipe: Recipe, dataset: Dataset) -> None:
    """Raise UsageError when a dataset was made with another tokenizer than the recipe's. Bins without a tokenizer get
    the recipe's."""
    if recipe.tokenizer == "auto":
        return
    wanted = None if recipe.tokenizer == "char" else find_tokenizer(recipe.tokenizer)
    if dataset.is_assumed and wanted:
        dataset.forget_tokenizer()
    ours = dataset.tokenizer
    if ours is None and wanted is None:
        holds = f"{dataset.directory} holds ids already and no characters for them (meta.json or meta.pkl)"
        raise UsageError(f"tokenizer: char cannot apply, {holds}")
    if ours is None:
        dataset.tokenizer = wanted
        return
    is_same = ours.fingerprint == wanted.fingerprint if wanted else ours.kind == "char"
    if not is_same:
        holds = f"{dataset.directory} holds {ours.describe()['name']}"
        raise UsageError(f"tokenizer: {recipe.tokenizer} cannot apply, {holds}; prepare the text again")


def with_most_tokens(found: list[Dataset]) -> Dataset:
    """The dataset whose tokenizer has the added tokens of all others; the first of equal ones. Raises UsageError if the
    same ids mean other tokens to some of them."""
    chosen = next((one for one in found if all(_extends(one, other) for other in found)), None)
    if chosen:
        return chosen
    pair = next((one, two) for one in found for two in found if not (_extends(one, two) or _extends(two, one)))
    names = [one.tokenizer.describe()["name"] if one.tokenizer else "an unknown tokenizer" for one in pair]
    other = "others " if names[0] == names[1] else ""
    problem = f"{pair[0].directory} holds ids of {names[0]}, and {pair[1].directory} {other}of {names[1]}"
    raise UsageError(f"dataset: {problem}; prepare them with the same --tokenizer")


def _extends(one: Dataset, other: Dataset) -> bool:
    """Whether all ids of another dataset mean the same in this one."""
    if one.tokenizer is None or other.tokenizer is None:
        return one.tokenizer is other.tokenizer and one.vocab_size == other.vocab_size
    return one.tokenizer.fingerprint == other.tokenizer.fingerprint or one.tokenizer.extends(other.tokenizer)
