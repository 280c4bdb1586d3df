"""csv whose first row is easily lost: a header that looks like a title or a comment, and rows without a header."""

from front_door import csv_text, plain, reads, refuses
from front_door_csv import joined

P = plain()
SPACED = [f"{text}, as they say" for text in P]

ONE_COLUMN = [
    *[
        refuses(
            f"one column with {mark!r} in its rows, below two words",
            {"a.csv": "Customer review\n" + "".join(row.replace(",", mark) + "\n" for row in SPACED)},
            ["'Customer review'", f"'{mark}'", "double quotes", "if it is a title"],
        )
        for mark in (",", ";")
    ],
    refuses(
        "one column with commas in most rows, below two words",
        {"a.csv": "Customer review\nGood phone, recommended\nNice\n" + "".join(f"{row}\n" for row in SPACED)},
        ["'Customer review'", "double quotes"],
        "--on_bad_row=skip",
    ),
    reads(
        "a title above cells behind spaces, with numbers",
        {"a.csv": "My own report\n" + joined([(i, f" {t}") for i, t in enumerate(P)], header="id, text")},
        [f" {t}" for t in P],
        says="left out 1 line above",
    ),
    reads(
        "a title above words and texts",
        {"a.csv": "My own report\n" + joined([("x", t) for t in P], header="name,text")},
        P,
        says="left out 1 line above",
    ),
    reads(
        "a title and a blank line above cells behind spaces",
        {"a.csv": "My own report\n\n" + joined([("x", f" {t}") for t in P], header="name, text")},
        [f" {t}" for t in P],
    ),
]

CASES = ONE_COLUMN
