"""Line charts: coordinates in an SVG, which the macro `chart` of report.html.j2 draws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import NamedTuple

from finetune.common.formatting import figure

WIDTH, HEIGHT = 480, 262  # about a pixel on a phone each, so that text is legible there too
LEFT, RIGHT, TOP, BOTTOM = 70, 12, 22, 44  # margins
BUCKETS = 240  # a longer line is drawn by the least and the greatest value of each
OUTLIERS = 0.005  # share of the values that may lie outside at either end, for a line without dots
MAX_DOTS = 60  # of a line, about
LABEL_WIDTH = 60  # of a mark
Point = tuple[float, float]
Mark = tuple[float, str, str]  # x of a vertical line, its name and its tooltip
Dot = tuple[str, str, str]  # coordinates and tooltip


class Line(NamedTuple):
    name: str
    points: Sequence[Point]  # x ascending
    style: str  # a class of the page
    dots: bool = False  # draw each value, with none outside
    best: tuple[float, float, str] | None = None  # (x, y, name) of the value that counts


class Curve(NamedTuple):
    name: str
    style: str
    path: str
    dots: list[Dot]
    best: Dot | None
    above: Dot | None  # its first value, if that lies above the chart


class Chart(NamedTuple):
    title: str
    y_title: str
    summary: str
    x_ticks: list[tuple[str, str]]  # (coordinate, number)
    y_ticks: list[tuple[str, str]]
    marks: list[tuple[str, str, str]]  # (coordinate, name or "" without space for it, tooltip)
    curves: list[Curve]


def chart(
    title: str,
    y_title: str,
    lines: Sequence[Line],
    marks: Sequence[Mark] = (),
    x_max: float = 0,
    bounds: Point | None = None,
) -> Chart | None:
    """The chart of these lines, None without a value. x begins at 0 and ends at `x_max` or later. `bounds` are the
    lowest and highest y to show; values beyond them are cut off."""
    if not (lines := [line for line in lines if line.points]):
        return None
    x_max = max(x_max, *(line.points[-1][0] for line in lines))
    y_low, y_high = bounds or _bounds(lines)

    def across(x: float) -> str:
        return f"{LEFT + x / (x_max or 1) * (WIDTH - LEFT - RIGHT):.1f}"

    def down(y: float) -> str:
        return f"{HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM):.1f}"

    def path(points: Sequence[Point]) -> str:
        return "L".join(f"{across(x)} {down(y)}" for x, y in points)

    def curve(line: Line) -> Curve:
        points = line.points if line.dots else thin_out(line.points)
        shown = points[:: max(1, len(points) // MAX_DOTS)] if line.dots else []
        dots = [(across(x), down(y), f"{line.name} {y:.4f} at {x:,}") for x, y in shown if y_low <= y <= y_high]
        best = (across(line.best[0]), down(line.best[1]), line.best[2]) if line.best else None
        x, y = points[0]
        above = (across(x), down(y_high), f"{y:.4f} at {x:,}") if line.best and y > y_high else None
        drawn = "M".join(path(part) for part in _within(points, y_low, y_high))
        return Curve(line.name, line.style, drawn, dots, best, above)

    placed, last_label = [], -math.inf
    for position, name, tooltip in sorted(marks, key=lambda mark: mark[0]):
        x = across(position)
        has_space = float(x) - last_label > LABEL_WIDTH
        last_label = float(x) if has_space else last_label
        placed.append((x, name if has_space else "", tooltip))
    ranges = [f"{line.name} from {figure(line.points[0][1])} to {figure(line.points[-1][1])}" for line in lines]
    return Chart(
        title,
        y_title,
        f"{title}: {', '.join(ranges)}",
        [(across(value), figure(value)) for value in round_ticks(0, x_max)],
        [(down(value), figure(value)) for value in round_ticks(y_low, y_high)],
        placed,
        [curve(line) for line in lines],
    )


def _within(points: Sequence[Point], low: float, high: float) -> list[list[Point]]:
    """The parts of a line that lie within the bounds."""
    cut = list(points[:1])
    for (x, y), (next_x, next_y) in pairwise(points):
        crossed = [edge for edge in (low, high) if (y - edge) * (next_y - edge) < 0]
        for edge in sorted(crossed, reverse=next_y < y):
            cut.append((x + (edge - y) / (next_y - y) * (next_x - x), edge))
        cut.append((next_x, next_y))
    return [list(part) for is_inside, part in groupby(cut, lambda point: low <= point[1] <= high) if is_inside]


def _bounds(lines: Sequence[Line]) -> Point:
    """The lowest and highest y to show, with a margin. Spikes are cut, as they hide more than they show."""
    values = []
    for line in lines:
        ordered = sorted(y for _, y in line.points)
        cut = 0 if line.dots or len(ordered) < 20 else max(1, int(len(ordered) * OUTLIERS))
        values += [ordered[cut], ordered[-1 - cut]]
    low, high = min(values), max(values)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin if low < 0 or low > margin else 0.0, high + margin


def round_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers within the bounds."""
    exact = (high - low) / about
    step = 10 ** math.floor(math.log10(exact)) if exact > 0 else 1
    step *= next((factor for factor in (1, 2, 2.5, 5) if factor * step >= exact), 10)
    return [number * step for number in range(math.ceil(low / step), math.floor(high / step + 1e-9) + 1)]


def thin_out(points: Sequence[Point]) -> Sequence[Point]:
    """The least and the greatest value of each bucket, if there are more points than that."""
    if len(points) <= 2 * BUCKETS:
        return points
    kept = []
    for bucket in range(BUCKETS):
        part = points[bucket * len(points) // BUCKETS : (bucket + 1) * len(points) // BUCKETS]
        kept += sorted({min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])})
    return kept
