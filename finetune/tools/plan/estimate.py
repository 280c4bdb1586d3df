"""The Plan of a run: its counts, as training will print them, and its memory, disk space and time."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch

from finetune.common import disk_space, files
from finetune.common.errors import UsageError
from finetune.config import schedule as schedules
from finetune.config.recipe import Recipe
from finetune.evaluation import split_loss
from finetune.gpt import GPTConfig, lora
from finetune.gpt import size as gpt_size
from finetune.runs import checkpoints, state_format
from finetune.runs.inputs import find_model_and_datasets, find_model_of_recipe, with_block_size
from finetune.runtime import device as devices
from finetune.runtime import memory, memory_modes
from finetune.tools.plan import data_size
from finetune.tools.plan.data_size import DataSize
from finetune.training import micro_batch


@dataclass
class Timing:
    """Measured on this machine, in seconds unless said otherwise."""

    start: float  # from the start of the process to the first update: libraries, data, model
    warm_up: float  # of the first update, more than of the others
    micro_batch: float
    update: float  # with a single micro-batch
    row: float  # of evaluating a block
    byte: float  # of saving a byte of a checkpoint
    token: float  # of a new token of each sample
    rows: int  # blocks of the timed micro-batches
    peak: int | None  # bytes of memory, None if the timed micro-batch was smaller


@dataclass
class Plan:
    """What a run will do. Sizes are in bytes, times in seconds."""

    recipe: Recipe
    origins: dict[str, str]  # of the keys that were given: 'recipes/x.yaml:3' or '--key'
    processes: int
    config: GPTConfig
    data: DataSize
    schedule: schedules.Schedule
    init_from: str  # where the first weights of the run come from, also if it is resumed
    done: int  # updates that a resumed run has made
    device: str
    dtype: str
    compile: bool
    available: int  # free memory of the device
    disk: dict[str, int]  # of checkpoints
    disk_free: int
    program: int  # memory of the process without a model
    timing: Timing | None = None
    untimed: str = "quick=true"  # why there is no timing
    mode: str = ""  # what memory=auto chose, in a line
    asked: Recipe | None = None  # the recipe before memory=auto changed it
    max_eval_rows: int | None = None  # blocks of an evaluation; None for the whole split
    notes: tuple[str, ...] = ()  # on the vocabulary
    found_batch_size: bool = False  # the recipe's batch_size was found for batch_size=auto

    @property
    def block_size(self) -> int:
        return self.config.block_size

    @property
    def rows(self) -> int:
        return self.recipe.blocks_per_update

    @property
    def tokens(self) -> int:
        """Tokens of an update."""
        return self.rows * self.block_size

    @property
    def passes(self) -> float:
        return self.schedule.length * self.rows / self.data.rows["train"]

    @property
    def pretrained(self) -> bool:
        return self.init_from != "scratch"

    @property
    def remaining(self) -> int:
        return max(0, self.schedule.length - self.done)

    @property
    def evaluations(self) -> int:
        """Evaluations that are still to come."""
        return _multiples(self.done - (self.done == 0), self.schedule.length, self.schedule.eval_interval)

    @property
    def saves(self) -> int:
        """States that are still to be saved."""
        return _multiples(self.done, self.schedule.length, self.schedule.save_interval)

    @property
    def samplings(self) -> int:
        """Samplings that are still to come, without the one at the end."""
        interval = self.recipe.sample_interval
        return max(0, (self.schedule.length - 1) // interval - self.done // interval) if interval else 0

    @property
    def rows_of_evaluation(self) -> tuple[int, int]:
        """(blocks of train, blocks of val) of an evaluation."""
        rows = self.data.rows
        return split_loss.blocks_of_evaluation(rows["train"], rows["val"], self.block_size, self.max_eval_rows)

    def estimate_memory(self, evaluated: int | None = None, **changes: Any) -> memory.MemoryEstimate:
        """Memory of a process with these changes of the recipe, and with `evaluated` blocks of an evaluation. Another
        batch_size keeps the blocks of an update."""
        if "batch_size" in changes:
            changes = {"gradient_accumulation_steps": self.rows // changes["batch_size"], **changes}
        work = memory.Workload(
            dataclasses.replace(self.recipe, **changes),
            self.config,
            self.block_size,
            self.device,
            getattr(torch, self.dtype),
            self.compile,
            self.processes,
            base_rss=self.program,
            max_eval_rows=evaluated or max(self.rows_of_evaluation),
        )
        return memory.estimate_memory(work)

    def peak_bytes(self, **changes: Any) -> int:
        """Memory that a device needs for all processes on it."""
        if self.device == "cpu":
            return self.estimate_memory(**changes).peak * self.processes
        return self.estimate_memory(evaluated=1, **changes).peak  # with less memory a GPU evaluates fewer blocks

    def peak_bytes_of(self, recipe: Recipe) -> int:
        """`peak_bytes` of this plan with another recipe."""
        return dataclasses.replace(self, recipe=recipe).peak_bytes()

    @property
    def fits(self) -> bool:
        return self.peak_bytes() <= self.available

    @property
    def disk_needed(self) -> int:
        return sum(self.disk.values())

    def seconds(self) -> dict[str, float]:
        """{part: seconds} of the run, from the start of its process to its end; {} if it was not timed."""
        timing, recipe = self.timing, self.recipe
        if timing is None:
            return {}
        share = 1 if self.device == "cpu" else self.processes  # on a CPU they share its cores
        micro_batches = recipe.gradient_accumulation_steps / share
        update = timing.update + (micro_batches - 1) * timing.micro_batch
        models = self.evaluations * (2 if recipe.always_save_checkpoint else 1)
        model = 4 * (gpt_size.num_parameters(self.config) + lora.num_adapter_parameters(self.config, recipe.lora_rank))
        saved = self.saves * checkpoints.state_bytes(recipe, self.config) + models * model
        in_context = min(recipe.max_new_tokens, self.block_size)  # later tokens cost a pass over the whole context
        sample = in_context * timing.token + (recipe.max_new_tokens - in_context) * recipe.num_samples * timing.row
        return {
            "start": timing.start + timing.warm_up,
            "updates": self.remaining * update,
            "evaluations": self.evaluations * sum(self.rows_of_evaluation) * timing.row / share,
            "checkpoints": saved * timing.byte,
            "samples": sample * (1 + self.samplings + (self.done == 0)) if recipe.num_samples else 0.0,
        }

    def largest_batch(self, **changes: Any) -> int | None:
        """The largest useful batch_size that fits, with the same blocks in an update; None if not even 1 fits."""
        most = max(1, micro_batch.MOST_TOKENS[self.device] // self.block_size)
        for size in range(min(most, self.rows), 0, -1):
            is_share = self.rows % (size * self.processes) == 0
            if is_share and self.peak_bytes(batch_size=size, **changes) <= self.available:
                return size
        return None


def plan(recipe: Recipe, origins: dict[str, str], tokens: int | None = None, processes: int = 1) -> Plan:
    """The Plan of a recipe for its dataset, or for so many `tokens` of text that need not exist. Raises UsageError."""
    saved = _saved(recipe) if recipe.init_from == "resume" else {}
    if tokens is None:
        model, datasets = find_model_and_datasets(recipe, saved or None, shape_only=True)
        model = with_block_size(model, recipe.block_size)
        data = data_size.measured(recipe, datasets, model)
    else:
        model = find_model_of_recipe(recipe, None, saved or None, shape_only=True)
        model = with_block_size(model, recipe.block_size)
        data = data_size.imagined(recipe, tokens, model.config.block_size)
    config = dataclasses.replace(model.config, dropout=recipe.dropout)
    lora.check_rank(recipe, config)
    rows = data.rows["train"], data.rows["val"]
    evaluated = split_loss.blocks_of_evaluation(*rows, model.config.block_size, recipe.max_eval_rows)
    schedule = schedules.schedule(recipe, rows[0], sum(evaluated))
    device = devices.choose_device(recipe.device)
    made = Plan(
        recipe=recipe,
        origins=origins,
        processes=processes,
        config=config,
        data=data,
        schedule=schedule,
        init_from=saved.get("init_from", recipe.init_from),
        done=saved.get("iteration", 0),
        device=device.type,
        dtype=str(devices.best_dtype(recipe.dtype, device)).removeprefix("torch."),
        compile=recipe.compile == "true" or (recipe.compile == "auto" and device.type == "cuda"),
        available=memory.available_bytes(device.type),
        disk=checkpoints.checkpoint_bytes(recipe, schedule, config),
        disk_free=_disk_free(recipe.out_dir),
        max_eval_rows=recipe.max_eval_rows,
        notes=() if saved else model.notes,
        program=memory.BASE_RSS if device.type == "cpu" else 0,
    )
    return _with_chosen_sizes(made, saved)


def _with_chosen_sizes(plan: Plan, saved: dict[str, Any]) -> Plan:
    """The plan with the mode of memory=auto (of a resumed run: as it chose before) or the size of batch_size=auto."""
    recipe = plan.recipe
    if recipe.memory == "auto":
        chosen = memory_modes.previous_choice(recipe, saved["recipe"], plan.processes) if saved else None
        if chosen:
            return dataclasses.replace(plan, recipe=chosen)
        found = memory_modes.choose_mode_that_fits(recipe, plan.peak_bytes_of, plan.available)
        chosen, _, mode = found or (recipe, None, "memory=auto: nothing fits")
        return dataclasses.replace(plan, recipe=chosen, mode=mode, asked=recipe)
    if recipe.batch_size == "auto":
        size = plan.largest_batch() or 1
        sizes = {"batch_size": size, "gradient_accumulation_steps": plan.rows // size}
        return dataclasses.replace(plan, recipe=dataclasses.replace(recipe, **sizes), found_batch_size=True)
    return plan


def _saved(recipe: Recipe) -> dict[str, Any]:
    """state.json of the newest state that can be read."""
    for directory in checkpoints.states(recipe.out_dir):
        try:
            state = files.read_json(directory / "state.json")
        except (OSError, ValueError):
            continue
        return state_format.read_state(state, recipe.out_dir)
    raise UsageError(checkpoints.nothing_to_resume(recipe.out_dir))


def _disk_free(out_dir: str) -> int:
    """Free bytes for a run in out_dir, which need not exist. Old checkpoints count as free: they will be replaced."""
    return disk_space.free_bytes(disk_space.nearest_directory(out_dir)) + disk_space.used_bytes(out_dir)


def _multiples(after: int, last: int, interval: int) -> int:
    """Number of steps in (after, last] that are multiples of `interval`, or `last` itself."""
    return max(0, last // interval - math.floor(after / interval) + (last % interval != 0 and last > after))


def device_name(plan: Plan) -> str:
    return torch.cuda.get_device_name() if plan.device == "cuda" else {"cpu": "CPU", "mps": "Apple GPU"}[plan.device]
