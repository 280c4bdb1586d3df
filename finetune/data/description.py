"""Checks of meta.json, which can come from elsewhere: types and counts."""

from __future__ import annotations

from typing import Any

MOST = 1 << 62
KINDS: dict[str, tuple[type, ...]] = {
    "tokenizer": (dict,),
    "splits": (dict,),
    "sources": (list,),
    "val_sources": (list,),
    "read": (list,),
    "doctor": (dict,),
    "overflow": (dict,),
    "split_by": (str,),
    "val_fraction": (float, int, type(None)),
    "vocab_size": (int,),
    "end_of_text": (int, type(None)),
    "chat_template": (str, type(None)),
}
COUNTS = ("tokens", "targets", "characters", "bytes", "documents")


def check(meta: dict[str, Any]) -> None:
    """Raise ValueError for a part of another type, or KeyError for one that is missing."""
    for name, kinds in KINDS.items():
        if name in meta and (not isinstance(meta[name], kinds) or isinstance(meta[name], bool)):
            raise ValueError(f"{name} is of another type")
    for source in (*meta.get("sources", []), *meta.get("val_sources", [])):
        if not isinstance(source, dict) or not isinstance(source.get("name", ""), str):
            raise ValueError("a source is no object with a name")
        if not _is_count(source.get("bytes") or 0) or not isinstance(source.get("sha256") or "", str):
            raise ValueError("bytes or sha256 of a source is of another type")
    for split in ("train", "val"):
        facts = meta["splits"][split]
        if not isinstance(facts, dict):
            raise ValueError(f"splits: {split} is no object")
        for name in COUNTS:
            if name in facts and not _is_count(facts[name]):
                raise ValueError(f"splits: {name} of {split} is no count")


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < MOST
