"""The model card: README.md of a model directory, from the records of the run and the export.

This module collects the values; the text is in model_card.md.j2. The card omits what was not recorded."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.common.formatting import is_number, perplexity, printable
from finetune.config.paths import names_of
from finetune.data.description import COUNTS
from finetune.data.tokenizer import Tokenizer
from finetune.gpt import GPTConfig, hub_model, size
from finetune.gpt.model import SHAPES
from finetune.runs.model_ref import HUB_ID

if TYPE_CHECKING:
    from jinja2 import Template

MAX_SAMPLES = 3
# what begins a heading, a quotation, a list or a rule; emphasis; an escape; the addresses that the Hub makes links of
MARKDOWN = re.compile(r"^[#>+=-]|[*~\\]|(?<![^\W_])_|_(?![^\W_])|(?<=[A-Za-z]):(?=//)|(?<=www)\.|@", re.IGNORECASE)
# of the models that many start from, for their finetuned ones
LICENSES = {**dict.fromkeys(SHAPES, "mit"), "distilgpt2": "apache-2.0", "distilbert/distilgpt2": "apache-2.0"}
MARK = re.compile(r"<!-- /?finetune:\w+ -->\n")
SETTINGS = (
    "learning_rate", "min_lr", "warmup_iters", "lr_decay_iters", "weight_decay", "beta1", "beta2", "grad_clip",
    "dropout", "block_size", "batch_size", "gradient_accumulation_steps", "max_iters", "epochs", "seed",
)  # fmt: skip


def model_card(
    title: str,
    place: str,
    config: GPTConfig,
    facts: dict[str, Any],
    events: list[dict[str, Any]],
    tokenizer: Tokenizer | None = None,
    picture: str | None = None,
    verified: dict[str, Any] | None = None,
) -> str:
    """README.md of a model directory, in the Hub's format. Of an export, sections stand between marks, for
    `publishing.card`.

    `place` is the directory or repository to load the model from. `facts` (finetune.json) and `events` (metrics.jsonl)
    are empty without a run. `picture` is the file name of the loss curve, `verified` the export's verification.json,
    which names the license, languages and tags that were asked for."""
    run = History(facts, events)
    is_adapter = bool(verified) and verified.get("format") == "peft"
    card = _template().render(
        title=title,
        place=place,
        config=config,
        num_parameters=size.num_parameters(config),
        run=run,
        is_adapter=is_adapter,
        base=run.base_model,
        metadata=_metadata(title, run, is_adapter, verified or {}),
        losses=losses(run),
        picture=picture,
        report=(verified or {}).get("report"),
        gguf=(verified or {}).get("gguf"),
        onnx=(verified or {}).get("onnx"),
        has_chat_template=bool(tokenizer and tokenizer.chat_template),
        tokenizer=tokenizer.describe()["name"] if tokenizer else None,
        columns=_counts(run.data) if run.data else [],
        settings=[(name, run.recipe[name]) for name in SETTINGS if run.recipe.get(name) is not None],
        made_with=_made_with(facts),
        measurements=list(_measurements(run.evaluation)) if run.evaluation else [],
        samples=samples(run),
        verified=verified,
    )
    return card if verified else MARK.sub("", card)


def hub_id(init_from: str) -> str | None:
    """The Hub id of the base model; None for `scratch` and for a local path. `init_from` must have been loaded."""
    is_local = init_from == "scratch" or Path(os.path.expanduser(init_from)).exists()
    return None if is_local else hub_model.split_revision(init_from)[0]


def base_of(facts: dict[str, Any]) -> str | None:
    """The Hub id of the base in finetune.json, with the commit of a run that started from NAME@REVISION."""
    base, source = facts.get("base_model"), str(facts.get("init_from"))
    return source if base and source.startswith(f"{base}@") else base


class History:
    """The part of a run's events that describes the weights of `facts` (finetune.json)."""

    def __init__(self, facts: dict[str, Any], events: list[dict[str, Any]]) -> None:
        started = [event for event in events if event["event"] in ("start", "resume")]
        # the end of a run says what best/ holds, also where the run was put back behind it
        best = [number for number, event in enumerate(events) if event["event"] == "best" or "best" in event]
        newest_best = events[best[-1]] if best else {}
        held = newest_best.get("best") or {"step": newest_best.get("step")}
        # evaluations and samples describe best/: use them only if these weights are the newest best/, not a mixture
        is_these = "step" in facts and all(facts.get(name) == value for name, value in held.items())
        is_newest = is_these and bool(best) and "interpolation" not in facts
        # from the evaluation on: updates and samples may come before the weights are on disk
        measured = [number for number, event in enumerate(events) if event["event"] == "eval"]
        of_step = [number for number in measured if events[number]["step"] == facts.get("step")]
        since = events[min([*of_step[-1:], best[-1]]) :] if is_newest else []
        samples = [event for event in since if event["event"] == "samples" and event.get("step") == facts.get("step")]
        samples = [event for event in samples if {"temperature", "top_k", "seed"} <= event.keys()]
        newest = started[-1] if started else {}
        self.facts = facts
        base = facts.get("base_model")  # which the Hub must know by this name
        self.base_model: str | None = base if isinstance(base, str) and HUB_ID.fullmatch(base) else None
        self.base_revision = hub_model.split_revision(base_of(facts) or "")[1] if self.base_model else None
        self.mixture: dict[str, Any] | None = facts.get("interpolation")
        self.recipe: dict[str, Any] = newest.get("recipe", {})
        self.machine: str | None = newest.get("machine")
        self.data: dict[str, Any] = next((event["data"] for event in reversed(started) if "data" in event), {})
        self.first = next((event for event in events if event["event"] == "eval"), None)
        self.evaluation = next((event for event in reversed(since) if event["event"] == "evaluation"), None)
        self.samples = samples[-1] if samples else None

    @property
    def init_from(self) -> str | None:
        """Source of the first weights: a Hub id, the last part of a path, `scratch`, or None if unknown."""
        if self.base_model:
            return self.base_model
        return _one_line(Path(self.facts["init_from"]).name) if "init_from" in self.facts else None

    @property
    def dataset(self) -> str:
        """The name of the data, or of each dataset, without folders."""
        given = self.recipe.get("dataset") or self.data.get("name") or "validation split"
        return ", ".join(map(_one_line, names_of(given))) or "texts"


def _metadata(title: str, run: History, is_adapter: bool, verified: dict[str, Any]) -> str:
    """The YAML front matter: what the Hub indexes, with the measured figures as model-index. The license is the one
    `asked` for, or else that of the base."""
    from huggingface_hub import EvalResult, ModelCardData

    asked = verified.get("request", {})
    repository, share = asked.get("name", ""), verified.get("share")
    named = [source["name"].split(":")[0] for source in run.data.get("sources") or [] if source.get("bytes") is None]
    results = [
        EvalResult("text-generation", dataset, dataset, metric, value, metric_name=name, dataset_split="validation")
        for dataset, metric, name, value in _indexed_figures(run)
    ]
    tags = ["gpt2", "finetune", *(["lora"] if run.recipe.get("lora_rank") else []), *(asked.get("tags") or [])]
    data = ModelCardData(
        license=asked.get("license") or LICENSES.get((run.base_model or "").removeprefix("openai-community/")),
        language=asked.get("language"),
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="text-generation",
        base_model=run.base_model,
        tags=list(dict.fromkeys(tags)),
        datasets=[name for name in named if "/" in name] or None,
        thumbnail=f"https://huggingface.co/{repository}/resolve/main/{share}" if share and "/" in repository else None,
        model_name=title if results else None,
        eval_results=results or None,
    )
    return data.to_yaml().strip()


def _indexed_figures(run: History) -> Iterator[tuple[str, str, str, float]]:
    """(dataset, metric, long name of the metric, value) of each figure of the validation split."""
    measured = run.evaluation if run.evaluation and run.evaluation.get("split") == "val" else None
    loss = measured["loss"] if measured else run.facts.get("val_loss")
    if not is_number(loss):
        return
    dataset = without_folders(measured["dataset"]) if measured else run.dataset
    yield dataset, "loss", "cross entropy, nats per token", round(loss, 4)
    yield dataset, "perplexity", "perplexity per token", round(perplexity(loss), 2)
    for metric, name in (("bits_per_byte", "bits per byte"), ("accuracy", "accuracy of the next token")):
        if measured and is_number(measured.get(metric)):
            yield dataset, metric, name, round(measured[metric], 4)


def losses(run: History) -> list[tuple[str, float, bool]]:
    """(model, validation loss, whether it is this model): before and after training, or of each mixture."""
    found = []
    if run.mixture:
        base, chosen = without_folders(run.mixture["base"]), run.mixture["weight"]
        for weight, loss in run.mixture["losses"]:
            found.append((f"{weight:g} of the trained weights, {1 - weight:g} of {base}'s", loss, weight == chosen))
        return found
    if run.first and run.first["step"] == 0 and is_number(run.first["val_loss"]):
        found.append(("before training", run.first["val_loss"], False))
    if is_number(run.facts.get("val_loss")) and "step" in run.facts:
        found.append((f"after {run.facts['step']:,} updates", run.facts["val_loss"], True))
    return found


def samples(run: History) -> list[str]:
    """The first samples of these weights."""
    return run.samples.get("texts", [])[:MAX_SAMPLES] if run.samples else []


def _made_with(facts: dict[str, Any]) -> str:
    """`finetune 0.1.0, torch 2.9.0, transformers 5.0.0, python 3.12.1`, and the git commit, as far as known."""
    versions, git = facts.get("versions") or {}, facts.get("git") or {}
    parts = [f"{name} {versions[name]}" for name in ("finetune", "torch", "transformers", "python") if name in versions]
    if git:
        changed = " with changes" if git.get("dirty") else ""
        parts.append(f"git commit {git['commit'][:12]}{changed}")
    return ", ".join(parts)


def _counts(data: dict[str, Any]) -> list[str]:
    """What was counted in a run's data; a continuous text has no documents to count."""
    counts = [name for name in COUNTS if any(name in split for split in data["splits"].values())]
    return [name for name in counts if name != "documents" or data.get("split_by") != "text"]


def _measurements(event: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(name, value) for each row of an `evaluation` event's table."""
    for name in ("loss", "perplexity", "bits_per_byte", "accuracy", "targets"):
        if is_number(event.get(name)):
            yield name.replace("_", " "), _number(event[name])
    if (baseline := event.get("baseline")) and is_number(baseline.get("loss")):
        yield f"loss of {without_folders(baseline['name'])}", _number(baseline["loss"])
    if difference := event.get("difference"):
        has_interval = is_number(difference.get("low")) and is_number(difference.get("high"))  # not with one block
        interval = f" ({difference['low']:+.4f} to {difference['high']:+.4f})" if has_interval else ""
        yield f"difference{', 95% interval' if has_interval else ''}", f"{difference['mean']:+.4f}{interval}"
    for group, prefix in (("metrics", ""), ("general", "on a general text: ")):
        for name, value in (event.get(group) or {}).items():
            if is_number(value):
                yield prefix + _one_line(name).replace("_", " "), _number(value)
    if copied := event.get("memorisation"):
        yield f"{copied['ngram']}-grams of its samples found in the training data", f"{copied['copied']:.1%}"
        yield "longest passage copied from there (tokens)", str(copied["longest"])


@functools.cache
def _template() -> Template:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    layout = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    environment = Environment(loader=PackageLoader("finetune.runs", ""), undefined=StrictUndefined, **layout)
    environment.filters |= {
        "fence": _fence,
        "markdown": escape_markdown,
        "number": _number,
        "paragraph": _paragraph,
        "perplexity": perplexity,
        "repr": repr,
        "without_folders": without_folders,
    }
    return environment.get_template("model_card.md.j2")


def _paragraph(text: str) -> str:
    """Text on one line, so that the template may wrap its lines."""
    return " ".join(text.split()) + "\n"


def _fence(text: str) -> str:
    """A Markdown fence: more backticks than any row of them in the text."""
    return "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def without_folders(name: object) -> str:
    """A name without local folders; a Hub id stays as it is."""
    text = str(name)
    is_hub_id = re.fullmatch(r"[\w.-]+/[\w.-]+(@[0-9a-f]{40})?", text) and not Path(text).exists()
    return _one_line(text if is_hub_id else Path(text).name or text)


def escape_markdown(text: object) -> str:
    """Text for a heading, a sentence, a list or a table cell: one line that is shown as it is, without tables, code,
    links, emphasis or HTML."""
    return MARKDOWN.sub(lambda found: f"&#{ord(found[0])};", _one_line(text).replace("&", "&amp;").replace("<", "&lt;"))


def _one_line(text: object) -> str:
    return printable(re.sub(r"[|\s`\[\]]+", " ", str(text)).strip())
