"""A recipe, its data and this machine, put together into a Plan: every count that training will print, and some that it
will not."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from finetune.common import files
from finetune.common.errors import UsageError
from finetune.config import recipe as recipes
from finetune.config import schedule as schedules
from finetune.data import arrow_cache, packing
from finetune.data import dataset as data_dataset
from finetune.evaluation import split_loss
from finetune.gpt import GPTConfig, lora
from finetune.gpt import size as gpt_size
from finetune.runs import checkpoints, inputs
from finetune.runs.inputs import PLANNED_CHARACTERS, find_shape, planned_tokenizer
from finetune.runtime import device as devices
from finetune.runtime import memory, memory_modes
from finetune.training import micro_batch

IMAGINED = "a text that is not there yet"


@dataclass
class Data:
    """How much there is to read: tokens and blocks of each split."""

    name: str
    tokens: dict
    rows: dict
    tokenizer: str
    isolated: bool
    val_fraction: float | None  # None where nobody knows
    document: int | None = None  # tokens of a document on average, where documents are isolated


@dataclass
class Timing:
    """Seconds, unless said otherwise."""

    start: float  # from the start of the process to the first update: libraries, data, model
    warm_up: float  # how much longer the first update takes
    micro_batch: float
    update: float  # of a single micro-batch
    row: float  # evaluation of a block
    byte: float  # saving a byte of a checkpoint
    token: float  # a new token of each sample
    rows: int  # blocks of the micro-batches that were timed
    peak: int | None  # peak bytes of memory, None where a smaller micro-batch was timed


@dataclass
class Plan:
    """What a run is going to be. Sizes are in bytes, times in seconds."""

    recipe: recipes.Recipe
    origins: dict  # of the keys that were given: 'recipes/x.yaml:3' or '--key'
    processes: int
    config: GPTConfig
    data: Data
    schedule: schedules.Schedule
    init_from: str  # where the first weights of the run come from, or came from where it is resumed
    done: int  # updates that a resumed run has made already
    device: str
    dtype: str
    compile: bool
    available: int | None  # memory that the device has to give
    disk: dict  # what checkpoints take
    disk_free: int
    program: int  # memory of the process without a model
    timing: Timing | None = None
    untimed: str = "quick=true"  # why there is none
    mode: str = ""  # what memory=auto takes, in a line, and
    asked: recipes.Recipe | None = None  # the recipe before it did
    max_eval_rows: int | None = None  # blocks of an evaluation, where the recipe limits them
    found_batch_size: bool = False  # batch_size=auto: the recipe holds the number that was found

    @property
    def block_size(self):
        return self.config.block_size

    @property
    def rows(self):
        """Blocks of an update."""
        return self.recipe.blocks_per_update

    @property
    def tokens(self):
        """Tokens of an update."""
        return self.rows * self.block_size

    @property
    def passes(self):
        return self.schedule.length * self.rows / self.data.rows["train"]

    @property
    def pretrained(self):
        return self.init_from != "scratch"

    @property
    def remaining(self):
        return max(0, self.schedule.length - self.done)

    @property
    def evaluations(self):
        """How often both splits will be measured."""
        return _multiples(self.done - (self.done == 0), self.schedule.length, self.schedule.eval_interval)

    @property
    def saves(self):
        """How often a state will be saved."""
        return _multiples(self.done, self.schedule.length, self.schedule.save_interval)

    @property
    def samplings(self):
        """How often samples will be drawn before the end."""
        interval = self.recipe.sample_interval
        return max(0, (self.schedule.length - 1) // interval - self.done // interval) if interval else 0

    @property
    def rows_of_evaluation(self):
        """Blocks that an evaluation reads, of train and of val."""
        limit = self.max_eval_rows
        train = limit or max(1, split_loss.TRAIN_PROBE // self.block_size)
        return min(train, self.data.rows["train"]), min(limit or self.data.rows["val"], self.data.rows["val"])

    def needs(self, evaluated=None, **changes):
        """The memory.Needs of a process; of the plan with another batch_size or another mode, if given."""
        if "batch_size" in changes:
            changes = {"gradient_accumulation_steps": self.rows // changes["batch_size"], **changes}
        recipe, evaluated = dataclasses.replace(self.recipe, **changes), evaluated or max(self.rows_of_evaluation)
        return memory_modes.estimate_of(
            recipe,
            self.config,
            self.block_size,
            self.device,
            self.dtype,
            self.compile,
            self.processes,
            program=self.program,
            evaluated=evaluated,
        )

    def takes(self, **changes):
        """Memory that a device must have, for all the processes on it."""
        if self.device == "cpu":
            return self.needs(**changes).peak * self.processes
        return self.needs(evaluated=1, **changes).peak  # where a GPU has no room, evaluations take less by themselves

    def taken_by(self, recipe):
        """`takes` of this plan with another recipe."""
        return dataclasses.replace(self, recipe=recipe).takes()

    @property
    def fits(self):
        """Whether memory suffices."""
        return self.available is None or self.takes() <= self.available

    @property
    def disk_needed(self):
        return sum(self.disk.values())

    @property
    def exchanged(self):
        """Bytes that each process sends in an update: a ring all-reduce of float32 gradients."""
        trained = lora.num_parameters(self.config, self.recipe.lora_rank) or gpt_size.num_parameters(self.config)
        return 2 * (self.processes - 1) * 4 * trained // self.processes

    def seconds(self):
        """{what: seconds} of the run from the start of its process to its end. Only of a plan that was timed."""
        timing, recipe = self.timing, self.recipe
        share = 1 if self.device == "cpu" else self.processes  # on a CPU they share its cores
        micro_batches = recipe.gradient_accumulation_steps / share
        update = timing.update + (micro_batches - 1) * timing.micro_batch
        models = self.evaluations + (self.evaluations if recipe.always_save_checkpoint else 0)
        published = 4 * (gpt_size.num_parameters(self.config) + lora.num_parameters(self.config, recipe.lora_rank))
        return {
            "start": timing.start + timing.warm_up,
            "updates": self.remaining * update,
            "evaluations": self.evaluations * sum(self.rows_of_evaluation) * timing.row / share,
            "checkpoints": (self.saves * checkpoints.state_bytes(recipe, self.config) + models * published)
            * timing.byte,
            "samples": self._sampling() * (1 + self.samplings) if recipe.num_samples else 0.0,
        }

    def _sampling(self):
        new, within = self.recipe.max_new_tokens, min(self.recipe.max_new_tokens, self.block_size)
        # past the context every token costs a pass over all of it
        return within * self.timing.token + (new - within) * self.recipe.num_samples * self.timing.row

    def largest_batch(self, **changes):
        """The largest batch_size that fits and pays at the same blocks an update; None when not even 1 fits."""
        most = max(1, micro_batch.MOST_TOKENS[self.device] // self.block_size)
        sizes = [size for size in range(min(most, self.rows), 0, -1) if self.rows % (size * self.processes) == 0]
        return next(
            (
                size
                for size in sizes
                if self.available is None or self.takes(batch_size=size, **changes) <= self.available
            ),
            None,
        )


def plan(recipe, origins, tokens=None, processes=1):
    """The Plan of a recipe for its dataset, or for so many `tokens` of a text that is not there yet. Raises
    UsageError."""
    device = devices.choose_device(recipe.device)
    saved = _saved(recipe) if recipe.init_from == "resume" else {}
    if tokens is None:
        datasets = inputs.open_datasets(recipe, lambda: planned_tokenizer(recipe))
        config, tokenizer = find_shape(recipe, datasets[0].tokenizer, saved)
        tokenizer = inputs.agreed_tokenizer(recipe, datasets[0], config, tokenizer)
        block_size = inputs.block_size_of(recipe, config)
        data = _measured(recipe, datasets, config, block_size, tokenizer)
    else:
        config, _ = find_shape(recipe, None, saved)
        block_size = inputs.block_size_of(recipe, config)
        data = _imagined(recipe, tokens, block_size)
    config = dataclasses.replace(config, block_size=block_size, dropout=recipe.dropout)
    schedule = schedules.schedule(recipe, data.rows["train"])
    dtype = str(devices.best_dtype(recipe.dtype, device)).removeprefix("torch.")
    lora.check_rank(recipe, config)
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
        dtype=dtype,
        compile=recipe.compile == "true" or (recipe.compile == "auto" and device.type == "cuda"),
        available=memory.available_bytes(device.type),
        disk=checkpoints.checkpoint_bytes(recipe, schedule, config),
        disk_free=_free(recipe.out_dir),
        program=memory.BASE_RSS if device.type == "cpu" else 0,
        max_eval_rows=recipe.max_eval_rows,
    )
    if (
        recipe.memory == "auto"
        and saved
        and (chosen := memory_modes.previous_choice(recipe, saved["recipe"], processes))
    ):
        made = dataclasses.replace(made, recipe=chosen)
    elif recipe.memory == "auto":
        found = memory_modes.choose_mode_that_fits(recipe, made.taken_by, made.available)
        chosen, _, mode = found or (recipe, None, "memory=auto: nothing fits")
        made = dataclasses.replace(made, recipe=chosen, mode=mode, asked=recipe)
    if recipe.batch_size == "auto":
        size = made.largest_batch() or 1
        cut = dataclasses.replace(recipe, batch_size=size, gradient_accumulation_steps=made.rows // size)
        made = dataclasses.replace(made, recipe=cut, found_batch_size=True)
    return made


def _measured(recipe, datasets, config, block_size, tokenizer):
    """The Data of prepared directories, checked as training checks them."""
    isolated, tokens, rows, documents = inputs.is_isolated(recipe, datasets), {}, {}, []
    for split in ("train", "val"):
        tokens[split] = rows[split] = 0
        for dataset in datasets:
            contents = data_dataset.scan(dataset, split)
            data_dataset.check_ids(dataset, split, contents, config.vocab_size, recipe.init_from)
            tokens[split] += contents.tokens
            if isolated:
                ends = dataset.document_ends(split)
                packed = packing.pack(ends, block_size + 1)[2]
                rows[split] += int(packed[-1]) + 1 if len(packed) else 0
                documents.append(contents.tokens / len(ends))
            else:
                arrow_cache.check_length(dataset, split, block_size, contents.tokens)
                rows[split] += arrow_cache.num_rows(contents.tokens, block_size)
    name = ", ".join(str(dataset.directory) for dataset in datasets)
    described = tokenizer.describe()["name"] if tokenizer else "an unknown tokenizer"
    return Data(
        name,
        tokens,
        rows,
        described,
        isolated,
        datasets[0].meta.get("val_fraction"),
        max(2, round(sum(documents) / len(documents))) if isolated else None,
    )


def _imagined(recipe, tokens, block_size):
    """The Data of a text that is not there yet."""
    val = max(1, round(tokens * (recipe.val_fraction or 0.1)))
    counts = {"train": tokens - val, "val": val}
    for split, count in counts.items():
        if count < block_size + 1:
            raise UsageError(
                f"--tokens: {count:,} of {tokens:,} tokens would be {split}, and a block of {block_size:,} needs"
                f" {block_size + 1:,}"
            )
    rows = {split: arrow_cache.num_rows(count, block_size) for split, count in counts.items()}
    kind = (
        f"{PLANNED_CHARACTERS} different characters"
        if recipe.tokenizer == "char"
        else "gpt2"
        if recipe.tokenizer == "auto"
        else recipe.tokenizer
    )
    return Data(IMAGINED, counts, rows, kind, recipe.isolate_documents == "true", recipe.val_fraction or 0.1)


def _saved(recipe):
    """What state.json of the newest state says, without its tensors."""
    for directory in checkpoints.states(recipe.out_dir):
        try:
            return json.loads((directory / "state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
    raise UsageError(f"{recipe.out_dir}: nothing to resume; it has no last/step-*. Start a run with another init_from")


def _free(out_dir):
    """Free bytes where out_dir is or will be, with those of checkpoints that will be replaced."""
    place = Path(out_dir).resolve()
    used = files.used_bytes(place)
    while not place.is_dir():
        place = place.parent
    return shutil.disk_usage(place).free + used


def _multiples(after, last, interval):
    """How many steps above `after` up to `last` are multiples of `interval` or `last` itself."""
    return max(0, last // interval - math.floor(after / interval) + (last % interval != 0 and last > after))


def device_name(plan):
    if plan.device == "cuda":
        return torch.cuda.get_device_name()
    return {"cpu": "CPU", "mps": "Apple GPU"}[plan.device]
