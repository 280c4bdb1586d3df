"""The doctor's facts as text."""

from __future__ import annotations

from collections.abc import Iterable

from finetune.common.commands import command
from finetune.tools.doctor.quality import FIXES, KINDS
from finetune.tools.doctor.sample import show_sample
from finetune.tools.doctor.size import BLOCK_SIZE, MIN_TOKENS


def page(facts: dict) -> str:
    """The sample of the corpus and the report on it."""
    sample = show_sample(facts["sample"])
    return f"{sample}\n\n{report(facts)}" if sample else report(facts)


def report(facts: dict) -> str:
    """The facts on one screen, with what to do about them. `facts["names"]`, if there, are the arguments that name the
    corpus."""
    found = {kind: finding for kind, finding in facts["findings"].items() if finding["count"]}
    lines = [*_table(facts), ""]
    if facts["one_text"]:
        lines.append("one text, so there are no documents to compare")
    for kind, finding in found.items():
        words = f" ({finding['words']:,} words)" if "words" in finding else ""
        lines.append(f"{finding['count']:>8,} {KINDS[kind][0]}{words}")
        example = finding["examples"][0]
        like = f" as {example['like']}" if "like" in example else ""
        lines.append(f"{'':9}{example['split']} {example['document']}{like}: {example['text']!r}")
    if not found:
        lines.append("nothing wrong: no duplicates, nothing of val in train, no faults of encoding")
    lines += [f"searched only: {limit}" for limit in facts["limits"]]

    size = facts["size"]
    about = "about " if size["estimated"] else ""
    few = f"; fewer than {MIN_TOKENS:,} may overfit" if size["may_overfit"] else ""
    learned = f", {about}{size['learned_tokens']:,} of them learned" if "learned_tokens" in size else ""
    advice = f"Recommended: {size['model']}, {size['recipe']}"
    lines += ["", f"{about}{size['tokens']:,} tokens to train on{learned}{few}. {advice}"]
    if fixes := [fix for fix in FIXES if any(KINDS[kind][1] == fix for kind in found)]:
        names = facts.get("names", ["DIR"])
        lines.append(f"to fix it: {command('doctor', *names, fix=','.join(fixes), out_dir='data/clean')}")
    if left := [KINDS[kind][0] for kind in found if not KINDS[kind][1]]:
        lines.append(f"not fixed automatically: {', '.join(left)}")
    return "\n".join(lines)


def _table(facts: dict) -> list[str]:
    """A line for each figure, a column for each split."""
    splits = {name: facts["splits"][name] for name in ("train", "val") if name in facts["splits"]}
    has_tokens = all(split["tokens"] is not None for split in splits.values())
    cuts_documents = has_tokens and not facts["one_text"]
    rows = [("documents", "{documents:,}"), ("characters", "{characters:,}")]
    if has_tokens:
        about = ", estimated" if any("estimated" in split for split in splits.values()) else ""
        rows += [(f"tokens{about}", "{tokens:,}"), ("tokens a byte", "{tokens_per_byte:.3f}")]
    if not facts["one_text"]:
        unit = "tokens" if has_tokens else "characters"
        rows.append((f"{unit}: half up to", "{lengths[p50]:,}"))
        rows += [("90% up to", "{lengths[p90]:,}"), ("99% up to", "{lengths[p99]:,}"), ("longest", "{lengths[max]:,}")]
    if cuts_documents:
        rows.append((f"lost if cut at {BLOCK_SIZE:,}", "{truncation[tokens]:.1%}"))
    lines = [_row("", splits)]
    lines += [_row(label, [figure.format(**split) for split in splits.values()]) for label, figure in rows]
    if cuts_documents:
        lines[-1] += "   (of the tokens; packing loses none)"
    return lines


def _row(label: str, values: Iterable[str]) -> str:
    return f"{label:24}" + "".join(f"{value:>14}" for value in values)
