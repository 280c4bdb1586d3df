r"""Tab-separated values of databases, in which \n is a line end within a cell, and others, in which it is none."""

from front_door import plain, reads, refuses
from front_door_csv import joined

P = plain()
ROUND = [f"{t}.\nA second line.\tTabbed: C:\\new\\{i}" for i, t in enumerate(P)]
PROSE = [f"{t}.\n\nThe end, as they\nsay.\nAn\node to u\nu." for t in P]
SPEECH = [f'{t}."\n"No," said I.\nSo it was.' for t in P]
CHINESE = [f"今天天气很好。\n我们去公园散步{i}" for i in range(12)]
LOWER = [f"{t}\nand so on" for t in P]


def escaped(texts):
    r"""Texts as mysql -B writes them."""
    return [t.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r") for t in texts]


def table(cells, header="id\ttext", more=()):
    return {"a.tsv": joined(enumerate(cells), "\t", header) + "".join(f"{row}\n" for row in more)}


def with_null(cells):
    return {"a.tsv": joined([(i, t, "x" if i % 3 else "\\N") for i, t in enumerate(cells)], "\t", "id\ttext\tnote")}


READ, LEFT = "escapes such as .n read in 12 cells", "backslashes are kept in 12 cells"
SILENT = "column 'text'(?!.*backslashes are kept)"
WRITERS = [
    *[
        reads(f"escapes of mysql and jq: {kind}", table(escaped(texts)), texts, says=READ)
        for kind, texts in (("all", ROUND), ("prose", PROSE), ("speech", SPEECH), ("Chinese", CHINESE))
    ],
    reads("escaped CRLF", table(escaped([t.replace("\n", "\r\n") for t in PROSE])), PROSE, says=READ),
    *[
        reads(f"escapes beside \\N: {kind}", with_null(escaped(texts)), texts, says=READ)
        for kind, texts in (("all", ROUND), ("lower case", LOWER), ("backslashes", [f"\\{t}\\" for t in P]))
    ],
    reads(
        "escapes of COPY, no header",
        {"a.tsv": joined([(i, t, "\\N") for i, t in enumerate(escaped(ROUND))], "\t", "").lstrip("\n")},
        ROUND,
        "--header=false --text_column=2",
        says=READ,
    ),
    reads("a vertical tab of COPY", with_null([f"{t}\\vso" for t in P]), [f"{t}\vso" for t in P], says=READ),
    reads("\\N and later a backslash", with_null([*P, *P * 20, "C:\\dir"]), [*P, *P * 20, "C:\\dir"]),
    refuses(
        "a backslash behind escapes",
        table([*escaped(PROSE), *P * 20, "C:\\dir"]),
        ["line 254", r"\\d is no escape", "jsonl"],
    ),
    *[
        reads(
            f"line ends of replace, and far down {row}",
            table([*(t.replace("\n", "\\n") for t in PROSE), *P * 20, row]),
            [*PROSE, *P * 20, row],
            says=f"{READ}, backslashes are kept in 1 cell",
        )
        for row in (r"So it is ¯\_(ツ)_/¯", r"It\'s fine", r"Well \o/ done", r"*so* it \*is\*", "a\\ b \\")
    ],
    reads(
        "line ends of replace far down, in a cell with another backslash and below it",
        table([*(t.replace("\n", "\\n") for t in PROSE), *P * 20, r"It\'s.\nSo \\_ it is", r"Two \\ of.\nThem"]),
        [*PROSE, *P * 20, "It\\'s.\nSo \\\\_ it is", "Two \\\\ of.\nThem"],
        says="read in 14 cells, backslashes are kept in 2 cells",
    ),
    *[
        refuses(f"other backslashes far down, {of}", files, ["line 254", "is no escape"])
        for of, files in (
            ("behind doubled ones", table([*escaped(ROUND), *P * 20, r"It\'s fine"])),
            (
                "beside \\N",
                {
                    "a.tsv": with_null(escaped(ROUND))["a.tsv"]
                    + "".join(f"{i}\t{t}\tx\n" for i, t in enumerate([*P * 20, r"It\'s fine"]))
                },
            ),
            ("a word of TeX", table([*escaped(PROSE), *P * 20, r"the \alpha of it"])),
            ("TeX beside a mark", table([*escaped(PROSE), *P * 20, r"the \theta\_ of it"])),
            ("a pattern", table([*escaped(PROSE), *P * 20, r"as \s+ of it"])),
        )
    ],
]
OTHERS = [
    *[
        reads(f"no escapes: {kind}", table(texts), texts, says=says)
        for kind, texts, says in (
            ("TeX", [f"{t}.\\nThe \\nabla and \\textbf{{x}} \\\\ $\\rho$" for t in P], LEFT),
            ("TeX of other letters", [f"{t} \\alpha \\to x" for t in P], SILENT),
            ("paths", [f"C:\\new\\table{i}" for i in range(12)], LEFT),
            ("paths in sentences", [f"{t}. C:\\news\\The one" for t in P], SILENT),
            ("a share", [f"\\\\server{i}\\notes and the rest" for i in range(12)], ""),
            ("code", [f'print("Hello {i}.\\nSo it is\\n")' for i in range(12)], LEFT),
            ("patterns", [f"re.split('\\t+|[.\\n]*', x{i})" for i in range(12)], LEFT),
            ("questions about escapes", [f"How is \\n made \\r\\n in {t}?" for t in P], LEFT),
            ("lower case", escaped(LOWER), LEFT),
            ("JSON", [f'{{"a": "{t}.\\nSo it is"}}' for t in P], SILENT),
        )
    ],
    reads("TeX beside \\N", with_null([f"$\\theta$ of {t}" for t in P]), [f"$\\theta$ of {t}" for t in P]),
    reads("escapes in csv", {"a.csv": joined(enumerate(escaped(PROSE)), ";", "id;text")}, escaped(PROSE)),
]

CASES = [*WRITERS, *OTHERS]
