"""The last step: the tokens of all tasks, one behind the other, as a prepared directory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datatrove.pipeline.base import PipelineStep

from finetune.common.errors import UsageError
from finetune.common.files import read_json, temporary_directory
from finetune.corpus import plan as plans
from finetune.corpus.plan import Plan
from finetune.data import lossy, target
from finetune.data.documents import Encoded
from finetune.data.sources import MAX_LINES
from finetune.data.split import OverflowFilter
from finetune.data.tables import plural
from finetune.data.token_folders import open_file
from finetune.data.write_bins import write_bins

SPLITS = ("train", "val")


class Merge(PipelineStep):
    """train.bin, val.bin and meta.json, in the order of the source."""

    type, name = "WRITER", "finetune"

    def __init__(self, work: str) -> None:
        super().__init__()
        self.work = work

    def run(self, data: object = None, rank: int = 0, world_size: int = 1) -> None:
        work = Path(self.work)
        plan, tokenizer = plans.load(work), plans.load_tokenizer(work)
        counts = [read_json(work / "tokens" / f"{task:05d}.json") for task in range(plan.tasks)]
        facts = [read_json(work / "facts" / f"{number:06d}.json") for number in range(len(plan.files))]
        documents = {split: sum(count[split]["documents"] for count in counts) for split in SPLITS}
        total = sum(documents.values())
        lost = _left_out(facts, total)
        for split, found in documents.items():
            if not found:
                problem = f"of {total:,} documents none goes to {split}; give --val=SOURCE or another --seed"
                raise UsageError(f"{split}.bin would be empty: {'; '.join([problem, *lost])}")
        out_dir = work.parent
        with temporary_directory(out_dir) as directory:
            overflow = OverflowFilter(plan.overflow, plan.max_tokens)
            splits = write_bins(_documents(work, plan.tasks), tokenizer, tokenizer.eot, overflow, directory)
            overflow.count = sum(count["overflow"] for count in counts)  # the tasks applied it
            for split, found in splits.items():
                found |= {key: sum(count[split][key] for count in counts) for key in ("characters", "bytes")}
            sample = [(text, bool(special)) for count in counts for text, special in count["sample"]][: lossy.FIRST]
            remarks = lossy.remarks(tokenizer, tokenizer.eot, sample, directory, splits)
            has_val = any(file.split for file in plan.files)
            meta: dict[str, Any] = {
                "splits": splits,
                "split_by": "sources" if has_val else "documents",
                "val_fraction": None if has_val else plan.val_fraction,
                "seed": plan.seed,
                "end_of_text": tokenizer.eot,
                "overflow": overflow.facts(),
                "read": [*_report(plan, facts), *lost, *remarks],
                "sources": _sources(plan, facts, ("train", None)),
            }
            meta |= {"val_sources": _sources(plan, facts, ("val",))} if has_val else {}
            target.publish(directory, out_dir, meta, tokenizer, plan.overwrite)


def _documents(work: Path, tasks: int) -> Iterator[tuple[str, list[Encoded]]]:
    for split in SPLITS:
        for task in range(tasks):
            for group in open_file(work / "tokens" / split / f"{task:05d}.ds").documents():
                yield split, group


def _left_out(facts: list[dict[str, Any]], kept: int) -> list[str]:
    if lost := sum(found["documents"] for found in facts) - kept:
        return [f"{plural(lost, 'document')} left out, duplicates of others; --duplicates=keep keeps them"]
    return []


def _report(plan: Plan, facts: list[dict[str, Any]]) -> Iterator[str]:
    """What was read, as `Source.report` says it."""
    yield from plan.notes
    lines = [line for found in facts for line in found["lines"]]
    yield from lines[:MAX_LINES]
    if len(lines) > MAX_LINES:
        yield f"{len(lines) - MAX_LINES:,} tables more"
    total = sum(found["documents"] for found in facts)
    yield f"{plural(len(facts), 'file')}, {plural(total, 'document')}"
    literals = sum(found["literals"] for found in facts)
    if literals and plan.options.special == "text":
        yield f"{literals:,} end-of-texts spelled out; they stay text (--special=token: each ends a document)"


def _sources(plan: Plan, facts: list[dict[str, Any]], splits: tuple[str | None, ...]) -> list[dict[str, Any]]:
    """The entry `sources` of meta.json. Of several files the sha256 is that of their sha256 sums."""
    found: dict[str, list[int]] = {}
    for number, file in enumerate(plan.files):
        if file.split in splits:
            found.setdefault(file.source, []).append(number)
    entries = []
    for name, numbers in found.items():
        sums = [facts[number]["sha256"] for number in numbers]
        sha256 = sums[0] if len(sums) == 1 else hashlib.sha256("".join(sums).encode()).hexdigest()
        size = sum(plan.files[number].size for number in numbers)
        documents = sum(facts[number]["documents"] for number in numbers)
        entries.append({"name": Path(name).name, "bytes": size, "sha256": sha256, "documents": documents})
    return entries
