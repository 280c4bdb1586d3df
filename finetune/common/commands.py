"""Commands in messages. Who writes one makes it here, and tests/test_advice.py looks for all of them and runs them."""

from __future__ import annotations

import shlex


def command(verb: str, *arguments: object, **flags: object) -> str:
    """A command to type: `finetune train out/recipe.yaml --init_from=resume`."""
    given = [f"--{name}={value}" for name, value in flags.items()]
    return shlex.join(["finetune", verb, *map(str, arguments), *given])
