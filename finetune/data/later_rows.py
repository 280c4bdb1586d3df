"""Rows behind the first ones, by which the columns were chosen: what those did not show is refused where it begins."""

from __future__ import annotations

import dataclasses
from typing import Any

from finetune.data import column_doubts
from finetune.data.column_doubts import Splits
from finetune.data.column_names import as_word, can_be_verdict, tells_good_from_bad
from finetune.data.column_profile import Profile
from finetune.data.row_shape import Shape


class LaterRows:
    """Watches all rows for columns that give them to splits, that turn out to be a verdict on the answers, or that the
    first rows lack."""

    def __init__(self, first: list[dict[str, Any]], shape: Shape, place: str, kind: str, jq: str | None) -> None:
        self.place, self.shape = place, shape
        self.profile = profile = Profile(first, place, jq)
        self.usual = column_doubts.prompt_size(profile, shape) / max(1, len(first))
        self.splits = Splits(first, place, kind, jq)
        self.answered = column_doubts.answered_columns(profile)
        self.words = {name: set(map(as_word, profile.values[name])) for name in profile.names if self.answered}
        self.words |= {name: set() for name, words in self.words.items() if words == {""}}  # empty cells of csv
        self.no_verdicts = {*self.answered, *(name for name in self.words if not can_be_verdict(self.words[name]))}
        self.filled = {name for row in first for name in row if _is_filled(row[name])} | {*shape.used(), *shape.absent}

    def check(self, row: dict[str, Any]) -> None:
        """Raise UsageError at the first row that shows it. Columns that are not read are noted in `shape`."""
        self.splits.check(row)
        for name in row if self.answered else ():
            if name not in self.no_verdicts and _is_filled(row[name]):
                words = self.words.setdefault(name, set())
                words.add(as_word(row[name]))
                if not can_be_verdict(words):
                    self.no_verdicts.add(name)
        if new := [name for name in row if name not in self.filled and _is_filled(row[name])]:
            self._check_new(new, row)

    def end(self) -> None:
        """Raise UsageError if a column is a verdict on the answers, as only all of its values tell."""
        for name, words in self.words.items():
            if name not in self.no_verdicts and tells_good_from_bad(name, [*words]):
                raise column_doubts.verdict(self.profile, name, self.answered)

    def _check_new(self, new: list[str], row: dict[str, Any]) -> None:
        """Doubt columns as they would be doubted in the first rows."""
        shape, profile = self.shape, Profile([row], self.place, self.profile.jq)
        self.filled.update(new)
        self.shape = dataclasses.replace(shape, left_out=tuple(dict.fromkeys((*shape.left_out, *new))))
        column_doubts.check_wholeness(profile)
        if shape.kind != "text":
            column_doubts.check_systems(profile, shape.system or "", new)
        if shape.kind == "pair":
            column_doubts.check_pair(profile, dataclasses.replace(shape, left_out=tuple(new)), self.usual)
        elif shape.text in profile.names:
            column_doubts.check_text(profile, shape.text)
        elif shape.messages in profile.names:
            column_doubts.check_conversations(profile, shape.messages, shape.used())


def _is_filled(value: Any) -> bool:
    return value is not None and value not in ("", [], {})
