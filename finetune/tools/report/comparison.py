"""Runs side by side: in what their recipes differ, what they reached, how fast."""

from finetune.common.formatting import duration, setting

BESIDES = ("out_dir", "overwrite", "wandb_run_name")  # differ between any two runs, and tell nothing


def compare(runs):
    """The comparison of some Records as {title: rows}, each row a name and one text a run. Rows that all share are left
    out of recipes."""
    keys = dict.fromkeys(key for run in runs for key in run.recipe if key not in BESIDES)
    recipes = [(key, *(setting(run.recipe.get(key)) for run in runs)) for key in keys if key != "init_from"]
    recipes.insert(0, ("init_from", *(setting(run.init_from) for run in runs)))
    reached = [
        (name, *(_reached(run).get(name, "") for run in runs))
        for name in dict.fromkeys(name for run in runs for name in _reached(run))
    ]
    return {"recipe": [row for row in recipes if len(set(row[1:])) > 1], "result": reached}


def notes(runs):
    """What must be known to read the figures."""
    lines = []
    if len({_sums(run, "val") for run in runs}) > 1:
        lines.append("these runs were validated on different data, so their losses cannot be compared with each other")
    elif len({_sums(run, "train") for run in runs}) > 1:
        lines.append("these runs were trained on different data")
    if None in {_sums(run, "val") for run in runs}:
        lines.append("what some were validated on is not recorded")
    lines += [f"{run.out_dir}: is still running" for run in runs if run.running]
    return lines


def screen(runs):
    """The comparison as aligned text."""
    names = [str(run.out_dir) for run in runs]
    parts = compare(runs)
    rows = [
        ("", *names),
        *parts["result"],
        ("",) * (len(runs) + 1),
        *(parts["recipe"] or [("the recipes are the same", *("" for _ in runs))]),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(runs) + 1)]
    lines = [
        "  ".join(
            cell.ljust(width) if not place else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([*lines, *(["", *notes(runs)] if notes(runs) else [])])


def _reached(run):
    """{name: text} of what a run came to."""
    facts = {"updates": f"{run.done:,} of {run.length:,}"}
    if run.evaluations:
        first, best, last = run.evaluations[0], run.best, run.evaluations[-1]
        facts |= {
            "best val loss": f"{best['val_loss']:.4f}",
            "at step": f"{best['step']:,}",
            "train loss there": f"{best['train_loss']:.4f}",
            "first val loss": f"{first['val_loss']:.4f}",
            "last val loss": f"{last['val_loss']:.4f}",
        }
        if (bits := run.bits_per_byte(best["val_loss"])) is not None:
            facts["bits per byte"] = f"{bits:.4f}"
    if run.parameters is not None:
        facts["parameters"] = f"{run.parameters:,}"
    if (speed := run.median("tokens_per_second")) is not None:
        facts |= {
            "tok/s": f"{speed:,.0f}",
            "mfu": f"{run.median('mfu'):.2%}",
            "time an update": f"{run.seconds_an_update * 1000:,.2f}ms",
        }
    return (
        facts
        | ({"from start to end": duration(run.seconds)} if run.seconds else {})
        | ({"on": run.started["machine"]} if "machine" in run.started else {})
    )


def _sums(run, split):
    """What identifies the data of a split, None where it is not recorded."""
    return (
        tuple(
            sorted((name, value) for name, value in run.started.get("identity", {}).items() if name.startswith(split))
        )
        or None
    )
