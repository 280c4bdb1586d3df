"""The problems of a run. The rules are in rules.py, their thresholds in runs/thresholds.py."""

from __future__ import annotations

from collections.abc import Callable

from finetune.tools.report import remedies, rules
from finetune.tools.report.record import Record
from finetune.tools.report.rules import Finding

# {label: (title, rule)}, the gravest first
ISSUES: dict[str, tuple[str, Callable[[Record], Finding | None]]] = {
    "out_of_memory": ("out of memory", rules.out_of_memory),
    "missing_checkpoint": ("a checkpoint is missing or damaged", rules.missing_checkpoint),
    "interrupted": ("the run did not finish", rules.interrupted),
    "gibberish": ("training went wrong, so the output is gibberish", rules.gibberish),
    "not_learning": ("the loss does not fall", rules.not_learning),
    "overfitting": ("the model memorizes the training data", rules.overfitting),
    "slow": ("training is slow", rules.slow),
    "disappointing": ("the result could be better", rules.disappointing),
}
# {label: findings that it explains}, which are not shown with it
EXPLAINS = {
    "out_of_memory": {"interrupted"},
    "missing_checkpoint": {"interrupted"},
    "gibberish": {"not_learning", "overfitting"},
}


CHOSEN_ENDS = ("SIGINT", "callback")  # whoever stops a run knows why
EVEN_THEN = ("missing_checkpoint",)  # what keeps such a run from going on


def diagnose(run: Record) -> list[Finding]:
    """The findings of a run, the gravest first; [] for a healthy run, and for one that its user stopped."""
    found = {}
    for label, (_, rule) in ISSUES.items():
        if run.stop_signal in CHOSEN_ENDS and label not in EVEN_THEN:
            continue
        if finding := rule(run):
            found[label] = finding
    explained = set().union(*(EXPLAINS.get(label, set()) for label in found))
    found = {label: finding for label, finding in found.items() if label not in explained}
    if len(found) > 1:  # a better result needs the other problems solved first
        found.pop("disappointing", None)
    return list(found.values())


def to_text(findings: list[Finding]) -> str:
    """The findings with all their evidence."""
    lines = []
    for finding in findings:
        lines.append(f"{finding.label}: {ISSUES[finding.label][0]}")
        lines += [f"  {line}" for line in finding.evidence]
        lines.append(f"  -> {finding.advice}")
        if finding.command:
            lines.append(f"     {finding.command}")
    return "\n".join(lines)


def no_findings(run: Record) -> str:
    """A line for a run without findings: nothing to say, or how a stopped run goes on."""
    if run.stop_signal is None:
        return f"{run.out_dir}: nothing to say"
    return f"{run.out_dir}: stopped by {run.stop_signal} after {run.done:,} updates; to go on: {remedies.resume(run)}"


def brief(findings: list[Finding]) -> list[str]:
    """The gravest finding in at most two lines."""
    if not findings:
        return []
    first, *others = findings
    also = f" (also {', '.join(finding.label for finding in others)})" if others else ""
    lines = [f"diagnosis: {first.label}: {first.evidence[0]}{also}"]
    if first.command:
        lines.append(f"what would help: {first.command}")
    return lines
