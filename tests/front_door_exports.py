"""csv and tsv as spreadsheets, databases and survey tools export them, and as hands break them."""

from front_door import changed, csv_text, either, learned, plain, reads, refuses, talk
from front_door_csv import joined

P = plain(50)
COMMAS = [f"{text}, or so they say" for text in P]
ROWS = [(i, text, "pos" if i % 3 else "neg") for i, text in enumerate(P)]
NAMES = ("id", "text", "label")
LINES = joined(ROWS, header="id,text,label").splitlines()
ONE = ["text", *P]
POEM = "\n".join(f"Roses are red, violets blue {i}" for i in range(40))
CODE = "\n".join(f"x{i}, y{i} = f({i},{i + 1})" for i in range(40))
MAIL = "Dear all,\n\nthe first, the second\nand the third.\n\nYours, me\n" * 8
LISTING = "A listing:\n" + "\n".join(f"{i},{i + 1},{i + 2}" for i in range(30)) + "\nends here"
SONG = "\n".join(["La la la"] * 15)


def lines_of(*lines):
    return "\n".join(lines) + "\n"


def with_lines(lines, **others):
    """The lines, with others at line numbers n1, n2, ...."""
    for number, line in others.items():
        lines = changed(lines, int(number[1:]), line)
    return lines_of(*lines)


QUOTES = [
    refuses(
        "a quote that swallows 20 rows",
        {"a.csv": with_lines(LINES, n11='9,"An open cell,pos', n32='30,it ends",pos')},
        ["line 11", "to line 32", "20 lines", "quote"],
    ),
    refuses(
        "a quote that swallows 20 rows with line separators in their texts",
        {"a.csv": with_lines([line.replace(" ", "\u2028") for line in LINES], n11='9,"An open,pos', n32='30,it",a')},
        ["line 11", "to line 32", "20 lines", "quote"],
    ),
    refuses(
        "a quote that swallows a row",
        {"a.csv": with_lines(LINES, n11='9,"An open cell,pos', n13='11,it ends",pos')},
        ["line 11", "to line 13"],
    ),
    refuses(
        "a quote in a note that swallows rows",
        {
            "a.csv": with_lines(
                [f"{LINES[0]},note", *(f"{line},x" for line in LINES[1:])],
                n11='9,A text,pos,"an open',
                n32='30,A text,pos,end"',
            )
        },
        ["line 11", "line 32"],
    ),
    refuses(
        "a quote that swallows late rows",
        {"a.csv": with_lines([*LINES, *LINES[1:] * 8], n311='9,"An open cell,pos', n332='30,it ends",pos')},
        ["line 311", "to line 332"],
    ),
    refuses(
        "a quote that swallows rows of one column",
        {"a.csv": with_lines(ONE, n11='"An open cell', n40='that ends"')},
        ["line 11", "to line 40"],
    ),
    refuses(
        "an open quote that meets a quote in a text",
        {"a.csv": with_lines(LINES, n11='9,"An open cell,pos', n32='30,it "ends" here,pos')},
        ["line 11", "line 32", "closed"],
    ),
    *(
        reads(f"{name} in a cell", {"a.csv": csv_text([(i, t) for i, t in enumerate(texts)])}, texts)
        for name, texts in {
            "poems": [POEM] * 12,
            "a poem": changed(P, 5, POEM),
            "code": changed(P, 5, CODE),
            "a mail": changed(P, 5, MAIL),
            "a csv": changed(P, 5, LISTING),
        }.items()
    ),
    *(
        reads(f"{name} in the only column", {"a.csv": csv_text([[t] for t in texts], ["text"])}, texts)
        for name, texts in {
            "a poem": changed(P, 5, POEM),
            "songs": [f"{SONG}\nnumber {i}" for i in range(12)],
            "a song": changed(P, 5, SONG),
            "a mail": changed(P, 5, MAIL),
        }.items()
    ),
    reads(
        "a csv in a labelled cell",
        {"a.csv": csv_text([(i, LISTING if i == 4 else t, n) for i, t, n in ROWS], NAMES)},
        changed(P, 5, LISTING),
    ),
    reads(
        "spaces before quotes, throughout",
        {"a.csv": lines_of("id, text, label", *(f'{i}, "{t}", pos' for i, t in enumerate(COMMAS)))},
        COMMAS,
    ),
    reads(
        "spaces before quotes, without commas",
        {"a.csv": lines_of("id,text,label", *(f'{i}, "{t}", pos' for i, t in enumerate(P)))},
        P,
    ),
    reads(
        "a late space before a quote",
        {"a.csv": lines_of("id,text", *(f"{i},{t}" for i, t in enumerate(P * 5)), f'250, "{P[0]}"')},
        [*P * 5, f' "{P[0]}"'],
        says=r"quotes are characters: 1 cell begins with one \(line 252\)",
    ),
    reads(
        "indents beside quotes of code",
        {"a.csv": csv_text([(0, '    f(x, "a", 1)'), (1, "    return x"), *enumerate(P, 2)])},
        ['    f(x, "a", 1)', "    return x", *P],
    ),
    reads("single quotes, throughout", {"a.csv": lines_of("id,text", *(f"{i},'{t}'" for i, t in enumerate(P)))}, P),
    reads(
        "single quotes and commas",
        {"a.csv": lines_of("id,text", *(f"{i},'{t}'" for i, t in enumerate(COMMAS)))},
        COMMAS,
    ),
    reads(
        "single quotes of one text",
        {
            "a.csv": lines_of(
                "id,text",
                *(f"{i},{t}" for i, t in enumerate(changed(P, 3, "'Tis so', he said")) if i != 2),
                "2,'Hello'",
            )
        },
        [*(t for i, t in enumerate(P) if i != 2), "'Hello'"],
        says="1 cell begins with one",
    ),
    reads(
        "a formula of a spreadsheet",
        {"a.csv": csv_text([(i, f'="{t}"') for i, t in enumerate(P)])},
        [f'="{t}"' for t in P],
        says="50 cells begin with one",
    ),
]

QUOTES += [
    reads(
        "single quotes around labels, double ones around texts",
        {"a.csv": lines_of("id,label,text", *(f"{i},'pos',\"{t}\"" for i, t in enumerate(COMMAS)))},
        COMMAS,
    )
]
TABS = [(i, f"{text} and more") for i, text in enumerate(P * 5)]
TEXTS = [text for _, text in TABS]
TSV = [
    refuses(
        "late doubled quotes in tsv",
        {"a.tsv": joined([*TABS, (250, '"He said ""hi"" to me"')], "\t", "id\ttext")},
        ["line 252", "doubled"],
    ),
    reads(
        "late quotes in tsv",
        {"a.tsv": joined([*TABS, (250, '"Hello" he said'), (251, '"one"')], "\t", "id\ttext")},
        [*TEXTS, '"Hello" he said', '"one"'],
        says=r"quotes are characters: 2 cells begin with one \(line 252\)",
    ),
    reads("tsv with every cell in quotes", {"a.tsv": csv_text(TABS, delimiter="\t", quoting=1)}, TEXTS),
    reads("tsv of one column in quotes", {"a.tsv": csv_text([[t] for t in P], ["text"], quoting=1)}, P),
    reads(
        "tsv of a spreadsheet, quotes around commas",
        {"a.tsv": joined([(i, f'"{t}, so"' if i % 2 else t) for i, t in enumerate(P)], "\t", "id\ttext")},
        [f"{t}, so" if i % 2 else t for i, t in enumerate(P)],
    ),
]

NOTHING = [
    reads(
        f"{word} for no text",
        {"a.csv": csv_text([*enumerate(P), (50, word)])},
        P,
        says=["1 cell without text: '" + word.replace("\\", r"\\\\"), "left out 1 row without text"],
    )
    for word in ("\\N", "NaN", "nan", "NULL", "None", "N/A", "NA", "#N/A", "<NA>", "#NAME?")
]
PAIRS = [("What is it?", "It is this."), ("Who is it?", "It is me."), ("Where is it?", "nan"), ("NaN", "It is so.")]
NOTHING += [
    reads(
        "nan for a question, and for an answer",
        {"a.csv": csv_text(PAIRS * 4, ["prompt", "completion"])},
        [talk(f"user: {question}", f"assistant: {answer}") for question, answer in PAIRS[:2]] * 4,
        says=["8 cells without text: 'nan', 'NaN'", "4 rows without a question", "4 rows without an answer"],
    ),
    reads(
        "nan for no input",
        {"a.csv": csv_text([("Say it.", "nan", "It is said.")] * 12, ["instruction", "input", "output"])},
        [talk("user: Say it.", "assistant: It is said.")] * 12,
        says="12 cells without text",
    ),
    reads(
        "None among words",
        {"a.csv": csv_text([*enumerate(["yes", "no"] * 5), (10, "None")])},
        ["yes", "no"] * 5 + ["None"],
        says="1 cell of a word.*'None'",
    ),
    reads(
        "a null of mysql among escapes",
        {"a.csv": lines_of("id,text", *(f'{i},"a \\"b\\" and \\\\n {t}"' for i, t in enumerate(P)), "50,\\N")},
        [f'a "b" and \\n {t}' for t in P],
        says="left out 1 row without text",
    ),
]

BELOW = [
    *(
        reads(f"a last line {footer!r}", {"a.csv": lines_of(*ONE, footer)}, P, says="left out 1 line below the rows")
        for footer in ("(50 rows)", "50 rows in set (0.00 sec)", "[50 rows x 1 columns]", "\\.", "\x1a")
    ),
    reads("a last line of psql", {"a.csv": lines_of(*LINES, "(50 rows)")}, P, says="left out 1 line below the rows"),
    refuses(
        "a printed table of psql",
        {"a.csv": lines_of(" id | text", "----+-----", *(f" {i} | {t}" for i, t in enumerate(P)))},
        ["line 2", "psql"],
    ),
    refuses("a printed column", {"a.csv": lines_of(" text ", "------", *P)}, ["line 2", "printed"]),
    refuses(
        "a table of mysql",
        {"a.csv": lines_of("+--+--+", "| id | text |", "+--+--+", *(f"| {i} | {t} |" for i, t in enumerate(P)))},
        "line 1",
    ),
    refuses("units below the header", {"a.csv": with_lines(LINES, n2="(no.),(words),(class)")}, ["line 2", "header"]),
    refuses("types below the header", {"a.csv": with_lines(LINES, n2="int64,object,object")}, ["line 2", "header"]),
    refuses(
        "labels below the header", {"a.csv": with_lines(LINES, n2="Identifier,The words,Class")}, ["line 2", "header"]
    ),
    reads(
        "labels below the header, said",
        {"a.csv": with_lines(LINES, n2="Identifier,The words,Class")},
        ["The words", *P[1:]],
        "--header=true",
    ),
    refuses(
        "Qualtrics",
        {
            "a.csv": csv_text(
                [
                    ("The id", "A text?"),
                    ('{"ImportId":"_id"}', '{"ImportId":"Q1"}'),
                    *((f"R_{i}", t) for i, t in enumerate(P)),
                ],
                ["Id", "Q1"],
            )
        },
        ["line 2", "Qualtrics"],
    ),
    reads("a sum below the rows", {"a.csv": csv_text([*ROWS, ("", "Total", "")], NAMES)}, P, says="'Total'"),
    reads("a missing number in row 1", {"a.csv": csv_text(changed(ROWS, 1, ("NA", P[0], "pos")), NAMES)}, P),
    *(
        refuses(f"the header again, {name}", {"a.csv": content}, "line 32 ?:? repeats the header")
        for name, content in {
            "in the middle": lines_of(*LINES[:31], LINES[0], *LINES[31:]),
            "of one column": lines_of(*ONE[:31], ONE[0], *ONE[31:]),
            "with a byte order mark": lines_of(*LINES[:31], "\ufeff" + LINES[0], *LINES[31:]),
            "in quotes": lines_of(*LINES[:31], '"id","text","label"', *LINES[31:]),
        }.items()
    ),
    refuses(
        "the header again, late", {"a.csv": lines_of(*LINES, *LINES[1:] * 5, LINES[0], *LINES[1:])}, "line 302.*header"
    ),
    reads(
        "the header again, skipped",
        {"a.csv": lines_of(*LINES[:31], LINES[0], *LINES[31:])},
        P,
        "--on_bad_row=skip",
        says="left out 1 row.*line 32",
    ),
    reads(
        "indexes of pandas",
        {"a.csv": csv_text([(i % 5, i, t) for i, t in enumerate(P)], ["", "", "text"])},
        P,
        says=r"not read: \(no name\), \(no name 2\)",
    ),
    reads("an index of pandas", {"a.csv": csv_text(enumerate(P), ["", "text"])}, P, says=r"not read: \(no name\)"),
    refuses(
        "notes without a name",
        {"a.csv": csv_text([(t, "x", "") for t in P], ["text", "", ""])},
        ["line 1", "no name", "'x'"],
    ),
    refuses(
        "a title over the width of a table",
        {"a.csv": lines_of("Report of all,,", ",,", *LINES)},
        ["line 1", "no name|title"],
    ),
    refuses("row names of R", {"a.csv": csv_text(ROWS, ["text", "label"])}, ["line 2", "3 cells", "row.names=FALSE"]),
]

SEPARATORS = [
    *(
        refuses(
            f"cells between {mark!r}{said}",
            {"a.csv": joined(ROWS, mark, mark.join(NAMES))},
            ["line 1", "--separator="],
            said,
        )
        for mark in ("^", "~", ":", "\x01", "\x1f", "¦", ";;", "||", "::", "~|~")
        for said in ("", " --header=true")
        if mark != ":" or not said
    ),
    refuses(
        "cells between ^ without a header",
        {"a.csv": joined(ROWS[1:], "^", "0^one text^pos")},
        "--separator=",
        "--header=false",
    ),
    reads(r"cells between \x01, said", {"a.csv": joined(ROWS, "\x01", "\x01".join(NAMES))}, P, r"'--separator=\x01'"),
    reads("one column with a colon in its name", {"a.csv": lines_of("my:text", *P)}, P, "--separator=,"),
    reads(
        "times in the only column", {"a.csv": lines_of("said", *(f"10:30 {t}" for t in P))}, [f"10:30 {t}" for t in P]
    ),
    refuses(
        "whole lines in quotes",
        {"a.csv": csv_text([[f"{i},{t}"] for i, t in enumerate(P)], ["id,text"], quoting=1)},
        ["line 1", "whole lines"],
    ),
]

ESCAPES = [
    reads(
        "escaped quotes, paths and line ends",
        {"a.csv": lines_of("id,text", *(f'{i},"C:\\new\\table \\"{t}\\", so"' for i, t in enumerate(P)))},
        [f'C:\\new\\table "{t}", so' for t in P],
    ),
    either(
        "escaped line ends of mysql",
        {"a.csv": lines_of("id,text", *(f'{i},"{t} \\"so\\"\\\nand on"' for i, t in enumerate(P)))},
        [[f'{t} "so"\nand on' for t in P]],
        "line",
    ),
]
ANSWERS = csv_text([(text, learned(text)) for text in P], ["prompt", "completion"])
PROMPTS = [
    refuses(
        "the question is the answer",
        {"a.csv": ANSWERS},
        "'prompt'.*question",
        "--prompt_column=prompt --completion_column=prompt",
    ),
    refuses(
        "a template that holds the answer",
        {"a.csv": ANSWERS},
        "'completion'.*question",
        "--prompt_template={prompt}{completion}",
    ),
    refuses(
        "a template that holds the named answer",
        {"a.csv": ANSWERS},
        "question",
        "--prompt_template={prompt}{completion} --completion_column=completion",
    ),
]

CASES = [*QUOTES, *TSV, *NOTHING, *BELOW, *SEPARATORS, *ESCAPES, *PROMPTS]
