"""The report of a run, for others: without the folders of this computer."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from markupsafe import escape

from finetune.config.paths import split_paths
from finetune.config.run_directory import REPORT, SHARE_PICTURE
from finetune.runs.model_card import without_folders

NAME = r"[\w.+-]+"
PLACE = re.compile(  # a path that begins at the root, a drive, a server, a home directory or above this directory
    rf"(?:file:/*|(?<![\w.</]))(?:/{NAME}){{2,}}|file:///{NAME}|(?<![A-Za-z])[A-Za-z]:[\\/](?!/)[\w.+\\/-]+"
    rf"|\\\\{NAME}\\[\w.+\\-]+|~(?:[A-Za-z_][\w.-]*)?/[\w.+/-]+|(?<![\w./])(?:\./)?(?:\.\./)+[\w.+/-]+"
)


def copy_report(run_dir: Path, to: Path, recipe: dict[str, Any]) -> dict[str, str]:
    """Copy the report of a run and its picture to a directory for others. Returns {what: its file name}."""
    copied = {}
    if report := public_report(run_dir, recipe):
        (to / REPORT).write_text(report, encoding="utf-8")
        copied["report"] = REPORT
    if (run_dir / SHARE_PICTURE).is_file():
        (to / SHARE_PICTURE).write_bytes((run_dir / SHARE_PICTURE).read_bytes())
        copied["share"] = SHARE_PICTURE
    return copied


def public_report(run_dir: Path, recipe: dict[str, Any]) -> str | None:
    """report.html of a run with the last part of each path that its recipe names; None if there is no report."""
    try:
        text = (run_dir / REPORT).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    names = [path for value in recipe.values() if isinstance(value, str) for path in split_paths(value)]
    folders = {str(run_dir), str(run_dir.resolve()), *(name for name in names if "/" in name or "\\" in name)}
    for folder in _longest_first(folders):
        for old, new in zip(_forms(folder), _forms(without_folders(folder)), strict=True):
            text = text.replace(old, new)
    home = str(Path.home())
    text = re.sub(rf"(?<![\w.-]){re.escape(str(escape(home)))}(?![\w.-])", "~", text) if home != "/" else text
    above = {str(parent) for folder in folders for parent in Path(os.path.expanduser(folder)).absolute().parents}
    for folder in _longest_first({home, *above}):  # PLACE knows no spaces and quotes
        simple = re.sub(r"[^\w.+/-]", "_", folder)
        for old in _forms(folder) if simple != folder else ():
            text = text.replace(old, simple)
    return last_parts(text)


def last_parts(text: str) -> str:
    """A text with the last part of each path in it."""
    return PLACE.sub(lambda found: re.split(r"[/\\]", found[0].rstrip("/\\"))[-1], text)


def _forms(name: str) -> list[str]:
    """A name in HTML: as it is, and within the quotes of a shell."""
    return [str(escape(name)), str(escape(name.replace("'", "'\"'\"'")))]


def _longest_first(names: Iterable[str]) -> list[str]:
    return sorted(names, key=len, reverse=True)
