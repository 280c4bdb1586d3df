"""Line charts as SVG inside a page: no script, nothing from outside, colours from the page's own style."""

import math
from html import escape
from typing import NamedTuple

from finetune.common.formatting import figure

WIDTH, HEIGHT = 480, 240  # in units of about a pixel on a phone, so that letters are read there too
LEFT, RIGHT, TOP, BOTTOM = 54, 12, 20, 30  # margins
BUCKETS = 240  # of a longer line the least and the greatest value of each are drawn
OUTLIERS = 0.005  # of the values of a line without dots may lie outside, at either end


class Line(NamedTuple):
    name: str
    points: list  # (x, y), x ascending
    style: str  # a class of the page
    dots: bool = False  # each value is shown, and none may lie outside
    ring: tuple | None = None  # (x, y, words) of the point that counts


class Mark(NamedTuple):
    """Something that happened at x: `name` stands at the line, `words` when one points at it."""

    x: float
    name: str
    words: str


def chart(title, lines, marks=(), to=None):
    """A <figure>, or nothing where there is nothing to draw. x begins at 0 and ends at `to` or later."""
    lines = [line for line in lines if line.points]
    if not lines:
        return ""
    x_high = max([to or 0, *(line.points[-1][0] for line in lines)])
    y_low, y_high = _bounds(lines)

    def place(x, y):
        across = LEFT + x / (x_high or 1) * (WIDTH - LEFT - RIGHT)
        down = HEIGHT - BOTTOM - (min(max(y, y_low), y_high) - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)
        return f"{across:.1f}", f"{down:.1f}"

    parts = []
    for value in _ticks(y_low, y_high):
        _, y = place(0, value)
        parts.append(
            f'<path class="grid" d="M{LEFT} {y}H{WIDTH - RIGHT}"/><text x="{LEFT - 6}" y="{y}" dy=".35em"'
            f' text-anchor="end">{figure(value)}</text>'
        )
    for value in _ticks(0, x_high):
        x, _ = place(value, y_low)
        parts.append(f'<text x="{x}" y="{HEIGHT - 10}" text-anchor="middle">{figure(value)}</text>')
    said = -math.inf
    for mark in sorted(marks, key=lambda mark: mark.x):
        x, _ = place(mark.x, y_low)
        parts.append(f'<g class="mark"><title>{escape(mark.words)}</title><path d="M{x} {TOP - 4}V{HEIGHT - BOTTOM}"/>')
        if float(x) - said > 60:  # room for a word
            said, anchor = float(x), "end" if float(x) > WIDTH - 80 else "start"
            parts.append(f'<text x="{x}" y="{TOP - 8}" text-anchor="{anchor}">{escape(mark.name)}</text>')
        parts.append("</g>")
    for line in lines:
        drawn = line.points if line.dots else _thinned(line.points)
        path = "L".join(" ".join(place(x, y)) for x, y in drawn)
        parts.append(f'<path class="line {line.style}" d="M{path}"/>')
        if line.dots:
            for x, y in drawn[:: max(1, len(drawn) // 60)]:
                across, down = place(x, y)
                parts.append(
                    f'<circle class="{line.style}" cx="{across}" cy="{down}" r="2.5"><title>{escape(line.name)} {y:.4f}'
                    f" at {x:,}</title></circle>"
                )
        if line.ring:
            across, down = place(*line.ring[:2])
            parts.append(
                f'<circle class="ring {line.style}" cx="{across}" cy="{down}"'
                f' r="6"><title>{escape(line.ring[2])}</title></circle>'
            )
    legend = "".join(f'<span class="{line.style}">{escape(line.name)}</span>' for line in lines if len(lines) > 1)
    words = f"{title}: " + ", ".join(
        f"{line.name} from {figure(line.points[0][1])} to {figure(line.points[-1][1])}" for line in lines
    )
    return (
        f"<figure><figcaption><b>{escape(title)}</b> {legend}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(words)}">{"".join(parts)}</svg></figure>'
    )


def _bounds(lines):
    """The lowest and highest y to show, with some air. What a spike hides is more than what it shows."""
    values = []
    for line in lines:
        ordered = sorted(y for _, y in line.points)
        cut = 0 if line.dots or len(ordered) < 20 else max(1, int(len(ordered) * OUTLIERS))
        values += [ordered[cut], ordered[-1 - cut]]
    low, high = min(values), max(values)
    air = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - air if low < 0 or low > air else 0.0, high + air


def _ticks(low, high, about=5):
    """Round numbers within the bounds."""
    exact = (high - low) / about
    step = 10 ** math.floor(math.log10(exact)) if exact > 0 else 1
    step *= next((factor for factor in (1, 2, 2.5, 5) if factor * step >= exact), 10)
    first = math.ceil(low / step)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _thinned(points):
    if len(points) <= 2 * BUCKETS:
        return points
    kept = []
    for bucket in range(BUCKETS):
        part = points[bucket * len(points) // BUCKETS : (bucket + 1) * len(points) // BUCKETS]
        kept += sorted({min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])})
    return kept
