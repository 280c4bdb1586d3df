"""Cells of csv that hold no text, or more than it: words for nothing, and quotes that enclose no cell."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from finetune.data.csv_dialect import has_doubled_quotes
from finetune.data.rows import Row

NULL = "\\N"  # of mysql and COPY
# what pandas, R, Excel, Stata and databases write for no value, and the name of a sum
NOTHING = frozenset(
    "NaN nan -nan NULL Null null (null) None N/A n/a n.a. NA <NA> #N/A #NAME? #VALUE! #REF! #DIV/0! #NULL! #NUM! nil"
    " undefined . - Total total TOTAL".split()
) | {NULL, "Grand Total"}
MARKS = frozenset(" \"'=")  # that may begin a cell in quotes
KEPT = re.compile(r"""\s*=?(["']).*\1\s*$""", re.DOTALL)


def checked(rows: Iterator[Row], words: dict[str, frozenset[str]], facts: dict[str, Any]) -> Iterator[Row]:
    """The rows, where a cell without a value is empty.

    Args:
        words: by column that is read, what stands for nothing in it.
        facts: gets `nothing`, how many of each word there were, and `kept`, (cells that begin with a quote, the line
            of the first).
    """
    columns = list(words.items())
    for row in rows:
        cells = row.value
        for name, nothing in columns if cells else ():
            cell = cells[name]
            if cell in nothing:
                cells[name] = ""
                facts["nothing"][cell] += 1
            elif cell[:1] in MARKS:
                row = _with_quotes(row, cell, facts)
        yield row


def _with_quotes(row: Row, cell: str, facts: dict[str, Any]) -> Row:
    are_characters = "quotes" in facts
    if are_characters and has_doubled_quotes(cell):
        problem = (
            "a cell in quotes with doubled ones in it is csv, where other cells are not; quote all of them or none"
        )
        return row._replace(problem=problem)
    if (are_characters and cell[0] == '"') or (cell[0] != '"' and KEPT.match(cell)):
        count, line = facts.get("kept", (0, row.line))
        facts["kept"] = (count + 1, line)
    return row


def words_for_nothing(cells: list[str]) -> frozenset[str]:
    """What stands for nothing among some cells of a column: in a column of sentences more than in one of words."""
    texts = [text for cell in cells if (text := cell.strip()) and text not in NOTHING]
    sentences = sum(" " in text or "\n" in text or not text.isascii() for text in texts)
    return NOTHING if 2 * sentences >= len(texts) else frozenset({NULL})
