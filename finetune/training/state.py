"""The state of a run."""

import dataclasses
from dataclasses import dataclass

import torch

from finetune.config import recipe as recipes
from finetune.config import schedule as schedules
from finetune.data.batches import Blocks, Mixture
from finetune.data.sampler import BlockSampler, MixtureSampler
from finetune.gpt import GPT, lora
from finetune.runs import checkpoints
from finetune.training import monitor


@dataclass
class Run:
    """A run at some iteration. What must survive a restart is in `state()`, the weights and the optimizer; all else
    follows."""

    recipe: recipes.Recipe
    schedule: schedules.Schedule
    machine: object
    network: GPT  # the model itself
    model: torch.nn.Module  # the same as data parallelism wraps it
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler | None  # float16 only
    train: Blocks | Mixture
    val: Blocks | Mixture
    order: BlockSampler | MixtureSampler
    names_of_data: list  # of the datasets, whose splits are the parts of train and val where there are several
    tokenizer: object | None
    prompt: object | None  # ids of the samples' prompt, when samples are asked for
    eval_rows: int | None  # how many rows an evaluation reads at most, where the recipe limits it
    identity: dict  # what makes the run this run and no other
    data: dict  # the facts of its dataset
    init_from: str  # where the first weights came from
    iteration: int = 0  # updates made
    best: dict = dataclasses.field(
        default_factory=dict
    )  # {"val_loss", "step"} of best/, empty before the first evaluation
    evaluations: list = dataclasses.field(default_factory=list)  # [{"step", "train_loss", "val_loss"}]
    watch: monitor.LossMonitor = dataclasses.field(default_factory=monitor.LossMonitor)
    lr_scale: float = 1.0  # halved by every rollback
    rollbacks: int = 0
    saved_at: int | None = None  # the iteration of the newest state in last/
    save_due: bool = False  # a save that waits until the losses are as usual
    returned_to: int | None = None  # where the last rollback led
    signals: monitor.Signals = dataclasses.field(default_factory=monitor.Signals)
    peak: tuple = (float("inf"), "")  # FLOP/s that mfu is measured against, and where the figure is from

    @property
    def names(self):
        """{parameter: name} of what is trained."""
        return {
            parameter: lora.strip_peft_names(name)
            for name, parameter in self.network.named_parameters()
            if parameter.requires_grad
        }

    def state(self):
        """What state.json keeps; weights and optimizer lie beside it."""
        return {
            "format": checkpoints.STATE_FORMAT,
            "iteration": self.iteration,
            "updates": int(next(iter(self.optimizer.state.values()))["step"]),  # fewer where float16 overflowed
            "evaluations": self.evaluations,
            "watch": self.watch.state(),
            "eval_rows": self.eval_rows,
            "lr_scale": self.lr_scale,
            "rollbacks": self.rollbacks,
            "init_from": self.init_from,
            "identity": self.identity,
            "config": dataclasses.asdict(self.network.config),
            "recipe": dataclasses.asdict(self.recipe),
            "scaler": self.scaler.state_dict() if self.scaler else None,
        }
