"""`require` and `no_worse_than`: exit code 5 when a model is not good enough, after everything is saved."""

import importlib.metadata
import json
import math
import operator
import platform
import subprocess
from pathlib import Path

import pytest

import finetune
from finetune import export
from finetune.config.gate import EXIT_CODE, parse_conditions, unmet
from finetune.runs.events import read_metrics
from finetune.runs.provenance import provenance
from finetune.training.monitor import EXIT_CODES

OPERATORS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq}


def val_loss(out="out"):
    return json.loads(Path(out, "best/finetune.json").read_text())["val_loss"]


@pytest.mark.parametrize("sign", OPERATORS)
@pytest.mark.parametrize("value", [-1.0, 1.0, 1.5, 2.0, 3, math.nan, math.inf, None])
def test_a_condition_is_pythons_comparison_and_nan_never_passes(sign, value):
    passes = value is not None and math.isfinite(value) and OPERATORS[sign](value, 1.5)
    assert bool(unmet(f"val_loss{sign}1.5", {"val_loss": value})) != passes


def test_spaces_several_conditions_and_the_distance():
    assert [str(one) for one in parse_conditions(" val_loss < 3.2 ,bits per byte>=1e-3,")] == [
        "val_loss<3.2",
        "bits_per_byte>=0.001",
    ]
    assert unmet("loss<3.2,accuracy>0.5,loss>1,loss<3.39999", {"loss": 3.4, "accuracy": 0.5}) == [
        "loss<3.2 is not met: loss 3.4000 is 0.2 above 3.2",
        "accuracy>0.5 is not met: accuracy 0.5 is equal to 0.5",
        "loss<3.39999 is not met: loss 3.4000 is 1e-05 above 3.39999",
    ]


@pytest.mark.parametrize(
    ("flag", "answer"),
    [
        ("val_los<3", "--require: 'val_los' is not measured. Did you mean 'val_loss'?"),
        ("val_loss=3", "--require: 'val_loss=3' is no condition; write one like val_loss<3.2, with < <= > >= or =="),
        ("val_loss<", "--require: 'val_loss<' is no condition; write one like val_loss<3.2, with < <= > >= or =="),
        (
            "val_loss<nan",
            "--require: 'val_loss<nan' is no condition; write one like val_loss<3.2, with < <= > >= or ==",
        ),
        ("val_loss!=3", "--require: 'val_loss!=3' is no condition; write one like val_loss<3.2, with < <= > >= or =="),
        (
            "1<val_loss<3",
            "--require: '1<val_loss<3' is no condition; write one like val_loss<3.2, with < <= > >= or ==",
        ),
        (",", "--require: ',' holds no condition; write one like val_loss<3.2"),
    ],
)
@pytest.mark.parametrize("verb", ["train", "eval"])
def test_bad_conditions_are_refused(command, verb, flag, answer):
    code, _, error = command(verb, "--dataset=x", f"--require={flag}", *(["--init_from=gpt2"] * (verb == "eval")))
    assert (code, error.strip()) == (2, answer)


@pytest.mark.parametrize(
    ("flags", "answer"),
    [
        (["--require=bleu>20"], "--require: bleu is measured with --metrics=bleu only"),
        (["--require=rougeL>2"], "--require: rougeL is measured with --metrics=rouge only"),
        (["--require=kl<1"], "--require: kl is measured with --general=TEXT only"),
        (["--require=difference<0"], "--require: difference is measured with --baseline=MODEL only"),
        (["--no_worse_than=x.json"], "--no_worse_than: x.json: there is no such file"),
        (
            ["--no_worse_than=gpt2", "--baseline=gpt2-medium"],
            "--no_worse_than: only one model can be measured beside; --baseline=gpt2-medium is one already",
        ),
    ],
)
def test_what_is_not_measured_is_refused(command, flags, answer):
    code, _, error = command("eval", "--init_from=gpt2", "--dataset=x", *flags)
    assert (code, error.strip()) == (2, answer)


def test_training_ends_with_5_after_everything_is_saved(corpus, tiny_run, command):
    data = corpus()
    tiny_run("out", "--require=val_loss<9,improvement>0", text=data)
    reached = val_loss()
    flags = ["out/recipe.yaml", "--out_dir=other", "--require=val_loss<1,perplexity<1e9"]
    code, output, error = command("train", *flags)
    assert code == EXIT_CODE == 5
    assert error.strip() == f"require: val_loss<1 is not met: val_loss {reached:.4f} is {reached - 1:.4g} above 1"
    assert val_loss("other") == reached and Path("other/loss.png").exists() and "report in" in output
    assert read_metrics("other/metrics.jsonl")[-1]["event"] == "end"


def test_a_run_that_ends_worse_than_it_began_says_so(corpus, tiny_run, command):
    data = corpus()
    tiny_run("base", "--max_iters=60", text=data)
    spoiled = ["--init_from=base", "--learning_rate=2", "--max_rollbacks=0", "--warmup_iters=0", "--grad_clip=0"]
    run = ["--block_size=32", "--batch_size=4", "--gradient_accumulation_steps=1", "--max_iters=2", "--log_interval=1"]
    code, output, error = command("train", f"--dataset={data}", "--out_dir=worse", *spoiled, *run)
    assert code == 0, error
    assert "warning: this run ended worse than it began: val loss " in output
    events = read_metrics("worse/metrics.jsonl")
    assert [event["name"] for event in events if event["event"] == "warning"][-1] == "worse"


def test_eval_passes_or_ends_with_5(corpus, tiny_run, command):
    data = corpus()
    tiny_run("base", "--max_iters=40", text=data)
    tiny_run("out", "--max_iters=2", text=data)
    loss = val_loss()
    code, _, error = command("eval", "--out_dir=out", f"--require=val_loss<{loss + 0.1},accuracy>=0")
    assert code == 0, error
    code, _, error = command("eval", "--out_dir=out", f"--require=loss<{loss - 0.25:.3f},accuracy>2")
    assert code == 5 and error.startswith("require: loss<") and len(error.splitlines()) == 2
    code, _, error = command("eval", "--out_dir=out", "--no_worse_than=base")
    assert code == 5 and error.startswith("no_worse_than=base is not met: loss ") and "95% interval" in error
    code, _, error = command("eval", "--out_dir=base", "--no_worse_than=out", "--require=difference<0")
    assert code == 0, error
    code, _, error = command("eval", "--out_dir=base", "--no_worse_than=base")
    assert code == 0, "a model is no worse than itself"
    code, _, error = command("eval", "--out_dir=base", "--no_worse_than=baseline")
    assert code == 2 and error.endswith("give a model as --baseline=MODEL, or compare with none\n")
    assert command("eval", "--out_dir=base", "--no_worse_than=baseline", "--baseline=out")[0] == 0


def test_a_model_without_data_is_told_whether_it_is_a_run(tiny_run, command):
    out = tiny_run("out", "--max_iters=1")
    assert command("eval", f"--init_from={out}")[2].endswith(f"; --out_dir={out} is a run, which knows its own\n")
    assert command("eval", f"--out_dir={out}")[0] == 0
    assert command("eval", "--init_from=gpt2")[2].endswith("; gpt2 is no run, which would know its own\n")
    with pytest.raises(finetune.UsageError, match="out-typo is no run"):
        finetune.evaluate("out-typo")


def test_an_earlier_evaluation_is_a_bound(corpus, tiny_run, command):
    tiny_run("out", text=corpus())
    command("eval", "--out_dir=out")
    event = read_metrics("out/metrics.jsonl")[-1]
    for change, wanted in ((0, 0), (-0.1, 5), (0.1, 0)):
        Path("earlier.json").write_text(json.dumps(event | {"loss": event["loss"] + change}))
        code, _, error = command("eval", "--out_dir=out", "--no_worse_than=earlier.json")
        assert code == wanted, error
    Path("earlier.json").write_text(json.dumps(event | {"targets": 7}))
    code, _, error = command("eval", "--out_dir=out", "--no_worse_than=earlier.json")
    assert code == 2 and "other tokens" in error
    Path("earlier.json").write_text(json.dumps(event | {"sha256": "0" * 64}))  # as many tokens of another text
    code, _, error = command("eval", "--out_dir=out", "--no_worse_than=earlier.json")
    assert code == 2 and "other tokens (sha256 " in error
    del event["sha256"]  # as finetune wrote it before
    Path("earlier.json").write_text(json.dumps(event))
    assert command("eval", "--out_dir=out", "--no_worse_than=earlier.json")[0] == 0
    Path("earlier.json").write_text("{}")
    code, _, error = command("eval", "--out_dir=out", "--no_worse_than=earlier.json")
    assert code == 2 and "no evaluation" in error


def test_5_means_nothing_else():
    assert EXIT_CODE not in (0, 1, 2, 3, 4, *EXIT_CODES.values())


def git(*arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    return subprocess.run(["git", *identity, *arguments], check=True, capture_output=True, text=True).stdout.strip()


def test_versions_and_commit_are_in_the_start_event_the_model_and_its_card(corpus, tiny_run):
    """Of the current directory. A hook or a monitor that the repository names is not run."""
    import transformers

    data = corpus()
    git("init", "-q")
    git("add", "corpus.txt")
    git("commit", "-qm", "a")
    git("config", "core.fsmonitor", "touch ran; false")
    tiny_run("out", text=data)
    wanted = {
        "python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
        "transformers": transformers.__version__,
        "finetune": finetune.__version__,
    }
    commit = {"commit": git("rev-parse", "HEAD"), "dirty": False}
    facts = json.loads(Path("out/best/finetune.json").read_text())
    start = read_metrics("out/metrics.jsonl")[0]
    assert (facts["versions"], facts["git"]) == (start["versions"], start["git"]) == (wanted, commit)
    card = Path("out/best/README.md").read_text()
    assert f"git commit {commit['commit'][:12]}." in " ".join(card.split()) and wanted["torch"] in card
    assert not Path("ran").exists()
    export("out", to="mine")
    assert json.loads(Path("mine/finetune.json").read_text())["versions"] == wanted
    assert f"git commit {commit['commit'][:12]}." in " ".join(Path("mine/README.md").read_text().split())
    Path("corpus.txt").write_text("other")
    assert provenance()["git"] == commit | {"dirty": True}


def test_outside_a_repository_or_without_git_there_is_no_commit(monkeypatch):
    assert "git" not in provenance()
    monkeypatch.setenv("PATH", "")
    assert "git" not in provenance()
