"""Diagnosis says nothing that was not measured. For each problem: a run that only looks like it, with the problem's own
run beside it in test_diagnose.py; and runs that their user stopped."""

import os
import signal
from pathlib import Path

import pytest
from test_diagnose import BROKEN, CPU, GPU, LEARNS, labels, synthesised

from finetune.common.errors import Failure
from finetune.runs.events import read_metrics
from finetune.tools.report import diagnosis, record
from finetune.tools.report.after_training import report_after
from finetune.training.state import Hooks
from finetune.training.trainer import train

FALLS = [(4.0, 4.0), (3.9, 3.9), (3.8, 3.8), (3.7, 3.7), (3.6, 3.6), (3.5, 3.5)]
HEART = [(4.0, 4.0), (3.3, 3.5), (2.6, 3.6), (1.8, 3.8), (1.0, 4.3), (0.6, 4.9)]
MEASURED = {"event": "evaluation", "split": "val", "loss": 3.5}
STOPPED = {"event": "stop", "step": 100, "signal": "SIGTERM"}


def updates(seconds, first=0):
    pace = {"loss": 4.0, "tokens_per_second": 1000, "mfu": 0.2, "memory": 2e9}
    return [{"event": "iter", "iter": first + number, "seconds": value, **pace} for number, value in enumerate(seconds)]


def full_gpu():
    synthesised(LEARNS[:3], end=None, machine=GPU)
    path = Path("out/metrics.jsonl")
    path.write_text(path.read_text().replace("2000000000.0", "15900000000.0"))


def resumed():
    """Measured as no better than gpt2 and as copying, then trained further to a better model."""
    copied = {"ngram": 8, "copied": 0.93, "longest": 120}
    found = {**MEASURED, "baseline": {"name": "gpt2"}, "difference": {"mean": 0.02}, "memorisation": copied}
    synthesised(LEARNS, events=[found, {"event": "best", "step": 250, "val_loss": 3.33}])


# {name: (label that it must not get, labels that it gets, the run)}
LOOKALIKES = {
    "a full GPU, killed": ("out_of_memory", ["interrupted"], full_gpu),
    "out of memory, and recovered": (
        "out_of_memory",
        [],
        lambda: synthesised(LEARNS, events=[{"event": "out_of_memory", "step": 3, "done": "batch_size 8 -> 4"}]),
    ),
    "stopped before its first evaluation": (
        "missing_checkpoint",
        [],
        lambda: synthesised([], end=STOPPED, best=False, states=0),
    ),
    "failed before its first evaluation": (
        "missing_checkpoint",
        ["interrupted"],
        lambda: synthesised([], end={"event": "failed", "problem": "an error 5", "code": 1}, best=False, states=0),
    ),
    "stopped by a scheduler": ("interrupted", [], lambda: synthesised(LEARNS[:3], max_iters=5000, end=STOPPED)),
    "ids of its own vocabulary, from scratch": (
        "gibberish",
        [],
        lambda: synthesised([(10.9, 10.9), (6.0, 6.1), (4.5, 4.7), (4.0, 4.2), (3.9, 4.15)], init_from="scratch"),
    ),
    "only the validation loss rises": ("gibberish", ["overfitting"], lambda: synthesised(HEART)),
    "a rise within noise": (
        "gibberish",
        [],
        lambda: synthesised([(4.0, 4.0), (3.5, 3.5), (3.4, 3.4), (3.45, 3.46)], max_iters=5000, end=STOPPED),
    ),
    "stopped before a second evaluation": (
        "not_learning",
        [],
        lambda: synthesised([(4.0, 4.0)], max_iters=5000, events=updates([0.05] * 300), end=STOPPED),
    ),
    "killed soon after an evaluation of a few updates": (
        "not_learning",
        ["interrupted"],
        lambda: synthesised([(4.0, 4.0), (4.0, 4.0)], every=10, events=updates([0.05] * 300, first=10), end=None),
    ),
    "only the train loss falls": (
        "not_learning",
        [],
        lambda: synthesised([(4.0, 4.0), (3.9, 4.0), (3.8, 4.0)], max_iters=5000, end=STOPPED),
    ),
    "a gap from the start": (
        "overfitting",
        [],
        lambda: synthesised([(3.0, 3.6), (2.8, 3.5), (2.7, 3.42), (2.65, 3.4), (2.63, 3.39)]),
    ),
    "worse by less than chance": (
        "overfitting",
        [],
        lambda: synthesised([(4.0, 4.0), (3.5, 3.5), (3.49, 3.503), (3.48, 3.504), (3.47, 3.505)]),
    ),
    "an evaluation of an older model": ("overfitting", [], resumed),
    "a first update that compiles": (
        "slow",
        [],
        lambda: synthesised([(4.0, 4.0)], max_iters=5000, events=updates([60.0, 45.0]), end=STOPPED),
    ),
    "slower since it recomputes activations": (
        "slow",
        [],
        lambda: synthesised(
            [(4.0, 4.0)],
            max_iters=5000,
            events=[
                *updates([1.0] * 20),
                {"event": "out_of_memory", "step": 20, "done": "gradient_checkpointing=true"},
                *updates([2.5] * 40, first=20),
            ],
            end=STOPPED,
        ),
    ),
    "an hour on a CPU": ("slow", [], lambda: synthesised(LEARNS, seconds=14.0, mfu=0.01, machine=CPU)),
    "a general text without a baseline": (
        "disappointing",
        [],
        lambda: synthesised(LEARNS, events=[{**MEASURED, "general": {"loss": 3.9, "baseline_loss": None}}]),
    ),
    "no better than another model": (
        "disappointing",
        [],
        lambda: synthesised(
            LEARNS, events=[{**MEASURED, "baseline": {"name": "gpt2-xl"}, "difference": {"mean": 0.1}}]
        ),
    ),
    "no better on the text it was trained on": (
        "disappointing",
        [],
        lambda: synthesised(
            LEARNS, events=[{**MEASURED, "split": "train", "baseline": {"name": "gpt2"}, "difference": {"mean": 0.1}}]
        ),
    ),
    "falling when it was stopped": ("disappointing", [], lambda: synthesised(FALLS, max_iters=5000, end=STOPPED)),
    "falling when patience ended it": ("disappointing", [], lambda: synthesised(FALLS, max_iters=5000, patience=2)),
}


def test_every_issue_has_a_lookalike():
    assert {label for label, _, _ in LOOKALIKES.values()} == diagnosis.ISSUES.keys()


@pytest.mark.parametrize("name", LOOKALIKES)
def test_what_only_looks_like_a_problem(name):
    label, others, make = LOOKALIKES[name]
    make()
    assert label not in others and labels() == others


@pytest.mark.parametrize("name", [name for name, (label, _) in BROKEN.items() if label != "missing_checkpoint"])
@pytest.mark.parametrize("by", ["SIGINT", "callback"])
def test_who_stops_a_run_is_only_told_how_to_go_on(command, name, by):
    BROKEN[name][1]()
    path = Path("out/metrics.jsonl")
    ends = ('"failed"', '"end"', '"stop"')
    lines = [line for line in path.read_text().splitlines() if not any(end in line for end in ends)]
    path.write_text("\n".join([*lines, f'{{"time": 1e12, "event": "stop", "step": 1, "signal": "{by}"}}\n']))
    code, out, error = command("diagnose", "--out_dir=out")
    assert (code, error) == (0, "") and out.startswith(f"out: stopped by {by} after ")
    assert out.endswith("to go on: finetune train out/recipe.yaml --init_from=resume\n")


@pytest.mark.parametrize(("number", "at"), [(signal.SIGINT, 0), (signal.SIGINT, 3), (signal.SIGTERM, 3)])
def test_a_real_run_that_was_stopped(tiny, command, number, at):
    hooks = Hooks(before_update=lambda setup, state: state.step == at and os.kill(os.getpid(), number))
    recipe = tiny(max_iters=2000, eval_interval=1000, log_interval=100)
    with pytest.raises(Failure) as stopped, report_after(recipe):
        train(recipe, hooks=hooks)
    told = str(stopped.value).splitlines()
    assert told[0].startswith(f"stopped by {number.name} after {at + 1} updates; to go on: ")
    assert told[1:] == ["report in out/report.html"]
    assert read_metrics("out/metrics.jsonl")[-1]["event"] == "stop"
    assert command("diagnose", "--out_dir=out")[1].startswith(f"out: {told[0]}")
    assert Path("out/loss.png").read_bytes().startswith(b"\x89PNG")
    assert diagnosis.diagnose(record.load("out")) == []
