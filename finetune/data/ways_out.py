"""What refusals tell people to type: flags that name columns, templates of prompts, and programs of jq."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from finetune.data.row_shape import column_flag


def flags(columns: Sequence[str]) -> str:
    """The flags of a prompt and its completion, or of one column of conversations."""
    kinds = ("prompt", "completion") if len(columns) == 2 else ("messages",)
    return " ".join(map(column_flag, kinds, columns))


def prompt_flags(prompts: Sequence[str], completion: str) -> str:
    """The flags of a prompt that is made of one column or more, and of its completion."""
    if len(prompts) == 1:
        return flags([*prompts, completion])
    template = "\\n".join(f"{{{name}}}" for name in prompts)
    return f"--prompt_template={shlex.quote(template)} {column_flag('completion', completion)}"


def jq(rows: str | None, program: str) -> str:
    """The command of jq that changes each row; "" for a file that jq cannot read. `rows` is how jq finds the rows:
    `.[]` in an array, "" in lines."""
    if rows is None or "'" in program:
        return ""
    return f"jq -c '{rows and f'{rows} | '}{program}' FILE > out.jsonl"
