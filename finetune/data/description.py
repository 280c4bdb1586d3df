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
    "chat_template": (str, type(None)),
}
COUNTS = ("tokens", "targets", "characters", "bytes", "documents")


def check(meta: dict[str, Any]) -> None:
    """Raise ValueError for a part of another type, or KeyError for one that is missing."""
    for name, kinds in KINDS.items():
        if name in meta and (not isinstance(meta[name], kinds) or isinstance(meta[name], bool)):
            raise ValueError(f"{name} is of another type")
    if not all(isinstance(source, dict) for name in ("sources", "val_sources") for source in meta.get(name, [])):
        raise ValueError("a source is no object")
    for split in ("train", "val"):
        facts = meta["splits"][split]
        if not isinstance(facts, dict):
            raise ValueError(f"splits: {split} is no object")
        for name in COUNTS:
            if name in facts and not (type(facts[name]) is int and 0 <= facts[name] < MOST):
                raise ValueError(f"splits: {name} of {split} is no count")
