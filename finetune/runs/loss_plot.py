"""loss.png."""

from pathlib import Path

from finetune.runs.events import read_metrics


def plot_loss(out_dir, path=None, title=None):
    """Draw the losses in out_dir/metrics.jsonl as a picture at `path`, by default out_dir/loss.png."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    events = read_metrics(Path(out_dir) / "metrics.jsonl")
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    updates = [event for event in events if event["event"] == "iter"]
    evaluations = [event for event in events if event["event"] == "eval"]
    axes.plot(
        [e["iter"] for e in updates], [e["loss"] for e in updates], color="0.75", linewidth=1, label="each update"
    )
    axes.plot(
        [e["step"] for e in evaluations],
        [e["train_loss"] for e in evaluations],
        marker="o",
        markersize=3,
        label="train",
    )
    axes.plot(
        [e["step"] for e in evaluations],
        [e["val_loss"] for e in evaluations],
        marker="o",
        markersize=3,
        label="validation",
    )
    axes.set(xlabel="update", ylabel="loss (nats per token)", title=title or Path(out_dir).name)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path or Path(out_dir) / "loss.png", dpi=120)
    pyplot.close(figure)
