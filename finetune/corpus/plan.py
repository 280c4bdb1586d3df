"""What a preparation is asked to do, kept in its directory: who goes on with it must ask for the same."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune.common.errors import UsageError
from finetune.common.files import read_json
from finetune.corpus.files import File
from finetune.data.tables import ReadOptions
from finetune.data.tokenizer import Tokenizer, from_directory

PLAN, TOKENIZER = "plan.json", "tokenizer"


@dataclass
class Plan:
    """The values of meta.json and of the steps; `tasks` read the files."""

    files: list[File]
    options: ReadOptions
    tokenizer: str  # its fingerprint
    tasks: int = 1
    val_fraction: float = 0.1
    seed: int = 1337
    overflow: str = "split"
    max_tokens: int = 1024
    duplicates: str = "drop"  # or "keep"
    ends_lines: bool = False  # see Source
    notes: list[str] = field(default_factory=list)  # of the sources
    overwrite: bool = field(default=False, compare=False)

    def files_of(self, task: int) -> list[int]:
        """The numbers of the files that a task reads: the next ones, about as many bytes for each task."""
        ends = list(itertools.accumulate(file.size for file in self.files))
        middles = [end - file.size / 2 for end, file in zip(ends, self.files)]
        first, last = (bisect.bisect_left(middles, ends[-1] * part / self.tasks) for part in (task, task + 1))
        return list(range(first, last))

    def save(self, work: Path) -> None:
        write(work / PLAN, json.dumps(dataclasses.asdict(self), indent=1))

    def check(self, work: Path, out_dir: str | Path) -> None:
        """Raise UsageError if `work` was begun by another plan: which of its values differ."""
        begun = load(work)
        keys = [each.name for each in dataclasses.fields(self) if each.compare]
        changed = [key for key in keys if getattr(self, key) != getattr(begun, key)]
        if changed:
            problem = f"is half prepared with other {', '.join(changed)}"
            advice = "give the same to go on, or --overwrite=true to begin anew"
            raise UsageError(f"out_dir {out_dir}: {problem}; {advice}")


def write(path: Path, content: str | bytes) -> None:
    """Write a file whole, in a folder into which other processes write other files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(part, path)


def load(work: str | Path) -> Plan:
    """The plan in a directory. Raises UsageError."""
    try:
        found: dict[str, Any] = read_json(Path(work) / PLAN)
        found |= {"files": [File(*file) for file in found["files"]], "options": ReadOptions(**found["options"])}
        return Plan(**found)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UsageError(f"{work}: its {PLAN} cannot be read ({error}); --overwrite=true begins anew") from None


def load_tokenizer(work: str | Path) -> Tokenizer:
    found = from_directory(Path(work) / TOKENIZER)
    assert found
    return found
