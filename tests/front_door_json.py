"""JSON and JSON lines, and which column is the text."""

import gzip
import json

import pandas as pd
from front_door import as_column, changed, either, json_lines, of, plain, reads, refuses, talk, texts, without

T, P = texts(), plain()
ARRAYS = [json.dumps(as_column(T[i : i + 4])) for i in range(0, 12, 4)]
ROWS = as_column(T)
LINES = json_lines(ROWS).splitlines()
ARRAY = json.dumps(ROWS)


def with_line(number, line):
    return "\n".join(changed(LINES, number, line)) + "\n"


ODD_VALUES = [
    either(
        "number in an array", {"a.json": json.dumps(as_column(changed(T, 3, 1984)))}, [changed(T, 3, "1984")], "row 3"
    ),
    either(
        "number in lines", {"a.jsonl": json_lines(as_column(changed(T, 9, 7)))}, [changed(T, 9, "7")], "(row|line) 9"
    ),
    either(
        "float in lines", {"a.jsonl": json_lines(as_column(changed(T, 9, 0.5)))}, [changed(T, 9, "0.5")], "(row|line) 9"
    ),
    either(
        "number in the first line",
        {"a.jsonl": json_lines(as_column(changed(T, 1, 7)))},
        [changed(T, 1, "7")],
        "(row|line) 1",
    ),
    either(
        "null in an array",
        {"a.json": json.dumps(as_column(changed(T, 12, None)))},
        [without(T, 12)],
        ["row 12", "null"],
        says=r"\b1\b.*(null|empty|left out|without)",
    ),
    either(
        "null in the first line",
        {"a.jsonl": json_lines(as_column(changed(T, 1, None)))},
        [without(T, 1)],
        ["(row|line) 1", "null"],
        says=r"\b1\b.*(null|empty|left out|without)",
    ),
    either(
        "true among texts", {"a.json": json.dumps(as_column(changed(T, 5, True)))}, [changed(T, 5, "true")], "row 5"
    ),
    refuses("list among texts", {"a.json": json.dumps(as_column(changed(T, 5, ["x", 1])))}, ["row 5", "list"]),
    refuses(
        "object among texts", {"a.jsonl": json_lines(as_column(changed(T, 11, {"en": "x"})))}, ["(row|line) 11", "text"]
    ),
    refuses("NaN as a text", {"a.jsonl": json_lines(as_column(changed(T, 4, float("nan"))))}, "(row|line) 4"),
    reads("NaN beside", {"a.jsonl": json_lines(of(("text", T), score=float("nan")))}, T),
    reads("huge numbers beside", {"a.jsonl": json_lines(of(("text", T), n=10**30, x=1e308))}, T),
    reads(
        "late odd values beside",
        {"a.jsonl": json_lines([{"text": t, "score": 1 if i < 10 else "high"} for i, t in enumerate(T)])},
        T,
    ),
    reads(
        "late keys beside",
        {"a.jsonl": json_lines([{"text": t, **({"note": [1, "x", None]} if i > 9 else {})} for i, t in enumerate(T)])},
        T,
    ),
    reads(
        "null, then a text beside",
        {"a.json": json.dumps([{"text": t, "note": None if i < 9 else "late"} for i, t in enumerate(T)])},
        T,
    ),
    reads("digits as text", {"a.jsonl": json_lines(as_column(changed(T, 2, "007")))}, changed(T, 2, "007")),
    reads(
        "dates as text",
        {"a.jsonl": json_lines(as_column([f"2020-01-{i + 10}T00:00:00" for i in range(12)]))},
        [f"2020-01-{i + 10}T00:00:00" for i in range(12)],
    ),
    reads(
        "days as text",
        {"a.json": json.dumps(as_column([f"2020-01-{i + 10}" for i in range(12)]))},
        [f"2020-01-{i + 10}" for i in range(12)],
    ),
    reads(
        "times of a zone as text",
        {"a.jsonl": json_lines(as_column([f"2020-01-{i + 10}T10:00:00Z" for i in range(12)]))},
        [f"2020-01-{i + 10}T10:00:00Z" for i in range(12)],
    ),
    reads(
        "dates beside", {"a.jsonl": json_lines(of(("text", T), ("day", [f"2020-01-{i + 10}" for i in range(12)])))}, T
    ),
    reads(
        "nothing in one text",
        {"a.jsonl": json_lines(as_column(changed(T, 6, "")))},
        without(T, 6),
        says=r"\b1\b.*(empty|left out|without)",
    ),
    reads(
        "a lone surrogate",
        {"a.jsonl": with_line(3, '{"text": "ab\\ud800c\\ude00"}')},
        changed(T, 3, "ab\ufffdc\ufffd"),
        says="1 row with half of a surrogate pair",
    ),
    reads(
        "half pairs of surrogates in questions and answers",
        {"a.jsonl": '{"prompt": "What is \\ud83d 1?", "completion": "It is\\ude00 1."}\n' * 12},
        [talk("user: What is \ufffd 1?", "assistant: It is\ufffd 1.")] * 12,
        says="12 rows with half of a surrogate pair",
    ),
    *[
        reads(f"arrays that were joined, {name}", {"a.json": between.join(ARRAYS)}, T)
        for name, between in (("a line each", "\n"), ("on one line", ""), ("with an empty one", "[]\n"))
    ],
    reads(
        "indented arrays that were joined",
        {"a.json": "\n".join(json.dumps(json.loads(a), indent=2) for a in ARRAYS)},
        T,
    ),
    refuses("arrays as lines", {"a.jsonl": "\n".join(ARRAYS)}, ["row 1 is a list", r"jq -c '\.\[\]' FILE"]),
    refuses(
        "an object behind an array", {"a.json": ARRAYS[0] + '\n{"text": "So"}'}, "line 2: something follows the array"
    ),
    reads("a pair of surrogates", {"a.jsonl": with_line(3, '{"text": "ab\\ud83d\\ude00c"}')}, changed(T, 3, "ab😀c")),
    either(
        "an escaped NUL", {"a.jsonl": with_line(3, '{"text": "ab\\u0000c"}')}, [changed(T, 3, "ab\0c")], "(row|line) 3"
    ),
    reads(
        "every escape",
        {"a.jsonl": with_line(3, r'{"text": "\/ \b \f \t \\ \" \u00e9 \r\n."}')},
        changed(T, 3, '/ \b \f \t \\ " é \n.'),
    ),
    reads(
        "line separators of Unicode",
        {"a.jsonl": json_lines(as_column(changed(T, 3, "a\u2028b\u2029c\x85d\x0be")), ensure_ascii=False)},
        changed(T, 3, "a\u2028b\u2029c\x85d\x0be"),
    ),
    reads(
        "a text of a megabyte",
        {"a.jsonl": json_lines(as_column(changed(T, 3, "ab é" * 250_000)), ensure_ascii=False)},
        changed(T, 3, "ab é" * 250_000),
    ),
    refuses("one key twice", {"a.jsonl": with_line(3, '{"text": "first", "text": "second"}')}, ["line 3", "'text'"]),
    refuses("one key twice in an array", {"a.json": f'[{",".join(LINES)}, {{"text": "a", "text": "b"}}]'}, "row 13"),
    refuses("one key twice, beside", {"a.jsonl": with_line(3, '{"id": 1, "text": "a", "id": 2}')}, ["line 3", "'id'"]),
    reads("one key twice, equal", {"a.jsonl": with_line(3, '{"text": "a b", "text": "a b"}')}, changed(T, 3, "a b")),
    refuses("one key twice in one object", {"a.json": '{"title": "a", "title": "b", "text": "c"}'}, "'title'.*twice"),
]

SHAPES = [
    reads("array", {"a.json": ARRAY}, T),
    reads("array, indented", {"a.json": json.dumps(ROWS, indent=2)}, T),
    reads("lines in .json", {"a.json": json_lines(ROWS)}, T),
    reads("lines in .ndjson", {"a.ndjson": json_lines(ROWS)}, T),
    reads("lines in .JSONL", {"a.JSONL": json_lines(ROWS)}, T),
    reads("lines in .jsonl.gz", {"a.jsonl.gz": gzip.compress(json_lines(ROWS).encode())}, T),
    either("array in .jsonl", {"a.jsonl": ARRAY}, [T], "line 1|array|list"),
    either("indented array in .jsonl", {"a.jsonl": json.dumps(ROWS, indent=1)}, [T], "line 1|array"),
    reads("indented objects", {"a.json": "\n".join(json.dumps(row, indent=1) for row in ROWS)}, T),
    reads("indented objects in .jsonl", {"a.jsonl": "\n".join(json.dumps(row, indent=1) for row in ROWS)}, T),
    reads(
        "indented objects without a line between", {"a.jsonl": "".join(json.dumps(row, indent=1) for row in ROWS)}, T
    ),
    reads(
        "two objects in a line",
        {"a.jsonl": with_line(3, '{"text": "one"} {"text": "two"}')},
        [*without(T, 3), "one", "two"],
    ),
    reads("objects in one line", {"a.jsonl": "".join(LINES)}, T),
    reads("objects in one line of .json", {"a.json": " ".join(LINES)}, T),
    refuses(
        "an indented object cut",
        {"a.jsonl": "\n".join(json.dumps(row, indent=1) for row in ROWS)[:-9]},
        "line 35.*not closed",
    ),
    reads("rows under data", {"a.json": json.dumps({"version": "1", "data": ROWS}, indent=1)}, T),
    reads("rows under data, in front", {"a.json": json.dumps({"data": ROWS, "version": "v2.0"})}, T),
    either("rows under another key", {"a.json": json.dumps({"version": "1", "items": ROWS})}, [T], "items"),
    either(
        "rows under train and test",
        {"a.json": json.dumps({"train": ROWS[:9], "test": ROWS[9:]})},
        [T[:9]],
        "train",
        says="test",
    ),
    either(
        "a tree under data",
        {
            "a.json": json.dumps(
                {
                    "version": "v2.0",
                    "data": [
                        {"title": f"T{i}", "paragraphs": [{"context": T[i], "qas": [{"question": "Why?"}]}]}
                        for i in range(12)
                    ],
                }
            )
        },
        [T],
        ["data", "paragraphs"],
    ),
    either("columns", {"a.json": json.dumps({"text": T, "label": list(range(12))})}, [T], "column|list|row"),
    *(
        reads(
            f"pandas, {form}, {name}",
            {name: pd.DataFrame(of(("text", T), id=7)).to_json(orient=form)},
            T,
            says="12 rows.*id",
        )
        for form, name in zip(
            ("columns", "index", "split", "table", "columns"), ("a.json", "a.jsonl", "a.json", "a.json", "a.jsonl")
        )
    ),
    reads("pandas, indented", {"a.json": pd.DataFrame(ROWS).to_json(indent=2)}, T),
    refuses("pandas, values", {"a.json": pd.DataFrame(ROWS).to_json(orient="values")}, ["row 1", "lines=True"]),
    refuses("objects by name", {"a.json": json.dumps({f"x{i}": row for i, row in enumerate(ROWS)})}, ["jq", "pandas"]),
    refuses(
        "numbers by numbers", {"a.json": '{"0": {"0": "a", "1": "b"}, "1": {"0": "c", "1": "d"}}'}, "rows or columns"
    ),
    refuses("JSON within texts", {"a.jsonl": json_lines(LINES)}, ["JSON within texts", "fromjson"]),
    refuses("JSON within texts of an array", {"a.json": json.dumps(LINES)}, ["JSON within texts", "fromjson"]),
    either("strings in an array", {"a.json": json.dumps(T)}, [T], "row 1|string|text"),
    either("a string a line", {"a.jsonl": json_lines(T)}, [T], "line 1|row 1"),
    either("lists of strings", {"a.json": json.dumps([[t] for t in T])}, [T], "row 1|list"),
    refuses("lists of numbers", {"a.jsonl": json_lines([[i, 2] for i in range(12)])}, "(line|row) 1"),
    refuses("numbers", {"a.jsonl": json_lines(range(12))}, "line 1|row"),
    refuses("a string late among objects", {"a.jsonl": with_line(12, '"only a string"')}, "(line|row) 12"),
    either("one object", {"a.json": json.dumps({"text": T[0]})}, [T[:1]], "row|few"),
    refuses("an empty array", {"a.json": "[]"}, "no (text|row)|empty"),
    refuses("an empty object", {"a.json": "{}"}, "no |empty|column"),
    reads("blank lines", {"a.jsonl": "\n\n" + "\n\n \n".join(LINES) + "\n\n"}, T),
    reads("byte order mark in lines", {"a.jsonl": "\ufeff" + json_lines(ROWS)}, T),
    reads("byte order mark in an array", {"a.json": "\ufeff" + ARRAY}, T),
    reads("byte order mark in the middle", {"a.jsonl": with_line(3, "\ufeff" + LINES[2])}, T),
    reads("record separators", {"a.jsonl": "".join(f"\x1e{line}\n" for line in LINES)}, T),
    reads("CRLF", {"a.jsonl": "\r\n".join(LINES) + "\r\n"}, T),
    reads("no line end at the end", {"a.jsonl": "\n".join(LINES)}, T),
]

BROKEN = [
    refuses("a comma after each object", {"a.jsonl": ",\n".join(LINES) + "\n"}, ["line 1", "comma"]),
    refuses("a comma after one object", {"a.jsonl": with_line(7, LINES[6] + ",")}, ["line 7", "comma"]),
    refuses("an unclosed string", {"a.jsonl": with_line(6, '{"text": "unterminated')}, "line 6"),
    refuses("a bad line after blank ones", {"a.jsonl": "\n\n" + with_line(6, '{"text": ')}, "line 8"),
    refuses("the last line cut", {"a.jsonl": json_lines(ROWS)[:-20]}, "line 12"),
    refuses("an array cut", {"a.json": json.dumps(ROWS, indent=0)[:-20]}, "line|row|end"),
    refuses("a missing comma", {"a.json": json.dumps(ROWS, indent=0).replace("},", "}", 1)}, "line [34]|row [12]"),
    refuses("a comma before ]", {"a.json": ARRAY[:-1] + ",]"}, "line 1|row 1[23]|comma"),
    refuses("more after the array", {"a.json": ARRAY + "\n[1]\n"}, "line [12]|row 1|after|extra|more"),
    refuses("a comment", {"a.jsonl": with_line(2, "// the second row")}, ["line 2", "comment"]),
    refuses("a comment in an array", {"a.json": ARRAY.replace("[", "[\n# rows\n", 1)}, ["line 2", "comment"]),
    refuses("a comma before }", {"a.jsonl": with_line(2, '{"text": "a",}')}, ["line 2", "comma before the end"]),
    refuses("single quotes", {"a.jsonl": with_line(2, "{'text': 'a'}")}, ["line 2", "ast.literal_eval"]),
    refuses("None of Python", {"a.jsonl": with_line(2, '{"text": "a", "n": None}')}, ["line 2", "None", "null"]),
    refuses("a line end in a string", {"a.jsonl": with_line(4, '{"text": "one\ntwo"}')}, "line 4"),
    either(
        "a tab in a string", {"a.jsonl": with_line(4, '{"text": "one\ttwo"}')}, [changed(T, 4, "one\ttwo")], "line 4"
    ),
    refuses("plain text in .jsonl", {"a.jsonl": "\n".join(P)}, "line 1"),
    refuses(
        "csv in .json", {"a.json": "id,text\n" + "\n".join(f"{i},{t}" for i, t in enumerate(P))}, "line 1|not JSON"
    ),
    refuses(
        "a page of HTML in .jsonl",
        {"a.jsonl": "<!DOCTYPE html>\n<html><body>Not found</body></html>\n"},
        "line 1|HTML|web page",
    ),
    refuses("UTF-16 lines", {"a.jsonl": json_lines(ROWS).encode("utf-16")}, ["UTF-16", "--encoding|iconv"]),
    reads("UTF-16 lines, said", {"a.jsonl": json_lines(ROWS).encode("utf-16")}, T, "--encoding=utf-16"),
    refuses(
        "cp1252 lines",
        {"a.jsonl": with_line(4, '{"text": "caf?"}').encode().replace(b"caf?", b"caf\xe9")},
        ["line 4|row 4", "0xE9", "UTF-8"],
    ),
    refuses(
        "the text key late missing", {"a.jsonl": json_lines(changed(ROWS, 9, {"txt": "x"}))}, ["(row|line) 9", "text"]
    ),
    reads(
        "bad lines skipped",
        {"a.jsonl": json_lines(ROWS) + '{"text": \n{"text": 5}\n{"txt": "x"}\n'},
        T,
        "--on_bad_row=skip",
        says=r"\b3\b",
    ),
    reads(
        "bad rows of an array skipped",
        {"a.json": json.dumps([*ROWS[:4], {"text": None}, {"text": [1]}, *ROWS[4:]])},
        T,
        "--on_bad_row=skip",
        says=r"\b2\b",
    ),
    refuses(
        "bad lines, not skipped",
        {"a.jsonl": json_lines(ROWS) + '{"text": \n'},
        ["line 13", "--on_bad_row=skip"],
        "--on_bad_row=error",
    ),
    refuses("nothing but bad lines", {"a.jsonl": "one\ntwo\nthree\n"}, "no |line 1|every|all", "--on_bad_row=skip"),
]
LONG = "A long first text. " * 4000
LONG_ROWS = as_column([LONG, *T])
LONG_ARRAY = json.dumps(LONG_ROWS).replace("}, {", "},\n{")
LONG_TALK = [{"role": "user", "content": LONG}, {"role": "assistant", "content": "Yes."}]
LONG_LINE = [
    reads("an array with a long first line", {"a.json": LONG_ARRAY}, [LONG, *T]),
    reads("an array with a long first line in .jsonl", {"a.jsonl": LONG_ARRAY}, [LONG, *T]),
    *[
        reads(
            f"commas on lines of their own below a {what} line",
            {"a.jsonl": json.dumps(rows).replace("}, {", "}\n,\n{")},
            [row["text"] for row in rows],
            "--on_bad_row=skip",
        )
        for what, rows in (("long", LONG_ROWS), ("short", as_column(P)))
    ],
    reads("an array that ends below a long line", {"a.jsonl": json.dumps(LONG_ROWS[:1])[:-1] + "\n]\n"}, [LONG]),
    reads(
        "an object with a long first line",
        {"a.json": json.dumps({"data": LONG_ROWS, "version": 1}).replace('], "v', '],\n"v')},
        [LONG, *T],
    ),
    reads("an object over lines of which one is long", {"a.jsonl": f'{{"text": "{LONG}"\n}}\n'}, [LONG]),
    reads(
        "brackets and quotes in a long first line",
        {"a.jsonl": json_lines(as_column(['[{"\\' + LONG, *T]))},
        ['[{"\\' + LONG, *T],
    ),
    reads(
        "a long conversation a line",
        {"a.jsonl": json_lines([LONG_TALK, LONG_TALK])},
        [talk(f"user: {LONG}", "assistant: Yes.")] * 2,
    ),
    refuses("a long first line that is cut", {"a.jsonl": json_lines(LONG_ROWS).replace('"}', '"', 1)}, "line 1"),
    refuses(
        "a long first line with a comma behind it",
        {"a.jsonl": json_lines(LONG_ROWS).replace("}", "},", 1)},
        ["line 1", "comma after the object"],
    ),
]

CASES = [*LONG_LINE, *ODD_VALUES, *SHAPES, *BROKEN]
