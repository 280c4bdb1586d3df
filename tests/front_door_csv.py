"""csv and tsv: headers, and what stands in cells."""

from front_door import changed, csv_text, either, plain, reads, refuses, texts, without

T, P = texts(), plain()
COMMAS = [f"{text}, or so they say; who knows" for text in P]
NUMBERED = list(enumerate(T))
PLAIN_ROWS = list(enumerate(P))
WELL = csv_text(NUMBERED)


def joined(rows, separator=",", header="id,text"):
    """Rows written without any quotes."""
    return "\n".join([header, *(separator.join(map(str, row)) for row in rows)]) + "\n"


def with_line(number, line, rows=PLAIN_ROWS):
    """Rows without quotes, with another line `number`, the header being 1."""
    return "\n".join(changed(joined(rows).splitlines(), number, line)) + "\n"


HEADERS = [
    either(
        "no header",
        {"a.csv": csv_text([[t] for t in COMMAS], None, quoting=1)},
        [COMMAS, COMMAS[1:]],
        "header",
        says="header",
    ),
    reads("no header, said", {"a.csv": csv_text([[t] for t in COMMAS], None, quoting=1)}, COMMAS, "--header=false"),
    either("no header, two columns", {"a.csv": csv_text(PLAIN_ROWS, None)}, [P], "header", says="header"),
    either(
        "no header, two columns, said",
        {"a.csv": csv_text(PLAIN_ROWS, None)},
        [P],
        "text_column|column",
        "--header=false",
    ),
    reads("a header, said", {"a.csv": WELL}, T, "--header=true"),
    either(
        "a title above",
        {"a.csv": "Report of the year\n" + WELL},
        [T],
        "line [12]|header",
        says="header|line 1|left out|skip",
    ),
    either(
        "a title and a blank line above",
        {"a.csv": "Report\n\n" + WELL},
        [T],
        "line|header",
        says="header|line|left out|skip",
    ),
    either(
        "a title with trailing commas above",
        {"a.csv": "Report,\n" + WELL},
        [T],
        "line|header|column|empty",
        says="header|line|left out|skip",
    ),
    either("a blank line above", {"a.csv": "\n" + WELL}, [T], "line 1|blank"),
    either("a line of commas above", {"a.csv": ",\n" + WELL}, [T], "line [12]|blank|header|column"),
    reads("blank lines between", {"a.csv": joined(PLAIN_ROWS).replace("\n", "\n\n")}, P),
    reads("blank lines at the end", {"a.csv": WELL + "\n\n\n"}, T),
    reads("a first column without a name", {"a.csv": csv_text(NUMBERED, ["", "text"])}, T),
    reads("commas after each line", {"a.csv": csv_text([(i, t, "") for i, t in NUMBERED], ["id", "text", ""])}, T),
    either(
        "commas after the rows only", {"a.csv": csv_text([(i, t, "") for i, t in NUMBERED])}, [T], "line [234]|row 1"
    ),
    refuses(
        "one name twice",
        {"a.csv": csv_text([(t, f"other {t}") for t in P], ["text", "text"])},
        ["text", "twice|two|both|same|duplicate"],
    ),
    refuses("a header alone", {"a.csv": "id,text\n"}, "no (text|row)|empty"),
    reads(
        "many columns", {"a.csv": csv_text([[*range(60), t] for t in T], [*(f"c{i}" for i in range(60)), "text"])}, T
    ),
    either(
        "a title and a body",
        {"a.csv": csv_text(zip(P, [t * 3 for t in T]), ["title", "body"])},
        [[t * 3 for t in T]],
        ["body", "--text_column"],
        says="column 'body'",
    ),
    refuses(
        "questions and answers",
        {"a.csv": csv_text(zip(P, T), ["question", "answer"])},
        ["--prompt_column", "--completion_column"],
    ),
]

CELLS = [
    reads(
        "texts that look like values",
        {
            "a.csv": csv_text(
                enumerate(
                    v := ["007", "NA", "null", "None", "True", "1e5", "nan", "-", "12", "3.50", "2020-01-01", "N/A"]
                )
            )
        },
        v,
        "--text_column=text",
    ),
    reads(
        "quotes within",
        {"a.csv": with_line(5, '3,the 5" disk and a 3" one')},
        changed(P, 4, 'the 5" disk and a 3" one'),
    ),
    reads(
        "backslashes within", {"a.csv": with_line(5, r"3,C:\new\table and \n")}, changed(P, 4, r"C:\new\table and \n")
    ),
    either(
        "a backslash before the quote",
        {"a.csv": csv_text(changed(NUMBERED, 4, (3, "in C:\\dir, there\\")))},
        [changed(T, 4, "in C:\\dir, there\\")],
        "line",
    ),
    either(
        "escaped quotes",
        {"a.csv": "id,text\n" + "".join(f'{i},"She said \\"hi, there\\" in {t}"\n' for i, t in enumerate(P))},
        [[f'She said "hi, there" in {t}' for t in P]],
        ["line 2", "quote|backslash"],
    ),
    either(
        "text behind a quote",
        {"a.csv": with_line(5, '3,"one, two" and three')},
        [changed(P, 4, '"one, two" and three')],
        "line 5",
    ),
    reads(
        "line ends in a cell",
        {"a.csv": csv_text(changed(NUMBERED, 4, (3, "one\r\ntwo\rthree\n\nfour")))},
        changed(T, 4, "one\ntwo\nthree\n\nfour"),
    ),
    reads(
        "a cell of 200 KB",
        {"a.csv": csv_text(changed(NUMBERED, 4, (3, "ab, c" * 40_000)))},
        changed(T, 4, "ab, c" * 40_000),
    ),
    refuses("an unclosed quote", {"a.csv": with_line(6, '4,"the start of a cell')}, ["line 6", "quote"]),
    refuses("an unclosed quote before quoted cells", {"a.csv": WELL.replace('\n3,"', '\n3,"" and "', 1)}, "line"),
    refuses(
        "commas that are not quoted",
        {"a.csv": joined([[t] for t in COMMAS], header="text")},
        ["line 2|--separator", "comma|separator|cell|column|field"],
    ),
    refuses("one comma that is not quoted", {"a.csv": with_line(9, "7,one, two")}, ["line 9", "3"]),
    reads(
        "rows with other cells, skipped",
        {"a.csv": with_line(9, "7,one, two")},
        without(P, 8),
        "--on_bad_row=skip",
        says=r"left out 1\b|\b1\b.*(left out|skipped)",
    ),
    refuses("a row that is cut", {"a.csv": with_line(9, "7")}, ["line 9"]),
    refuses("a sum at the end", {"a.csv": joined(PLAIN_ROWS) + "Total: 12 rows\n"}, "line 14"),
    reads("an empty cell", {"a.csv": with_line(9, "7,")}, without(P, 8), says=r"\b1\b.*(empty|left out|without)"),
    either(
        "a NUL",
        {"a.csv": with_line(9, "7,one\0two")},
        [changed(P, 8, "one\0two")],
        ["NUL|0x00|null byte", "line 9|offset"],
    ),
    refuses("csv of cp1252", {"a.csv": with_line(9, "7,café").encode("cp1252")}, ["line 9", "0xE9", "--encoding="]),
    reads(
        "csv of cp1252, said",
        {"a.csv": with_line(9, "7,café – déjà").encode("cp1252")},
        changed(P, 8, "café – déjà"),
        "--encoding=cp1252",
    ),
    refuses(
        "csv of UTF-16", {"a.csv": csv_text(NUMBERED, delimiter="\t").encode("utf-16")}, ["UTF-16", "--encoding|iconv"]
    ),
    reads(
        "csv of UTF-16, said", {"a.csv": csv_text(NUMBERED, delimiter="\t").encode("utf-16")}, T, "--encoding=utf-16"
    ),
    reads(
        "quotes in tsv",
        {
            "a.tsv": joined(
                changed([(i, f'the 5" disk and "{t}"') for i, t in PLAIN_ROWS], 6, (5, '"unbalanced')), "\t", "id\ttext"
            )
        },
        changed([f'the 5" disk and "{t}"' for t in P], 6, '"unbalanced'),
    ),
    reads(
        "quoted starts in tsv",
        {"a.tsv": joined([(i, f'"Old" {t}') for i, t in PLAIN_ROWS], "\t", "id\ttext")},
        [f'"Old" {t}' for t in P],
    ),
    either("tsv of a spreadsheet", {"a.tsv": csv_text(NUMBERED, delimiter="\t")}, [T], "line|quote"),
    refuses(
        "a tab too many in tsv", {"a.tsv": joined(changed(PLAIN_ROWS, 6, (5, "one\ttwo")), "\t", "id\ttext")}, "line 7"
    ),
    either("commas in .tsv", {"a.tsv": WELL}, [T], "separator|tab|comma", says="separator ','"),
    either(
        "a table of Markdown",
        {"a.csv": "| id | text |\n|---|---|\n" + "".join(f"| {i} | {t} |\n" for i, t in PLAIN_ROWS)},
        [P],
        "a.csv",
    ),
    either(
        "answers of a form",
        {"a.csv": csv_text([("2024/01/01 10:00:00", t) for t in COMMAS], ["Timestamp", "What do you think of it?"])},
        [COMMAS],
        "header",
    ),
    refuses(
        "rows with fewer cells",
        {"a.csv": csv_text([(i, t) for i, t in PLAIN_ROWS], ["id", "text", "note"])},
        ["line 2", "2 cells"],
    ),
    refuses(
        "a column of row numbers without a name",
        {"a.csv": csv_text([(i, t, "x") for i, t in PLAIN_ROWS], ["text", "label"])},
        ["line 2", "3 cells"],
    ),
    refuses(
        "quotes that swallow rows",
        {"a.csv": 'id,text\n1,"a\n' + "".join(f'{i},"{t}"\n' for i, t in PLAIN_ROWS)},
        "line [23]",
    ),
    refuses(
        "ids and labels",
        {"a.csv": csv_text([(i, "good") for i in range(12)], ["id", "label"])},
        ["id, label", "--text_column"],
    ),
    refuses("a file of Excel as csv", {"a.csv": b"PK\x03\x04" + bytes(60)}, "Excel|xlsx|zip"),
    refuses(
        "plain text as csv",
        {"a.csv": "A sentence, with a comma.\nAnother one.\nThe third, which, has, more.\n"},
        "line|header",
    ),
]

ISSUES = csv_text([(f"Issue {i}", t, "x", "") for i, t in enumerate(P)], ["Key", "Description", "Comment", "Comment"])
FORM = csv_text(
    [("2024-05-01 10:00", 9, t) for t in P], ["Timestamp", "How old are you?", "Tell us about your holiday"]
)
NAMES = [
    reads("two columns of one name beside", {"a.csv": ISSUES}, P, "--text_column=Description", r"Comment \(2\)"),
    reads("the first of two columns of one name", {"a.csv": ISSUES}, ["x"] * 12, "--text_column='Comment (1)'"),
    refuses("one name for two columns", {"a.csv": ISSUES}, r"Comment \(1\), Comment \(2\)", "--text_column=Comment"),
    reads("two columns of one name, as a header", {"a.csv": ISSUES}, P, "--text_column=Description --header=true"),
    refuses("two texts of one name", {"a.csv": csv_text([(t, t) for t in P], ["text", "text"])}, "text"),
    reads("the answers to a form", {"a.csv": FORM}, P),
    reads("a question as a name", {"a.csv": csv_text([("yes", t) for t in P], ["ok", "How was it?"])}, P),
    refuses(
        "questions without a header", {"a.csv": csv_text([(f"Who is {t}?", t) for t in P], None)}, "looks like data"
    ),
    reads(
        "a short name above Chinese",
        {"a.csv": "内容\n" + "今天天气很好我们去公园散步\n" * 9},
        ["今天天气很好我们去公园散步"] * 9,
    ),
    refuses("words without a header", {"a.csv": "apple\npear\nplum\nfig\nkiwi\nlime\n"}, "looks like data"),
    refuses(
        "a cell too many late", {"a.csv": csv_text(PLAIN_ROWS) + "13,so,it is\n"}, ["line 14", "(?!.*row.names)3 cells"]
    ),
]

CASES = [*HEADERS, *CELLS, *NAMES]
