"""A model card that its owner edits: the sections between our marks are written anew, all else stays as it is."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import yaml

from finetune.common.errors import UsageError, first_line
from finetune.common.formatting import unify_newlines
from finetune.data.card_configs import FRONT

SECTION = re.compile(r"<!-- finetune:(\w+) -->\n.*?<!-- /finetune:\1 -->\n", re.S)
OURS = ("library_name", "pipeline_tag", "base_model", "model_name", "model-index")  # keys that are written anew
OUR_PICTURE = re.compile(r"https://huggingface\.co/[^/]+/[^/]+/resolve/main/share\.png")  # thumbnail of an export
CHOSEN = ("license", "language")  # on the command line, or by the owner
LISTS = ("tags", "datasets")  # keys that the owner adds to


def merge(old: str, new: str, chosen: Collection[str] = ()) -> str:
    """The card `old` with the sections and the metadata of `new`; the owner's words and other metadata stay. Keys
    `chosen` on the command line are those of `new`. Raises UsageError for metadata that are no YAML."""
    was, now = _nodes(old), _nodes(new)
    values = metadata(old)
    kept = {key for key in was if not _is_ours(key, values.get(key)) and key not in (*LISTS, *chosen)}
    merged = {**now, **{key: was[key] for key in was if key in kept}}
    for key in LISTS:
        if items := {item.value: item for item in [*_items(now.get(key)), *_items(was.get(key))]}:
            merged[key] = yaml.SequenceNode("tag:yaml.org,2002:seq", [*items.values()], flow_style=False)
    return f"---\n{_written(merged)}---\n" + _merge_sections(FRONT.sub("", old), FRONT.sub("", new))


def decoded(content: bytes) -> str:
    """The text of a card on the Hub."""
    return unify_newlines(content.decode("utf-8-sig", "replace"))


def _nodes(text: str) -> dict[str, yaml.Node]:
    """The front matter of a card as it is written: as values, the language `no` would be false, and 1.10 would be 1.1.
    Raises UsageError."""
    metadata(text)
    front = FRONT.match(text)
    found = yaml.compose(front[1] or "", yaml.SafeLoader) if front else None
    return {key.value: value for key, value in found.value} if found else {}


def _written(nodes: dict[str, yaml.Node]) -> str:
    """The lines of a front matter."""
    pairs = [(yaml.ScalarNode("tag:yaml.org,2002:str", key), node) for key, node in nodes.items()]
    found = yaml.MappingNode("tag:yaml.org,2002:map", pairs, flow_style=False)
    return yaml.serialize(found, Dumper=yaml.SafeDumper, allow_unicode=True) if pairs else ""


def _merge_sections(old: str, new: str) -> str:
    ours = {found[1]: found[0] for found in SECTION.finditer(new)}
    first, *rest = SECTION.split(old)  # words before, then the name of each section and the words behind it
    pieces = list(zip(rest[::2], rest[1::2]))
    for number, name in enumerate(ours):
        names = [each for each, _ in pieces]
        if name not in names:  # behind the section that is before it in the new card
            before = [names.index(each) for each in list(ours)[:number] if each in names]
            pieces.insert(before[-1] + 1 if before else 0, (name, "\n"))
            if not before and first and not first.endswith("\n\n"):
                first = first.rstrip("\n") + "\n\n"
    return first + "".join(ours.get(name, "") + words for name, words in pieces)


def has_sections(text: str) -> bool:
    return SECTION.search(text) is not None


def owner_words(text: str) -> str:
    """What the owner wrote besides a title, and metadata that we never write: "" if that is nothing."""
    body = SECTION.sub("", FRONT.sub("", text))
    lines = [line for line in body.splitlines() if line.strip() and not line.startswith("# ")]
    others = {
        key: value for key, value in metadata(text).items() if not _is_ours(key, value) and key not in (*LISTS, *CHOSEN)
    }
    return "\n".join([*lines, *(f"{key}: {value}" for key, value in others.items())])


def metadata(text: str) -> dict[str, Any]:
    """The front matter of a card. Raises UsageError."""
    front = FRONT.match(text)
    try:
        found = yaml.safe_load(front[1] or "") if front else None
    except yaml.YAMLError as error:
        raise UsageError(f"README.md: its metadata between the lines --- are no YAML: {first_line(error)}") from None
    if found is not None and not isinstance(found, dict):
        raise UsageError("README.md: its metadata between the lines --- are no keys with values")
    return found or {}


def _is_ours(key: str, value: Any) -> bool:
    return key in OURS or key == "thumbnail" and OUR_PICTURE.fullmatch(str(value)) is not None


def _items(node: yaml.Node | None) -> list[yaml.Node]:
    """The words in a list of a front matter, or the only one."""
    items = node.value if isinstance(node, yaml.SequenceNode) else [] if node is None else [node]
    return [item for item in items if isinstance(item, yaml.ScalarNode) and item.value not in ("", "null", "~")]
