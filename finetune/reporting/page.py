"""A run as one page: curves, what happened, data, recipe, before and after, samples. Whole in itself: no script, no
outside asset.

Names, samples and messages are untrusted text and are escaped where they enter the page (`record.load` has taken out
what is no text)."""

import dataclasses
import math
import os
import time
from html import escape
from pathlib import Path

from finetune.recipe import Recipe
from finetune.reporting import diagnosis
from finetune.reporting.chart import Line, Mark, chart, figure
from finetune.training.progress import duration

HAPPENINGS = (
    "resume",
    "batch_size",
    "out_of_memory",
    "diverged",
    "rollback",
    "save_failed",
    "warning",
    "stop",
    "failed",
    "end",
)
MARKED = (
    "resume",
    "out_of_memory",
    "diverged",
    "rollback",
    "save_failed",
    "stop",
    "failed",
)  # with a line through the curves
SHOWN_SAMPLES = 5  # of each time
SHOWN_TIMES = 8  # at most, spread evenly over the run

STYLE = """
:root{color-scheme:light dark;--back:#fff;--ink:#1b1f24;--soft:#59636e;--rule:#d5dae0;--card:#f5f7f9;
--a:#0a62c4;--b:#b4540a;--c:#8c959f;--d:#7a3fb8;--e:#1a7f5a;--alarm:#c3202f}
@media (prefers-color-scheme:dark){:root{--back:#0f1216;--ink:#e4e8ed;--soft:#98a2ad;--rule:#2d343c;--card:#171c22;
--a:#5aa9ff;--b:#f0a050;--c:#77818c;--d:#c49bff;--e:#4cc38a;--alarm:#ff7b86}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1.2rem;max-width:66rem;background:var(--back);color:var(--ink);font:16px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.6rem;line-height:1.2;margin:.2rem 0}h2{font-size:1.15rem;margin:2.2rem 0 .6rem;border-bottom:1px solid var(--rule)}
p{margin:.5rem 0}.soft{color:var(--soft)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:.6rem;margin:1rem 0}
.tiles div{background:var(--card);border-radius:8px;padding:.6rem .8rem}.tiles b{display:block;font-size:1.25rem}.tiles span{color:var(--soft);font-size:.85rem}
.finding{border-left:4px solid var(--alarm);background:var(--card);border-radius:0 8px 8px 0;padding:.5rem .9rem;margin:.6rem 0}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,22rem),1fr));gap:1rem}
figure{margin:0;break-inside:avoid}figcaption{font-size:.9rem}figcaption span{margin-left:.7rem;color:var(--soft)}
figcaption span::before{content:"";display:inline-block;width:.9rem;height:.2rem;margin-right:.3rem;vertical-align:middle;background:currentColor}
svg{width:100%;height:auto;display:block}svg text{font:11px system-ui,sans-serif;fill:var(--soft)}
.grid{stroke:var(--rule);stroke-width:1}.line{fill:none;stroke:currentColor;stroke-width:1.8;stroke-linejoin:round}circle{fill:currentColor}
.ring{fill:none;stroke:currentColor;stroke-width:1.5}.a,figcaption .a{color:var(--a)}.b,figcaption .b{color:var(--b)}.c,figcaption .c{color:var(--c)}
.d,figcaption .d{color:var(--d)}.e,figcaption .e{color:var(--e)}path.c{stroke-width:1}.mark path{stroke:var(--alarm);stroke-dasharray:3 3}.mark text{fill:var(--alarm)}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.9rem}th,td{text-align:left;vertical-align:top;padding:.25rem .9rem .25rem 0;border-bottom:1px solid var(--rule)}
th{color:var(--soft);font-weight:600}td{font-variant-numeric:tabular-nums}td:first-child{min-width:4rem}th,td{overflow-wrap:normal}td.long{min-width:12rem;overflow-wrap:anywhere}
.keys{columns:2 24rem;column-gap:2rem;font-size:.9rem}.keys div{break-inside:avoid;padding:.3rem 0;border-bottom:1px solid var(--rule)}.keys p{margin:0}
pre{background:var(--card);border-radius:8px;padding:.7rem .9rem;white-space:pre-wrap;font:.85rem/1.45 ui-monospace,monospace;break-inside:avoid;unicode-bidi:plaintext}
@media print{:root{--back:#fff;--ink:#000;--soft:#444;--rule:#bbb;--card:#f4f4f4;--a:#0a62c4;--b:#b4540a;--c:#8c959f;--d:#7a3fb8;--e:#1a7f5a;--alarm:#c3202f}
body{max-width:none;padding:0;font-size:11pt}.wide{overflow:visible}h2{break-after:avoid}tr{break-inside:avoid}}
"""


def write(run, findings, path=None):
    """Write the report of a Record, by default as report.html of its out_dir; return the path. Raises OSError, and then
    nothing has changed."""
    path = Path(path or run.out_dir / "report.html")
    partial = path.with_name(f".tmp-{path.name}")
    text = page(f"{run.title}: report", _report(run, findings))
    try:
        partial.write_text(text, encoding="utf-8", errors="replace")  # of an out_dir whose name is no UTF-8
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def page(title, body):
    """An HTML document around the parts of `body`."""
    head = (
        '<meta charset="utf-8"><meta name="viewport"'
        f' content="width=device-width,initial-scale=1"><title>{clean(title)}</title><style>{STYLE}</style>'
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n'
        + "\n".join(filter(None, body))
        + "\n</body></html>\n"
    )


def clean(text):
    """Anything as text for a page."""
    return escape(str(text))


def table(head, rows, long=()):
    """A table of texts, nothing without rows. The columns numbered in `long` hold sentences."""
    cells = [
        [f"<td{' class=long' if number in long else ''}>{clean(cell)}</td>" for number, cell in enumerate(row)]
        for row in rows
    ]
    heads = "".join(f"<th>{clean(cell)}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in cells)
    return (
        f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>' if rows else ""
    )


def section(title, *parts):
    parts = [part for part in parts if part]
    return f"<section><h2>{clean(title)}</h2>\n" + "\n".join(parts) + "</section>" if parts else ""


def tiles(facts):
    return (
        '<div class="tiles">'
        + "".join(
            f"<div><b>{clean(value)}</b><span>{clean(words)}</span></div>"
            for words, value in facts
            if value is not None
        )
        + "</div>"
    )


def _report(run, findings):
    return [
        f"<header><h1>{clean(run.title)}</h1><p class=soft>{clean(_headline(run))}</p></header>",
        tiles(_key_figures(run)),
        section("What is wrong", *map(_finding, findings)),
        section("Curves", _curves(run)),
        section("Before and after", _before_and_after(run), _evaluation(run.newest("evaluation"))),
        section("Samples", *map(_samples, _spread(run.of("samples"), SHOWN_TIMES))),
        section("What happened", _happenings(run)),
        section("Data", *map(_data, run.data)),
        section("How to load it", _loading(run)),
        section("Recipe", *_recipe(run)),
        (
            f"<footer><p class=soft>Written {clean(time.strftime('%Y-%m-%d %H:%M'))} from metrics.jsonl. Losses are in"
            " nats per token.</p></footer>"
        ),
    ]


def _headline(run):
    if run.running:
        state = "running"
    elif run.ended:
        state = "ended for lack of a better validation loss" if run.ended_early else "done"
    else:
        state = {"stop": "stopped", "failed": "failed"}.get(
            next((e["event"] for e in reversed(run.session) if e["event"] in ("stop", "failed")), ""), "not ended"
        )
    start = f"from {run.init_from}" if run.init_from else "a run"
    where = f", {run.started['machine']}" if "machine" in run.started else ""
    return f"{start}, {run.done:,} of {run.length:,} updates, {state}{where}"


def _key_figures(run):
    first, best = (run.evaluations[0], run.best) if run.evaluations else ({}, {})
    speed, bits = run.median("tokens_per_second"), run.bits_per_byte(best["val_loss"]) if best else None
    yield f"best validation loss, step {best.get('step')}", f"{best['val_loss']:.4f}" if best else None
    yield (
        f"since step {first.get('step')}, nats",
        (f"{best['val_loss'] - first['val_loss']:+.4f}" if len(run.evaluations) > 1 else None),
    )
    yield "bits per byte", None if bits is None else f"{bits:.4f}"
    yield "parameters", None if run.parameters is None else figure(run.parameters)
    yield "tokens per second", None if speed is None else f"{speed:,.0f}"
    yield "from start to end", duration(run.seconds) if run.seconds else None


def _finding(finding):
    title, issue = diagnosis.ISSUES[finding.label]
    evidence = "".join(f"<p>{clean(line)}</p>" for line in finding.evidence)
    command = f"<pre>{clean(finding.command)}</pre>" if finding.command else ""
    return (
        f'<div class="finding"><b>{clean(title)}</b> <span'
        f" class=soft>{clean(finding.label)}</span>{evidence}<p>{clean(finding.advice)}</p>{command}</div>"
    )


def _curves(run):
    best, evaluations, updates = run.best, run.evaluations, run.updates
    ring = (best["step"], best["val_loss"], f"best: {best['val_loss']:.4f} at step {best['step']}") if best else None
    marks = [
        Mark(_where(event), event["event"].replace("_", " "), f"{event['event']}: {_words(event)}")
        for event in run.events
        if event["event"] in MARKED
    ]
    losses = [
        Line("each update", [(event["iter"], event["loss"]) for event in updates], "c"),
        Line("train", [(event["step"], event["train_loss"]) for event in evaluations], "b", dots=True),
        Line("validation", [(event["step"], event["val_loss"]) for event in evaluations], "a", dots=True, ring=ring),
    ]
    charts = [chart("Loss, nats per token", losses, marks, run.done)]
    for title, name, style in (
        ("Learning rate", "lr", "d"),
        ("Tokens per second", "tokens_per_second", "e"),
        ("Gradient norm", "grad_norm", "b"),
    ):
        points = [(event["iter"], event[name]) for event in updates if isinstance(event.get(name), (int, float))]
        charts.append(chart(title, [Line(title.lower(), points, style)], marks, run.done))
    return f'<div class="charts">{"".join(charts)}</div>' if any(charts) else ""


def _before_and_after(run):
    if len(run.evaluations) < 2:
        return ""
    first, best = run.evaluations[0], run.best
    pairs = [
        ("validation loss", first["val_loss"], best["val_loss"]),
        ("train loss", first["train_loss"], best["train_loss"]),
    ]
    pairs += [
        (f"validation loss of {name}", loss, best["val_losses"].get(name))
        for name, loss in first.get("val_losses", {}).items()
        if "val_losses" in best
    ]
    pairs.append(("perplexity", math.exp(min(first["val_loss"], 50)), math.exp(min(best["val_loss"], 50))))
    if (bits := run.bits_per_byte(first["val_loss"])) is not None:
        pairs.append(("bits per byte", bits, run.bits_per_byte(best["val_loss"])))
    rows = [
        (name, f"{one:,.4f}", f"{other:,.4f}", f"{other - one:+,.4f}")
        for name, one, other in pairs
        if other is not None
    ]
    return table(("", f"step {first['step']}", f"best, step {best['step']}", "change"), rows)


def _evaluation(event):
    """The newest evaluation by finetune.eval."""
    if not event:
        return ""
    base = event.get("baseline") or {}
    names = [name for name in ("loss", "perplexity", "bits_per_byte", "accuracy") if _is_number(event.get(name))]
    rows = [
        (name.replace("_", " "), f"{event[name]:.4f}", f"{base[name]:.4f}" if _is_number(base.get(name)) else "")
        for name in names
    ]
    rows += [(name, f"{value:.4g}", "") for name, value in (event.get("metrics") or {}).items() if _is_number(value)]
    general, copied = event.get("general") or {}, event.get("memorisation") or {}
    if _is_number(general.get("loss")):
        before = general.get("baseline_loss")
        rows.append(
            (
                "forgetting: loss on a general text",
                f"{general['loss']:.4f}",
                f"{before:.4f}" if _is_number(before) else "",
            )
        )
    if _is_number(general.get("kl")):
        rows.append(("forgetting: KL(baseline || model)", f"{general['kl']:.4f}", ""))
    if _is_number(copied.get("copied")):
        rows.append(
            (
                f"memorisation: {copied.get('ngram')}-grams of samples that stand in train.bin",
                f"{copied['copied']:.1%}",
                "",
            )
        )
        rows.append(("memorisation: longest copy, tokens", f"{copied.get('longest')}", ""))
    quoted = (
        f"<p class=soft>the longest copy</p><pre dir=auto>{clean(copied['text'])}</pre>" if copied.get("text") else ""
    )
    title = f"Evaluation of {event.get('split', '')} of {event.get('dataset', 'the data')}"
    return f"<p class=soft>{clean(title)}</p>" + table(("", "model", base.get("name", "")), rows) + quoted


def _spread(events, most):
    """The first, the last and some between."""
    steps = max(1, min(most, len(events)) - 1)
    return [events[round(number * (len(events) - 1) / steps)] for number in range(min(most, len(events)))]


def _samples(event):
    texts = [text for text in event.get("texts", []) if isinstance(text, str)][:SHOWN_SAMPLES]
    settings = ", ".join(f"{name} {event[name]}" for name in ("temperature", "top_k", "seed") if name in event)
    return f"<p class=soft>step {clean(event.get('step'))}{clean(f', {settings}' if settings else '')}</p>" + "".join(
        f"<pre dir=auto>{clean(text)}</pre>" for text in texts
    )


def _happenings(run):
    begun = run.events[0]["time"] if run.events else 0
    rows = [
        (duration(event["time"] - begun), f"{_where(event):,}", event["event"].replace("_", " "), _words(event))
        for event in run.events
        if event["event"] in HAPPENINGS
    ]
    return table(("time", "update", "what", ""), rows, long=(3,))


def _where(event):
    """The update an event is from; a rollback stands where it happened, not where it led."""
    place = event.get("reached", event.get("step", 0))
    return place if isinstance(place, int) else 0


def _words(event):
    kind = event["event"]
    if kind == "rollback":
        return f"back to step {event['step']}, learning rates times {event['lr_scale']:g}: {event['problem']}"
    if kind == "end":
        return (
            f"best validation loss {event['best']['val_loss']:.4f} at step {event['best']['step']}"
            if event.get("best")
            else ""
        )
    if kind == "batch_size":
        return f"batch_size {event['batch_size']}, gradient_accumulation_steps {event['gradient_accumulation_steps']}"
    if kind == "resume":
        return f"went on at step {event['step']}, {event.get('machine', '')}"
    return str(event.get("problem") or event.get("done") or event.get("line") or event.get("signal") or "")


def _data(part):
    meta, splits = part.meta, {name: part.split(name) for name in ("train", "val")}
    changed = "<p>These are not the bins of the run any more.</p>" if part.same is False else ""
    if not any(splits.values()):
        return f"<p>{clean(part.name)} <span class=soft>was not found from here</span></p>"
    keys = [
        key
        for key in ("tokens", "targets", "characters", "bytes", "documents")
        if any(key in split for split in splits.values())
    ]
    if meta.get("split_by") == "text":  # a single one
        keys = [key for key in keys if key != "documents"]
    rows = [
        (name, *(f"{split[key]:,}" if _is_number(split.get(key)) else "" for key in keys))
        for name, split in splits.items()
    ]
    tokenizer = meta.get("tokenizer", {}).get("name") or meta.get("tokenizer", {}).get("kind") or "unknown"
    sources = [
        (source.get("name"), f"{source.get('bytes', 0):,}", str(source.get("sha256", ""))[:16])
        for source in [*meta.get("sources", []), *meta.get("val_sources", [])]
    ]
    return "\n".join(
        [
            (
                f"<p>{clean(part.directory)} <span class=soft>tokenizer {clean(tokenizer)}, split by"
                f" {clean(meta.get('split_by', 'somebody else'))}</span></p>{changed}"
            ),
            table(("split", *keys), rows),
            table(("source", "bytes", "sha256"), sources[:20]),
            _doctored(part),
        ]
    )


def _doctored(part):
    from finetune.data.doctor import KINDS

    rows = []
    for kind, found in part.findings.items():
        example = (found.get("examples") or [{}])[0]
        where = f"{example.get('split', '')} {example.get('document', '')}"
        rows.append((f"{found['count']:,}", KINDS.get(kind, (kind,))[0], where, example.get("text", "")))
    if rows:
        return table(("count", "what the doctor found", "first in", "such as"), rows, long=(1, 3))
    return "<p class=soft>the doctor found nothing wrong</p>" if "doctor" in part.meta else ""


def _loading(run):
    if "best" in run.damaged:
        return f"<p>There is no whole model in {clean(run.out_dir / 'best')}: {clean(run.damaged['best'])}.</p>"
    best = run.out_dir / "best"
    code = (
        f'from transformers import pipeline\n\nprint(pipeline("text-generation", {str(best)!r})("Once upon a'
        ' time")[0]["generated_text"])'
    )
    sample = f"python -m finetune.sample --out_dir={run.out_dir} --num_samples=3"
    resume = f"accelerate launch -m finetune.train {run.out_dir}/recipe.yaml --init_from=resume"
    return f"<pre>{clean(code)}</pre><p>or</p><pre>{clean(sample)}</pre>" + (
        f"<p>and to go on training</p><pre>{clean(resume)}</pre>" if run.states else ""
    )


def _recipe(run):
    """What was set, with where and why; then what was left as it is, with what it means."""
    fields, reasons = {field.name: field for field in dataclasses.fields(Recipe)}, run.started.get("reasons") or {}
    given, left = [], []
    for name, value in run.recipe.items():
        told, metadata = reasons.get(name), fields[name].metadata if name in fields else {}
        if told:
            given.append((name, value, told.get("origin", ""), told.get("why") or metadata.get("help", "")))
        elif not metadata or (value != fields[name].default and not metadata.get("derived")):
            given.append((name, value, "", metadata.get("help", "")))
        else:
            left.append(
                (
                    name,
                    value,
                    "worked out" if metadata.get("derived") and value is not None else "default",
                    metadata["help"],
                )
            )
    return _keys(given), "<p class=soft>left as it is</p>" if left else "", _keys(left)


def _keys(rows):
    items = [
        f"<div><b>{clean(name)}: {clean(shown(value))}</b> <span"
        f" class=soft>{clean(origin)}</span><p>{clean(why)}</p></div>"
        for name, value, origin, why in rows
    ]
    return f'<div class="keys">{"".join(items)}</div>' if items else ""


def shown(value):
    """A value of a recipe as a recipe has it."""
    if isinstance(value, bool) or value is None:
        return str(value).lower() if value is not None else "none"
    return (
        f"{value:g}"
        if isinstance(value, float)
        else repr(value)
        if value != str(value).strip() and isinstance(value, str)
        else str(value)
    )


def _is_number(value):
    return isinstance(value, (int, float)) and math.isfinite(value)
