"""Texts that are none: tables, JSON and web pages under the name of a text, and texts that only look like them."""

import json

from front_door import Case, as_column, csv_text, json_lines, plain, reads, refuses, talk, texts

T, P = texts(), plain()
ROWS = [(i, t) for i, t in enumerate(P)]
QUESTIONS = [(f"What is {i}?", f"It is, {t}.") for i, t in enumerate(P)]
PAGE = f"<html><body><p>{P[0]}</p></body></html>"
CSV, TSV, SEMICOLON = csv_text(ROWS), csv_text(ROWS, delimiter="\t"), csv_text(ROWS, delimiter=";")
CONTENTS = "".join(f"Chapter {i}\t{3 + 7 * i}\n" for i in range(9))
FILE = "--documents=file"
DISGUISED = {
    "csv": (CSV, ["','", ".csv", FILE]),
    "csv of Windows": (csv_text(ROWS, lineterminator="\r\n"), [".csv"]),
    "csv with cells in quotes": (csv_text(enumerate(T)), [".csv"]),
    "csv with all cells in quotes": (csv_text(ROWS, quoting=1), [".csv"]),
    "csv of questions": (csv_text(QUESTIONS, header=("question", "answer")), [".csv"]),
    "csv without a header": (csv_text(ROWS, header=None), [".csv"]),
    "csv of pandas": (csv_text(ROWS, header=("", "text")), [".csv"]),
    "csv with dates": (csv_text([("2024-01-01", t, "pos") for t in P], header=("date", "review", "label")), [".csv"]),
    "csv with a row too wide": (csv_text(ROWS) + "13,so, it is\n", [".csv"]),
    "csv of semicolons": (SEMICOLON, ["';'", ".csv"]),
    "csv of bars": (csv_text(ROWS, delimiter="|"), ["'|'", ".csv"]),
    "csv of Excel": ("sep=;\n" + SEMICOLON, [".csv"]),
    "csv of Chinese": (csv_text([(i, "这是一个中文句子") for i in range(9)], header=("id", "内容")), [".csv"]),
    "tsv": (TSV, ["tab", ".tsv"]),
    "tsv without a header": (csv_text([(f"{t}.", f"{t}!") for t in P], header=None, delimiter="\t"), [".tsv"]),
    "tsv of short translations": ("Go.\tGeh.\tCC-BY 2.0 (France)\nRun!\tLauf!\tCC-BY 2.0 (France)\n" * 4, [".tsv"]),
    "tsv of labels": (csv_text([("ham", t) for t in P], header=None, delimiter="\t"), [".tsv"]),
    "tsv of sentences with labels": (csv_text([(t, i % 2) for i, t in enumerate(P)], None, delimiter="\t"), [".tsv"]),
    "tsv of names and places": (csv_text([("Anna", "Bonn", t) for t in P], None, delimiter="\t"), [".tsv"]),
    "tsv of Chinese": (csv_text([(f"第{i}天", f"这是第{i}个句子") for i in range(9)], None, delimiter="\t"), [".tsv"]),
    "csv of two Chinese names": (
        csv_text([(f"第{i}", f"这是第{i}个句子") for i in range(9)], ("编号", "内容")),
        [".csv"],
    ),
    "JSON lines": (json_lines(as_column(P)), ["JSON lines", ".jsonl", FILE]),
    "JSON lines of lists": (json_lines([[{"role": "user", "content": t}] for t in P]), ["JSON lines", ".jsonl"]),
    "a JSON array": (json.dumps(as_column(P), indent=1), ["JSON", ".json"]),
    "a JSON array in a line": (json.dumps(as_column(P)), ["JSON", ".json"]),
    "a JSON array of texts": (json.dumps(P), ["JSON", ".json"]),
    "a long JSON array": (json.dumps(as_column(T * 200), indent=1), ["JSON", ".json"]),
    "a JSON object": (json.dumps({"data": as_column(P)}, indent=1), ["JSON", ".json"]),
    "rows as Python prints them": ("".join(f"{row}\n" for row in as_column(T)), ["Python", "json.dumps", FILE]),
    "a web archive": ("MIME-Version: 1.0\nContent-Type: multipart/related\n\n" + PAGE, ["web archive"]),
    "an encrypted text": ("-----BEGIN PGP MESSAGE-----\n\nhQEMAw\n-----END PGP MESSAGE-----\n", ["encrypted", "gpg"]),
    "a web page": (PAGE, ["web page", ".html", FILE]),
    "a web page of XML": (f'<?xml version="1.0"?>\n<!DOCTYPE html>\n{PAGE}', ["web page"]),
}
STAY = {
    "a poem": "Roses, red\nViolets, blue\nSugar, sweet\nAnd so, are you\n",
    "prose with a comma a line": "It was late, and cold.\nShe came, and went.\nHe stood, and fell.\nWe sat, so long.\n",
    "talk in quotes": '"Hello," she said.\n"Hi," he said.\n"So," she said.\n',
    "C": "int a,b;\nint c,d;\nint e,f;\nfoo(a,b);\nbar(c,d);\n",
    "Python": "import os,sys\nprint(a,b)\nprint(c,d)\nx = f(a,b)\n",
    "a log": "2024-01-01 10:00:00,123 INFO it starts\n2024-01-01 10:00:00,124 INFO it stops\n" * 9,
    "a table of Markdown": "| id | text |\n|----|------|\n| 1 | a b |\n| 2 | c d |\n",
    "a table of Markdown without edges": "id | text\n--- | ---\n1 | a b c\n2 | b c d\n",
    "a chat": "12/31/23, 10:15 PM - Anna: Hi there\n12/31/23, 10:16 PM - Ben: Hello Anna\n" * 9,
    "words in pairs": "apples,pears\nplums,figs\nkiwis,limes\n",
    "names": "Smith, John\nMiller, Anna\nJones, Tom\nLee, Amy\n",
    "addresses": "Main Street 5, Berlin, Germany\nSide Street 6, Paris, France\nHigh Road 3, London, UK\n",
    "sums": "1,2,3\n4,5,9\n2,2,4\n3,3,6\n",
    "contents": "Chapter 1\t5\nChapter 2\t9\nChapter 3\t12\n\nIt was late.\nThe river was old.\n",
    "subtitles": "1\n00:00:01,000 --> 00:00:02,000\nHi there, you\n\n2\n00:00:03,000 --> 00:00:04,000\nYes\n",
    "a text that begins with JSON": '{"a": 1} is an object.\nIt is short.\n',
    "a song in brackets": "[Verse 1]\nla la, la\n[Verse 2]\n{la}\n",
    "XML": '<?xml version="1.0"?>\n<poem><line>The river is old</line></poem>\n',
    "LaTeX": "\\begin{tabular}{ll}\na & b \\\\\nc & d \\\\\n\\end{tabular}\n",
    "translations": 'msgid "Hello there"\nmsgstr "Hallo"\n\nmsgid "Bye"\nmsgstr "Auf Wiedersehen"\n',
    "a chat of Zoom": "".join(f"00:0{i % 6}:30\tAnna Smith:\t{t}.\n" for i, t in enumerate(P)),
    "a talk with tabs": "".join(f"{'Anna' if i % 2 else 'Ben'}:\t{t}.\n" for i, t in enumerate(P)),
    "a play with tabs": "".join(f"{'HORATIO' if i % 2 else 'OPHELIA'}\t{t}.\n" for i, t in enumerate(P)),
    "an interview with tabs": "".join(f"Participant {i % 3}:\t{t}.\n\n" for i, t in enumerate(P)),
    "a list with tabs": "".join(f"{i}.\t{t}\n" for i, t in enumerate(P)),
    "a list of letters with tabs": "".join(f"({'abcdefghijkl'[i]})\t{t}.\n" for i, t in enumerate(P)),
    "a short list of letters with tabs": "a)\tThe river\nb)\tThe old house\nc)\tThe long road\nd)\tThe sea\n",
    "a contract with tabs": "".join(f"{1 + i // 4}.{i % 4}\t{t}.\n\n" for i, t in enumerate(P)),
    "verses with tabs": "".join(f"1 Kings {1 + i}:{i}\t{t}.\n" for i, t in enumerate(P)),
    "chords with tabs": "C\tG\tAm\tF\nlet it\tbe\tlet it\tbe\n",
    "assembly with tabs": "mov\teax, ebx\nadd\teax, 1\nsub\tecx, edx\n",
    "couplets of Chinese": "春眠不觉晓,处处闻啼鸟\n夜来风雨声,花落知多少\n白日依山尽,黄河入海流\n",
}

LINES = json_lines(as_column(P))
MARKS = "<!DOCTYPE html>\n" + PAGE
NOTES = "".join(f"What is {i}?\tIt is <b>{t}</b>.\n" for i, t in enumerate(P))
DECK = "#separator:tab\n#html:true\n#tags column:3\n" + NOTES
COUNTS = "id\tname\tcount\n" + "".join(f"{i}\thouse\t{3 * i}\n" for i in range(9))
# name of the file: what is in it
OTHER_NAMES = {
    "a.jl": (LINES, "JSON lines"),
    "one.jl": (json.dumps({"title": P[0], "text": P[1]}), "JSON"),
    "a.ldjson": (LINES, "JSON lines"),
    "a.jsonl.aa": (LINES, "JSON lines"),
    "a.jsonl.ab": (LINES[20:], ["second line", "cat"]),
    "b.jsonl.1": (LINES[20:], ["second line", "cat"]),
    "a.csv~": (CSV, ".csv"),
    "a.sample": (TSV, ".tsv"),
    "html.xls": (PAGE, ["not a spreadsheet", "csv", FILE]),
    "table.xls": ("<table><tr><td>It is so</td></tr></table>", "csv"),
    "xml.xls": ('<?xml version="1.0"?>\n<Workbook></Workbook>', "csv"),
    "tabs.xls": (TSV, ".tsv"),
    "numbers.xls": (COUNTS, ".tsv"),
    "a.md": (MARKS, ["web page", ".html"]),
    "saved.md": (PAGE + "\n<!-- saved -->\n", "web page"),
    "a.unknown": (MARKS, "web page"),
    "deck.txt": (DECK, [".tsv", FILE]),
    "deck2.txt": (DECK.replace(":tab", ":Semicolon").replace("\t", "; "), "';'"),
    "lines.txt": ("# from the web\n\n# in May\n" + LINES, ".jsonl"),
    "table.txt": ("# from the web\n" + CSV, ".csv"),
    "table.dat": ("#from the web\n" + TSV, ".tsv"),
    "python.txt": ("# rows\n" + DISGUISED["rows as Python prints them"][0], "Python"),
}
TALKS_IN_YAML = "categories:\n- ai\nconversations:\n" + "".join(f"- - {t}\n  - so it is\n" for t in P)
OTHER_NAMES |= {
    "movie_lines.txt": (
        "".join(f"L{i} +++$+++ u{i % 2} +++$+++ ANN +++$+++ {t}\n" for i, t in enumerate(P)),
        [r"' \+\+\+\$\+\+\+ ' between its cells", r"sed 's/ \+\+\+\$\+\+\+ /\\t/g' FILE > out.tsv", FILE],
    ),
    "pairs.txt": ("".join(f"{t} ||| {t}\n" for t in P), r"sed 's/ \[\|\]\[\|\]\[\|\] /\\t/g'"),
    "rows.yaml": (
        "".join(f"- instruction: >-\n    Say it\n  input: ''\n  response: {t}\n" for t in P),
        [
            "YAML",
            r"print\(json.dumps\(row, default=str\)\) for row in yaml.safe_load\(sys.stdin\)\]",
            "out.jsonl",
            FILE,
        ],
    ),
    "texts.yml": ("# rows\n" + "".join(f"- id: {i}\n  text: {t}\n" for i, t in enumerate(P)), "YAML"),
    "ai.yml": (TALKS_IN_YAML.replace("\n", "\r\n"), [r"{'turns': row}", r"\['conversations'\]", "column=turns"]),
}
OTHER_STAY = {
    "play.yml": "- hosts: all\n  tasks: [ping]\n" * 4,
    "steps.yaml": "on: push\njobs:\n- run: make\n- run: make\n- run: make\n- run: make\n",
    "odd.yml": "- text: {{ name }}\n" * 5,
    "bars.txt": "".join(f"{t} ||| {t}\n" for t in P) + "And an end.\n",
    "few.yml": "- text: It is so\n- text: And so\n",
    "julia.jl": "# sums\nusing A, B\nf(x, y) = x + y, 1\nprintln(f(1, 2))\n" * 4,
    "front.md": "---\ntitle: x\n---\n\n# T\n\n| a | b |\n|---|---|\n| 1 | 2 |\n",
    "snippet.md": f"# Pages\n\n```html\n{MARKS}\n```\n",
    "begins.md": f"{MARKS}\n\nSo it begins, and this is Markdown.\n",
    "program.php": "<!DOCTYPE html>\n<html><?php echo $x; ?></html>\n",
    **{f"404.{suffix}": MARKS for suffix in ("php", "asp", "jsp", "shtml")},
    **{
        f"en.{suffix}": json.dumps({"hello": P[0], "text": P[1]}, indent=1)
        for suffix in ("arb", "canvas", "geojson", "jsonld", "xcstrings", "sublime-settings", "code-snippets")
    },
    "begin.php": "<!DOCTYPE html>\n<html><body>\n",
    "template.j2": f"{MARKS}\n",
    "template.unknown": "<!DOCTYPE html>\n<html>{{ content }}</html>\n",
    "page.vue": f"{MARKS}\n",
    "__manifest__.py": json.dumps({"name": "Sale", "version": "1.0"}),
    "packages.lock": json.dumps({"packages": [{"name": "x"}]}, indent=1),
    "run.unknown": "#!/bin/sh\n# sums\necho a,b c\necho c,d e\necho 1,2 3\necho 4,5 6\n",
    "headings.txt": "# One\n\nIt was late, and cold.\nShe came, and went.\n\n# Two\n\nSo, it was.\n",
    "comment.txt": "# {\n# a comment\nThe river is old.\n",
    "words.conllu": "".join(f"{i}\t{t}\tNOUN\n" for i, t in enumerate(P)),
    "film.srt": "1\n00:00:01,000 --> 00:00:02,000\nHi there, you\n\n2\n00:00:03,000 --> 00:00:04,000\nYes\n",
}


def on_standard_input(name, content, words):
    return Case(f"{name} on standard input", {}, ["-"], refusal=tuple(words), stdin=content.encode())


CASES = [
    *[refuses(f"{name} named .txt", {"a.txt": content}, words) for name, (content, words) in DISGUISED.items()],
    *[refuses(f"{name} without a suffix", {"a": DISGUISED[name][0]}, DISGUISED[name][1]) for name in ("csv", "tsv")],
    *[
        refuses(f"JSON lines named {name}", {name: json_lines(as_column(P))}, ".jsonl")
        for name in ("a.jsonl.bak", "a.1")
    ],
    *[
        on_standard_input(name, *DISGUISED[name])
        for name in ("csv", "tsv", "csv of questions", "csv of bars", "a web page")
    ],
    *[reads(f"{name} stays text", {"a.txt": content * 9}, [content * 9]) for name, content in STAY.items()],
    *[
        reads(f"{name} as text", {"a.txt": DISGUISED[name][0]}, [DISGUISED[name][0]], FILE)
        for name in ("csv", "tsv", "JSON lines")
    ],
    *[refuses(f"none of its name: {name}", {name: content}, words) for name, (content, words) in OTHER_NAMES.items()],
    *[reads(f"what its name says: {name}", {name: content}, [content]) for name, content in OTHER_STAY.items()],
    reads("JSON lines of Scrapy as text", {"a.jl": LINES}, [LINES], FILE),
    reads(
        "notes of Anki under .tsv",
        {"a.tsv": DECK},
        [talk(f"user: What is {i}?", f"assistant: It is <b>{t}</b>.") for i, t in enumerate(P)],
        "--header=false --prompt_column=1 --completion_column=2",
    ),
    reads("a column of tags in .tsv", {"a.tsv": "#id\ttext\n" + "".join(f"#{i}\t{t}\n" for i, t in enumerate(P))}, P),
    reads("contents with tabs stay text", {"a.txt": CONTENTS}, [CONTENTS]),
    reads("csv as lines", {"a.txt": CSV}, CSV.splitlines(), "--documents=lines"),
    reads("csv on standard input, said", {}, P, "- --separator=,", stdin=CSV.encode()),
    reads("tsv on standard input, said", {}, P, "- --separator=tab", stdin=TSV.encode()),
    reads("tab-separated values under .tab", {"a.tab": TSV}, P, says="tab"),
    reads("bars under .psv", {"a.psv": csv_text(ROWS, delimiter="|")}, P, says=r"separator .\|"),
    reads("JSON lines under .jsonlines", {"a.jsonlines": json_lines(as_column(T))}, T),
    reads("JSON lines under .geojsonl", {"a.geojsonl": json_lines(as_column(T))}, T),
]
