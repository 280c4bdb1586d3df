"""What a run writes while it goes on: models and resumable states. Called on every process, written by the main one."""

import dataclasses
from pathlib import Path

import torch

from finetune.common import files
from finetune.common.errors import Failure
from finetune.gpt import convert, lora, pretrained
from finetune.runs import checkpoints
from finetune.runs.events import read_metrics
from finetune.runs.model_card import model_card
from finetune.runtime import fsdp
from finetune.training import optimizer
from finetune.training.monitor import Diverged


def publish_model(run, logger, name, facts):
    """Make out_dir/NAME a complete Hugging Face directory: weights, configuration, tokenizer and card. Adapters are
    merged into the weights, and lie beside them by themselves. True when that worked."""
    out_dir = Path(run.recipe.out_dir)
    tensors = model_weights(run)

    def fill(directory):
        config = dataclasses.replace(run.network.config, dropout=0.0)
        pretrained.save(directory, tensors, config)
        if run.recipe.lora_rank:
            lora.save(directory / "adapter", run.network, run.recipe, run.init_from)
        if run.tokenizer:
            run.tokenizer.save(directory, config.block_size)
        files.write_json(directory / "finetune.json", facts)
        title, events = out_dir.resolve().name, read_metrics(logger.path)
        (directory / "README.md").write_text(
            model_card(title, f"{title}/{name}", config, facts, events, run.tokenizer), encoding="utf-8"
        )

    return _on_main(run, logger, name, lambda: files.write_directory(out_dir / name, fill))


def model_weights(run):
    """{name: tensor} of the model, whole and with adapters merged, on the main process; {} on the others, which have to
    ask as well."""
    main = run.machine.accelerator.is_main_process
    if run.recipe.lora_rank:
        return lora.merged(run.network) if main else {}
    return fsdp.gather_state_dict(run.network.state_dict(), keep=main)


def save_state(run, logger, must_succeed):
    """Publish a resumable state. Raises Diverged when the weights are no numbers, which are never written."""
    accelerator, config = run.machine.accelerator, run.network.config
    finite = torch.stack(
        [fsdp.local_shard(parameter.detach()).isfinite().all() for parameter in run.network.parameters()]
    ).all()
    if accelerator.reduce(finite.to(run.machine.torch_device, torch.float32)) < accelerator.num_processes:
        raise Diverged(f"step {run.iteration}: the weights are not finite")
    everything = lora.trained(run.network), optimizer.optimizer_tensors(run.optimizer, run.names)
    tensors, moments = (fsdp.gather_state_dict(group, keep=accelerator.is_main_process) for group in everything)

    def write():
        padded = {
            name: tensor[: config.vocab_size] if name.endswith(".wte.weight") else tensor
            for name, tensor in moments.items()
        }
        group = {name: tensor.contiguous() for name, tensor in convert.without_padding(tensors, config).items()}
        checkpoints.save_state(
            run.recipe.out_dir, group, {name: tensor.contiguous() for name, tensor in padded.items()}, run.state()
        )

    if _on_main(run, logger, "last", write):
        run.saved_at, run.save_due = run.iteration, False
    elif must_succeed:
        raise Failure(
            f"out_dir {run.recipe.out_dir}: the state after {run.iteration} updates could not be saved; the one before"
            " it is whole",
            1,
        )


def _on_main(run, logger, what, write):
    """Let the main process write something; True when that worked. A disk that is full now need not be so at the next
    try, so training goes on, and what was there before is still there."""
    accelerator, problem = run.machine.accelerator, None
    if accelerator.is_main_process:
        try:
            write()
        except OSError as error:
            problem = (
                f"{what} at step {run.iteration} could not be saved: {error.strerror or error}; what was there before"
                " is untouched"
            )
            logger.print(f"warning: {problem}")
            logger.record("save_failed", step=run.iteration, problem=problem)
    failed = accelerator.reduce(torch.tensor(float(problem is not None), device=run.machine.torch_device))
    return not failed.item()
