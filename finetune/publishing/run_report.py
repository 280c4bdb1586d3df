"""The report of a run, for others: without the folders of this computer."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

from finetune.config.paths import split_paths
from finetune.runs.model_card import without_folders

REPORT, SHARE = "report.html", "share.png"
FOLDER = re.compile(r"(?<![\w.</:])(?:/[\w.+-]+){2,}|[A-Za-z]:\\[\w.+\\-]+|~/[\w./+-]+")  # of an absolute path


def copy_report(run_dir: Path, to: Path, recipe: dict[str, Any]) -> dict[str, str]:
    """Copy the report of a run and its picture to a directory for others. Returns {what: its file name}."""
    copied = {}
    if report := public_report(run_dir, recipe):
        (to / REPORT).write_text(report, encoding="utf-8")
        copied["report"] = REPORT
    if (run_dir / SHARE).is_file():
        (to / SHARE).write_bytes((run_dir / SHARE).read_bytes())
        copied["share"] = SHARE
    return copied


def public_report(run_dir: Path, recipe: dict[str, Any]) -> str | None:
    """report.html of a run with the last part of each path that its recipe names; None if there is no report."""
    try:
        text = (run_dir / REPORT).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    names = [path for value in recipe.values() if isinstance(value, str) for path in split_paths(value)]
    folders = {str(run_dir), str(run_dir.resolve()), *(name for name in names if "/" in name or "\\" in name)}
    for folder in sorted(folders, key=len, reverse=True):
        text = text.replace(html.escape(folder), html.escape(without_folders(folder)))
    return FOLDER.sub(lambda found: re.split(r"[/\\]", found[0])[-1], text)
