"""Cells of csv that hold no text, or more than it: words for nothing, and quotes that enclose no cell."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from finetune.data.csv_dialect import has_doubled_quotes
from finetune.data.csv_escapes import NULL, unescape
from finetune.data.rows import Row, has_words

# what pandas, R, Excel, Stata and databases write for no value, and the name of a sum
NOTHING = frozenset(
    "NaN nan -nan NULL Null null (null) None N/A n/a n.a. NA <NA> #N/A #NAME? #VALUE! #REF! #DIV/0! #NULL! #NUM! nil"
    " undefined . - Total total TOTAL".split()
) | {NULL, "Grand Total"}
MARKS = frozenset(" \"'=")  # that may begin a cell in quotes
KEPT = re.compile(r"""\s*=?(["']).*\1\s*$""", re.DOTALL)


def checked(rows: Iterator[Row], has_sentences: dict[str, bool], facts: dict[str, Any]) -> Iterator[Row]:
    """The rows, where a cell without a value is empty: with a word for it in a column of sentences, or mysql's NULL.
    Escapes are read if the file has them.

    Args:
        has_sentences: by column that is read.
        facts: gets `nothing` and `words`, how many of each word were emptied or are a text among words, `kept`,
            (cells that begin with a quote, the line of the first), and what `unescape` counts.
    """
    facts |= {"nothing": Counter(), "words": Counter()}
    columns = list(has_sentences.items())
    for row in rows:
        cells = row.value
        for name, is_prose in columns if cells else ():
            cell = cells[name]
            if cell in NOTHING:
                is_empty = is_prose or cell == NULL
                facts["nothing" if is_empty else "words"][cell] += 1
                cells[name] = "" if is_empty else cell
                continue
            if cell[:1] in MARKS:
                row = _note_quotes(row, cell, facts)
            if "escapes" in facts and "\\" in cell:
                cells[name], problem = unescape(cell, facts)
                row = row._replace(problem=problem) if problem else row
        yield row


def _note_quotes(row: Row, cell: str, facts: dict[str, Any]) -> Row:
    """Count a cell that begins with a quote; the row gets a problem if only csv could have written it."""
    are_characters = "quotes" in facts
    if are_characters and has_doubled_quotes(cell):
        problem = "this cell is quoted as in csv, with doubled quotes, and other cells are not; quote all cells or none"
        return row._replace(problem=problem)
    if (are_characters and cell[0] == '"') or (cell[0] != '"' and KEPT.match(cell)):
        count, line = facts.get("kept", (0, row.line))
        facts["kept"] = (count + 1, line)
    return row


def are_sentences(cells: list[str]) -> bool:
    """Whether most cells of a column have several words; those for nothing do not count."""
    texts = [text for cell in cells if (text := cell.strip()) and text not in NOTHING]
    return 2 * sum(map(has_words, texts)) >= len(texts)
