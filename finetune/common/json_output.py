"""--json=true: one JSON document on standard output, and nothing else there."""

import contextlib
import json
import math
import re
import sys
from collections.abc import Generator
from typing import Any

UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


@contextlib.contextmanager
def other_output_to_stderr(is_json: bool) -> Generator[None]:
    """Context in which everything that is printed goes to standard error, if `is_json`."""
    with contextlib.redirect_stdout(sys.stderr) if is_json else contextlib.nullcontext():
        yield


def print_json(value: object) -> None:
    text = json.dumps(finite(value), ensure_ascii=False, indent=2, default=str)
    # JSON escapes those below a space; the others steer a terminal or cannot be written
    print(UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


def finite(value: Any) -> Any:
    """The value with NaN and infinity as text: JSON has no such numbers."""
    if isinstance(value, dict):
        return {str(name): finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def printable_json(value: Any) -> Any:
    """A JSON value without control characters, which steer a terminal, and without lone surrogates."""
    if isinstance(value, str):
        return UNPRINTABLE.sub("\ufffd", value)
    if isinstance(value, dict):
        return {printable_json(name): printable_json(part) for name, part in value.items()}
    return [printable_json(part) for part in value] if isinstance(value, list) else value
