"""Pictures of the docs that need no browser, docs/images: a healthy and an overfitting curve, a terminal, two runs
compared, and the way of the data. The curves and terminals are those of three small runs that this script makes, from
scratch, on Python's own manual; that takes some minutes of a quiet CPU.

pip install -e '.[test]' pillow

python scripts/pictures.py
"""

import argparse
import html
import io
import os
import pty
import select
import shlex
import struct
import subprocess
import sys
import tempfile
import termios
from fcntl import ioctl
from pathlib import Path

import pyte
from PIL import Image

from finetune.runs.loss_plot import loss_figure

ROOT = Path(__file__).parents[1]
COLUMNS, ROWS = 100, 60
PREPARE = "finetune prepare texts --tokenizer=char --out_dir=data/texts"
HEALTHY = "finetune train quickstart --dataset=data/texts --out_dir=out-healthy --eval_interval=50"
SHORT_TEXT = "--dataset=short.txt --max_iters=500 --eval_interval=25"
OVERFITTING = f"finetune train quickstart {SHORT_TEXT} --out_dir=out-overfitting"
DROPOUT = f"finetune train quickstart {SHORT_TEXT} --out_dir=out-dropout --dropout=0.3"
TITLES = {"healthy": "healthy: both losses fall", "overfitting": "overfitting: validation loss turns and rises"}
COMPARE = "finetune compare out-overfitting out-dropout"
MOMENT = b"iter 380/600"  # of the first run, when its terminal is shown
LAST = 17  # lines of it: from the first evaluation on
SHORT = 40_000  # characters, so that 500 updates are 28 passes
MONO = "ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace"
WIDE, HIGH = 7.83, 18  # of a character of 13 pixels, and of a line


class Terminal:
    """A command on a terminal of its own. `shown` is its screen at the moment when `until` came, else at the end."""

    def __init__(self, line, work, columns=COLUMNS, until=None):
        self.screen = pyte.Screen(columns, ROWS)
        self.shown = None
        stream, reader, writer = pyte.ByteStream(self.screen), *pty.openpty()
        ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, columns, 0, 0))
        command = [sys.executable, "-m", *shlex.split(line.replace("finetune ", "finetune.", 1))]
        environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"}
        child = subprocess.Popen(command, cwd=work, env=environment, stdout=writer, stderr=writer)
        os.close(writer)
        while part := self._read(reader, child):
            stream.feed(part)
            if until and until in part and not self.shown:
                self.shown = self._lines()
        os.close(reader)
        if child.wait() != 0:
            raise SystemExit("\n".join(self._lines()))
        self.shown = self.shown or self._lines()

    @staticmethod
    def _read(reader, child):
        while child.poll() is None or select.select([reader], [], [], 0)[0]:
            if select.select([reader], [], [], 0.2)[0]:
                try:
                    return os.read(reader, 65536)
                except OSError:  # the terminal is closed
                    return b""
        return b""

    def _lines(self):
        lines = [line.rstrip() for line in self.screen.display]
        while lines and not lines[-1]:
            lines.pop()
        return lines


def terminal_svg(line, shown):
    """A terminal as a picture, whose text can be selected."""
    lines = [f"$ {line}", *shown]
    width, height = round(max(map(len, lines)) * WIDE) + 33, len(lines) * HIGH + 52
    dots = "".join(f'<circle cx="{22 + 18 * n}" cy="20" r="5.5" fill="#484f58"/>' for n in range(3))
    rows = []
    for number, text in enumerate(lines):
        colour = "#7ee787" if number == 0 else "#79c0ff" if "▏" in text or "█" in text else "#e6edf3"
        length = f' textLength="{len(text) * WIDE:.1f}" lengthAdjust="spacingAndGlyphs"' if text else ""
        place = f'x="16" y="{52 + number * HIGH}"'
        rows.append(f'<text {place} fill="{colour}"{length} xml:space="preserve">{html.escape(text)}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        f' font-family="{MONO}" font-size="13"><rect width="100%" height="100%" rx="10" fill="#0d1117"/>{dots}\n'
        + "\n".join(rows)
        + "\n</svg>\n"
    )


def curve(out_dir, title):
    """The losses of a run as a picture, as loss.png shows them."""
    drawn = io.BytesIO()
    loss_figure(out_dir, title).savefig(drawn, dpi=120, format="png")
    return Image.open(drawn).convert("RGB")


# (column, row, text, what it is)
BOXES = [
    (0, 1, "text, table, chat,\nHub dataset", "file"),
    (1, 1, "prepare", "command"),
    (2, 1, "train.bin, val.bin,\nmeta.json", "file"),
    (3, 1, "train", "command"),
    (4, 0, "last/\nto resume from", "file"),
    (4, 1, "best/\nHugging Face model", "file"),
    (4, 2, "report.html,\nmetrics.jsonl", "file"),
    (5, 0, "sample", "command"),
    (5, 1, "eval", "command"),
    (5, 2, "export", "command"),
    (6, 0, "text", "file"),
    (6, 1, "losses beside\na baseline", "file"),
    (6, 2, "the Hub, transformers,\nllama.cpp, ONNX", "file"),
    (2, 0, "doctor", "command"),
    (2, 2, "plan", "command"),
]
BESIDE = [(2, 0), (2, 2)]  # (column, row) of what looks at the box between them
ARROWS = [(0, 1), (1, 2), (2, 3), (3, 4), (3, 5), (3, 6), (5, 7), (5, 8), (5, 9), (7, 10), (8, 11), (9, 12)]
LEFTS, WIDTHS = [8, 172, 274, 438, 530, 704, 804], [136, 74, 136, 64, 146, 72, 164]
TOP, STEP, TALL = 14, 74, 50


def flow_svg():
    """The way of the data: files are light, commands dark."""
    marker = '<marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
    parts = [f'<defs>{marker}<path d="M0 0L8 4L0 8z" fill="#57606a"/></marker></defs>']
    for one, other in ARROWS:
        (start, row, *_), (end, to, *_) = BOXES[one], BOXES[other]
        x, y, x2, y2 = LEFTS[start] + WIDTHS[start], _middle(row), LEFTS[end] - 2, _middle(to)
        bend = (x + x2) / 2
        parts.append(
            f'<path d="M{x} {y}C{bend} {y} {bend} {y2} {x2} {y2}" fill="none" stroke="#57606a" stroke-width="1.5"'
            ' marker-end="url(#a)"/>'
        )
    for column, row in BESIDE:
        x = LEFTS[column] + WIDTHS[column] / 2
        ends = f"M{x} {_middle(min(row, 1))}L{x} {_middle(max(row, 1))}"
        parts.append(f'<path d="{ends}" stroke="#57606a" stroke-width="1.5" stroke-dasharray="3 4"/>')
    for column, row, text, kind in BOXES:
        fill, ink, edge = ("#0072b2", "#ffffff", "#0072b2") if kind == "command" else ("#f6f8fa", "#1f2328", "#d1d9e0")
        x, y, wide, lines = LEFTS[column], TOP + STEP * row, WIDTHS[column], text.split("\n")
        shape = f'x="{x}" y="{y}" width="{wide}" height="{TALL}" rx="{8 if kind == "file" else 25}"'
        parts.append(f'<rect {shape} fill="{fill}" stroke="{edge}"/>')
        for number, line in enumerate(lines):
            middle = y + TALL / 2 + 5 + (number - (len(lines) - 1) / 2) * 16
            font = f' font-family="{MONO}"' if kind == "command" else ""
            words = f'x="{x + wide / 2}" y="{middle:.0f}" fill="{ink}"{font} text-anchor="middle"'
            parts.append(f"<text {words}>{html.escape(line)}</text>")
    width, height = LEFTS[-1] + WIDTHS[-1] + 8, 2 * TOP + 2 * STEP + TALL
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        ' font-family="system-ui,sans-serif" font-size="13"><rect width="100%" height="100%" rx="10" fill="#fff"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _middle(row):
    return TOP + STEP * row + TALL // 2


def write_texts(work):
    """Python's manual: a file for each topic, and the beginning of it all as a short text."""
    from pydoc_data.topics import topics

    (work / "texts").mkdir()
    for name, text in topics.items():
        (work / "texts" / f"{name}.txt").write_text(text.strip() + "\n", encoding="utf-8")
    text = "\n\n".join(text.strip() for _, text in sorted(topics.items()))
    (work / "short.txt").write_text(text[:SHORT], encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", default=ROOT / "docs" / "images", type=Path)
    parser.add_argument("--only", choices=("flow", "terminal"), help="one picture, not all")
    given = parser.parse_args()
    given.to.mkdir(exist_ok=True, parents=True)
    pictures = {"flow": flow_svg()}
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        if given.only != "flow":
            write_texts(work)
            Terminal(PREPARE, work)
            shown = Terminal(HEALTHY, work, until=MOMENT).shown
            pictures["terminal"] = terminal_svg(HEALTHY, ["...", *shown[-LAST:]])
        if not given.only:
            Terminal(OVERFITTING, work)
            Terminal(DROPOUT, work)
            pictures["compare"] = terminal_svg(COMPARE, Terminal(COMPARE, work).shown)
            for name, title in TITLES.items():
                curve(work / f"out-{name}", title).save(given.to / f"curve-{name}.webp", quality=85, method=6)
    for name, picture in pictures.items():
        (given.to / f"{name}.svg").write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main()
