"""Models and resumable states that a run writes. Called on every process, written by rank 0."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from finetune.common import files
from finetune.common.errors import Failure
from finetune.gpt import lora, pretrained
from finetune.runs import checkpoints
from finetune.runs.events import read_metrics
from finetune.runs.logger import RunLogger
from finetune.runs.model_card import model_card
from finetune.runtime import fsdp
from finetune.training.callbacks import Save
from finetune.training.monitor import Diverged
from finetune.training.optimizer import optimizer_tensors
from finetune.training.state import Setup, TrainState, to_json


def publish_model(setup: Setup, state: TrainState, logger: RunLogger, name: str, facts: dict[str, Any]) -> bool:
    """Make out_dir/NAME a complete Hugging Face directory: weights, configuration, tokenizer and card. Adapters are
    merged into the weights, and also written by themselves. Return whether it could be written."""
    out_dir = Path(setup.recipe.out_dir)
    tensors = model_weights(setup)

    def fill(directory: Path) -> None:
        config = dataclasses.replace(setup.model.config, dropout=0.0)
        pretrained.save(directory, tensors, config)
        if setup.recipe.lora_rank:
            lora.save(directory / "adapter", setup.model, setup.recipe, setup.init_from)
        if setup.tokenizer:
            setup.tokenizer.save(directory, config.block_size)
        new_tokens = {"new_tokens": config.new_tokens} if config.new_tokens else {}
        recorded = facts | new_tokens
        files.write_json(directory / "finetune.json", recorded)
        title = out_dir.resolve().name
        card = model_card(title, f"{title}/{name}", config, recorded, read_metrics(logger.path), setup.tokenizer)
        (directory / "README.md").write_text(card, encoding="utf-8")

    written = _write_on_main(setup, state, logger, name, lambda: files.write_directory(out_dir / name, fill))
    if written:
        setup.notify(Save(state.step, out_dir / name))
    return written


def model_weights(setup: Setup) -> dict[str, torch.Tensor]:
    """{name: tensor} of the whole model with merged adapters on rank 0, {} on the others. All processes must call."""
    main = setup.device.accelerator.is_main_process
    if setup.recipe.lora_rank:
        return lora.merged(setup.model) if main else {}
    return fsdp.gather_state_dict(setup.model.state_dict(), keep=main)


def save_state(setup: Setup, state: TrainState, logger: RunLogger, must_succeed: bool) -> None:
    """Write a resumable state. Raises Diverged when the weights are not finite; such weights are never written."""
    accelerator, model = setup.device.accelerator, setup.model
    finite = torch.stack([fsdp.local_shard(weight.detach()).isfinite().all() for weight in model.parameters()]).all()
    if accelerator.reduce(finite.to(setup.device.torch_device, torch.float32)) < accelerator.num_processes:
        raise Diverged(f"step {state.step}: the weights are not finite")
    keep = accelerator.is_main_process
    weights = fsdp.gather_state_dict(lora.trained(model), keep)
    moments = fsdp.gather_state_dict(optimizer_tensors(setup.optimizer, setup.parameter_names), keep)

    def without_padding(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The embedding, or its moments, cut to the vocabulary."""
        V = model.config.vocab_size
        cut = {name: tensor[:V] if name.endswith("wte.weight") else tensor for name, tensor in tensors.items()}
        return {name: tensor.contiguous() for name, tensor in cut.items()}

    def write() -> None:
        tensors = without_padding(weights), without_padding(moments)
        checkpoints.save_state(setup.recipe.out_dir, *tensors, to_json(setup, state))

    state.save_pending = False  # after a failure the next try is the next save, since each writes gigabytes
    if _write_on_main(setup, state, logger, "last", write):
        state.last_saved = state.step
        setup.notify(Save(state.step, checkpoints.state_directory(setup.recipe.out_dir, state.step)))
    elif must_succeed:
        raise Failure(
            f"out_dir {setup.recipe.out_dir}: the state after {state.step} updates could not be saved; the"
            " previous one is complete",
            1,
        )


def _write_on_main(setup: Setup, state: TrainState, logger: RunLogger, name: str, write: Callable[[], object]) -> bool:
    """Call `write` on rank 0; return on all whether it worked. Training goes on after a failure, because the disk may
    have space again at the next try, and what was there before is untouched."""
    accelerator, problem = setup.device.accelerator, None
    if accelerator.is_main_process:
        try:
            write()
        except OSError as error:
            problem = (
                f"{name} at step {state.step} could not be saved: {error.strerror or error}; the previous files"
                " are unchanged"
            )
            logger.print(f"warning: {problem}")
            logger.record("save_failed", step=state.step, problem=problem)
    failed = accelerator.reduce(torch.tensor(float(problem is not None), device=setup.device.torch_device))
    return not failed.item()
