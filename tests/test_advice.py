"""Advice that can be followed: every message that holds a command is brought about, and its command succeeds."""

import ast
import contextlib
import html
import inspect
import os
import pickle
import re
import shlex
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import finetune
from finetune.common.commands import join
from finetune.common.errors import Failure, UsageError
from finetune.config.cli import parse
from finetune.config.recipe import Recipe
from finetune.gpt import GPT, GPTConfig
from finetune.runs import datasets, inputs, uploads
from finetune.tools.report import diagnosis, record, remedies
from finetune.train import train_and_push
from finetune.training.state import Hooks
from finetune.training.trainer import train

MAKERS = {"command", "resume_command"}
SOURCE = Path(__file__).parents[1] / "finetune"


def sites():
    """module.function of every call that makes a command for a message."""
    for path in sorted(SOURCE.rglob("*.py")):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef) and function.name not in MAKERS:
                calls = (node.func for node in ast.walk(function) if isinstance(node, ast.Call))
                if any(getattr(call, "id", getattr(call, "attr", "")) in MAKERS for call in calls):
                    yield f"{path.relative_to(SOURCE).with_suffix('')}.{function.name}"


SCENES = {}


def scene(site):
    def keep(function):
        SCENES[site] = function
        return function

    return keep


def test_every_message_with_a_command_is_followed():
    assert set(sites()) == SCENES.keys()


def test_no_message_writes_a_command_by_hand():
    for path in SOURCE.rglob("*.py"):
        for text in re.findall(r"python -m finetune\.\w+ [^\"\n]*\{", path.read_text()):
            raise AssertionError(f"{path}: {text}: make it with common.commands.command")


def follow(told, command):
    """Run the first command in a message; it must succeed."""
    found = re.search(
        r"`?(finetune (\w+) [^`;\n]*?)(`|;|, start anew| samples from it| prepares it|$)", told, re.MULTILINE
    )
    assert found, told
    verb, *arguments = shlex.split(found[1])[1:]
    code, out, err = command(verb, *arguments)
    assert code == 0, f"{found[1]}: {err}"
    return out + err


@pytest.fixture
def run(tiny_run):
    return tiny_run("out 1", "--max_iters=4", "--eval_interval=2")


@scene("config/run_directory.how_to_go_on")
def test_a_directory_of_a_run(run, command):
    assert "this run is done" in follow(command("train", run)[2], command)


@scene("training/session._problem_of_new_run")
def test_a_run_that_is_there(run, command):
    follow(command("train", f"{run}/recipe.yaml")[2], command)


@scene("config/mirror._problem_there")
def test_a_run_that_is_at_its_address(tiny_run, command, tmp_path, monkeypatch):
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    address = f"file://{tmp_path}/remote/run"
    out_dir = tiny_run(address, "--max_iters=2")
    shutil.rmtree("cache")
    told = command("train", "--init_from=scratch", "--dataset=corpus.txt", "--tokenizer=char", f"--out_dir={out_dir}")[
        2
    ]
    assert "this run is done" in follow(told, command)


@scene("runs/uploads.finish")
def test_a_run_that_is_not_all_at_its_address(tiny_run, command, tmp_path, monkeypatch):
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    address = f"file://{tmp_path}/remote/run"
    tiny_run("out", "--max_iters=4")
    recipe, _ = parse(Recipe, ["out/recipe.yaml", f"--out_dir={address}"], "")

    def lose_the_disk(setup, state):
        while state.step == 3 and not Path("remote").is_file():
            shutil.rmtree("remote", ignore_errors=True)
            with contextlib.suppress(IsADirectoryError):  # an upload has made it again
                Path("remote").write_text("")

    with monkeypatch.context() as patch, pytest.raises(Failure, match="could not be sent") as problem:
        patch.setattr(uploads, "IDLE_SECONDS", 0.5)
        train_and_push(recipe, {}, Hooks(before_update=lose_the_disk))
    Path("remote").unlink()
    assert f"{address}: the run is there" in follow(str(problem.value), command)


@scene("training/session._why_done")
def test_a_run_that_patience_ended(tiny_run, command):
    out_dir = tiny_run("out", "--eval_interval=1", "--patience=2", "--learning_rate=0")
    out = command("train", f"{out_dir}/recipe.yaml", "--init_from=resume")[1]
    assert "patience=2 ended it after 2 of 10 updates" in out
    assert "iter 9" in follow(out[out.index("this run is done") :], command)


@scene("training/session._twice_as_long")
@pytest.mark.parametrize(
    "flags", [["--max_iters=2"], ["--epochs=0.02"], ["--max_iters=3", "--lr_decay_iters=3"], ["--max_iters=0"]]
)
def test_a_run_that_is_done(tiny_run, command, flags):
    out_dir = tiny_run("out", "--max_iters=3", *flags)
    made = record.load(out_dir).done
    out = command("train", f"{out_dir}/recipe.yaml", "--init_from=resume")[1]
    follow(out[out.index("this run is done") :], command)
    assert record.load(out_dir).done == max(2 * made, 1)
    out = command("train", f"{out_dir}/recipe.yaml", "--init_from=resume", "--max_iters=1", "--epochs=none")[1]
    if made:
        assert f"it has made {2 * made} updates, and 1 are asked for" in out
        follow(out[out.index("this run is done") :], command)
        assert record.load(out_dir).done == 4 * made


@scene("training/session._too_few_updates")
@pytest.mark.parametrize(
    "flags", [["--epochs=1", "--max_iters=5000"], ["--epochs=1", "--max_iters=40"], ["--epochs=0"]]
)
def test_epochs_that_are_few_updates(flags, tiny_run, command):
    tiny_run("out", "--eval_interval=500", "--batch_size=32", *flags)
    told = next(event["line"] for event in record.load("out").events if event.get("name") == "few_updates")
    follow(told, command)
    length = record.load("out").length
    assert 100 <= length < 300 and f" make {length}: " in told
    assert not any(event.get("name") == "few_updates" for event in record.load("out").events)


def test_updates_that_are_few_and_cannot_be_smaller(tiny_run, command, corpus):
    flags = [
        "--epochs=1",
        "--batch_size=1",
        "--gradient_accumulation_steps=1",
        "--max_iters=5000",
        "--eval_interval=500",
    ]
    tiny_run("out", *flags, text=corpus(words=240))
    told = next(event["line"] for event in record.load("out").events if event.get("name") == "few_updates")
    assert "more epochs make" in told and record.load("out").length < 100
    follow(told, command)
    assert 100 <= record.load("out").length < 200


@scene("training/trainer.run_updates")
def test_a_run_that_was_stopped(tiny, command):
    hooks = Hooks(before_update=lambda setup, state: state.step == 2 and os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Failure) as stopped:
        train(tiny("out"), hooks=hooks)
    assert "resuming out at iteration" in follow(str(stopped.value), command)


@scene("tools/report/remedies._train")
def test_a_checkpoint_that_is_missing_comes_back(run, command):
    shutil.rmtree(f"{run}/best")
    found = command("diagnose", f"--out_dir={run}")[1]
    assert "missing_checkpoint" in found
    follow(found, command)
    assert Path(run, "best/config.json").is_file()
    assert "missing_checkpoint" not in command("diagnose", f"--out_dir={run}")[1]


@scene("runs/checkpoints.way_without_states")
@pytest.mark.parametrize("best", ["whole", "damaged"])
@pytest.mark.parametrize("way", ["resume", "auto"])
def test_a_run_whose_states_are_all_damaged(run, command, way, best):
    """Refused, and nothing starts anew in silence: best/ goes on elsewhere, or the run is started again."""
    damaged = [*Path(run).glob("last/step-*/model.safetensors")]
    damaged += [Path(run, "best/config.json")] if best == "damaged" else []
    for path in damaged:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    before = sorted(Path(run).rglob("*"))
    code, _, told = command("train", f"{run}/recipe.yaml", f"--init_from={way}", f"--out_dir={run}/")
    assert code == 2 and told.count("model.safetensors is not what was written") == 2, told
    assert sorted(Path(run).rglob("*")) == before
    assert ("best/ is whole, with the weights of step" in told) == (best == "whole")
    follow(told, command)
    assert Path(f"{run}-2/best" if best == "whole" else f"{run}/best", "config.json").is_file()


@pytest.mark.parametrize("best", [True, False])
@pytest.mark.parametrize("way", ["resume", "auto", "gpt2"])
def test_a_run_whose_states_were_removed(run, command, way, best):
    for name in ("last",) if best else ("last", "best"):
        shutil.rmtree(f"{run}/{name}")
    before = sorted(Path(run).rglob("*"))
    shape = ["--n_layer=none", "--n_head=none", "--n_embd=none"] if way == "gpt2" else []
    code, _, told = command("train", f"{run}/recipe.yaml", f"--init_from={way}", *shape)
    assert code == 2 and "init_from=auto" not in told and sorted(Path(run).rglob("*")) == before, told
    follow(told, command)
    assert Path(f"{run}-2/best" if best else f"{run}/best", "config.json").is_file()


@scene("runs/datasets.find_datasets_of_run")
def test_a_run_whose_prepared_data_are_gone(run, command):
    shutil.rmtree("data")
    code, _, told = command("eval", run)
    assert code == 2 and not Path("data").exists(), told
    follow(told, command)
    assert command("eval", run)[0] == 0


@scene("tour._prepare")
@scene("tour.steps")
def test_the_tour():
    """Its commands are run in their order by tests/test_tour.py."""
    from test_tour import test_every_step_is_a_command_that_works as test

    assert "tour.steps()" in inspect.getsource(test)


@scene("tools/report/after_training._report")
def test_a_report_again(run, command):
    follow(f"finetune report '--out_dir={run}'", command)


@scene("tools/report/record._no_run")
def test_a_checkpoint_of_nanogpt(command):
    chars = "\n abcdefgh"
    config = GPTConfig(block_size=16, vocab_size=len(chars), n_layer=1, n_head=1, n_embd=8)
    weights = {f"transformer.{name}": tensor for name, tensor in GPT.from_scratch(config, 0).state_dict().items()}
    shape = {name: getattr(config, name) for name in ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")}
    Path("theirs").mkdir()
    torch.save({"model": weights, "model_args": {**shape, "bias": True, "dropout": 0.0}}, "theirs/ckpt.pt")
    coded = {"vocab_size": len(chars), "stoi": {c: i for i, c in enumerate(chars)}, "itos": dict(enumerate(chars))}
    Path("theirs/meta.pkl").write_bytes(pickle.dumps(coded))
    follow(command("report", "--out_dir=theirs")[2], command)  # with the characters of meta.pkl
    Path("t.txt").write_text("abc def\n" * 400)
    told = command("train", "--init_from=theirs/ckpt.pt", "--dataset=t.txt", "--tokenizer=gpt2", "--block_size=8")[2]
    if "not in tiktoken's cache" in told:
        pytest.skip("needs GPT-2's BPE")
    assert "holds ids of GPT-2 BPE" in told and "--tokenizer=gpt2" not in told


@scene("tools/doctor/report.report")
def test_what_the_doctor_fixes(command):
    line = "a line that is long enough to be taken for a passage of its own, and stands here twice\n"
    Path("texts").mkdir()
    for number in range(12):
        Path(f"texts/{number}.txt").write_text(line * 20 if number % 2 else f"{number} " + line * 20)
    follow(command("doctor", "texts")[1], command)


@scene("runs/datasets._with_way_out")
def test_a_table_that_has_to_be_prepared(command):
    rows = "".join(
        f"the {n}th thing that was asked for,what was said in reply {n},{n} and more of it here\n" for n in range(99)
    )
    Path("answers.csv").write_text("one,two,three\n" + rows)
    code, _, told = command("train", "--dataset=answers.csv", "--init_from=scratch", "--tokenizer=char")
    assert code == 2 and "`finetune prepare answers.csv --out_dir=data/answers`" in told, told
    follow(told.replace("answers`", "answers --text_column=two --tokenizer=char`"), command)
    assert datasets.find_prepared("answers")


@scene("runs/inputs.tokenizer_choice")
def test_a_text_for_a_model_of_the_hub():
    recipe = Recipe(init_from="someone/model", dataset="t.txt")
    with pytest.raises(UsageError, match="first run finetune prepare t.txt --tokenizer=someone/model$"):
        inputs.tokenizer_choice(recipe, shape_only=True)
    from finetune.prepare import USAGE, Options

    assert parse(Options, ["t.txt", "--tokenizer=someone/model"], USAGE)[0].sources == ["t.txt"]


@scene("tools/report/remedies.examine_data")
@scene("prepare.prepare_and_examine")
def test_the_data_of_a_run(run, command):
    found = record.load(run)
    follow(str(remedies.examine_data(found)), command)


def test_weights_that_were_never_trained(bpe_directory, hf_model, corpus, command):
    text = corpus()
    model = bpe_directory(Path(text).read_text(), name="fresh")
    hf_model(vocab_size=400, bos_token_id=0, eos_token_id=0).save_pretrained(model)
    sizes = "--max_iters=1 --batch_size=1 --gradient_accumulation_steps=1 --device=cpu".split()
    code, told, error = command("train", text, f"--init_from={model}", "--out_dir=out", *sizes)
    assert code == 0 and "or its weights are not trained" in told, error
    (finding,) = diagnosis.diagnose(record.load("out"))
    assert finding.label == "gibberish" and finding.advice == f"see whether {model} holds trained weights"
    assert finding.command is None, "the text was prepared with the model's tokenizer"


@scene("data/token_folders.known_tokenizer")
def test_tokens_of_an_unknown_tokenizer(bpe_directory, command):
    bpe_directory("some words", name="DIR")
    Path("tokens").mkdir()
    np.arange(40, dtype="<u2").tofile("tokens/a.ds")
    np.arange(2, 42, 2, dtype="<u8").tofile("tokens/a.ds.index")
    told = command("train", "--init_from=scratch", "--dataset=tokens", "--out_dir=out")[2]
    assert "20 documents" in follow(told, command) and Path("data/tokens/train.bin").is_file()


@scene("train._export_and_push")
@scene("export.export_and_push")
def test_an_export_by_hand(tiny_run, command):
    from finetune.export import USAGE, Options

    tiny_run("out", "--max_iters=1")
    told = command("train", "out/recipe.yaml", "--init_from=resume", "--max_iters=2", "--push_to_hub=me/it")[1]
    words = shlex.split(re.search(r"by hand: finetune export (.*)", told)[1])
    assert parse(Options, words, USAGE)[0].push_to_hub == "me/it"


@scene("publishing/space.check")
def test_a_space_without_a_report(tiny_run, command):
    tiny_run("out 1", "--max_iters=1")
    Path("out 1/report.html").unlink()
    follow(command("export", "--out_dir=out 1", "--to=mine", "--space=me/it")[2], command)
    assert Path("out 1/report.html").is_file()


@scene("tools/report/html_report.write")
def test_the_commands_of_a_report(tiny_run, command):
    tiny_run("my runs/out", "--max_iters=1")
    told = html.unescape(Path("my runs/out/report.html").read_text())
    sample = re.search(r"<pre>finetune sample (.*)</pre>", told)[1]
    assert command("sample", *shlex.split(sample), "--max_new_tokens=2")[0] == 0
    resume = re.search(r"<pre>finetune train (.*)</pre>", told)[1]
    assert "it has made its 1 updates" in command("train", *shlex.split(resume))[1]


@scene("publishing/model.push_to_hub")
def test_a_push_of_a_model_that_is_typed_again(tiny_run, monkeypatch):
    from finetune.export import USAGE, Options

    tiny_run("out", "--max_iters=1")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(Path("none").resolve()))
    with pytest.raises(Failure) as failed:
        finetune.GPT.from_pretrained("out/best").push_to_hub("me/it")
    words = shlex.split(re.search(r"finetune export ([^`;\n]*)", str(failed.value))[1])
    options = parse(Options, words, USAGE)[0]
    assert options.push_to_hub == "me/it" and Path(options.init_from, "model.safetensors").is_file()


@scene("tools/plan/suggest.recipe")
def test_a_suggested_recipe_trains(tiny_run, command, monkeypatch):
    tiny_run("base", "--max_iters=1")
    Path("here").mkdir()
    monkeypatch.chdir("here")
    flags = ["--init_from=../base/best", "--dataset=../corpus.txt", "--tokenizer=char", "--val_fraction=0.2"]
    code, _, err = command("plan", *flags, "--suggest=true", "--to=mine.yaml", "--quick=true", "--block_size=16")
    assert code == 0, err
    parse(Recipe, ["mine.yaml"], "")
    Path("mine.yaml").write_text("init_from: ../base/best\ndataset: ../corpus.txt\n")
    with pytest.raises(UsageError, match="must not reach above"):
        parse(Recipe, ["mine.yaml"], "")
    parse(Recipe, ["mine.yaml", *flags], "")  # as the message says


def test_a_name_that_is_nearly_that_of_a_model(command):
    assert "Did you mean gpt2?" in command("sample", "--init_from=gtp2")[2]
    assert "Did you mean gpt2-xl?" in command("train", "--init_from=gpt2-lx", "--dataset=python_docs")[2]
    for typed, meant in {"scrach": "scratch", "Resume": "resume", "AUTO": "auto"}.items():
        told = command("train", f"--init_from={typed}", "--dataset=python_docs")[2]
        assert told == f"--init_from: there is no {typed}. Did you mean {meant}?\n"


def test_bins_never_go_into_a_folder_of_texts(command):
    Path("writing").mkdir()
    Path("writing/cover.png").write_bytes(b"\x89PNG")
    told = command("train", "--dataset=writing")[2]
    assert "--out_dir=writing" not in told and "writing" in told


@pytest.mark.parametrize("word", ["it's", "a b", "x\x1b[31my'\\é", "one\ntwo\t\u2028", "\x7f\x01$(true)`true`"])
def test_a_word_of_a_command_is_printable_and_the_shell_reads_it_back(word):
    shown = join([word])
    assert shown.isprintable()
    found = subprocess.run(["bash", "-c", f"printf %s {shown}"], capture_output=True, check=True).stdout
    assert found.decode() == word
