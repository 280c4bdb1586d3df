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
    *[
        reads(
            f"a title above cells behind spaces, {kind}",
            {"a.csv": "My favourite quotes\n" + joined([(t, *more) for t, more in zip(P, rest)], header=header)},
            P,
            says="left out 1 line above",
        )
        for kind, header, rest in (
            ("with names", "quote, author", [[f" Ann {c}"] for c in "abcdefghijkl"]),
            (
                "with a year that is missing once",
                "line, by, in",
                [[" Ann", f" {1900 + i}" * (i != 3)] for i in range(12)],
            ),
            ("with prices", "line, by, for", [[" Ann", f" ${i}.50"] for i in range(12)]),
            ("with losses", "line, by, for", [[" Ann", f" -{i}"] for i in range(12)]),
        )
    ],
    refuses(
        "one column of short sentences below two words",
        {"a.csv": "Customer review\nGood phone, recommended\n" + "".join(f"{row}\n" for row in SPACED)},
        ["'Customer review'", "delete line 1 if it is a title, else"],
    ),
    refuses(
        "one column of short sentences, one with a number behind its comma",
        {"a.csv": "Customer review\nnice, cheap\n" + "".join(f"{t},\n" for t in P) + "well, 5 stars\n"},
        ["'Customer review'", "double quotes"],
    ),
]

UUIDS = [f"{a}{b}0e{b}400-e29b-41d4-a716-4466554400{b}{a}" for a in "abcdef" for b in "cd"]
LETTERS = "abcdefghijkl"
FIRST_CELLS = {
    "addresses": [f"https://a.b/{c}" for c in LETTERS],
    "addresses of mail": [f"{c}nn@x.org" for c in LETTERS],
    "people": [f"@{c}nn" for c in LETTERS],
    "UUIDs": UUIDS,
    "paths": [f"wavs/{c}.wav" for c in LETTERS],
    "paths from the root": [f"/home/{c}/x" for c in LETTERS],
    "paths of Windows": [f"C:\\home\\{c}" for c in LETTERS],
    "files": [f"{c}.mp3" for c in LETTERS],
    "codes": [f"dQ{c}w9WgXcQ" for c in LETTERS],
    "JSON": [f'{{{c}: "{c}"}}' for c in LETTERS],
}
SHORT = ["Great phone", *P[1:]]
WORDS = "cat dog cow hen fox owl bee ant bat cod eel elk".split()
ANIMALS = [f"a {noun} animal" for noun in "small larger milky feathered red nocturnal busy tiny flying".split()]
NO_HEADER = [
    refuses(
        f"no header, {kind}", {"a.csv": joined(zip(cells[1:], P), "|", f"{cells[0]}|Great phone")}, "looks like data"
    )
    for kind, cells in FIRST_CELLS.items()
] + [
    reads(
        "addresses without a header, said",
        {"a.csv": csv_text(zip(FIRST_CELLS["addresses"], SHORT), None)},
        SHORT,
        "--header=false --text_column=2",
    ),
    refuses(
        "no header, a dictionary",
        {"a.csv": joined(zip(WORDS[1:], ANIMALS[1:]), header="cat,a small animal")},
        "a small",
    ),
    refuses(
        "no header, a dictionary of verbs",
        {"a.csv": joined(zip(WORDS, [f"to {text.lower()}" for text in P]), header="run,to go fast")},
        "to go fast",
    ),
    *[
        reads(f"a header that is {name!r}", {"a.csv": joined(zip(cells, P), "|", f"{name}|text")}, P)
        for name, cells in (
            ("file.name", FIRST_CELLS["files"]),
            ("URL", FIRST_CELLS["addresses"]),
            ("input/output", FIRST_CELLS["paths"]),
            ("e-mail", FIRST_CELLS["addresses of mail"]),
            ("md5_hash", ["d41d8cd9"] * 12),
            ("@id", ["x"] * 12),
            ("http://purl.org/title", WORDS),
            ("a word", WORDS),
            ("@user", FIRST_CELLS["people"]),
            ("file.mp3", FIRST_CELLS["files"]),
            ("[tags]", [f'["{c}", "x"]' for c in LETTERS]),
            ("a meaning", [f"a {word} or more" for word in WORDS]),
        )
    ],
    *[
        reads(
            f"a header that is {header!r}",
            {"a.csv": csv_text([(t, c) for c, t in zip(cells, P)], header.split("|"))},
            P,
        )
        for header, cells in (
            ("[text]|[tags]", [f'["{c}","x"]' for c in LETTERS]),
            ("what|to address", ["ann", "to all", *["ann"] * 10]),
            ("what|a note", ["a b", *["x"] * 11]),
        )
    ],
    *[
        refuses(f"no header, {of}", {"a.csv": joined(zip(cells[1:], P), "|", f"{cells[0]}|{first}")}, "looks like data")
        for of, cells, first in (
            ("words in brackets", [f"[{c}nn]" for c in LETTERS], "Great phone"),
            ("a name of a column that is a class", FIRST_CELLS["people"], P[3]),
        )
    ],
    reads(
        "a header of words in brackets above lists, said",
        {"a.csv": csv_text([(t, f'["{c}", "x"]') for c, t in zip(LETTERS, P)], ["[what]", "[which]"])},
        P,
        "'--text_column=[what]'",
    ),
    refuses(
        "no header, people and a class that is called as a column",
        {"a.csv": joined([(a, t, "text") for a, t in zip(FIRST_CELLS["people"], P)], "|", "@bob|Great phone|text")},
        "looks like data",
    ),
]

EXPLAINED = joined(zip(WORDS, ANIMALS), header="")
IN_A_COMMENT = [
    *[
        reads(f"a header in a comment{of}", {name: content}, texts, flags, says="(?!.*left out 1)column 'meaning'")
        for of, name, content, texts, flags in (
            ("", "a.csv", "# word,meaning" + EXPLAINED, ANIMALS, ""),
            (", said", "a.csv", "# word,meaning" + EXPLAINED, ANIMALS, "--header=true"),
            (", of tabs", "a.tsv", joined(zip(WORDS, P), "\t", "# word\tmeaning"), P, ""),
            (", numbers below", "a.csv", joined(enumerate(P), header="# word,meaning"), P, ""),
            (", spaces", "a.csv", joined([(i, f" {t}") for i, t in enumerate(P)], header="# word, meaning"), P, ""),
            (" and a blank line", "a.csv", joined(enumerate(P), header="# word,meaning\n"), P, ""),
            (" behind sep=", "a.csv", joined(enumerate(P), ";", "sep=;\n# word;meaning"), P, ""),
        )
    ],
    reads("a header in the second comment", {"a.csv": joined(enumerate(P), header="# made by me\n# id,text")}, P),
    reads("a first column in a comment", {"a.csv": joined([(t, "x") for t in P], header="# text,label")}, P),
    *[
        reads(
            f"a comment above {names}: {comment}",
            {"a.csv": joined([(t, "x") for t in P], header=f"{comment}\n{names}")},
            P,
        )
        for comment, names in (
            ("# License CC-BY,see README", "text,author"),
            ("# 2020\n# Lee,Ann", "text,author"),
            ("# Poems,Verses", "text,poet"),
            ("# Poems,Verses", "full text,author"),
        )
    ],
    *[
        refuses(
            f"a header in a comment above {row!r}",
            {"a.csv": joined([(t, "x") for t in P], header=f"{comment}\n{row}")},
            "line 1 is a comment or the header",
        )
        for comment, row in (("# word,meaning", "title,heading"), ("# wort,text", "title,body"))
    ],
    reads(
        "a header in a comment above a class that is called as a column",
        {"a.csv": csv_text([("Great phone, so", "text"), *((t, "text") for t in P)], ["# satz", "art"])},
        ["Great phone, so", *P],
    ),
    refuses(
        "a header in a comment above words",
        {"a.csv": joined(zip(WORDS, P), header="# word,meaning\nbee,insect")},
        ["line 1 is a comment or the header", "'# ' before"],
    ),
    *[
        reads(
            f"a comment above the header: {comment}", {"a.csv": joined(enumerate(P), header=f"{comment}\nid,text")}, P
        )
        for comment in (
            "# made by a tool",
            "# id,text",
            "# made by a tool, in May",
            "# Amazon,phones",
            "# Amazon,2020",
            "# Date: today,Author: Ann",
            "# made by a tool,and not by hand.",
            "# a,b,c",
            "# made by me\n# Amazon,phones\n",
        )
    ],
    reads(
        "a header of words behind itself in a comment",
        {"a.csv": joined([("x", t) for t in P], header="# name,text\nname,text")},
        P,
    ),
    reads(
        "a comment above rows without a header",
        {"a.csv": joined(enumerate(P), header="# word,meaning")},
        P,
        "--header=false",
        says="left out 1 line above",
    ),
]

CASES = [*ONE_COLUMN, *NO_HEADER, *IN_A_COMMENT]
