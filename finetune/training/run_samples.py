"""Samples of a run: of the model before its first update, while it trains, and of the best model."""

from __future__ import annotations

import dataclasses
from typing import Any

from finetune.common.errors import UsageError
from finetune.common.free_memory import is_out_of_memory
from finetune.config.recipe import Recipe
from finetune.config.recipe_file import MAX_RECIPE_BYTES
from finetune.data.tokenizer import prompt_text
from finetune.gpt import GPT, convert
from finetune.gpt.sampling import Sample, draw_samples, print_samples
from finetune.runs.logger import RunLogger
from finetune.training.saving import model_weights
from finetune.training.state import Setup, TrainState

# of a prompt: a character of YAML can take four times the bytes, and there are other keys
MAX_START = MAX_RECIPE_BYTES // 6


def prompt_to_keep(recipe: Recipe) -> str:
    """The text of the prompt, for recipe.yaml, which must not name a file to read. Raises UsageError."""
    start = prompt_text(recipe.start)
    if (size := len(start.encode("utf-8", "replace"))) > MAX_START:
        raise UsageError(f"start: {size:,} bytes; a run keeps its prompt in recipe.yaml, up to {MAX_START:,} bytes")
    return start


def sample_base(setup: Setup, state: TrainState, logger: RunLogger) -> None:
    """Record samples of a new run's model before its first update, for the report. The run goes on without them."""
    if setup.recipe.init_from == "resume":
        return
    try:
        _draw_and_record(setup, state, logger, "base_samples")
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        logger.print("no samples of the model before training: out of memory")


def sample(setup: Setup, state: TrainState, logger: RunLogger) -> None:
    """Print and record samples of the model at this step."""
    state.last_sampled = state.step
    if texts := _draw_and_record(setup, state, logger, "samples"):
        logger.print(f"\nsamples at step {state.step}")
        for text in texts:
            logger.print(f"---------------\n{text}")
        logger.print("---------------\n")


def sample_best(setup: Setup, state: TrainState, logger: RunLogger) -> None:
    """Print and record samples of the best model, on rank 0."""
    assert setup.tokenizer and setup.prompt is not None
    best = GPT.from_pretrained(f"{setup.recipe.out_dir}/best").to(setup.device.torch_device, setup.device.dtype)
    samples = print_samples(best, setup.tokenizer, setup.prompt, **_options(setup.recipe))
    _record(setup, logger, "samples", state.best["step"], samples)


def _draw_and_record(setup: Setup, state: TrainState, logger: RunLogger, event: str) -> list[str]:
    """Record samples of the model at this step. Returns their texts on rank 0, [] elsewhere and without a prompt."""
    if setup.prompt is None or setup.tokenizer is None:
        return []
    logger.status("sampling")
    tensors = model_weights(setup)
    if not setup.device.accelerator.is_main_process:
        return []
    config = dataclasses.replace(setup.model.config)
    model = GPT.from_state(config, convert.without_padding(tensors, config))
    model = model.to(setup.device.torch_device, setup.device.dtype).eval()
    samples = draw_samples(model, setup.tokenizer, setup.prompt, **_options(setup.recipe))
    return _record(setup, logger, event, state.step, samples)


def _options(recipe: Recipe) -> dict[str, Any]:
    return {name: getattr(recipe, name) for name in ("num_samples", "max_new_tokens", "temperature", "top_k", "seed")}


def _record(setup: Setup, logger: RunLogger, event: str, step: int, samples: list[Sample]) -> list[str]:
    """Record samples of the model of a step; return their texts with the prompt before them."""
    assert setup.tokenizer and setup.prompt is not None
    start = setup.tokenizer.decode(setup.prompt)
    texts = [start + sample.text for sample in samples]
    logger.record(event, step=step, start=setup.recipe.start, texts=texts, **_options(setup.recipe))
    return texts
