"""Commands in messages. Who writes one makes it here, and tests/test_advice.py looks for all of them and runs them."""

from __future__ import annotations

import shlex
from collections.abc import Iterable


def command(verb: str, *arguments: object, **flags: object) -> str:
    """A command to type: `finetune train out/recipe.yaml --init_from=resume`."""
    given = [f"--{name}={value}" for name, value in flags.items()]
    return join(["finetune", verb, *map(str, arguments), *given])


def join(words: Iterable[str]) -> str:
    """Words for a shell. Those with control characters are quoted as in bash, which a terminal does not obey."""
    return " ".join(shlex.quote(word) if word.isprintable() else f"$'{''.join(map(_escaped, word))}'" for word in words)


def _escaped(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a name that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    if char in "\\'":
        return f"\\{char}"
    return char if char.isprintable() else f"\\x{code:02x}" if code < 0x80 else f"\\U{code:08x}"
