"""One evaluation, from the options of `finetune.eval` to an event with all figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.common.errors import Failure, UsageError, describe_error
from finetune.config.recipe import Recipe
from finetune.data import chat
from finetune.data.dataset import Dataset
from finetune.data.tokenizer import Tokenizer, prompt_ids
from finetune.evaluation import loss, metrics, token_streams
from finetune.evaluation.bootstrap import paired_bootstrap
from finetune.evaluation.completions import Decoding, complete, examples, truncate
from finetune.evaluation.loss import TokenStream, Windows
from finetune.evaluation.options import Options
from finetune.gpt import GPT
from finetune.gpt.sampling import check_prompt
from finetune.runs.chat_session import turn_ends
from finetune.runs.inputs import check_block_size, find_baseline, find_model
from finetune.runs.model_ref import ModelRef
from finetune.runtime import device as devices
from finetune.runtime import process_group
from finetune.runtime.device import Device

if TYPE_CHECKING:
    import evaluate as hf_evaluate


@dataclass(frozen=True)
class Inputs:
    """Everything that an evaluation reads, found and checked before any weights are loaded."""

    models: list[ModelRef]  # the model, then the baseline if there is one
    dataset: Dataset
    stream: TokenStream
    general: TokenStream | None
    windows: Windows
    unit: str  # of the windows: documents or blocks
    block_size: int
    stride: int
    tokenizer: Tokenizer | None  # of the model, else of the dataset
    ends: frozenset[int]  # ids that end an answer
    examples: list[tuple[np.ndarray, np.ndarray]]  # prompt and reference, for metrics
    metrics: dict[str, hf_evaluate.EvaluationModule]  # only on the main process
    prompt: np.ndarray | None  # of the samples


def evaluate(options: Options) -> tuple[dict[str, Any], bool]:
    """`(event, whether this is the main process)`: the fields of an "evaluation" event. Raises UsageError."""
    device = start_device(options)
    inputs = find_inputs(options, device)
    model, dataset, stream = inputs.models[0], inputs.dataset, inputs.stream
    loaded = [one.load().to(device.torch_device).eval() for one in inputs.models]
    if device.accelerator.is_main_process:
        print(f"{model.describe()}, {loaded[0].num_parameters() / 1e6:.2f}M parameters, {device.describe()}")
        apart = f", {inputs.stride:,} apart" if inputs.stride != inputs.block_size else ""
        units = f"{inputs.windows.num_units:,} {inputs.unit} of up to {inputs.block_size:,}{apart}"
        print(f"{dataset.bin(options.split)}: {len(stream.ids):,} tokens in {units}", flush=True)
        if dataset.note:
            print(dataset.note)
    sums = loss.measure(device, loaded, stream, inputs.windows, options.batch_size, options.split)
    for number, ref in enumerate(inputs.models):
        if not np.isfinite(sums.nats[number]).all():
            raise UsageError(f"{ref.name}: its loss is not finite in {options.dtype}; its weights are too large")
    known = dataset.split_meta(options.split).get("sha256")
    event: dict[str, Any] = {
        "model": model.name,
        **({"step": model.facts["step"]} if "step" in model.facts else {}),
        "dataset": str(dataset.directory),
        "split": options.split,
        **({"sha256": known} if known else {}),
        "block_size": inputs.block_size,
        "stride": inputs.stride,
        "dtype": options.dtype,
        inputs.unit: inputs.windows.num_units,
        "targets": int(sums.targets.sum()),
        **sums.figures(0),
    }
    if len(loaded) > 1:
        if device.accelerator.is_main_process and np.array_equal(sums.nats[0], sums.nats[1]):
            print(f"the baseline {inputs.models[1].name} is the same model as {model.name}: all losses are equal")
        event["baseline"] = {"name": inputs.models[1].name, **sums.figures(1)}
        event["difference"] = paired_bootstrap(sums.nats[0], sums.nats[1], sums.targets, options.seed)
    if inputs.general:
        figures = _measure_forgetting(device, loaded, inputs.general, inputs, options.batch_size)
        event["general"] = {"name": options.general, **figures}
    if inputs.examples:
        decoding = _decoding(options, default_temperature=0.0)
        for figures, ref, network in zip([event, event.get("baseline", {})], inputs.models, loaded):
            figures["metrics"] = _score_answers(device, network, inputs, decoding, ref.name)
        event["completions"] = len(inputs.examples)
    if inputs.prompt is not None:
        event["memorisation"] = _find_copies(device, loaded[0], inputs.prompt, inputs, options)
    device.accelerator.wait_for_everyone()
    if device.group:
        process_group.leave_at_exit()
    return event, device.accelerator.is_main_process


def start_device(options: Options) -> Device:
    """The device of an evaluation: all processes of the launcher, nothing compiled."""
    process_group.check_variables()
    processes = process_group.world_size()  # which must divide gradient_accumulation_steps
    return devices.start(
        Recipe(device=options.device, dtype=options.dtype, compile="false", gradient_accumulation_steps=processes)
    )


def find_inputs(options: Options, device: Device) -> Inputs:
    """The Inputs of an evaluation. Raises UsageError."""
    with device.accelerator.local_main_process_first():  # one process downloads or prepares, the others find it
        model = find_model(options.out_dir or options.init_from or "")
        other = options.other_model
        models = [model, find_baseline(other, model)] if other else [model]
        sizes = [f"{one.name} has {one.config.vocab_size:,}" for one in models]
        if options.general and len({one.config.vocab_size for one in models}) > 1:
            raise UsageError(f"general: the divergence needs models with as many ids; {' and '.join(sizes)}")
        block_size, stride = _lengths(options, models)  # before a text is prepared, as the prompt
        if options.samples and model.tokenizer:
            prompt_ids(model.tokenizer, options.start)
        dataset = token_streams.open_dataset(options.dataset, model, options.out_dir)
        stream = token_streams.open_split(dataset, options.split, model)
        general = token_streams.open_general(options.general, model) if options.general else None
    by_document = options.documents
    if by_document is None:
        by_document = token_streams.is_by_document(dataset, options.split, options.out_dir)
    spans = stream.as_span()
    if by_document or options.metrics:
        spans = token_streams.document_spans(dataset, options.split, "documents" if by_document else "metrics")
    if by_document:
        token_streams.check_predicts(stream, spans, dataset.bin(options.split))
    tokenizer = model.tokenizer or dataset.tokenizer
    if tokenizer is None and options.samples:
        raise UsageError(f"samples: neither {model.path} nor {dataset.directory} has a tokenizer for their prompt")
    prompt = prompt_ids(tokenizer, options.start) if tokenizer and options.samples else None
    if prompt is not None:
        check_prompt(prompt, model.name, model.config.vocab_size)
    wants_metrics = options.metrics and device.accelerator.is_main_process
    return Inputs(
        models=models,
        dataset=dataset,
        stream=stream,
        general=general,
        examples=_find_examples(dataset, options, stream, spans, tokenizer) if options.metrics else [],
        metrics=_load_metrics(options.metrics) if wants_metrics else {},
        prompt=prompt,
        windows=loss.make_windows(spans if by_document else stream.as_span(), block_size, stride, by_span=by_document),
        unit="documents" if by_document else "blocks",
        block_size=block_size,
        stride=stride,
        tokenizer=tokenizer,
        ends=_ends(model, dataset),
    )


def _ends(model: ModelRef, dataset: Dataset) -> frozenset[int]:
    """The ids that end an answer: those of the model, the end-of-text, and what ends a turn in the chat template."""
    ends, tokenizer = set(model.config.end_ids), dataset.tokenizer or model.tokenizer
    if tokenizer:
        ends |= {tokenizer.eot} if tokenizer.eot is not None else set()
        template = chat.template_of(model.folder) or tokenizer.chat_template
        ends |= turn_ends(template, tokenizer) if template else set()
    return frozenset(ends)


def _lengths(options: Options, models: list[ModelRef]) -> tuple[int, int]:
    """`(block_size, stride)`. Raises UsageError."""
    block_size = options.block_size or models[0].config.block_size
    for model in models:
        check_block_size(model, block_size)
    stride = options.stride or block_size
    if stride > block_size:
        problem = f"{stride:,} is more than block_size={block_size:,}"
        raise UsageError(f"stride: {problem}; the tokens between two blocks would be left out")
    return block_size, stride


def _find_examples(
    dataset: Dataset, options: Options, stream: TokenStream, spans: np.ndarray, tokenizer: Tokenizer | None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The prompts and references for metrics. Raises UsageError."""
    if stream.mask is None:
        problem = f"{dataset.directory} has no {options.split}_mask.bin, so it has no prompts and references"
        raise UsageError(f"metrics: {problem}; prepare a table with the columns prompt and completion")
    if tokenizer is None:
        raise UsageError(f"metrics: neither the model nor {dataset.directory} has a tokenizer to turn ids into text")
    found = examples(stream, spans)
    if not found:
        raise UsageError(f"metrics: no document of {dataset.bin(options.split)} has both a prompt and a completion")
    count = min(options.completions or len(found), len(found))
    return [found[number] for number in np.linspace(0, len(found) - 1, count).round().astype(int)]


def _load_metrics(names: str) -> dict[str, hf_evaluate.EvaluationModule]:
    """{name: metric}. Raises UsageError."""
    found = {}
    for name in names.split(","):
        try:
            found[name] = metrics.load(name)
        except Exception as error:  # a file of the user's own may do anything
            raise UsageError(f"metrics: {name}: cannot be loaded: {describe_error(error)}") from error
    return found


def _measure_forgetting(
    device: Device, models: list[GPT], stream: TokenStream, inputs: Inputs, batch_size: int | None
) -> dict[str, Any]:
    """Losses of model and baseline on the general text, and KL(baseline || model) there, a mean over tokens."""
    windows = loss.make_windows(stream.as_span(), inputs.block_size, inputs.stride)
    sums = loss.measure(device, models, stream, windows, batch_size, "general text", divergence=True)
    targets = sums.targets.sum()
    return {
        "targets": int(targets),
        "loss": sums.figures(0)["loss"],
        "baseline_loss": sums.figures(1)["loss"],
        "kl": float(sums.divergence.sum() / targets),
    }


def _score_answers(device: Device, model: GPT, inputs: Inputs, decoding: Decoding, name: str) -> dict[str, Any]:
    """{metric: value} of a model's answers; {} except on the main process."""
    prompts = [prompt for prompt, _ in inputs.examples]
    answers = complete(device, model, prompts, inputs.ends, decoding, f"answers of {name}")
    decode = inputs.tokenizer.decode if inputs.tokenizer else str
    predictions = [decode(ids) for ids in answers]
    references = [decode(truncate(reference, inputs.ends)) for _, reference in inputs.examples]
    scores = {}
    for metric, computer in inputs.metrics.items():
        try:
            found = computer.compute(predictions=predictions, references=references)
        except Exception as error:
            raise Failure(f"metrics: {metric}: {describe_error(error)}", 1, alone=True) from error
        for key, value in (found or {}).items():
            scores[key] = value.item() if isinstance(value, np.generic) else value
    return scores


def _find_copies(device: Device, model: GPT, prompt: np.ndarray, inputs: Inputs, options: Options) -> dict[str, Any]:
    """How much of the model's samples is verbatim in the training data."""
    from finetune.data import verbatim

    decoding = _decoding(options, default_temperature=0.8)
    written = complete(device, model, [prompt] * options.samples, inputs.ends, decoding, "samples")
    facts = {"samples": len(written), "tokens": sum(map(len, written)), "temperature": decoding.temperature}
    if not device.accelerator.is_main_process:
        return facts
    return {**verbatim.report_copies(inputs.dataset, written), **facts}


def _decoding(options: Options, default_temperature: float) -> Decoding:
    temperature = default_temperature if options.temperature is None else options.temperature
    return Decoding(options.max_new_tokens, options.seed, temperature, options.top_k, options.top_p, options.batch_size)
