"""The report: one well-formed file with the figures of the run; runs side by side; the live line on a terminal."""

import io
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from test_diagnose import LEARNS, synthesised

from finetune.run import Run
from finetune.runs import checkpoints
from finetune.runs.events import read_metrics
from finetune.runs.logger import RunLogger
from finetune.tools.report import diagnosis, html_report, record, svg_chart

EVIL = "<script>alert(1)</script><img src=http://evil.example/x onerror=alert(1)>\x00\x1b[31m\ud800 & ‮"
VOID = {"meta"}


class Reader(HTMLParser):
    """Reads a page strictly: every tag that opens is closed, in order."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.words, self.faults = [], [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> at {self.getpos()}")

    def handle_data(self, words):
        if not self.open or self.open[-1] != "style":
            self.words.append(words)


def read(path):
    text = Path(path).read_text(encoding="utf-8")
    reader = Reader(text)
    assert not reader.faults and not reader.open
    assert not {"script", "link", "iframe", "object", "base"} & set(reader.tags)
    assert not [
        name
        for name, _ in reader.attributes
        if name in ("src", "href", "srcset", "data", "action", "xlink:href") or name.startswith("on")
    ]
    assert "url(" not in text and "@import" not in text
    return text, " ".join(" ".join(reader.words).split())


def eventful(out_dir="out"):
    """A run with every kind of event, some with hostile text."""
    events = [
        {"event": "rollback", "step": 50, "reached": 70, "lr_scale": 0.5, "problem": EVIL},
        {
            "event": "out_of_memory",
            "step": 100,
            "done": "batch_size 8 -> 4",
            "batch_size": 4,
            "gradient_accumulation_steps": 16,
        },
        {"event": "warning", "step": 150, "name": "gap", "line": "gap: 0.4"},
        {"event": "samples", "step": 100, "texts": [EVIL, "To be"], "temperature": 0.8, "top_k": 200, "seed": 1},
        {
            "event": "evaluation",
            "split": "val",
            "dataset": EVIL,
            "loss": 3.3,
            "perplexity": 27.1,
            "bits_per_byte": None,
            "accuracy": 0.41,
            "baseline": {"name": "gpt2", "loss": 4.0},
            "difference": {"mean": -0.7},
            "general": {"loss": 3.9, "baseline_loss": 3.7, "kl": 0.2},
            "memorisation": {"ngram": 8, "copied": 0.031, "longest": 11, "text": EVIL},
        },
    ]
    return synthesised(LEARNS, events=events, out_dir=out_dir, start=EVIL)


def test_the_page_is_one_well_formed_file(command):
    eventful()
    assert command("report", "--out_dir=out") == (0, "report in out/report.html\n", "")
    text, words = read("out/report.html")
    for part in ("Curves", "Before and after", "Samples", "What happened", "Data", "How to load it", "Recipe"):
        assert part in words
    assert text.count("<svg") == 4 and text.count("<polyline") + text.count('class="line') == 6
    assert "prefers-color-scheme:dark" in text and "@media print" in text and "width=device-width" in text


@pytest.mark.parametrize("value", [None, "x", [], -1, 1e308, [None]])
def test_events_with_other_values_are_read_or_left_out(tiny_run, command, value):
    """Each value of each event of a run, one after the other."""
    tiny_run("out", "--max_iters=2", "--eval_interval=1", "--log_interval=1")
    path = Path("out/metrics.jsonl")
    events = [json.loads(line) for line in path.read_text().splitlines()]
    first = {event["event"]: number for number, event in reversed([*enumerate(events)])}
    for number in first.values():
        for key in events[number].keys() - {"event"}:
            changed = [*events[:number], events[number] | {key: value}, *events[number + 1 :]]
            path.write_text("".join(json.dumps(event) + "\n" for event in changed))
            found = record.load("out")
            html_report.write(found, diagnosis.diagnose(found), Path("page.html"))
            assert str(Run.open("out")) and Run.open("out").status
    assert len(first) > 4
    for argv in (["report"], ["diagnose"]):
        code, _, error = command(*argv, "--out_dir=out")
        assert code == 0, error


def test_untrusted_text_stays_text():
    run = record.load(eventful())
    text, words = read(html_report.write(run, diagnosis.diagnose(run)))
    assert words.count("<script>alert(1)</script>") == 9, (
        "problem, in four curves too, sample, dataset, copy and prompt"
    )
    assert "<script" not in text and "<img" not in text and "\x00" not in text and "\x1b" not in text


def test_the_page_shows_the_first_documents_and_marks_what_is_learned():
    run = record.load(eventful())
    sample = [[["User:\n<b>\n\nAssistant:\n", False], ["Yes", True]], [["second", True]]]
    meta = {"splits": {"train": {"tokens": 5}, "val": {"tokens": 5}}, "doctor": {"findings": {}, "sample": sample}}
    run.data = [record.Data("d", None, meta)]
    text, _ = read(html_report.write(run, diagnosis.diagnose(run)))
    shown = ["User:\n&lt;b&gt;\n\nAssistant:\n<mark>Yes</mark>", "<mark>second</mark>"]
    assert all(f"<pre dir=auto>{document}</pre>" in text for document in shown)
    assert "the doctor found nothing wrong" in text
    del meta["doctor"]["sample"]  # of an earlier version
    assert "<mark>" not in read(html_report.write(run, diagnosis.diagnose(run)))[0]


def test_the_figures_on_the_page_are_those_of_the_run(tiny_run):
    tiny_run("out", "--max_iters=12", "--eval_interval=4")
    _, words = read("out/report.html")  # written by itself
    evaluations = [event for event in read_metrics("out/metrics.jsonl") if event["event"] == "eval"]
    first, best = evaluations[0], min(evaluations, key=lambda event: event["val_loss"])
    assert f"{best['val_loss']:.4f}" in words and f"{best['val_loss'] - first['val_loss']:+.4f}" in words
    meta = json.loads(next(Path("data").iterdir()).joinpath("meta.json").read_text())
    nats = best["val_loss"] * (meta["splits"]["val"]["tokens"] - 1)
    assert f"{nats / math.log(2) / meta['splits']['val']['bytes']:.4f}" in words
    assert f"{meta['splits']['train']['tokens']:,}" in words and meta["sources"][0]["sha256"][:16] in words
    assert "learning_rate: 0.01" in words and "--learning_rate" in words


def test_parameters_are_counted_as_transformers_counts_them(hf_model):
    model = hf_model(n_inner=48)
    run = record.Record(Path("out"), [], model.config.to_dict(), {}, [], {}, [], False)
    assert run.parameters == model.num_parameters()


def test_the_comments_of_a_recipe_are_its_reasons(tiny_run, command, corpus):
    text = corpus()
    Path("r.yaml").write_text(
        "learning_rate: 2e-3   # small networks # take large steps\nstart: \"a # b\"\nn_embd: 16 # 'narrow'\nn_head:"
        " 2\ninit_from: scratch\n"
        f'dataset: "{text}"\ntokenizer: char\nblock_size: 16\nn_layer: 1\nmax_iters: 1\n'
    )
    code, _, error = command("train", "r.yaml", "--batch_size=2")
    assert code == 0, error
    reasons = read_metrics("out/metrics.jsonl")[0]["reasons"]
    assert reasons["learning_rate"] == {"origin": "r.yaml:1", "why": "small networks # take large steps"}
    assert (reasons["start"]["why"], reasons["n_embd"]["why"], reasons["n_head"]["why"]) == ("", "'narrow'", "")
    assert reasons["batch_size"] == {"origin": "--batch_size", "why": ""}
    _, words = read("out/report.html")
    assert "small networks # take large steps" in words and "r.yaml:3" in words


def test_an_empty_run_has_a_page():
    synthesised([], end=None, best=False, states=0)
    run = record.load("out")
    _, words = read(html_report.write(run, diagnosis.diagnose(run)))
    assert "There is no complete model" in words and "missing_checkpoint" in words


def test_an_unwritable_path_is_one_line(command):
    synthesised(LEARNS)
    code, _, error = command("report", "--out_dir=out", "--to=nowhere/x.html")
    assert code == 2 and error.count("\n") == 1 and "nowhere/x.html" in error
    code, _, error = command("report", "--out_dir=out", "--to=out/best/model.safetensors")
    assert code == 2 and "must be an .html file" in error


def test_a_report_that_fails_does_not_fail_the_run(tiny_run, monkeypatch, capsys):
    monkeypatch.setattr(html_report, "write", lambda *_: 1 / 0)
    tiny_run("out", "--max_iters=1")  # asserts exit code 0
    assert Path("out/best").is_dir() and not Path("out/report.html").exists()


def test_overwriting_a_run_removes_its_report(tiny_run):
    tiny_run("out", "--max_iters=1")
    assert Path("out/report.html").exists()
    checkpoints.remove_run("out")
    assert not Path("out/report.html").exists()


def test_a_long_line_keeps_its_extremes():
    points = [(x, math.sin(x / 50)) for x in range(20_000)]
    points[12_345] = (12_345, 40.0)
    kept = svg_chart.thin_out(points)
    assert (
        len(kept) <= 2 * svg_chart.BUCKETS
        and (12_345, 40.0) in kept
        and [x for x, _ in kept] == sorted(x for x, _ in kept)
    )


def test_ticks_are_round_and_within():
    for low, high in ((0, 120), (2.5, 4.6), (0, 3e-5), (1e-7, 1.2e-7), (-3, 90_000), (0, 1)):
        ticks = svg_chart.round_ticks(low, high)
        assert 2 <= len(ticks) <= 8 and all(low - 1e-12 <= tick <= high + 1e-9 for tick in ticks)


def test_runs_side_by_side(tiny_run, command, corpus):
    text = corpus()
    tiny_run("one", "--max_iters=6", "--eval_interval=3", text=text)
    tiny_run("two", "--max_iters=6", "--eval_interval=3", "--learning_rate=3e-3", "--dropout=0.1", text=text)
    code, out, error = command("compare", "one", "two")
    assert (code, error) == (0, "")
    rows = {line.split("  ")[0]: line.split() for line in out.splitlines()}
    for name, out_dir in ((-2, "one"), (-1, "two")):
        best = min(event["val_loss"] for event in read_metrics(f"{out_dir}/metrics.jsonl") if event["event"] == "eval")
        assert rows["best val loss"][name] == f"{best:.4f}"
    assert rows["learning_rate"][-2:] == ["0.01", "0.003"] and rows["dropout"][-2:] == ["0", "0.1"]
    assert not {"seed", "out_dir", "batch_size"} & rows.keys(), "what they share"
    assert "different data" not in out
    tiny_run("three", "--max_iters=1", text=corpus("other.txt", words=4800, seed=1))
    assert "validated on different data" in command("compare", "one", "two", "three")[1]


def test_compare_wants_two_runs(command):
    synthesised(LEARNS)
    assert command("compare", "out")[0] == 2
    code, _, error = command("compare", "out", "nowhere")
    assert code == 2 and error == "out_dir nowhere: no such directory; runs here: out\n"
    code, out, _ = command("compare", "out", "out")
    assert code == 0 and "the recipes are the same" in out


def test_a_browser_shows_the_curves(tmp_path):
    chromium = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome", "headless_shell"))),
        None,
    )
    if chromium is None:
        pytest.skip("Chromium is not installed")
    from matplotlib.image import imread

    eventful()
    for width, dark in ((1000, False), (390, True)):
        path = html_report.write(record.load("out"), [])
        picture = tmp_path / f"{width}.png"
        flags = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--window-size={width},2400",
            f"--screenshot={picture}",
        ]
        flags += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}"]
        flags += ["--blink-settings=preferredColorScheme=0"] if dark else []
        subprocess.run([chromium, *flags, path.resolve().as_uri()], check=True, capture_output=True, timeout=300)
        pixels = imread(picture)[..., :3]
        back = tuple(round(255 * float(value)) for value in pixels[3, 3])
        assert back == ((15, 18, 22) if dark else (255, 255, 255))
        style = path.read_text(encoding="utf-8").split("prefers-color-scheme:dark")[dark]
        for name in "abde":  # validation, train and gradient norm, learning rate, tokens per second
            colour = re.search(rf"--{name}:#(\w+)", style)[1]
            wanted = [int(colour[place : place + 2], 16) / 255 for place in (0, 2, 4)]
            assert (abs(pixels - wanted).max(axis=2) < 0.02).sum() > 100, f"{name} is not to be seen at {width}"


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def logged(monkeypatch):
    """A function that logs two updates and returns (stdout, stderr)."""

    def log(out_is_terminal, error_is_terminal):
        out, error = (Terminal() if terminal else io.StringIO() for terminal in (out_is_terminal, error_is_terminal))
        monkeypatch.setattr("sys.stdout", out)
        monkeypatch.setattr("sys.stderr", error)
        logger = RunLogger(".", write=True)
        logger.open(100)
        logger.record("best", step=0, val_loss=4.2036)
        for iteration in (0, 1):
            figures = {"loss": 3.4081, "seconds": 0.04816, "tokens_per_second": 15946, "mfu": 0.3706, "memory": 3.2e9}
            logger.iteration({"iter": iteration, **figures}, 252)
            logger.update_bar(iteration, 3.4081)
        logger.bar and logger.bar.refresh()
        logger.print("step 2: train loss 3.4, val loss 3.5")
        logger.status("evaluating")
        logger.close()
        return out.getvalue(), error.getvalue()

    return log


def test_a_terminal_gets_one_live_line(logged):
    out, error = logged(True, True)
    assert out == "step 2: train loss 3.4, val loss 3.5\n"
    live = max(error.split("\r"), key=len)
    for words in (
        "iter 2/100",
        "loss 3.4081",
        "best val loss 4.2036 at 0",
        "15,946 tok/s",
        "mfu 37.1%",
        "3.2 GB",
        "4m 12s left",
    ):
        assert words in live
    assert "evaluating" in error


def test_a_pipe_gets_the_plain_lines(logged):
    figures = "loss 3.4081, time 48.16ms, mfu 37.06%, 15,946 tok/s, 4m 12s left"
    plain = f"iter 0: {figures}\niter 1: {figures}\nstep 2: train loss 3.4, val loss 3.5\n"
    assert logged(False, False) == (plain, "")
    assert logged(False, True)[0] == plain, "also when only the errors go to the terminal"


def test_what_is_printed_of_a_record_cannot_steer_a_terminal(command):
    synthesised(LEARNS, start=EVIL)
    synthesised(LEARNS, end={"event": "failed", "problem": EVIL, "code": 1}, out_dir="other")
    for verb, *argv in (("compare", "out", "other"), ("diagnose", "--out_dir=other")):
        code, out, _ = command(verb, *argv)
        assert code == 0 and "\ufffd[31m" in out and not set(out) & {"\x00", "\x1b", "\ud800"}
