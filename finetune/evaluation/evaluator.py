"""One evaluation, from what the user asked for to an event with all its figures."""

import os

import numpy as np

from finetune.common.errors import Failure, UsageError
from finetune.config.recipe import Recipe
from finetune.data.tokenizer import prompt_ids
from finetune.evaluation import bootstrap, inputs, loss, metrics
from finetune.evaluation.completions import complete, examples, truncate_at_eot
from finetune.runtime import device


def evaluate(options):
    """`(event, whether this is the main process)`: the fields of an "evaluation" event, for the `Options` of
    `finetune.eval`.

    Everything is checked before any weights are loaded. Raises UsageError.
    """
    machine = _machine(options)
    main = machine.accelerator.is_main_process
    with machine.accelerator.local_main_process_first():  # one process downloads or prepares, the others find it
        subject = inputs.find_subject(options.out_dir or options.init_from)
        baseline = inputs.find_baseline(options.baseline, subject) if options.baseline else None
        dataset, text = inputs.open_split(options.dataset, options.split, subject, options.out_dir)
        general = inputs.open_general(options.general, subject) if options.general else None
    block_size, stride = _lengths(options, subject, baseline)
    eot = _end_of_text(dataset, subject)
    documents = (
        inputs.by_documents(dataset, options.split, options.out_dir) if options.documents is None else options.documents
    )
    if documents or options.metrics:
        spans = _documents(dataset, options, documents)
    asked = _examples(dataset, options, text, spans, subject) if options.metrics else None
    loaded = _loaded(options) if options.metrics and main else {}
    prompt = _sample_prompt(options, dataset, subject) if options.samples else None
    windows = loss.windows(spans if documents else loss.whole(text), block_size, stride, by_span=documents)

    subjects = [subject, baseline] if baseline else [subject]
    models = [one.load(machine) for one in subjects]
    unit = "documents" if documents else "blocks"
    if main:
        print(f"{subject.title}, {models[0].num_parameters() / 1e6:.2f}M parameters, {machine.describe()}")
        strided = f", {stride:,} apart" if stride != block_size else ""
        print(
            f"{dataset.bin(options.split)}: {len(text.ids):,} tokens in {windows.num_units:,} {unit} of up to"
            f" {block_size:,}{strided}",
            flush=True,
        )
    sums = loss.measure(machine, models, text, windows, options.batch_size, title=options.split)
    event = {
        "model": subject.name,
        **({"step": subject.facts["step"]} if "step" in subject.facts else {}),
        "dataset": str(dataset.directory),
        "split": options.split,
        "block_size": block_size,
        "stride": stride,
        "dtype": options.dtype,
        unit: windows.num_units,
        "targets": int(sums.targets.sum()),
        **sums.figures(0),
    }
    if baseline:
        event["baseline"] = {"name": baseline.name, **sums.figures(1)}
        event["difference"] = bootstrap.paired_bootstrap(sums.nats[0], sums.nats[1], sums.targets, options.seed)
    if general is not None:
        event["general"] = _forgotten(machine, models, options.general, general, block_size, stride, options.batch_size)
    if options.metrics:
        tokenizer = subject.tokenizer or dataset.tokenizer
        for place, one, model in zip([event, event.get("baseline")], subjects, models):
            place["metrics"] = _answered(machine, model, options, asked, eot, tokenizer, loaded, one.name)
        event["completions"] = len(asked)
    if options.samples:
        event["memorisation"] = _copied(machine, models[0], options, prompt, eot, dataset)
    machine.accelerator.wait_for_everyone()
    return event, main


def _machine(options):
    """The Machine to compute on: the whole of what the launcher started, with nothing to accumulate or to compile."""
    processes = int(os.environ.get("WORLD_SIZE", 1))
    return device.start(
        Recipe(device=options.device, dtype=options.dtype, compile="false", gradient_accumulation_steps=processes)
    )


def _lengths(options, subject, baseline):
    """`(block_size, stride)`. Raises UsageError."""
    block_size = options.block_size or subject.config.block_size
    for one in filter(None, (subject, baseline)):
        if block_size > one.config.block_size:
            raise UsageError(
                f"block_size: {block_size:,} is more than the {one.config.block_size:,} positions of {one.name}; "
                f"give --block_size={one.config.block_size} or less"
            )
    if (options.stride or 0) > block_size:
        raise UsageError(
            f"stride: {options.stride:,} is more than block_size={block_size:,}; the tokens between two blocks would be"
            " left out"
        )
    return block_size, options.stride or block_size


def _end_of_text(dataset, subject):
    tokenizer = dataset.tokenizer or subject.tokenizer
    return tokenizer.eot if tokenizer else subject.config.eos_token_id


def _documents(dataset, options, documents):
    """The documents of a split, (D, 2): first token and end. Raises UsageError where nothing says where one ends."""
    ends = dataset.document_ends(options.split)
    if dataset.is_running_text(options.split):
        raise UsageError(
            f"{'documents' if documents else 'metrics'}: {dataset.bin(options.split)} is one running text and no"
            " documents"
        )
    return np.stack([np.append(0, ends[:-1]), ends], 1)


def _examples(dataset, options, text, spans, subject):
    """The prompts and references that metrics are of. Raises UsageError."""
    if text.mask is None:
        raise UsageError(
            f"metrics: {dataset.directory} has no {options.split}_mask.bin, so it is no instruction data and has no"
            " references; prepare a table with the columns prompt and completion"
        )
    if subject.tokenizer is None and dataset.tokenizer is None:
        raise UsageError(
            f"metrics: neither {subject.source} nor {dataset.directory} has a tokenizer to turn ids into text"
        )
    found = examples(text, spans)
    if not found:
        raise UsageError(f"metrics: no document of {dataset.bin(options.split)} has both a prompt and a completion")
    count = min(options.completions or len(found), len(found))
    return [found[number] for number in np.linspace(0, len(found) - 1, count).round().astype(int)]


def _sample_prompt(options, dataset, subject):
    tokenizer = subject.tokenizer or dataset.tokenizer
    if tokenizer is None:
        raise UsageError(f"samples: neither {subject.source} nor {dataset.directory} has a tokenizer for their prompt")
    return prompt_ids(tokenizer, options.start)


def _forgotten(machine, models, name, text, block_size, stride, batch_size):
    """Loss on a general text, before and after, and how far the model has moved there: KL(baseline || model), a mean
    over tokens."""
    sums = loss.measure(
        machine,
        models,
        text,
        loss.windows(loss.whole(text), block_size, stride),
        batch_size,
        divergence=True,
        title="general text",
    )
    targets = sums.targets.sum()
    return {
        "name": name,
        "targets": int(targets),
        "loss": sums.figures(0)["loss"],
        "baseline_loss": sums.figures(1)["loss"],
        "kl": float(sums.divergence.sum() / targets),
    }


def _loaded(options):
    """{name: metric} of what was asked for. Raises UsageError."""
    found = {}
    for name in options.metrics.split(","):
        try:
            found[name] = metrics.load(name)
        except Exception as error:  # a file of the user's own may do anything
            raise UsageError(f"metrics: {name}: cannot be loaded: {_first_line(error)}") from error
    return found


def _answered(machine, model, options, asked, eot, tokenizer, loaded, name):
    """{metric: value} of the completions of a model; on the main process, which has the metrics `loaded`."""
    prompts, references = (
        [prompt for prompt, _ in asked],
        [tokenizer.decode(truncate_at_eot(reference, eot)) for _, reference in asked],
    )
    answers = complete(machine, model, prompts, eot, options.batch_size, f"answers of {name}", **_drawing(options, 0.0))
    answers, scores = [tokenizer.decode(ids) for ids in answers], {}
    for metric, computer in loaded.items():
        try:
            found = computer.compute(predictions=answers, references=references)
        except Exception as error:
            raise Failure(f"metrics: {metric}: {_first_line(error)}", 1, alone=True) from error
        scores |= {key: value.item() if isinstance(value, np.generic) else value for key, value in found.items()}
    return scores


def _copied(machine, model, options, prompt, eot, dataset):
    """What of the model's samples stands in the training data."""
    from finetune.data import verbatim

    drawing = _drawing(options, 0.8)
    written = complete(machine, model, [prompt] * options.samples, eot, options.batch_size, "samples", **drawing)
    facts = {"samples": len(written), "tokens": sum(map(len, written)), "temperature": drawing["temperature"]}
    return {**verbatim.report_copies(dataset, written), **facts} if machine.accelerator.is_main_process else facts


def _drawing(options, temperature):
    """How text is generated; `temperature` is the default for this kind of text."""
    chosen = {name: getattr(options, name) for name in ("max_new_tokens", "seed", "temperature", "top_k", "top_p")}
    return chosen if options.temperature is not None else {**chosen, "temperature": temperature}


def _first_line(error):
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
