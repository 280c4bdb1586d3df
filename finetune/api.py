"""The commands from Python: prepare, sample, evaluate, export and plan. Keywords are the flags of the command."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from finetune.common.errors import UsageError
from finetune.common.objects import described
from finetune.eval import measure
from finetune.evaluation.options import Options as EvaluateOptions
from finetune.export import Options as ExportOptions
from finetune.export import export_and_push
from finetune.keywords import EACH, arguments, parse_keywords, path_flags, takes_flags
from finetune.plan import Options as PlanOptions
from finetune.plan import make_plan
from finetune.prepare import Options as PrepareOptions
from finetune.prepare import default_dir, dry_run, prepare_and_examine
from finetune.sample import Options as SampleOptions
from finetune.sample import check, find, load, read_settings, read_starts, write

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from finetune.flags import EvaluateFlags, ExportFlags, PlanFlags, PrepareFlags, SampleFlags

Place: TypeAlias = "str | os.PathLike[str]"


@dataclass(frozen=True)
class Prepared:
    """A prepared directory: `train(dataset=prepared, ...)` takes it."""

    directory: Path
    splits: dict[str, dict[str, Any]]  # {"train", "val"} -> what meta.json has: tokens, sha256 and more; {} if dry
    tokenizer: str

    def __fspath__(self) -> str:
        return str(self.directory)


@takes_flags(PrepareOptions)
def prepare(*sources: Place, **flags: Unpack[PrepareFlags]) -> Prepared:
    """Tokenize texts into train.bin and val.bin: files, directories, patterns, archives, datasets of the Hub.

    Returns the directory with the counts of each split. Raises UsageError, and writes nothing, for what cannot be read
    or is unclear. With `dry_run=True` nothing is written.

    >>> data = prepare("notes.txt", out_dir="data/notes", tokenizer="char")
    >>> sorted(data.splits)
    ['train', 'val']
    """
    options, given = parse_keywords(PrepareOptions, sources, flags)
    from finetune.runtime.unchanged import unchanged

    with unchanged():
        if options.dry_run:
            dry_run(options)
        dataset = None if options.dry_run else prepare_and_examine(options, given)
    if dataset is None:  # or jobs of a cluster prepare it
        return Prepared(Path(options.out_dir or default_dir(options.sources[0])), {}, options.tokenizer)
    return Prepared(Path(dataset.directory), dataset.meta["splits"], dataset.meta["tokenizer"]["name"])


@takes_flags(SampleOptions)
def sample(model: Place | None = None, *starts: str, **flags: Unpack[SampleFlags]) -> list[str]:
    """Texts that a model writes, `num_samples` for each prompt in turn, each with its prompt at the beginning.

    `model` is a run, its out_dir, or what `init_from` takes. Without a prompt it is `start`. Lengths are in tokens. The
    same seed gives the same texts. Raises UsageError for a model or a prompt that cannot be used.

    >>> texts = sample("out", "The ", "A ", num_samples=2, max_new_tokens=20)
    >>> len(texts), texts[0].startswith("The ")
    (4, True)
    """
    options, given = parse_keywords(SampleOptions, (), path_flags(model, flags))
    if starts and (other := {"start", "prompts"} & given.keys()):
        raise UsageError(f"{other.pop()}: cannot go with a prompt, which is given too")
    if options.chat:
        raise UsageError("chat: reads from the terminal; finetune sample --chat=true")
    check(options, given)
    from finetune.runtime.unchanged import unchanged

    with unchanged():
        return _sample(options, starts)


def _sample(options: SampleOptions, starts: tuple[str, ...]) -> list[str]:
    from finetune.common.progress import progress
    from finetune.data.tokenizer import encode_prompt
    from finetune.gpt.sampling import draw_samples

    found = find(options)
    assert found.tokenizer
    if wrong := [start for start in starts if not isinstance(start, str) or not start]:
        way = EACH if isinstance(wrong[0], list | tuple) else ""
        raise UsageError(f"{described(wrong[0])}: a prompt is a text of at least one token{way}")
    prompts = [encode_prompt(found.tokenizer, start, repr(start)) for start in starts]
    prompts = prompts or read_starts(options, found)
    settings = read_settings(options, found)
    network = load(options, found)
    settings |= {"num_samples": options.num_samples, "seed": options.seed}
    if options.out:
        return write(network, found, prompts, options, settings)
    texts = []
    for prompt in progress(prompts, unit=" prompts", leave=False):
        samples = draw_samples(network, found.tokenizer, prompt, **settings)
        texts += [found.tokenizer.decode(prompt) + one.text for one in samples]
    return texts


@takes_flags(EvaluateOptions)
def evaluate(model: Place | None = None, **flags: Unpack[EvaluateFlags]) -> dict[str, Any]:
    """Print, record and return the figures of a model on the validation split.

    `model` is a run, its out_dir, or with `dataset` what `init_from` takes. `loss` is in nats per token, over `targets`
    tokens; beside it are `perplexity`, `bits_per_byte` and `accuracy`. Raises UsageError, and
    Failure if it is not as good as `require` or `no_worse_than` ask.

    >>> figures = evaluate("out")
    >>> figures["loss"] > 0
    True
    """
    options, _ = parse_keywords(EvaluateOptions, (), path_flags(model, flags))
    from finetune.runtime.unchanged import unchanged

    with unchanged():
        return measure(options)


@takes_flags(ExportOptions)
def export(model: Place | None = None, **flags: Unpack[ExportFlags]) -> Path:
    """Write a model to the directory `to`, which appears once its files were read back and compared. Returns it.

    `model` is a run, its out_dir, or what `init_from` takes. Raises UsageError, and Failure when the files differ from
    the model or a push fails.

    >>> export("out", to="mine").name
    'mine'
    """
    keywords = path_flags(model, flags)
    options, _ = parse_keywords(ExportOptions, (), keywords)
    from finetune.runtime.unchanged import unchanged

    with unchanged():
        return export_and_push(options, arguments(ExportOptions, (), keywords))


@takes_flags(PlanOptions)
def plan(*recipes: Place, **flags: Unpack[PlanFlags]) -> dict[str, Any]:
    """Print what a run will take, and return the numbers: sizes in bytes, times in seconds, and whether it `fits`.

    Takes the keywords of `train`. Raises UsageError. `quick=True` times nothing; then `seconds` is empty.

    >>> numbers = plan(init_from="scratch", dataset="notes.txt", tokenizer="char", block_size=16, quick=True)
    >>> numbers["fits"], numbers["seconds"]
    (True, {})
    """
    began = time.perf_counter()
    options, origins = parse_keywords(PlanOptions, recipes, flags)
    from finetune.runtime.unchanged import unchanged

    with unchanged():
        numbers = make_plan(options, origins, began)
    return {**numbers, "fits": not numbers["shortage"]}
