"""A tour without a download: from texts with errors to an exported model, each step as its command.

finetune tour
"""

import os
import shlex
import signal
import subprocess
import sys
import time
import webbrowser
from dataclasses import dataclass
from pathlib import Path

from finetune.common.commands import command
from finetune.common.errors import Failure, UsageError
from finetune.common.formatting import printable
from finetune.config.cli import parse, run
from finetune.config.options import option

USAGE = """usage: finetune tour [--out_dir=DIR] [--open=true]

Writes some texts with errors to DIR, then runs every step from them to an exported model. It finds and fixes the
errors, plans, trains a tiny model, stops and resumes the run, samples, measures, exports and reports. Each step is
printed as the command that you would type in DIR. Nothing is downloaded."""
TEXTS = 60
SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 64, "block_size": 64, "batch_size": 16, "gradient_accumulation_steps": 1}
LENGTH = {"max_iters": 300, "learning_rate": 3e-3, "log_interval": 20}
TRAIN = command("train", init_from="scratch", dataset="data", out_dir="run", **SHAPE, **LENGTH)
STOP_AFTER = 40  # updates, when the run is interrupted
INTERRUPTED = 130


@dataclass
class Options:
    out_dir: str = option("finetune-tour", "directory of the tour, a new one", local=True)
    open: bool = option(False, "show the report in a browser at the end")


def main(argv: list[str]) -> None:
    options, _ = parse(Options, argv, USAGE)
    place = Path(options.out_dir)
    if os.path.lexists(place):
        raise UsageError(f"out_dir: {place} exists; give another, or remove it")
    began = time.monotonic()
    try:
        texts = write_texts(place / "texts")
    except OSError as error:
        raise UsageError(f"out_dir: {place} cannot be written: {error.strerror}; give another") from None
    print(f"{texts} texts with errors are in {printable(str(place / 'texts'))}")
    print(f"the commands run in {printable(str(place))}")
    for number, (title, line) in enumerate(steps(), 1):
        print(f"\n{number}/{len(steps())}  {title}\n$ {line}", flush=True)
        _run(line, place, stop=line == TRAIN)
    report = (place / "run/report.html").resolve()
    print(f"\nThat took {time.monotonic() - began:.0f} seconds. See {printable(str(report))}")
    if options.open:
        webbrowser.open(report.as_uri())


def steps() -> list[tuple[str, str]]:
    """(what for, the command) of each step, in their order."""
    return [
        ("Cut the texts into characters. What is wrong with them?", _prepare("texts", "raw")),
        ("Write them again without that.", command("doctor", "raw", fix="dedup,leaks,encoding", out_dir="clean")),
        ("Prepare the clean texts; a tenth is kept for validation.", _prepare("clean", "data")),
        ("What will a run take?", f"{TRAIN.replace('train', 'plan', 1)} --quick=true"),
        ("Train. After some updates comes Ctrl-C.", TRAIN),
        ("Go on, exactly where it stopped.", command("train", "run/recipe.yaml", init_from="resume")),
        ("Let it write.", command("sample", "run", start="The", num_samples=1, max_new_tokens=120)),
        ("How good is it?", command("eval", "run")),
        ("A model for others, read back and compared.", command("export", "run", to="mine")),
        ("The run on one page.", command("report", "run")),
    ]


def _prepare(source: str, out_dir: str) -> str:
    return command("prepare", source, tokenizer="char", out_dir=out_dir)


def write_texts(directory: Path) -> int:
    """Python's manual by topic, with faults: texts that are there twice, and letters that were decoded wrongly. Returns
    their number, as no Python has all topics of another."""
    from pydoc_data.topics import topics

    directory.mkdir(parents=True)
    texts = [text.strip() for _, text in sorted(topics.items()) if 800 < len(text) < 4000][: TEXTS - 3]
    texts += texts[:3]
    texts[5] += "\n\nA caf\u00c3\u00a9, and the manual\u00e2\u20ac\u2122s own words.\n"  # UTF-8, read as cp1252
    for number, text in enumerate(texts):
        (directory / f"{number:02}.txt").write_text(text + "\n", encoding="utf-8")
    return len(texts)


def _run(line: str, place: Path, stop: bool) -> None:
    """Run a command of finetune in a directory, and interrupt it after some updates if asked to. Raises Failure if it
    ends in another way than it should."""
    _, verb, *argv = shlex.split(line)
    # threads that wait leave the cores to other programs; on busy cores a tiny model would be slowed manyfold
    settings = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
    packages = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    began = subprocess.Popen(
        [sys.executable, "-m", f"finetune.{verb}", *argv], cwd=place, env={**settings, "PYTHONPATH": packages}
    )
    try:
        while stop and began.poll() is None and not _has_made(place / "run/metrics.jsonl", STOP_AFTER):
            time.sleep(0.05)
        if stop and began.poll() is None:
            print("^C", flush=True)
            began.send_signal(signal.SIGINT)
        code = began.wait()
    except KeyboardInterrupt:
        began.wait()
        raise
    if code not in ((0, INTERRUPTED) if stop else (0,)):
        raise Failure(f"the tour ends here: {line} ended with exit code {code}", 1)


def _has_made(metrics: Path, updates: int) -> bool:
    return metrics.exists() and f'"iter": {updates},' in metrics.read_text(encoding="utf-8")


if __name__ == "__main__":
    run(main)
