"""Conditions on the figures of a model, for pipelines: `val_loss<3.2, accuracy>=0.4`."""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from finetune.common.formatting import is_number

EXIT_CODE = 5  # of a command whose figures do not meet its conditions
OPERATORS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq}
CONDITION = re.compile(r"([^<>=!]+)(<=|>=|==|<|>)([^<>=!]+)")


@dataclass(frozen=True)
class Condition:
    name: str
    operator: str
    bound: float

    def __str__(self) -> str:
        return f"{self.name}{self.operator}{self.bound:.10g}"

    def check(self, figures: Mapping[str, object]) -> str | None:
        """Why the figures do not meet the condition; None if they do. What is unknown or NaN never does."""
        value = figures.get(self.name)
        if not is_number(value):
            return f"{self} is not met: {self.name} is {'not known' if value is None else value}"
        if OPERATORS[self.operator](value, self.bound):
            return None
        # as many digits as tell the two apart
        shown = next((text for digits in (4, 6, 9) if float(text := f"{value:.{digits}f}") != self.bound), repr(value))
        side = "above" if value > self.bound else "below" if value < self.bound else "equal to"
        by = f"{abs(value - self.bound):.4g} {side}" if value != self.bound else side
        return f"{self} is not met: {self.name} {shown} is {by} {self.bound:.10g}"


def parse_conditions(text: str) -> list[Condition]:
    """The conditions in a text. Raises ValueError."""
    conditions = []
    for part in filter(str.strip, text.split(",")):
        found = CONDITION.fullmatch(part.strip())
        try:
            bound = float(found[3]) if found else math.nan
        except ValueError:
            bound = math.nan
        if not found or not math.isfinite(bound):
            raise ValueError(f"{part.strip()!r} is no condition; write one like val_loss<3.2, with < <= > >= or ==")
        conditions.append(Condition(re.sub(r"\s+", "_", found[1].strip()), found[2], bound))
    return conditions


def problems_of_conditions(text: str, names: Collection[str], needs: Mapping[str, str] = {}) -> Iterator[str]:
    """A message if the text cannot be read, and for each name that is not measured. `needs` are names that are measured
    with another flag, and that flag."""
    try:
        conditions = parse_conditions(text)
    except ValueError as error:
        yield str(error)
        return
    if text.strip() and not conditions:
        yield f"{text!r} holds no condition; write one like val_loss<3.2"
    for condition in conditions:
        if condition.name in names:
            continue
        if condition.name in needs:
            yield f"{condition.name} is measured with {needs[condition.name]} only"
            continue
        close = difflib.get_close_matches(condition.name, [*names, *needs], 1)
        hint = f". Did you mean {close[0]!r}?" if close else f"; measured are {', '.join(names)}"
        yield f"{condition.name!r} is not measured{hint}"


def unmet(conditions: str, figures: Mapping[str, object]) -> list[str]:
    """A line for each condition that the figures do not meet."""
    return [line for condition in parse_conditions(conditions) if (line := condition.check(figures))]
