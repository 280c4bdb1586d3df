"""The three values of a run: `Setup` is made once, `TrainState` is all that changes, `MicroBatch` is how an update is
cut."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from finetune.config.recipe import Recipe
from finetune.config.schedule import Schedule
from finetune.data.batches import Blocks, ConcatBlocks
from finetune.data.sampler import BlockSampler, MixtureSampler
from finetune.data.tokenizer import Tokenizer
from finetune.gpt import GPT, lora
from finetune.runs.state_format import MICRO_BATCH, STATE_FORMAT
from finetune.runtime.device import Device
from finetune.training.background import Saves
from finetune.training.callbacks import Evaluation, Save, Update
from finetune.training.monitor import LossMonitor, SignalCatcher
from finetune.training.optimizer import AdamW


@dataclass(frozen=True)
class MicroBatch:
    """How an update is cut: `accumulation` forward passes of `batch_size` blocks; each of N processes does 1/N of the
    passes."""

    batch_size: int
    accumulation: int
    checkpointing: bool = False  # compute activations again in the backward pass

    @property
    def blocks(self) -> int:
        """Blocks of an update, the same whatever it is cut into."""
        return self.batch_size * self.accumulation

    def sizes(self) -> dict[str, Any]:
        """Batch size and accumulation under the recipe's names."""
        return {"batch_size": self.batch_size, "gradient_accumulation_steps": self.accumulation}

    def keys(self) -> dict[str, Any]:
        """All of it under the recipe's names."""
        return dict(zip(MICRO_BATCH, (self.batch_size, self.accumulation, self.checkpointing)))

    def smaller(self) -> MicroBatch | None:
        """The next cut that needs less memory; None when there is none."""
        if self.batch_size > 1:
            factor = next(n for n in range(2, self.batch_size + 1) if self.batch_size % n == 0)
            return MicroBatch(self.batch_size // factor, self.accumulation * factor, self.checkpointing)
        return None if self.checkpointing else dataclasses.replace(self, checkpointing=True)


@dataclass
class TrainState:
    """All that changes while a run trains. state.json keeps what a resumed run needs; weights lie beside it."""

    micro_batch: MicroBatch
    scaler: torch.amp.GradScaler | None = None  # float16 only
    step: int = 0  # updates made
    evaluations: list[dict[str, Any]] = field(default_factory=list)  # {"step", "train_loss", "val_loss"}
    best: dict[str, Any] = field(default_factory=dict)  # step and losses of best/; {} before it is written
    monitor: LossMonitor = field(default_factory=LossMonitor)
    lr_scale: float = 1.0  # halved by every rollback
    rollbacks: int = 0
    last_saved: int | None = None  # step of the newest state in last/, or of the one that is being written
    asked: dict[str, Any] | None = None  # the recipe's keys of a micro-batch that was too large; None if it fitted
    save_pending: bool = False  # a save waits for the end of a loss spike
    last_rollback: int | None = None  # step that the last rollback led to
    last_sampled: int = 0
    warned: set[str] = field(default_factory=set)  # warning signs that were printed


def _nothing(setup: Setup, state: TrainState) -> None:
    pass


def _go_on(moment: Update | Evaluation | Save) -> bool:
    return False


@dataclass(frozen=True)
class Hooks:
    """Functions called inside every update, to measure it or to inject faults into it, and at the moments of
    `training.callbacks`."""

    before_update: Callable[[Setup, TrainState], None] = _nothing
    after_backward: Callable[[Setup, TrainState], None] = _nothing  # before the gradient is clipped
    notify: Callable[[Update | Evaluation | Save], bool] = _go_on  # returns whether to stop; main process only
    watch: Callable[[Update | Evaluation | Save], object] = _go_on  # before notify; no save has to wait for it


@dataclass(frozen=True)
class Setup:
    """What a run consists of. Made once by `setup_run`; the objects in it may change, the fields do not."""

    recipe: Recipe  # as it was parsed
    device: Device
    schedule: Schedule
    model: GPT
    wrapped_model: torch.nn.Module  # the same, as DDP or FSDP wraps it
    optimizer: AdamW
    train: Blocks | ConcatBlocks
    val: Blocks | ConcatBlocks
    sampler: BlockSampler | MixtureSampler
    init_from: str = "scratch"  # where the first weights came from, also of a resumed run
    dataset_names: list[str] = field(default_factory=list)
    dataset_facts: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)  # versions and git commit; on the main process
    identity: dict[str, Any] = field(default_factory=dict)  # what must not change when the run is resumed
    tokenizer: Tokenizer | None = None
    prompt: np.ndarray | None = None  # ids of the samples' prompt; None without samples
    max_eval_rows: int | None = None  # of an evaluation; None is the whole split
    # the recipe's, or chosen by memory=auto
    chunked_loss: Literal["auto", "true", "false"] = "auto"
    optimizer_dtype: Literal["float32", "bfloat16"] = "float32"
    find_batch_size: bool = False  # batch_size=auto, and no earlier start of this run has found one
    signals: SignalCatcher = field(default_factory=SignalCatcher)
    saves: Saves = field(default_factory=Saves)
    hooks: Hooks = field(default_factory=Hooks)

    def notify(self, moment: Update | Evaluation | Save) -> None:
        """Call the callbacks; if one asks for it, stop after the next update."""
        if self.device.accelerator.is_main_process:
            self.hooks.watch(moment)
            if self.hooks.notify(moment):
                self.signals.request_stop()

    @property
    def parameter_names(self) -> dict[torch.Tensor, str]:
        """Names of the trained parameters."""
        named = self.model.named_parameters()
        return {parameter: lora.strip_peft_names(name) for name, parameter in named if parameter.requires_grad}


def recipe_in_use(setup: Setup, state: TrainState) -> Recipe:
    """The recipe with the memory mode and the micro-batch really used, for records and advice."""
    return dataclasses.replace(
        setup.recipe, **state.micro_batch.keys(), chunked_loss=setup.chunked_loss, optimizer_dtype=setup.optimizer_dtype
    )


def to_json(setup: Setup, state: TrainState) -> dict[str, Any]:
    """The content of state.json. Its keys do not follow renames, because older states must stay resumable."""
    return {
        "format": STATE_FORMAT,
        "iteration": state.step,
        "updates": int(next(iter(setup.optimizer.state.values()))["step"]),  # fewer where float16 overflowed
        "evaluations": state.evaluations,
        "watch": dataclasses.asdict(state.monitor),
        "eval_rows": setup.max_eval_rows,
        "lr_scale": state.lr_scale,
        "rollbacks": state.rollbacks,
        "init_from": setup.init_from,
        "identity": setup.identity,
        "config": dataclasses.asdict(setup.model.config),
        "recipe": dataclasses.asdict(recipe_in_use(setup, state)),
        "scaler": state.scaler.state_dict() if state.scaler else None,
        **({"asked": state.asked} if state.asked else {}),
    }
