"""csv in the dialects that people write: separators, quotes, escapes."""

import gzip

from front_door import csv_text, either, plain, reads, refuses, texts
from front_door_csv import joined

T, P = texts(), plain()
COMMAS = [f"{text}, or so they say; who knows" for text in P]
NUMBERED = list(enumerate(T))
PLAIN_ROWS = list(enumerate(P))
WELL = csv_text(NUMBERED)

DIALECTS = [
    reads("csv", {"a.csv": WELL}, T, says="12 rows.*column 'text'"),
    reads("csv of CRLF", {"a.csv": csv_text(NUMBERED, lineterminator="\r\n")}, T),
    reads("csv with every cell quoted", {"a.csv": csv_text(NUMBERED, quoting=1)}, T),
    reads("csv with a byte order mark", {"a.csv": "\ufeff" + csv_text([[t] for t in T], ["text"])}, T),
    reads("csv of one column", {"a.csv": csv_text([[t] for t in T], ["tweet"])}, T, says="column 'tweet'"),
    reads("csv compressed", {"a.csv.gz": gzip.compress(WELL.encode())}, T),
    reads("semicolons, quoted", {"a.csv": csv_text(NUMBERED, delimiter=";", quoting=1)}, T, says="separator ';'"),
    reads(
        "semicolons and commas in texts",
        {"a.csv": joined([(i, t.replace(";", "")) for i, t in enumerate(COMMAS)], ";", "id;text")},
        [t.replace(";", "") for t in COMMAS],
        says="separator ';'",
    ),
    reads("semicolons without a comma", {"a.csv": joined(PLAIN_ROWS, ";", "id;text")}, P, says="separator ';'"),
    reads(
        "semicolons and decimal commas",
        {"a.csv": joined([(f"{i},5", t, "1,25") for i, t in enumerate(P)], ";", "x;text;y")},
        P,
        says="separator ';'",
    ),
    reads("tabs in .csv", {"a.csv": csv_text(PLAIN_ROWS, delimiter="\t")}, P, says="separator.*tab|separator '.t'"),
    reads("bars in .csv", {"a.csv": csv_text(NUMBERED, delimiter="|")}, T, says=r"separator '\|'"),
    reads("commas in .tsv, said", {"a.tsv": WELL}, T, "--separator=,"),
    reads("sep= with semicolons", {"a.csv": "sep=;\n" + joined(PLAIN_ROWS, ";", "id;text")}, P),
    reads("sep= with commas and CRLF", {"a.csv": "sep=,\r\n" + csv_text(NUMBERED, lineterminator="\r\n")}, T),
    reads("sep= with a byte order mark", {"a.csv": "\ufeffsep=;\r\n" + csv_text(NUMBERED, delimiter=";")}, T),
    reads("sep= in quotes", {"a.csv": '"sep=;"\n' + csv_text(NUMBERED, delimiter=";")}, T),
    reads("a separator that is named", {"a.csv": csv_text(NUMBERED, delimiter="^")}, T, "--separator=^"),
    reads("a tab that is named", {"a.csv": csv_text(NUMBERED, delimiter="\t")}, T, r"'--separator=\t'"),
    refuses("a wrong separator", {"a.csv": WELL}, "separator|column", "'--separator=|' --text_column=text"),
    either("separators of two letters", {"a.csv": joined(PLAIN_ROWS, "||", "id||text")}, [P], "a.csv"),
    either(
        "spaces after commas",
        {"a.csv": joined([(i, f" {t}") for i, t in PLAIN_ROWS], ",", "id, text")},
        [P, [f" {t}" for t in P]],
        "line|text_column",
    ),
    either(
        "spaces before quotes",
        {"a.csv": joined([(i, f' "{t}"') for i, t in enumerate(COMMAS)], ",", "id, text")},
        [COMMAS],
        "line 2|--separator",
    ),
    either(
        "single quotes around cells",
        {"a.csv": joined([(i, f"'{t}'") for i, t in enumerate(COMMAS)])},
        [COMMAS],
        "line 2|--separator",
    ),
    either("old Macintosh line ends", {"a.csv": joined(PLAIN_ROWS).replace("\n", "\r")}, [P], "line|text_column"),
    reads("tabs and every cell quoted", {"a.csv": csv_text(PLAIN_ROWS, delimiter="\t", quoting=1)}, P, says="tab"),
    reads("tabs and texts quoted", {"a.csv": csv_text(PLAIN_ROWS, delimiter="\t", quoting=2)}, P, says="tab"),
    reads(
        "Unicode text of a spreadsheet",
        {"a.csv": csv_text(PLAIN_ROWS, delimiter="\t", quoting=1, lineterminator="\r\n").encode("utf-16")},
        P,
        "--encoding=utf-16",
    ),
    either(
        "escaped quotes and other backslashes",
        {"a.csv": joined([(i, f'"C:\\dir and \\"{t}\\", \\n"') for i, t in PLAIN_ROWS])},
        [[f'C:\\dir and "{t}", \\n' for t in P]],
        "backslash|quote",
    ),
    either(
        "an escape character",
        {"a.csv": csv_text(NUMBERED, escapechar="\\", doublequote=False)},
        [T],
        "line|backslash|quote",
    ),
    either(
        "a title and a blank line above one column",
        {"a.csv": "Report\n\n" + csv_text([[t] for t in COMMAS], ["text"])},
        [COMMAS],
        "line|header",
    ),
    either(
        "a comma at the end of one line",
        {"a.csv": "text\n" + "\n".join([*P, "well, ok,", "ok,"]) + "\n"},
        [],
        "line 1[45]|line 14",
    ),
    refuses(
        "one comma that is not quoted, before an empty cell",
        {"a.csv": "text,n,note\n" + "".join(f"{t},{i},\n" for i, t in PLAIN_ROWS) + "one, two,5,\n"},
        ["line 14", "4"],
    ),
]

NO_ROWS = [
    refuses(f"no row in {content!r} {flags}".strip(), {"a.csv": content}, "no rows in it", flags)
    for content in (",,\n,,\n", ",", '"",""\n', "sep=;\n", "sep=;\n\n", "sep=;\n;;\n", "\n\n,\n", "\ufeff,,\n")
    for flags in ("", "--header=false", "--header=true")
] + [refuses("a header alone, as a comment", {"a.csv": "# id,text\n"}, "no rows in it")]

CODE = [
    "x = 1",
    "    y = 2",
    "a, b",
    "  return y",
    '"z", "" , ""',
    "# the end",
    "one\n  two",
    " five",
    "6",
    "7",
    "8",
    "9 or",
]
IN_QUOTES = [code if i not in (2, 4, 6) else '  "' + code.replace('"', '""') + '"' for i, code in enumerate(CODE)]
SPACES = [
    reads("spaces before some quotes, and code", {"a.csv": joined(enumerate(IN_QUOTES), header="id,code")}, CODE),
    reads(
        "spaces before some quotes that hold what looks like more",
        {
            "a.csv": joined([(i, f' "{t}, ""so"", \n, ""and"""') for i, t in PLAIN_ROWS], header="id,text")
            + "13,so it is\n"
        },
        [*(f'{t}, "so", \n, "and"' for t in P), "so it is"],
    ),
    reads(
        "spaces before some quotes, and empty cells in quotes",
        {"a.csv": joined([(i, ' ""', f' "{t}, so"', t) for i, t in PLAIN_ROWS], header="id,note,text,words")},
        [f"{t}, so" for t in P],
        "--text_column=text",
    ),
    reads(
        "spaces behind all commas, and some quotes",
        {"a.csv": joined([(i, f' "{t}, so"' if i % 2 else f" {t}") for i, t in PLAIN_ROWS], header="id,text")},
        [f"{t}, so" if i % 2 else t for i, t in PLAIN_ROWS],
    ),
    reads(
        "spaces before single words in quotes of a sentence",
        {"a.csv": joined([(i, f'{t} "so" it is') for i, t in PLAIN_ROWS])},
        [f'{t} "so" it is' for t in P],
    ),
]

CASES = [*DIALECTS, *NO_ROWS, *SPACES]
