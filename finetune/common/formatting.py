"""Numbers and settings as people read them."""

from __future__ import annotations

import math
import sys
from typing import TypeGuard

MOST_CHARACTERS = 500  # in a line of an error


def printable(text: object) -> str:
    """Text for a terminal: line ends stay, and other characters that would steer it are written as \\x1b."""
    return "".join(
        char if char == "\n" or char.isprintable() else char.encode("unicode_escape").decode() for char in str(text)
    )


def message_lines(error: object) -> str:
    """An error's message for a terminal, in lines of at most MOST_CHARACTERS: of a longer one both ends."""
    lines = printable(error).split("\n")
    return "\n".join(
        line if len(line) <= MOST_CHARACTERS else f"{line[: MOST_CHARACTERS - 165]} ... {line[-160:]}" for line in lines
    )


def shown(value: object, most: int = 80) -> str:
    """A value from a file as a message shows it: on one line, and cut if it is long."""
    if isinstance(value, int) and abs(value) >= 10**most:  # str() refuses the longest
        return "a longer number"
    text = printable(value).replace("\n", "\\n")
    return text if len(text) <= most else f"{text[: most - 3]}..."


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value of JSON is a finite number; metrics.jsonl holds NaN and infinity as text."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def duration(seconds: float) -> str:
    """`3h 02m`, `3m 12s` or `12s`."""
    seconds = int(seconds + 0.5)
    if seconds >= 3600:
        return f"{seconds // 3600}h {seconds % 3600 // 60:02d}m"
    return f"{seconds // 60}m {seconds % 60:02d}s" if seconds >= 60 else f"{seconds}s"


def gigabytes(num_bytes: float) -> str:
    """`1.25 GB`, or `12 MB` below 0.1 GB."""
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.0f} MB"


def two_digits(rate: float) -> float:
    """A rate rounded to two digits."""
    return float(f"{rate:.2g}")


def figure(value: float) -> str:
    """A short number, as on an axis: `15,946`, `0.25`, `3e-05`, `1.2M`."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:.4g}M"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def setting(value: object) -> str:
    """The value of a key as a flag writes it; text is quoted if it is empty, steers a terminal or has spaces around."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str) and (value != value.strip() or not value or not value.isprintable()):
        return repr(value)
    return "none" if value is None else str(value)


def unify_newlines(text: str) -> str:
    """The text with every line end as \\n."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def perplexity(loss: float) -> float:
    """The perplexity of a loss in nats per token."""
    return math.exp(min(loss, 700))  # exp(710) overflows
