"""The Python face: functions with the flags as keywords, that leave the process as it was."""

import contextlib
import copy
import doctest
import importlib
import inspect
import io
import json
import logging
import math
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import forked
import matplotlib
import numpy as np
import pytest
import torch
from ports import free_port

import finetune
from finetune import GPT, Callback, Failure, GPTConfig, Run, UsageError, evaluate, export, plan, prepare, sample, train
from finetune.config.recipe import Recipe
from finetune.keywords import arguments
from finetune.prepare import Options as PrepareOptions
from finetune.runs.logger import RunLogger
from finetune.sample import Options as SampleOptions

FUNCTIONS = (prepare, train, sample, evaluate, export, plan)
TINY = {
    "init_from": "scratch",
    "tokenizer": "char",
    "n_layer": 1,
    "n_head": 2,
    "n_embd": 16,
    "block_size": 16,
    "batch_size": 2,
    "gradient_accumulation_steps": 1,
    "max_iters": 6,
    "learning_rate": 1e-2,
    "log_interval": 1,
    "eval_interval": 3,
    "dtype": "float32",
    "device": "cpu",
}


@pytest.fixture
def notes(tmp_path):
    lines = [f"The {one} of A {two} is {one} {two}.\n" for one in ("Fox", "sea", "ink") for two in ("hill", "mouse")]
    (tmp_path / "notes.txt").write_text("".join(lines * 20))
    return "notes.txt"


def run_python(code, *paths):
    """The output of a fresh interpreter."""
    environment = {**os.environ, "PYTHONPATH": str(Path(finetune.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_dir_names_everything_and_import_is_light():
    assert set(finetune.__all__) <= set(dir(finetune))
    code = """
import sys
import finetune
assert "torch" not in sys.modules and "numpy" not in sys.modules
finetune.train, finetune.plan, finetune.prepare, finetune.Callback, finetune.UsageError
assert "torch" not in sys.modules
"""
    run_python(code)


@pytest.mark.heavy
def test_a_run_on_a_cpu_imports_no_compiler(data):
    code = """
import sys
from finetune import train
shape = dict(n_layer=1, n_head=1, n_embd=8, block_size=8, batch_size=1, gradient_accumulation_steps=1, max_iters=2)
train(init_from="scratch", dataset=sys.argv[1], out_dir="run", device="cpu", cpu_threads=1, eval_iters=1, **shape)
slow = {"torch._dynamo", "torch.distributed.tensor", "transformers", "wandb", "evaluate", "peft", "scipy"}
assert not slow & set(sys.modules), slow & set(sys.modules)
"""
    run_python(code, data)


def test_functions_stay_functions_whoever_imports_the_modules_first():
    """The submodules have the same names."""
    after = """
import importlib, inspect, finetune
names = ("prepare", "train", "sample", "export", "plan")
modules = [importlib.import_module(f"finetune.{name}") for name in names]
assert all(inspect.ismodule(module) and callable(module.main) for module in modules)
import finetune.train
from finetune.train import main
from finetune import train, plan
assert main is modules[1].main
assert inspect.isfunction(train) and train is finetune.train and inspect.isfunction(plan)
assert all(inspect.isfunction(getattr(finetune, name)) for name in names)
"""
    before = "from finetune import prepare, train, sample, export, plan\n"
    run_python(after)
    run_python(before + after)


def test_signatures_and_help_show_the_flags():
    for function in FUNCTIONS:
        assert "Raises UsageError" in function.__doc__ and ">>>" in function.__doc__
    shown = inspect.signature(train).parameters
    assert shown["learning_rate"].default == 3e-5 and shown["learning_rate"].kind is inspect.Parameter.KEYWORD_ONLY
    assert list(shown)[:2] == ["recipes", "callbacks"]
    assert set(shown) == {"recipes", "callbacks", *Recipe.__dataclass_fields__}
    assert "learning_rate: peak learning rate [3e-05]" in train.__doc__


def test_the_stub_is_that_of_the_code(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(finetune.__file__).parents[1] / "scripts"))
    reference = importlib.import_module("reference")
    assert reference.FLAGS.read_text(encoding="utf-8") == reference.flags(), "run python scripts/reference.py"


@pytest.mark.parametrize(
    "value, text",
    [(3e-5, "3e-05"), (np.float32(0.5), "0.5"), (torch.tensor(0.25), "0.25"), (1 / 3, "0.3333333333333333")],
)
def test_numbers_become_text_without_loss(value, text):
    assert arguments(Recipe, [], {"learning_rate": value}) == [f"--learning_rate={text}"]


def test_values_become_text():
    given = {
        "dataset": [Path("a"), "b"],
        "dataset_weights": (0.7, 0.3),
        "decay_lr": False,
        "compile": True,
        "epochs": None,
        "start": "a=b, --c\n",
        "max_iters": np.int64(7),
    }
    assert arguments(Recipe, [Path("r.yaml")], given) == [
        "--dataset=a,b",
        "--dataset_weights=0.7,0.3",
        "--decay_lr=false",
        "--compile=true",
        "--epochs=none",
        "--start=a=b, --c\n",
        "--max_iters=7",
        "--",
        "r.yaml",
    ]


@pytest.mark.parametrize(
    "cls, positional, keywords, key",
    [
        (Recipe, [], {"dataset": None}, "dataset: expected text, got None"),
        (Recipe, [], {"dataset": ["a,b", "c"]}, "dataset: 'a,b' cannot be one of several"),
        (Recipe, [], {"out_dir": True}, "out_dir: expected text, got True"),
        (Recipe, [], {"learning_rate": [1e-3, 2e-3]}, "learning_rate: expected a number, got [0.001, 0.002]"),
        (Recipe, [], {"learning_rate": np.array([1.0, 2.0])}, "learning_rate: expected a number"),
        (Recipe, [], {"start": ["a", "b"]}, "start: expected text"),
        (Recipe, [], {"seed": {}}, "seed: expected a whole number, got {}"),
        (Recipe, [{"max_iters": 3}], {}, "flags are keywords"),
        (Recipe, ["--help"], {}, "'--help': is no file or name"),
        (PrepareOptions, [["a.txt"]], {}, "['a.txt']: is no file or name"),
        (SampleOptions, [], {"out_dir": object}, "out_dir: expected text"),
    ],
)
def test_what_no_flag_can_say_is_refused(cls, positional, keywords, key):
    with pytest.raises(UsageError) as error:
        arguments(cls, positional, keywords)
    assert key in str(error.value) and "\n" not in str(error.value)


def test_errors_are_one_short_exception_and_write_nothing(notes):
    before = sorted(Path().iterdir())
    for keywords in ({"learning_rat": 1}, {"max_iters": "many"}, {"seed": True}, {"n_layer": -1}, {"eval_only": True}):
        with pytest.raises(UsageError) as error:
            train(**{"dataset": notes, **TINY, **keywords})
        assert next(iter(keywords)) in str(error.value)
        assert error.value.__cause__ is None and error.value.__suppress_context__
        assert error.traceback[-1].path.name == "keywords.py"
    with pytest.raises(UsageError, match="init_from: given twice"):
        sample("gpt2", init_from="gpt2")
    with pytest.raises(UsageError, match="no-such"):
        evaluate("./no-such", dataset=notes)
    with pytest.raises(UsageError, match="holds no run"):
        Run.open("no-such")
    assert sorted(Path().iterdir()) == before


class DataFrame:
    """Prints many lines, as that of pandas."""

    def __init__(self, method):
        setattr(self, method, print)

    def __repr__(self):
        return "text\n" * 50


@pytest.mark.parametrize("method", ["to_json", "save_to_disk", "save_pretrained", "write_ndjson"])
def test_objects_in_the_place_of_files_are_refused_with_their_way_into_one(method, notes):
    value = DataFrame(method)
    for call in (
        lambda: prepare(value),
        lambda: prepare(notes, val=value),
        lambda: prepare(notes, val=[value]),
        lambda: train(value),
        lambda: train(dataset=value),
        lambda: train(init_from=value),
        lambda: plan(value),
        lambda: sample(value),
        lambda: evaluate(value),
        lambda: export(value, to="x"),
        lambda: Run.open(value),
        lambda: GPT.from_pretrained(value),
    ):
        with pytest.raises(UsageError, match=f'a DataFrame.*; {method}.*writes it, then give "mine') as error:
            call()
        assert len(str(error.value)) < 150


@pytest.mark.parametrize("value", [5, b"out", ["out"], {"a": 1}, object(), None])
def test_what_is_no_path_is_a_usage_error(value, notes):
    model = GPT.from_scratch(GPTConfig(vocab_size=8, block_size=4, n_layer=1, n_head=1, n_embd=4))
    calls = [Run, Run.open, GPT.from_pretrained, model.save_pretrained, model.push_to_hub]
    for call in calls + ([sample, evaluate, export] if value is not None else []):
        with pytest.raises(UsageError, match="expected a path or a name, got ") as error:
            call(value)
        assert len(str(error.value)) < 100


def test_lists_texts_and_models_say_how_they_are_given(notes):
    train(dataset=notes, out_dir="out", **TINY)
    with Path(notes).open() as file:
        pass
    for call, told in (
        (lambda: prepare([notes, notes]), "before it to give each by itself"),
        (lambda: prepare(Path().glob("*.txt")), "before it to give each by itself"),
        (lambda: prepare(*Path().glob("*.txt"), start="a"), "unknown keyword start"),
        (lambda: prepare(file), f"; give its name, '{notes}'"),
        (lambda: prepare(io.StringIO("a")), "write what it holds into a file first"),
        (lambda: sample("out", ["The ", "A "]), "before it to give each by itself"),
        (lambda: prepare([{"text": "a"}]), "write rows as JSON lines into a file"),
        (lambda: prepare("Once upon\na time" * 20), "'Once upon.*no file or name; write a text into a file first"),
        (lambda: train(dataset=notes, callbacks=DataFrame("x")), "callbacks: a DataFrame is no list"),
        (lambda: train(dataset=notes, callbacks=[DataFrame("x")]), "callbacks: a DataFrame is not an object with"),
    ):
        with pytest.raises(UsageError, match=told) as error:
            call()
        assert "\n" not in str(error.value) and len(str(error.value)) < 170
    model = GPT.from_scratch(GPTConfig(vocab_size=8, block_size=4, n_layer=1, n_head=1, n_embd=4))
    model.source = Path("out")
    with pytest.raises(UsageError, match="got a GPT; it is from 'out', which can be given"):
        sample(model, "a")


def test_messages_name_keywords_and_keep_commands(notes):
    prepare(notes, out_dir="data", tokenizer="char", doctor=False)
    with pytest.raises(UsageError, match="on these ids with init_from='scratch'"):
        plan(dataset="data", quick=True)
    for keywords, told in (
        ({"seed": -1}, "seed: must be at least 0"),
        ({"learning_rat": 1}, "unknown keyword learning_rat. Did you mean 'learning_rate'?"),
        ({"bf16": True}, """unknown keyword bf16. Did you mean 'dtype="bfloat16"'?"""),
        ({"bf16": False}, "unknown keyword bf16. Did you mean 'dtype'?"),
        ({"resume_from_checkpoint": True}, """Did you mean 'init_from="resume"'?"""),
        ({"zzz": 1}, "unknown keyword zzz. help(train) lists them all."),
        ({"num_processes": 2}, "num_processes: is for the command; accelerate.notebook_launcher starts several"),
        ({"launch": "fsdp2"}, "launch: is for the command; accelerate.notebook_launcher starts several processes"),
        ({"dry_run": True}, "dry_run: is for the command; plan says what a run takes"),
        ({"json": True}, "json: is for the command; the function returns the figures"),
        ({"dataset": ""}, "dataset: nothing to train on; give dataset=DIR, a text file, or dataset='python_docs'"),
        ({"sample_interval": 1}, "sample_interval: has no effect without num_samples; add num_samples=1"),
    ):
        with pytest.raises(UsageError) as error:
            train(**{"dataset": notes, **TINY, **keywords})
        assert told in str(error.value) and "--" not in str(error.value)
    Path("out").mkdir()
    Path("out/best").mkdir()
    with pytest.raises(UsageError, match="overwrite=True starts anew, or choose another out_dir") as error:
        train(**{"dataset": notes, **TINY, "out_dir": "out"})
    assert "--" not in str(error.value)
    train(**{"dataset": notes, **TINY, "out_dir": "run"})
    with pytest.raises(UsageError, match="go on: finetune train .*--init_from=resume, start anew with overwrite=True"):
        train(**{"dataset": notes, **TINY, "out_dir": "run"})


def test_a_notebook_shows_the_message_alone():
    assert UsageError("one line")._render_traceback_() == ["UsageError: one line"]
    assert Failure("one line", 1)._render_traceback_() == ["Failure: one line"]


def exceptions():
    """Every class of an exception in the package."""
    package = Path(finetune.__file__).parent
    for path in package.rglob("*.py"):
        text = path.read_text()
        parts = path.relative_to(package).with_suffix("").parts
        for name in re.findall(r"^class (\w+)\(.*(?:Exception|Error|_Shown)\):", text, re.MULTILINE):
            yield getattr(importlib.import_module(".".join(["finetune", *parts])), name)


def test_exceptions_go_through_a_pool_of_processes():
    found = list(exceptions())
    assert {UsageError, Failure} < set(found) and len(found) > 8
    for kind in found:
        error = kind("one line", *([3] if kind is Failure else []))
        error.alone = True
        for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
            assert type(again) is kind and str(again) == "one line" and again.__dict__ == error.__dict__


def test_the_examples_of_the_docstrings_run(notes):
    for function in (prepare, plan, train, evaluate, sample, export):
        names = {one.__name__: one for one in FUNCTIONS}
        for example in doctest.DocTestParser().get_examples(function.__doc__):
            if example.want:
                assert repr(eval(example.source, names)) == example.want.strip(), example.source
            else:
                exec(example.source, names)


def test_a_run_from_python_is_that_of_the_command(notes, command):
    run = train(dataset=notes, out_dir="here", **TINY)
    flags = [f"--{key}={value}" for key, value in TINY.items()]
    assert command("train", *flags, f"--dataset={notes}", "--out_dir=there")[0] == 0
    assert run.history == Run.open("there").history and len(run.history) == 3
    assert [row["loss"] for row in run.updates] == [row["loss"] for row in Run.open("there").updates]
    assert run.status == "finished" and run.best == Path("here/best") and (run.best / "model.safetensors").is_file()
    assert run.val_loss == min(row["val_loss"] for row in run.history)
    assert f"{run.val_loss:.4f}" in repr(run) and "<img" in run._repr_html_()
    assert run.history.to_pandas().shape == (3, 3)
    text = run.sample("The ", num_samples=1, max_new_tokens=5)[0]
    code, out, _ = command("sample", "--out_dir=here", "--start=The ", "--num_samples=1", "--max_new_tokens=5")
    assert code == 0 and text in out and text.startswith("The ")
    with pytest.raises(UsageError, match="holds a run already"):
        train(dataset=notes, out_dir="here", **TINY)


class Stop(Callback):
    def __init__(self, step):
        self.step, self.seen, self.saved = step, [], []

    def on_update(self, update):
        self.seen.append((update.step, update.loss))
        return update.step == self.step

    def on_evaluation(self, evaluation):
        self.seen.append(("eval", evaluation.step, evaluation.val_loss, evaluation.best))

    def on_save(self, save):
        self.saved.append(save.path)


def test_a_float16_run_keeps_the_state_of_its_scaler(notes):
    train(dataset=notes, out_dir="out", **TINY | {"dtype": "float16"})
    (state,) = Path("out/last").glob("step-00000006/state.json")
    assert json.loads(state.read_text())["scaler"]["scale"] > 0


LOST = {
    "moved": lambda: shutil.move("out", "elsewhere"),
    "deleted": lambda: shutil.rmtree("out"),
    "unlocked": lambda: Path("out/.lock").unlink(),
    "replaced": lambda: shutil.copytree(shutil.move("out", "elsewhere"), "out"),
}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows moves no directory with open files")
@pytest.mark.parametrize("how", LOST)
def test_an_out_dir_that_is_lost_ends_the_run(notes, how):
    """Its next save made another directory, with half a run in it, and the run ended as if it had all been written."""

    class Lose:
        def on_update(self, update):
            if update.step == 4:
                LOST[how]()

    with pytest.raises(Failure, match="out_dir out: was moved or deleted, or taken by another run"):
        train(dataset=notes, out_dir="out", callbacks=[Lose()], **TINY)
    assert Path("out").exists() == (how in ("unlocked", "replaced"))
    if how in ("moved", "replaced"):
        run = train("elsewhere/recipe.yaml", init_from="resume", out_dir="elsewhere")
        assert run.status == "finished" and run.updates[-1]["iter"] + 1 == TINY["max_iters"]


def test_a_callback_sees_the_run_and_stops_it(notes):
    whole = train(dataset=notes, out_dir="whole", **TINY)
    stop = Stop(3)
    run = train(dataset=notes, out_dir="out", callbacks=[stop], **TINY)
    assert run.status == "stopped"
    updates = [(row["iter"] + 1, row["loss"]) for row in whole.updates]
    assert [seen for seen in stop.seen if seen[0] != "eval"] == updates[:4]  # one more after the one that asks
    evaluations = [("eval", row["step"], row["val_loss"]) for row in whole.history]
    assert [seen[:3] for seen in stop.seen if seen[0] == "eval"] == evaluations[:2]
    assert {run.best, run.out_dir / "last" / "step-00000004"} <= set(stop.saved)
    resumed = run.resume()
    assert resumed.status == "finished" and resumed.history == whole.history
    longer = resumed.resume(max_iters=8)
    assert longer.history[-1]["step"] == 8
    with pytest.raises(UsageError, match="seed"):
        longer.resume(seed=1)


def test_a_callback_that_raises_ends_the_run_with_a_saved_state(notes):
    class Broken(Callback):
        def on_evaluation(self, evaluation):
            if evaluation.step == 3:
                raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        train(dataset=notes, out_dir="out", callbacks=[Broken()], **TINY)
    run = Run.open("out")
    assert run.status == "stopped" and run.resume().status == "finished"


def test_an_answer_that_means_nothing_is_an_error(notes):
    class Vague(Callback):
        def on_update(self, update):
            return update.loss

    with pytest.raises(TypeError, match="True asks for a stop"):
        train(dataset=notes, out_dir="out", callbacks=[Vague()], **TINY)


def test_what_is_no_callback_is_refused(notes):
    class Misspelled(Callback):
        def on_updates(self, update): ...

    for wrong in (Callback, print, Misspelled()):
        with pytest.raises(UsageError, match="callbacks"):
            train(dataset=notes, callbacks=[wrong], **TINY)


def test_the_stop_button_returns_the_run(notes):
    class Press(Callback):
        def on_update(self, update):
            if update.step == 2:
                os.kill(os.getpid(), signal.SIGINT)  # what a kernel gets

    run = train(dataset=notes, out_dir="out", callbacks=[Press()], **TINY)
    assert run.status == "stopped" and 2 <= run.updates[-1]["iter"] + 1 <= 4
    assert run.resume().history[-1]["step"] == 6


@pytest.mark.parametrize("saved", [False, True])
def test_a_second_press_says_whether_there_is_a_state(saved, notes, capsys):
    class Press(Callback):
        def on_update(self, update):
            if update.step == 4:
                raise KeyboardInterrupt

    keywords = {**TINY, "save_interval": 2 if saved else 5}
    run = train(dataset=notes, out_dir="out", callbacks=[Press()], **keywords)
    assert run.status == "stopped" and bool(list(Path("out").glob("last/step-*"))) == saved
    line = capsys.readouterr().out.splitlines()[-1]
    if saved:
        assert line == "stopped; resume() goes on from the state in out/last"
        assert run.resume().status == "finished"
    else:
        assert line == "stopped before a checkpoint was saved; the same call with overwrite='unfinished' starts again"
        assert train(dataset=notes, out_dir="out", overwrite="unfinished", **keywords).status == "finished"


def snapshot():
    """What belongs to the whole process."""
    from accelerate.state import AcceleratorState, GradientState, PartialState
    from huggingface_hub.utils import are_progress_bars_disabled
    from transformers.utils import logging as transformers_logging

    numbers = np.random.get_state()
    return {
        "backend": matplotlib.rcParams["backend"],
        "rc": dict(matplotlib.rcParams),
        "figures": matplotlib.pyplot.get_fignums(),
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "filled": torch.utils.deterministic.fill_uninitialized_memory,
        "benchmark": torch.backends.cudnn.benchmark,
        "grad": torch.is_grad_enabled(),
        "torch random": torch.get_rng_state().tolist(),
        "numpy random": (numbers[1].tolist(), numbers[2:]),
        "random": random.getstate(),
        "environment": dict(os.environ),
        "directory": os.getcwd(),
        "filters": warnings.filters[:],
        "handlers": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)],
        "root": (logging.root.level, logging.root.handlers[:]),
        "levels": {name: logging.getLogger(name).level for name in ("transformers", "huggingface_hub", "datasets")},
        "accelerate": [dict(kind._shared_state) for kind in (AcceleratorState, GradientState, PartialState)],
        "streams": (sys.stdout, sys.stderr, sys.excepthook),
        "bars": (are_progress_bars_disabled(), transformers_logging.is_progress_bar_enabled()),
        "threads alive": threading.active_count(),
    }


def test_nothing_of_the_process_is_changed(notes, monkeypatch):
    from accelerate import Accelerator
    from matplotlib import pyplot

    pyplot.switch_backend("svg")
    figure = pyplot.figure()
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    mine = Accelerator(cpu=True, mixed_precision="bf16")
    try:
        train(dataset=notes, out_dir="first", **TINY)  # libraries that are imported first register themselves
        before = snapshot()
        train(dataset=notes, out_dir="out", deterministic=True, cpu_threads=1, num_samples=1, **TINY)
        sample("out", num_samples=1, max_new_tokens=3)
        evaluate("out")
        export("out", to="exported")
        prepare(notes, out_dir="data", tokenizer="char")
        plan(dataset="data", quick=True, **{**TINY, "tokenizer": "auto"})
        with pytest.raises(UsageError):
            train(dataset="no-such", **TINY)
        after = snapshot()
        assert {key: after[key] for key in after if after[key] != before[key]} == {}
        assert mine.mixed_precision == "bf16" and pyplot.fignum_exists(figure.number)
    finally:
        torch.set_num_threads(threads)
        pyplot.close(figure)
        pyplot.switch_backend("agg")


class Copy:
    """What people put in the place of a stream to keep a copy of it."""

    def __init__(self, path):
        self.path = Path(path)

    def write(self, text):
        with self.path.open("a") as file:
            file.write(text)

    def flush(self): ...


def test_streams_that_are_none_or_only_write(notes, monkeypatch):
    """None is in their place in a program without a console."""
    for stream in (Copy("copy.txt"), None):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stream)
            patch.setattr(sys, "stderr", stream)
            prepare(notes, out_dir="data", tokenizer="char", overwrite=True)
            drawn = {"tokenizer": "auto", "num_samples": 1, "max_new_tokens": 2}
            run = train(dataset="data", out_dir="out", overwrite=True, **{**TINY, **drawn})
            texts = run.sample("The ", num_samples=1, max_new_tokens=2)
            loss = evaluate(run)["loss"]
            assert plan(dataset=notes, quick=True, **TINY)["fits"]
        assert run.status == "finished" and loss > 0 and len(texts) == 1
    lines = Path("copy.txt").read_text()
    assert "best val loss" in lines and "\r" not in lines and lines.count("---------------") == 2  # around a sample


def test_a_run_stays_the_same_in_another_directory(notes, monkeypatch):
    run = train(dataset=notes, out_dir="out", **TINY)
    shown, history = repr(run), run.history
    assert run.out_dir == Path("out")
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert run.history == history and run.status == "finished" and run.best.is_dir()
    assert pickle.loads(pickle.dumps(run)).val_loss == run.val_loss
    assert len(run.sample("The ", num_samples=1, max_new_tokens=2)) == 1
    monkeypatch.chdir("..")
    assert repr(run) == shown


@contextlib.contextmanager
def as_default(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def precision_by_backend(backend, precision=None):
    """What torch 2.9 recommends in place of set_float32_matmul_precision, which then cannot be read any more."""
    before = backend.fp32_precision
    backend.fp32_precision = precision or ("tf32" if backend is torch.backends.cuda.matmul else "bf16")
    try:
        yield
    finally:
        backend.fp32_precision = before


def test_the_modes_of_torch_around_a_call_change_no_figure(notes):
    places = (torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None))
    products = [place for place in places if hasattr(place, "fp32_precision")]  # from torch 2.9

    def figures(out_dir):
        run = train(dataset=notes, out_dir=out_dir, **TINY)
        texts = sample(run, "The ", num_samples=2, max_new_tokens=8)
        return run.history, evaluate(run)["loss"], texts, export(run, to="exported").name

    def modes():
        precisions = [place.fp32_precision for place in products]
        device, dtype = torch.get_default_device(), torch.get_default_dtype()
        return torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"), device, dtype, precisions

    expected = figures("out")
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode())  # and so without gradients
        stack.enter_context(torch.autocast("cpu", dtype=torch.bfloat16))
        stack.enter_context(torch.device("meta"))
        stack.enter_context(as_default(torch.bfloat16))
        for place in products:
            stack.enter_context(precision_by_backend(place))
        before = modes()
        assert figures("other") == expected
        assert modes() == before


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="from torch 2.9")
def test_the_precision_of_all_products_still_counts_after_a_call(notes):
    """What the user sets for all backends decides about each, unless that has its own."""
    matmul = torch.backends.cuda.matmul
    for precision in ("tf32", "ieee"):
        with precision_by_backend(matmul, "none"), precision_by_backend(torch.backends, precision):
            prepare(notes, out_dir="data", tokenizer="char", overwrite=True, doctor=False)
            torch.backends.fp32_precision = other = "ieee" if precision == "tf32" else "tf32"
            assert matmul.fp32_precision == other


def test_it_works_in_a_thread(notes):
    runs = []
    thread = threading.Thread(target=lambda: runs.append(train(dataset=notes, out_dir="out", **TINY)))
    thread.start()
    thread.join()
    assert runs[0].status == "finished"


@pytest.mark.heavy
def test_it_works_under_notebook_launcher(notes, tmp_path):
    """Two processes on the CPU, twice in each; the losses are those of one process."""
    code = """
import sys
from accelerate import notebook_launcher

def work(notes, values):
    from finetune import train
    for name in ("one", "two"):
        run = train(dataset=notes, out_dir=name, cpu_threads=1, **values)
        assert run.status == "finished"

values = VALUES
notebook_launcher(work, (sys.argv[1], values), num_processes=2, use_port="PORT")
"""
    values = {**TINY, "gradient_accumulation_steps": 2}
    Path("launch.py").write_text(code.replace("VALUES", repr(values)).replace("PORT", str(free_port())))
    done = forked.run("launch.py", notes)
    assert done.returncode == 0, done.stderr
    alone = train(dataset=notes, out_dir="alone", **values)
    for name in ("one", "two"):
        losses = [row["val_loss"] for row in Run.open(name).history]
        assert losses == pytest.approx([row["val_loss"] for row in alone.history], rel=1e-5)


def test_prepare_returns_what_it_wrote(notes):
    data = prepare(notes, out_dir="data/notes", tokenizer="char", doctor=False)
    assert data.directory == Path("data/notes") and (data.directory / "train.bin").is_file()
    assert data.splits["train"]["tokens"] == (data.directory / "train.bin").stat().st_size // 2
    assert prepare(notes, out_dir="other", tokenizer="char", dry_run=True).splits == {} and not Path("other").exists()
    assert train(dataset=data, out_dir="out", **{**TINY, "tokenizer": "auto"}).status == "finished"


def test_sample_refuses_what_cannot_go_together(notes):
    train(dataset=notes, out_dir="out", **TINY)
    for prompts, flags in (([""], {}), (["a"], {"start": "b"}), ([5], {}), ([], {"chat": True})):
        with pytest.raises(UsageError):
            sample("out", *prompts, **flags)
    assert sample("out", "FILE:x"[0], num_samples=1, max_new_tokens=2, temperature=0) == sample(
        "out", start="F", num_samples=1, max_new_tokens=2, temperature=0
    )


def test_a_model_knows_its_tokenizer(notes, tmp_path, monkeypatch):
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    run = train(dataset=notes, out_dir="out", **TINY)
    model = GPT.from_pretrained(run.best)
    ids = model.tokenizer.encode("The")
    assert model.tokenizer.decode(ids) == "The"
    relative, fetched = GPT.from_pretrained("out"), GPT.from_pretrained((tmp_path / "out").as_uri())
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    for other in (relative, fetched):
        assert other.tokenizer.encode("The").tolist() == ids.tolist()
    with pytest.raises(UsageError, match="no tokenizer"):
        _ = GPT.from_scratch(model.config).tokenizer
    with pytest.raises(UsageError, match="USER/NAME"):
        model.push_to_hub("no slash")


def test_a_run_with_losses_that_are_not_finite_can_be_shown(tmp_path):
    logger = RunLogger(tmp_path, write=True)
    logger.open(1)
    for step, loss in enumerate((3.0, math.nan, 2.5)):
        logger.record("eval", step=step, train_loss=loss, val_loss=loss, val_losses={"a": loss})
    logger.close()
    run = Run.open(tmp_path)
    assert run.val_loss == 2.5 and "2.5000" in repr(run) and "<img" in run._repr_html_()
    lines = run.show().axes[0].get_lines()
    assert lines[1].get_ydata()[0] == 3.0 and math.isnan(lines[1].get_ydata()[1])


def test_a_model_without_a_tokenizer_can_be_asked_for_one():
    """As `hasattr` and inspect do, which take an AttributeError alone for an answer."""
    model = GPT(GPTConfig(block_size=8, vocab_size=11, n_layer=1, n_head=1, n_embd=8)).eval()
    assert not hasattr(model, "tokenizer") and not hasattr(model, "nothing")
    assert "tokenizer" not in dict(inspect.getmembers(model))
    with pytest.raises(UsageError, match="has no tokenizer; set model.tokenizer"):
        _ = model.tokenizer
