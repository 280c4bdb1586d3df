"""best/ holds the lowest validation loss of a run, also where the run was put back behind it."""

import json
from pathlib import Path

import pytest

from finetune import Run, evaluate
from finetune.common.files import read_json_object
from finetune.runs.events import LOSSES, read_metrics
from finetune.runs.loss_plot import loss_figure
from finetune.runs.model_card import History
from finetune.tools.report.record import load
from finetune.tools.report.share_picture import picture_of
from finetune.training.callbacks import Evaluation
from finetune.training.state import Hooks
from finetune.training.trainer import train
from finetune.training.validation import figures


def killed_at(step):
    def before_update(setup, state):
        if state.step == step:
            raise KeyboardInterrupt

    return Hooks(before_update=before_update)


def evaluations(out_dir="out"):
    lines = map(json.loads, Path(out_dir, "metrics.jsonl").read_text().splitlines())
    return [event for event in lines if event["event"] == "eval"]


def test_a_better_model_of_undone_updates_stays(tiny):
    length = {"max_iters": 30, "eval_interval": 3, "save_interval": 6, "warmup_iters": 0}
    with pytest.raises(KeyboardInterrupt):
        train(tiny(**length), hooks=killed_at(29))
    before, weights = read_json_object("out/best/finetune.json"), Path("out/best/model.safetensors").read_bytes()
    assert before["step"] == 27 and Path("out/last/step-00000024").is_dir()
    was_best = {}

    def watch(moment):
        if isinstance(moment, Evaluation):
            was_best[moment.step] = moment.best

    slow = tiny(**length, init_from="resume", learning_rate=1e-6)
    setup, state = train(slow, hooks=Hooks(watch=watch))
    after = {event["step"]: event["val_loss"] for event in evaluations()}
    assert before["val_loss"] < after[27] and before["val_loss"] < after[30]  # so it made the same steps worse
    assert Path("out/best/model.safetensors").read_bytes() == weights
    assert state.best == {name: before[name] for name in LOSSES} and was_best == {27: False, 30: False}
    assert figures(state)["train_loss"] == before["train_loss"]
    told = load("out").best
    assert {name: told[name] for name in LOSSES} == {name: before[name] for name in LOSSES}
    assert Run("out").val_loss == before["val_loss"]
    evaluate("out")
    told = History(read_json_object("out/best/finetune.json"), read_metrics("out/metrics.jsonl")).evaluation
    assert told and told["step"] == 27 and told["loss"] == pytest.approx(before["val_loss"], rel=1e-5)
    for axes in (loss_figure("out").axes[0], picture_of(load("out")).axes[0]):
        (ring,) = [line for line in axes.lines if line.get_label() == "best model"]
        assert (list(ring.get_xdata()), list(ring.get_ydata())) == ([27], [before["val_loss"]])
        assert axes.get_ylim()[0] < before["val_loss"]


def test_a_loss_over_other_blocks_is_never_the_one_to_beat(tiny):
    length = {"max_iters": 18, "eval_interval": 8, "save_interval": 2, "learning_rate": 1e-5}
    with pytest.raises(KeyboardInterrupt):
        train(tiny(**length, eval_iters=9), hooks=killed_at(11))
    with pytest.raises(KeyboardInterrupt):  # after states were saved, and before an evaluation
        train(tiny(**length, eval_iters=1, init_from="resume"), hooks=killed_at(15))
    old = read_json_object("out/best/finetune.json")["val_loss"]
    _, state = train(tiny(**length, eval_iters=1, init_from="resume"))
    new = [event["val_loss"] for event in evaluations()]
    published = read_json_object("out/best/finetune.json")["val_loss"]
    assert len(new) == 2 and min(new) == state.best["val_loss"] == published
    assert old < min(new)  # so it would have stayed
