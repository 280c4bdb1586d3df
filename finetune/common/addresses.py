"""Addresses of storage that is not a disk, such as s3://bucket/run, and the directory of this machine for each.

A run at an address is trained in its mirror, a directory here. `config.mirror` fetches it, `runs.uploads` sends it."""

from __future__ import annotations

import os
import re
from pathlib import Path

ADDRESS = re.compile(r"([A-Za-z][\w+.:-]+)://(.*)", re.DOTALL)
ONE_SLASH = re.compile(r"(s3a?|gs|gcs|hf|abfss?|az|memory):/+([^/].*)", re.DOTALL)
PASSWORD = re.compile(r"[^/]*:[^/]*@")
FILES = ("file", "local")


def is_address(text: object) -> bool:
    return isinstance(text, str) and bool(ADDRESS.fullmatch(text) or ONE_SLASH.fullmatch(text))


def problem_of_address(text: str) -> str | None:
    """Why an address cannot be that of a run or of a model; None if it can be. No password is repeated."""
    found = ADDRESS.fullmatch(text)
    if not found:
        slash = ONE_SLASH.fullmatch(text)
        return f"{text}: an address has two slashes; did you mean {slash[1]}://{slash[2]}?" if slash else "no address"
    protocol, rest = found[1].lower(), found[2]
    if PASSWORD.match(rest):
        return f"{protocol}://...: holds a password; leave it out, credentials come from the environment"
    if "::" in text or protocol in ("http", "https"):
        return f"{text}: cannot be written to; give one such as s3://BUCKET/NAME"
    parts = [part for part in rest.split("/") if part]
    if not parts or {".", ".."} & set(parts) or re.search(r"[?*\[\]#\\]", rest):
        return f"{text}: is no address of a directory; give one such as s3://BUCKET/NAME, without ..?*[]#"
    return None


def runs_directory() -> Path:
    """Where the mirrors are: $FINETUNE_CACHE/runs, or ~/.cache/finetune/runs."""
    usual = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "finetune")
    return Path(os.path.abspath(os.path.expanduser(os.environ.get("FINETUNE_CACHE") or usual)), "runs")


def mirror_of(address: str) -> Path:
    """The directory here for an address. Raises ValueError."""
    if problem := problem_of_address(address):
        raise ValueError(problem)
    protocol, _, rest = address.partition("://")
    protocol = protocol.lower()
    if protocol in FILES:
        rest = os.path.abspath(rest).replace(os.sep, "/")
    return Path(runs_directory(), protocol, *(part for part in rest.split("/") if part))


def address_of(path: str | Path) -> str | None:
    """The address that a directory here is the mirror of; None for any other directory."""
    try:
        protocol, *parts = Path(os.path.abspath(path)).relative_to(runs_directory()).parts
    except ValueError:
        return None
    root = "/" if protocol in FILES and os.sep == "/" else ""
    return f"{protocol}://{root}{'/'.join(parts)}" if parts else None
