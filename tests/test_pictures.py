"""The pictures of a run: loss.png, share.png and the curves of the report show the same, and show it well."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from test_diagnose import LEARNS, synthesised
from test_report import read

from finetune.publishing.export import export
from finetune.runs import loss_axis
from finetune.runs.events import read_metrics
from finetune.runs.loss_plot import loss_figure, plot_loss
from finetune.tools.report import html_report, record, share_picture, svg_chart, tables

pytestmark = pytest.mark.usefixtures("pictures")
FLAT = [(10.9, 10.95), (3.4, 3.5), (3.2, 3.3), (3.1, 3.2), (3.05, 3.18)]  # all but the first within 0.5 nats
OKABE_ITO = {"#000000", "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7"}


def report(out_dir="out"):
    return read(html_report.write(record.load(out_dir), []))


def evaluations(*losses):
    return [{"step": 50 * n, "train_loss": train, "val_loss": val} for n, (train, val) in enumerate(losses)]


def test_a_high_first_loss_does_not_flatten_the_rest():
    low, high = loss_axis.loss_bounds([], evaluations(*FLAT))
    assert low < 3.05 and 3.5 < high < 3.7
    everything = [(4.0, 4.0), (3.8, 3.8), (3.6, 3.6), (3.5, 3.5)]
    low, high = loss_axis.loss_bounds([], evaluations(*everything))
    assert low < 3.5 and high > 4.0, "all is shown where that flattens nothing"
    low, high = loss_axis.loss_bounds([], evaluations((3.0, 3.0), (4.9, 5.0), (4.9, 4.98), (4.9, 4.99)))
    assert low < 3.0 and high > 5.0, "the base was the best model"
    spikes = [{"iter": n, "loss": 3.3} for n in range(50, 250)] + [{"iter": 100, "loss": 40.0}]
    assert loss_axis.loss_bounds(spikes, evaluations(*FLAT))[1] < 3.7
    assert loss_axis.loss_bounds([{"iter": 0, "loss": "nan"}], []) is None
    assert loss_axis.loss_bounds([{"iter": 0, "loss": 2.0}], [])[0] < 2.0


def test_the_first_loss_stands_apart_in_each_picture():
    synthesised(FLAT)
    text, words = report()
    assert "10.9500 at 0" in words and text.count('class="above') == 1
    top, bottom = svg_chart.TOP, svg_chart.HEIGHT - svg_chart.BOTTOM
    for path in re.findall(r'class="line \w" d="([^"]+)"', text):
        heights = [float(y) for y in re.findall(r"[\d.]+ ([-\d.]+)", path)]
        assert heights and all(top - 0.1 <= y <= bottom + 0.1 for y in heights)
    axes = loss_figure("out").axes[0]
    assert axes.get_ylim() == pytest.approx(loss_axis.loss_bounds([], evaluations(*FLAT)), abs=0.1)
    assert "10.9500 at 0" in [text.get_text() for text in axes.texts]


def test_a_line_is_cut_where_it_leaves_the_chart():
    """Against points on a fine grid of the same line."""
    points = [(0, 5.0), (1, 1.0), (2, 0.0), (3, 9.0), (4, 2.0), (5, 2.5)]
    parts = svg_chart._within(points, 0.5, 3.0)
    grid = np.linspace(0, 5, 5001)
    ys = np.interp(grid, *zip(*points))
    shown = np.zeros(len(grid), bool)
    for part in parts:
        xs, heights = zip(*part)
        inside = (grid >= xs[0] - 1e-9) & (grid <= xs[-1] + 1e-9)
        assert np.allclose(np.interp(grid[inside], xs, heights), ys[inside])
        shown |= inside
    assert (shown == ((ys >= 0.5) & (ys <= 3.0))).mean() > 0.999


def test_the_best_model_is_marked_in_each_picture():
    synthesised([*LEARNS, (3.2, 3.5), (3.1, 3.6)])
    text, words = report()
    assert "best 3.3300 at 250" in words and text.count("ring a") == 1
    axes = loss_figure("out").axes[0]
    (ring,) = [line for line in axes.lines if line.get_label() == "best model"]
    assert (list(ring.get_xdata()), list(ring.get_ydata())) == ([250], [3.33])
    assert "best 3.3300 at 250" in [text.get_text() for text in axes.texts]
    for title in ("update", "nats per token", "learning rate", "tokens per second"):
        assert title in words, "axes have titles"


def test_the_colours_are_the_same_and_told_apart_by_the_colour_blind(tmp_path):
    from matplotlib.image import imread

    synthesised(LEARNS)
    plot_loss("out")
    light = report()[0].split("prefers-color-scheme:dark")[0]
    dark = report()[0].split("prefers-color-scheme:dark")[1].split("}}")[0]
    pixels = imread("out/loss.png")[..., :3]
    for name, variable in (("validation", "a"), ("train", "b")):
        colour = loss_axis.COLOURS[name]
        assert f"--{variable}:{colour}" in light and colour in OKABE_ITO
        wanted = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        assert (abs(pixels - wanted).max(axis=2) < 0.02).sum() > 100
        assert re.search(f"--{variable}:(#\\w+)", dark)[1] in OKABE_ITO


def test_the_title_names_model_data_and_day():
    synthesised(LEARNS, dataset="data/letters,other.txt", init_from="someone/gpt2-german")
    title, date = tables.title(record.load("out"))
    assert title == "gpt2-german on letters, other.txt" and re.fullmatch(r"\d{4}-\d\d-\d\d", date)
    text, words = report()
    assert f"<title>{title}, {date}</title>" in text and f"<h1>{title}</h1>" in text and f"{date}, out," in words


def test_the_share_picture(tiny_run):
    tiny_run("out", "--max_iters=4", "--eval_interval=2")
    header = Path("out/share.png").read_bytes()[:24]
    size = (int.from_bytes(header[16:20], "big"), int.from_bytes(header[20:24], "big"))
    assert header.startswith(b"\x89PNG") and size == (1200, 630)
    run = record.load("out")
    told = [text.get_text() for text in share_picture.picture_of(run).texts]
    first, best = run.evaluations[0]["val_loss"], run.best["val_loss"]
    assert told[0] == "GPT-2 from scratch on corpus.txt"
    assert f"{first:.4f} \u2192 {best:.4f}" in told and f"{run.parameters:,}" in told
    before, after = next(text for text in told if text in told[told.index("perplexity") + 1 :]).split(" \u2192 ")
    assert float(before) == pytest.approx(math.exp(first), rel=1e-3)
    assert float(after) == pytest.approx(math.exp(best), rel=1e-3)
    assert any("tokens" in text for text in told)
    export("out/best", "mine", repository="me/it")  # the Hub shows the picture beside the name
    assert Path("mine/share.png").read_bytes() == Path("out/share.png").read_bytes()
    front_matter = Path("mine/README.md").read_text().split("---")[1]
    assert yaml.safe_load(front_matter)["thumbnail"] == "https://huggingface.co/me/it/resolve/main/share.png"


@pytest.mark.parametrize("name", ["a$b_{c$", "out\udcff", "很长的名字" * 30, "x" * 200])
def test_any_name_is_drawn(name):
    synthesised(LEARNS, dataset=f"data/{name.encode('utf-8', 'replace').decode()}")
    plot_loss("out", title=name)
    share_picture.write(record.load("out"), Path("share.png"))
    assert Path("out/loss.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_without_losses_has_no_pictures_of_them():
    synthesised([], end=None, best=False, states=0)
    assert not loss_figure("out").axes[0].texts
    report()
    assert not Path("out/share.png").exists()


def test_samples_before_and_after_stand_side_by_side(tiny_run):
    """Without a learning rate both models are the same, so with the same prompt and seed their samples are."""
    sampled = ("--num_samples=2", "--max_new_tokens=12", "--start=Abc")
    tiny_run("out", "--max_iters=2", "--eval_interval=2", "--learning_rate=0", *sampled)
    pairs = tables.side_by_side(record.load("out"))
    assert len(pairs) == 2 and pairs[0] != pairs[1]
    assert all(pair.prompt == "Abc" and pair.before == pair.after and pair.before for pair in pairs)
    text, words = report()
    assert text.count('<div class="pair">') == 2 and text.count("<b>Abc</b>") == 4
    assert "the same prompt and seed" in words and "before training, step 0" in words
    tiny_run("other", "--max_iters=4", "--eval_interval=2", "--learning_rate=1e-2", *sampled)
    learned = tables.side_by_side(record.load("other"))
    base = next(event for event in read_metrics("other/metrics.jsonl") if event["event"] == "base_samples")
    assert [f"Abc{pair.before}" for pair in learned] == base["texts"]
    assert [pair.before for pair in learned] == [pair.before for pair in pairs], "the same first weights"
    assert [pair.after for pair in learned] != [pair.after for pair in pairs]


def test_samples_of_other_settings_do_not_stand_beside_each_other():
    settings = {"start": "A", "num_samples": 1, "max_new_tokens": 9, "temperature": 0.8, "top_k": 200, "seed": 1}
    base = {"event": "base_samples", "step": 0, "texts": ["Ab"], **settings}
    best = {"event": "samples", "step": 250, "texts": ["Ac"], **settings}
    for number, (change, pairs) in enumerate([({}, 1), ({"seed": 2}, 0), ({"start": "B"}, 0), ({"step": 100}, 0)]):
        run = record.load(synthesised(LEARNS, events=[base, best | change], out_dir=f"out{number}"))
        assert len(tables.side_by_side(run)) == pairs
        text, _ = report(f"out{number}")
        assert ('class="pair"' in text) == bool(pairs)


def test_the_winner_of_a_comparison_is_marked(tiny_run, command, corpus):
    words, text = Path(corpus()).read_text().split(), "documents.jsonl"
    parts = [" ".join(words[n : n + 40]) for n in range(0, len(words), 40)]
    Path(text).write_text("".join(json.dumps({"text": part}) + "\n" for part in parts))
    tiny_run("one", "--max_iters=4", "--eval_interval=2", "--learning_rate=1e-4", text=text)
    tiny_run("two", "--max_iters=4", "--eval_interval=2", text=text)
    best = record.load("two").best["val_loss"]
    out = command("compare", "one", "two")[1]
    assert out.splitlines()[0].split() == ["one", "two", "*"]
    assert f"* the lowest validation loss: {best:.4f} in two" in out
    assert '"lowest": "two"' in command("compare", "one", "two", "--json")[1]
    assert "*" not in command("compare", "two", "two")[1], "a draw"
    tiny_run("few", "--max_iters=4", "--eval_interval=2", "--eval_iters=1", text=text)
    assert "*" not in command("compare", "two", "few")[1], "evaluated on other blocks"
    for number, change in enumerate(("--block_size=16", "--isolate_documents=true")):
        tiny_run(f"cut{number}", "--max_iters=2", change, text=text)
        out = command("compare", "two", f"cut{number}")[1]
        assert "*" not in out and "these runs were validated on different data or blocks" in out, change
    tiny_run("other", "--max_iters=4", text=corpus("other.txt", words=4800, seed=1))
    assert "*" not in command("compare", "two", "other")[1], "other data"


def test_a_run_goes_on_without_memory_for_its_first_samples(tiny_run, monkeypatch):
    from finetune.training import run_samples

    calls = []

    def exhausted(*arguments, **options):
        calls.append(1)
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(run_samples, "draw_samples", exhausted)
    tiny_run("out", "--max_iters=2", "--num_samples=1", "--max_new_tokens=5")
    assert calls and [event["event"] for event in read_metrics("out/metrics.jsonl")][-2:] == ["end", "samples"]
    assert tables.side_by_side(record.load("out")) == []
