"""--json=true: one strict JSON document on standard output, with the figures that the text shows."""

import json
import os
from pathlib import Path

import pytest

from finetune.common.json_output import print_json


def no_constant(name):
    raise AssertionError(f"{name} is no JSON")


@pytest.fixture
def document(command):
    """A function that runs a command with --json and returns its document."""

    def call(verb, *argv, code=0):
        got, out, error = command(verb, *argv, "--json")
        assert got == code, error
        return json.loads(out, parse_constant=no_constant)

    return call


def test_a_run_as_json(tiny_run, document, command):
    out = tiny_run("out")
    tiny_run("other", "--seed=2", "--dropout=0.1")

    plan = document("plan", out + "/recipe.yaml", "--quick", "--out_dir=new")
    assert plan["updates"] == plan["remaining_updates"] > 0 and plan["memory"]["needed"] < plan["memory"]["available"]
    assert plan["shortage"] == "" and plan["seconds"] == {}
    started = json.loads(Path(out, "metrics.jsonl").read_text().splitlines()[0])["recipe"]
    assert plan["recipe"] == started | {"out_dir": "new", "wandb_run_name": "new"}, "derived values too"
    too_long = document("plan", out + "/recipe.yaml", "--quick", "--out_dir=new", "--batch_size=1000000", code=1)
    assert "NOT ENOUGH MEMORY" in too_long["shortage"]

    event = document("eval", out)
    recorded = json.loads(Path(out, "metrics.jsonl").read_text().splitlines()[-1])
    assert recorded["event"] == "evaluation" and event["loss"] == recorded["loss"]

    both = document("compare", out, "other")
    assert [run["out_dir"] for run in both["runs"]] == [out, "other"] and both["different"] == ["dropout", "seed"]
    assert both["runs"][0]["best"]["val_loss"] > 0 and both["runs"][0]["updates"] == both["runs"][0]["length"]

    findings = document("diagnose", out)
    assert findings["out_dir"] == out
    assert all(set(finding) == {"label", "evidence", "advice", "command"} for finding in findings["findings"])

    facts = document("doctor", "corpus.txt")
    assert facts["splits"]["train"]["documents"] == 1 and "findings" in facts and "sample" not in facts


@pytest.mark.heavy
def test_a_dry_run_is_the_plan_and_writes_nothing(command, corpus):
    flags = f"{corpus()} --init_from=scratch --n_layer=1 --n_head=1 --n_embd=8 --block_size=8 --tokenizer=char".split()
    before = sorted(os.listdir())
    code, dry, error = command("train", *flags, "--dry-run", "--max_iters=3")
    assert code == 0, error
    assert sorted(os.listdir()) == before

    def counted(text):
        """The lines that are neither measured nor about free space."""
        return [line for line in text.splitlines() if line.startswith(("model ", "update ", "length ", "evaluation "))]

    _, plan, _ = command("plan", *flags, "--max_iters=3")
    assert counted(dry) == counted(plan) and len(counted(dry)) == 4 and not os.path.exists("out")


def test_json_holds_nothing_that_steers_a_terminal(capsys):
    value = {"names\x7f": "\x1b[31m\x7f\x9b\ud800é\u2028"}
    print_json(value)
    out = capsys.readouterr().out
    assert all(char.isprintable() or char in "\n\u2028" for char in out) and json.loads(out) == value
