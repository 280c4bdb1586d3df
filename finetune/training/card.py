"""The model card: the facts of a run, for whoever finds the model. The same card for best/ while a run goes on and for
an export.

Everything in it was recorded: by the run in metrics.jsonl, beside the weights in finetune.json, or by the export. What
was not recorded is not mentioned."""

import math
import re
from pathlib import Path

SHOWN_SAMPLES = 3
PATH_OF_THE_BASE = "PATH_OF_THE_BASE_MODEL"  # in place of a name, where only whoever has the model knows one
SETTINGS = (
    "learning_rate",
    "min_lr",
    "warmup_iters",
    "lr_decay_iters",
    "weight_decay",
    "beta1",
    "beta2",
    "grad_clip",
    "dropout",
    "block_size",
    "batch_size",
    "gradient_accumulation_steps",
    "max_iters",
    "epochs",
    "seed",
)


def model_card(title, place, config, facts, events, tokenizer=None, picture=None, verified=None):
    """README.md of a model directory, in the Hub's format.

    `place` is what loads the model: a directory or a repository. `facts` are those of finetune.json, `events` those of
    metrics.jsonl, both empty for a model that came from elsewhere; `picture` is the name of the loss curve's file,
    `verified` what the export compared."""
    run = Story(facts, events)
    sections = [
        f"---\n{_metadata(title, run, config, verified)}\n---",
        f"# {title}",
        _introduction(run, config),
        _losses(run, picture),
        _usage(place, tokenizer, run if _is_adapter(verified) else None),
        _data(run),
        _training(run, verified),
        _evaluation(run.evaluation),
        _samples(run.samples),
        _verification(verified),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def hub_id(init_from):
    """The base model that the Hub knows, None for `scratch` and for what lies on this computer. For where `init_from`
    was just loaded."""
    return None if init_from == "scratch" or Path(init_from).expanduser().exists() else init_from


class Story:
    """What the events say of the weights that `facts` describe."""

    def __init__(self, facts, events):
        started = [event for event in events if event["event"] in ("start", "resume")]
        losses = [event for event in events if event["event"] == "eval"]
        best = [number for number, event in enumerate(events) if event["event"] == "best"]
        # evaluations and samples are of best/, so they tell of these weights only when these are the newest of best/,
        # unmixed
        since = (
            events[best[-1] :]
            if best and events[best[-1]]["step"] == facts.get("step") and "interpolation" not in facts
            else []
        )
        self.facts = facts
        self.recipe = started[-1].get("recipe", {}) if started else {}
        self.machine = started[-1].get("machine") if started else None
        self.data = next((event["data"] for event in reversed(started) if "data" in event), {})
        self.first = losses[0] if losses else None
        self.evaluation = next((event for event in reversed(since) if event["event"] == "evaluation"), None)
        self.samples = next(
            (
                event
                for event in reversed(since)
                if event["event"] == "samples" and event.get("step") == facts.get("step")
            ),
            None,
        )

    @property
    def init_from(self):
        """Where the first weights came from: a Hub id, the last part of a path, `scratch`, or None."""
        return self.facts.get("base_model") or (
            _plain(Path(self.facts["init_from"]).name) if "init_from" in self.facts else None
        )

    @property
    def dataset(self):
        """A name for the data."""
        given = self.recipe.get("dataset") or self.data.get("name") or "validation split"
        return ", ".join(
            _plain(Path(name.strip()).name) for name in given.split(",")
        )  # of this computer, whatever it looks like


def _metadata(title, run, config, verified):
    """The YAML head: what the Hub indexes, with the measured figures as its model-index."""
    from huggingface_hub import EvalResult, ModelCardData

    named = [source["name"].split(":")[0] for source in run.data.get("sources", []) if source.get("bytes") is None]
    results = [
        EvalResult("text-generation", dataset, dataset, metric, value, metric_name=words, dataset_split="validation")
        for dataset, metric, words, value in _figures(run)
    ]
    data = ModelCardData(
        library_name="peft" if _is_adapter(verified) else "transformers",
        pipeline_tag="text-generation",
        base_model=run.facts.get("base_model"),
        tags=["gpt2", "finetune", *(["lora"] if run.recipe.get("lora_rank") else [])],
        datasets=[name for name in named if "/" in name] or None,
        model_name=title if results else None,
        eval_results=results or None,
    )
    return data.to_yaml().strip()


def _figures(run):
    """(dataset, metric, its name in words, value) of what was measured on the validation split."""
    measured = run.evaluation if run.evaluation and run.evaluation.get("split") == "val" else None
    loss = measured["loss"] if measured else run.facts.get("val_loss")
    if not _is_number(loss):
        return
    dataset = public(measured["dataset"]) if measured else run.dataset
    yield dataset, "loss", "cross entropy, nats per token", round(loss, 4)
    yield dataset, "perplexity", "perplexity per token", round(math.exp(min(loss, 700)), 2)
    for name, words in (("bits_per_byte", "bits per byte"), ("accuracy", "accuracy of the next token")):
        if measured and _is_number(measured.get(name)):
            yield dataset, name, words, round(measured[name], 4)


def _is_adapter(verified):
    """Whether a directory holds adapters and no whole model."""
    return bool(verified) and verified.get("format") == "peft"


def _introduction(run, config):
    parameters = _parameters(config)
    shape = (
        f"{config.n_layer} layers, {config.n_head} heads, {config.n_embd} wide, {config.block_size:,} tokens of context"
    )
    origin = ""
    if run.init_from:
        origin = f", trained from {run.init_from}" + (f" on {run.dataset}" if run.recipe else "")
    return f"A GPT-2 of {parameters / 1e6:.2f}M parameters ({shape}){origin}."


def _losses(run, picture):
    rows, facts = [], run.facts
    mixture = facts.get("interpolation")
    if not mixture and run.first and run.first["step"] == 0 and _is_number(run.first["val_loss"]):
        rows.append(("before training", run.first["val_loss"]))
    for weight, loss in mixture["losses"] if mixture else ():
        words = f"{weight:g} of the trained weights, {1 - weight:g} of {public(mixture['base'])}'s"
        rows.append((words + (", **this model**" if weight == mixture["weight"] else ""), loss))
    if not mixture and _is_number(facts.get("val_loss")) and "step" in facts:
        rows.append((f"after {facts['step']:,} updates, **this model**", facts["val_loss"]))
    if not rows:
        return None
    measured = (
        "the whole validation split"
        if mixture or not run.recipe.get("eval_iters")
        else f"{run.recipe['eval_iters']} fixed batches of it"
    )
    lines = ["| validation loss | nats per token | perplexity |", "|---|---|---|"]
    lines += [f"| {words} | {loss:.4f} | {math.exp(min(loss, 700)):,.2f} |" for words, loss in rows]
    lines += [
        "",
        f"Means over {measured}{', on which the mixture was chosen' if mixture and mixture['chosen'] else ''}.",
    ]
    return "\n".join(lines + (["", f"![losses of the run]({picture})"] if picture else []))


def _usage(place, tokenizer, adapter_of=None):
    words = []
    if adapter_of:
        base = adapter_of.facts.get("base_model")
        loading = [
            "from peft import PeftModel",
            "from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline",
            "",
            (
                f"model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({base or PATH_OF_THE_BASE!r}),"
                f" {place!r})"
            ),
            f"generator = pipeline('text-generation', model, tokenizer=AutoTokenizer.from_pretrained({place!r}))",
        ]
        if not base:
            words = [
                (
                    f"These are adapters alone, to be loaded over {adapter_of.init_from}, the model they were trained"
                    " from. It is not on the Hub: who loads them has to have it, and writes where in place of"
                    f" `{PATH_OF_THE_BASE}`."
                ),
                "",
            ]
    else:
        loading = ["from transformers import pipeline", "", f"generator = pipeline('text-generation', {place!r})"]
    lines = [
        "## How to use it",
        "",
        *words,
        "```python",
        *loading,
        "print(generator('Once upon a time')[0]['generated_text'])",
        "```",
    ]
    files = getattr(tokenizer, "files", {})
    if "chat_template.jinja" in files or b'"chat_template"' in files.get("tokenizer_config.json", b""):
        lines += [
            "",
            "It was trained on conversations, and its tokenizer brings their template:",
            "",
            "```python",
            "messages = [{'role': 'user', 'content': 'What is GPT-2?'}]",
            "print(generator(messages)[0]['generated_text'][-1]['content'])",
            "```",
        ]
    return "\n".join(lines)


def _data(run):
    data = run.data
    if not data:
        return None
    columns = [
        name
        for name in ("tokens", "targets", "characters", "bytes", "documents")
        if any(name in split for split in data["splits"].values())
    ]
    if data["split_by"] == "text":  # one running text
        columns = [name for name in columns if name != "documents"]
    lines = ["## Data", "", f"| split | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for split, words in (("train", "train"), ("val", "validation")):
        figures = [f"{data['splits'][split][name]:,}" if name in data["splits"][split] else "" for name in columns]
        lines.append(f"| {words} | {' | '.join(figures)} |")
    if data["tokenizer"]:
        lines += [
            "",
            f"Tokens are {data['tokenizer']}."
            + (" Only targets are learned and measured." if "targets" in columns else ""),
        ]
    if data["sources"]:
        lines += ["", "Made from:", ""]
    for source in data["sources"]:
        size = f", {source['bytes']:,} bytes" if source.get("bytes") is not None else ""
        lines.append(f"- {_plain(source['name'])}{size}, sha256 `{source['sha256'][:16]}`")
    if data["num_sources"] > len(data["sources"]):
        lines.append(f"- and {data['num_sources'] - len(data['sources']):,} more")
    return "\n".join(lines)


def _training(run, verified):
    if not run.recipe:
        return None
    rows = [(name, run.recipe[name]) for name in SETTINGS if run.recipe.get(name) is not None]
    rate = (
        "a linear warmup and cosine decay"
        if run.recipe.get("decay_lr")
        else "a constant learning rate after a linear warmup"
    )
    where = f", {run.machine}" if run.machine else ""
    lines = [
        "## Training",
        "",
        f"AdamW with {rate}{where}.{_adapters(run, verified)}",
        "",
        "| key | value |",
        "|---|---|",
    ]
    return "\n".join(lines + [f"| {name} | {value:g} |" for name, value in rows])


def _adapters(run, verified):
    if not run.recipe.get("lora_rank"):
        return ""
    rank, alpha = run.recipe["lora_rank"], run.recipe["lora_alpha"]
    where = (
        "; these are the adapters alone"
        if _is_adapter(verified)
        else " and is merged into these weights; all others are the base's"
    )
    return f" LoRA of rank {rank}, alpha {alpha}, was trained on c_attn, c_proj and c_fc{where}."


def _evaluation(event):
    if not event:
        return None
    lines = [
        "## Evaluation",
        "",
        f"On the {event['split']} split of {public(event['dataset'])}:",
        "",
        "| | |",
        "|---|---|",
    ]
    for name in ("loss", "perplexity", "bits_per_byte", "accuracy", "targets"):
        if _is_number(event.get(name)):
            lines.append(f"| {name.replace('_', ' ')} | {_figure(event[name])} |")
    if (baseline := event.get("baseline")) and _is_number(baseline.get("loss")):
        lines.append(f"| loss of {public(baseline['name'])} | {_figure(baseline['loss'])} |")
    if difference := event.get("difference"):
        known = _is_number(difference.get("low")) and _is_number(difference.get("high"))  # one block has no interval
        interval = f" ({difference['low']:+.4f} to {difference['high']:+.4f})" if known else ""
        lines.append(f"| difference{', 95% interval' if known else ''} | {difference['mean']:+.4f}{interval} |")
    for group in ("metrics", "general"):
        for name, value in (event.get(group) or {}).items():
            if _is_number(value):
                lines.append(
                    f"| {'on a general text: ' if group == 'general' else ''}{_plain(name).replace('_', ' ')} |"
                    f" {_figure(value)} |"
                )
    if copied := event.get("memorisation"):
        lines.append(
            f"| {copied['ngram']}-grams of its samples that stand in the training data | {copied['copied']:.1%} |"
        )
        lines.append(f"| longest passage copied from there, in tokens | {copied['longest']} |")
    return "\n".join(lines)


def _samples(event):
    if not event or not event.get("texts"):
        return None
    lines = [
        "## Samples",
        "",
        (
            f"Drawn at temperature {event['temperature']:g}, top_k {event['top_k']}, seed {event['seed']}; none was"
            " chosen."
        ),
    ]
    for text in event["texts"][:SHOWN_SAMPLES]:
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
        lines += ["", f"{fence}text", text, fence]
    return "\n".join(lines)


def _verification(verified):
    if not verified:
        return None
    return (
        f"## Verification\n\nThis directory was read back with transformers {verified['versions']['transformers']}"
        f" before it was published: {verified['ids_compared']:,} token ids are equal, and"
        f" {verified['logits_compared']:,} logits differ by at most {verified['max_difference']:.1e} (the largest is"
        f" {verified['largest_logit']:.1f}). Weights are {verified['dtype']}"
        + (f", whose rounding moves logits by at most {verified['rounding']:.1e}" if "rounding" in verified else "")
        + "."
    )


def _parameters(config):
    from finetune.gpt import convert

    return convert.num_parameters(config)


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _figure(value):
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def public(name):
    """A name without the folders of somebody's computer; Hub ids are as they are."""
    name = str(name)
    return _plain(
        name if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).exists() else Path(name).name or name
    )


def _plain(text):
    """Text that breaks neither a table nor a line."""
    return re.sub(r"[|\s`\[\]]+", " ", str(text)).strip()
