"""The loss curve, loss.png."""

from __future__ import annotations

from pathlib import Path

from finetune.runs.events import read_metrics


def plot_loss(out_dir: str | Path, path: str | Path | None = None, title: str | None = None) -> None:
    """Draw the losses in out_dir/metrics.jsonl into `path`, by default out_dir/loss.png."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    events = read_metrics(Path(out_dir) / "metrics.jsonl")
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    updates = [event for event in events if event["event"] == "iter"]
    evaluations = [event for event in events if event["event"] == "eval"]
    losses = [event["loss"] for event in updates]
    axes.plot([event["iter"] for event in updates], losses, color="0.75", linewidth=1, label="single updates")
    steps = [event["step"] for event in evaluations]
    for label, key in (("train", "train_loss"), ("validation", "val_loss")):
        axes.plot(steps, [event[key] for event in evaluations], marker="o", markersize=3, label=label)
    axes.set(xlabel="update", ylabel="loss (nats per token)", title=title or Path(out_dir).name)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path or Path(out_dir) / "loss.png", dpi=120)
    pyplot.close(figure)
