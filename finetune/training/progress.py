"""What a run tells: console lines, metrics.jsonl, trackers and the loss curve. metrics.jsonl is the truth the others
follow."""

import contextlib
import json
import math
import os
import sys
import time
from pathlib import Path

from finetune.network import reach


class Progress:
    """The voice of a run. Only the main process has one that speaks; `write` is False on the others."""

    def __init__(self, out_dir, write):
        self.path = Path(out_dir) / "metrics.jsonl"
        self.write = write
        self.tracker = None
        self.bar = None
        self.best = ""  # the best evaluation so far, and how fast it goes, for the bar
        self.speed = ""
        self.file = None
        self.waiting = b""  # what the disk has not taken yet
        self.warned = False

    def open(self, length, run=None):
        """Begin the record of a run of `length` updates, or go on with that of a resumed `run`."""
        from tqdm import tqdm

        self.rewrite(run)
        if run and run.best:
            self.best = _best_words(run.best)
        if self.write and sys.stderr.isatty():
            layout = "{desc}iter {n:,}/{total:,} {bar:10}{postfix}"
            self.bar = tqdm(total=length, initial=run.iteration if run else 0, dynamic_ncols=True, bar_format=layout)

    def rewrite(self, run=None):
        """Cut off what lies behind the place a run was put back to, because it will happen again; without a run,
        everything."""
        kept = _until(read_metrics(self.path), run) if run else []
        partial = self.path.with_name(".tmp-metrics.jsonl")
        with open(partial, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(event) + "\n" for event in kept)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, self.path)
        if self.file:
            self.file.close()
        self.file = open(self.path, "a", encoding="utf-8")

    def join(self):
        """Let a process that is not the main one append to the record as well, where there is one."""
        with contextlib.suppress(OSError):
            if not self.file and self.path.is_file():
                self.file = open(self.path, "a", encoding="utf-8")

    def say(self, line):
        try:
            if self.write and self.bar:
                self.bar.write(line)
            elif self.write:
                print(line, flush=True)
        except BrokenPipeError:  # whoever listened is gone; the run is not
            sys.stdout = open(os.devnull, "w", encoding="utf-8")

    def record(self, event, **values):
        """Append one event to metrics.jsonl, in one write. What a full disk does not take is kept and tried again with
        the next."""
        if event == "best":
            self.best = _best_words(values)
        if self.file:
            # JSON has no word for numbers that are none
            plain = {
                name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
                for name, value in values.items()
            }
            self.waiting += (
                json.dumps({"event": event, "time": round(time.time(), 3), **plain}, allow_nan=False).encode() + b"\n"
            )
            self._flush()
        if self.tracker and event in ("iter", "eval"):
            step = values.get("iter", values.get("step"))
            numbers = {f"{event}/{name}": value for name, value in values.items() if isinstance(value, (int, float))}
            try:
                self.tracker(numbers, step)
            except Exception as error:  # whatever a tracker does, training goes on
                self.say(f"warning: no longer logging to the tracker ({type(error).__name__})")
                self.tracker = None

    def pace(self, line, tokens_per_second, mfu, left, memory):
        """Say the `line` of an iteration; on a terminal the bar says the same instead."""
        self.speed = (
            f", {tokens_per_second:,.0f} tok/s, mfu {mfu * 100:.1f}%, {memory / 1e9:.1f} GB, {duration(left)} left"
        )
        if not (self.bar and sys.stdout.isatty()):
            self.say(line)

    def advance(self, iteration, loss):
        """Move the bar behind an iteration, back as well."""
        if self.bar:
            self.bar.set_description_str("", refresh=False)
            self.bar.set_postfix_str(f"loss {loss:.4f}{self.best}{self.speed}", refresh=False)
            if iteration < self.bar.n:  # a run that was put back
                self.bar.reset(self.bar.total)
            self.bar.update(iteration + 1 - self.bar.n)

    def doing(self, what):
        """Let the bar say what takes its time, until it moves again."""
        if self.bar:
            self.bar.set_description_str(f"{what}, ")

    def close_bar(self):
        if self.bar:
            self.bar.close()
            self.bar = None

    def close(self):
        self.close_bar()
        if self.file:
            self._flush()
            self.file.close()
            self.file = None

    def _flush(self):
        try:
            while self.waiting:
                self.waiting = self.waiting[
                    os.write(self.file.fileno(), self.waiting) :
                ]  # a disk that fills up takes a part
        except OSError as error:
            if not self.warned:
                self.say(f"warning: {self.path} cannot be written: {error.strerror}; its lines are kept until it can")
            self.warned = True


def iteration_line(iteration, loss, seconds, tokens, mfu, left):
    """`iter 10: loss 2.9234, time 156.78ms, mfu 15.23%, 418,000 tok/s, 3m 12s left`."""
    return (
        f"iter {iteration}: loss {loss:.4f}, time {seconds * 1000:.2f}ms, mfu {mfu * 100:.2f}%, {tokens / seconds:,.0f}"
        f" tok/s, {duration(left)} left"
    )


def _best_words(best):
    return f", best val loss {best['val_loss']:.4f} at {best['step']:,}"


def duration(seconds):
    """`3h 02m`, `3m 12s` or `12s`."""
    seconds = int(seconds + 0.5)
    if seconds >= 3600:
        return f"{seconds // 3600}h {seconds % 3600 // 60:02d}m"
    return f"{seconds // 60}m {seconds % 60:02d}s" if seconds >= 60 else f"{seconds}s"


def flops_per_token(config, adapters=0):
    """Useful floating point operations of training on one token, forward and backward: 6 for each weight of a matrix
    product (the tied head included, embedding look-ups not), and causal attention counted once: 6 L C (T + 1). Where
    only so many parameters of `adapters` are trained, the weights have no gradients, and count 4."""
    C, L = config.n_embd, config.n_layer
    inner = config.n_inner or 4 * C
    matrices = L * (4 * C * C + 2 * C * inner) + config.vocab_size * C
    return (4 * matrices + 6 * adapters if adapters else 6 * matrices) + 6 * L * C * (config.block_size + 1)


def read_metrics(path):
    """The events of a metrics.jsonl. A last line that a crash cut short is dropped."""
    events = []
    try:
        with open(path, encoding="utf-8") as file:
            for line in file:
                try:
                    event = json.loads(line)
                except ValueError:
                    continue
                if isinstance(event, dict) and "event" in event:
                    events.append(event)
    except FileNotFoundError:
        pass
    return events


def _until(events, run):
    """The events that are still true of a run at its iteration: updates before it, evaluations it knows of, and all
    that happened to it."""
    evaluated = {evaluation["step"] for evaluation in run.evaluations}

    def true(event):
        if event["event"] == "iter":
            return event["iter"] < run.iteration
        if event["event"] == "samples":
            return event["step"] < run.iteration
        if event["event"] in ("eval", "best"):
            return event["step"] in evaluated
        return event["event"] != "end"

    return [event for event in events if true(event)]


def start_wandb(accelerator, recipe, config):
    """Begin logging to Weights & Biases through accelerate; return `log(numbers, step)`, or None. Never stops a run:
    without a login or a network it logs offline, without the package not at all."""
    from accelerate.utils import LoggerType

    os.environ.setdefault("WANDB_SILENT", "true")
    try:
        mode = _wandb_mode()
        accelerator.log_with = [LoggerType.WANDB]
        options = {"name": recipe.wandb_run_name or Path(recipe.out_dir).name, "mode": mode, "dir": str(recipe.out_dir)}
        accelerator.init_trackers(recipe.wandb_project, config=config, init_kwargs={"wandb": options})
        if mode == "offline":
            print(f"wandb: logging offline into {recipe.out_dir}/wandb; `wandb sync` uploads it later")
        return lambda numbers, step: accelerator.log(numbers, step=step)
    except Exception as error:  # whatever a tracker does, training goes on
        accelerator.log_with = []
        accelerator.trackers = []
        print(f"wandb: not logging ({type(error).__name__}: {(str(error).splitlines() or [''])[0]})")
        return None


def _wandb_mode():
    """online when there is a login and the server answers, else offline; wandb itself would try for a minute and a
    half."""
    import wandb

    if mode := os.environ.get("WANDB_MODE"):
        return mode
    if not wandb.api.api_key:
        return "offline"
    try:
        reach(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    except OSError:
        return "offline"
    return "online"


def plot(out_dir, path=None, title=None):
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
