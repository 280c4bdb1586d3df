"""What a run was made with: versions, and the git commit of the current directory."""

from __future__ import annotations

import os
import platform
import subprocess
from contextlib import suppress
from importlib import metadata
from typing import Any

import finetune

GIT_SECONDS = 2
# nothing that a repository names is run, and no index is written
GIT = ("git", "--no-optional-locks", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null")


def provenance() -> dict[str, Any]:
    """{"versions": {"python", "torch", "transformers", "finetune"}, "git": {"commit", "dirty"}}; no "git" outside of a
    repository. `dirty`: a tracked file differs from the commit; None if git does not say within GIT_SECONDS."""
    versions = {"python": platform.python_version()}
    for name in ("torch", "transformers"):
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    found: dict[str, Any] = {"versions": versions | {"finetune": finetune.__version__}}
    if commit := (_git("rev-parse", "--verify", "HEAD") or "").strip():
        changes = _git("status", "--porcelain", "--untracked-files=no", "--ignore-submodules=all")
        found["git"] = {"commit": commit, "dirty": None if changes is None else bool(changes.strip())}
    return found


def _git(*arguments: str) -> str | None:
    """The output of a git command; None if it fails, is slow, or git is not installed."""
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
    try:
        done = subprocess.run(
            [*GIT, *arguments], capture_output=True, text=True, errors="replace", timeout=GIT_SECONDS, env=environment,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return None if done.returncode else done.stdout
