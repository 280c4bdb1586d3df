"""Text files: their encodings, and where one document ends and the next begins."""

import codecs
import gzip

from front_door import either, json_lines, plain, reads, refuses, texts

T, P = texts(), plain()
TEXT = "".join(f"{line}, and it stays so.\n" for line in P)
FRENCH = "Le café déjà fermé, où l’élève paye 5 € à la reine.\n" * 20
GERMAN = "Überall grüßen die Bäume, und die Straße ist naß.\n" * 20
JAPANESE = "これは日本語の文章です。東京は大きい都市であり、人が多い。\n" * 20
CHINESE = "这是一个中文句子。北京是一个很大的城市，有很多人。\n" * 20
RUSSIAN = "Это русское предложение. Москва очень большой город.\n" * 20
WIDE = FRENCH.encode("utf-16")
FRAME = "╔══╦══╗ ═ ‧ 乐\n".replace("═", "═" * 90).replace("‧", "‧" * 90).replace("乐", "乐" * 90)
MIXED = [
    *[
        refuses(f"{what} below UTF-8", {"a.txt": (FRENCH * times).encode() + tail}, [f"line {line}", "UTF-16", "iconv"])
        for what, times, line, tail in (
            ("UTF-16", 90, "1,801", "Get it now\r\n".encode("utf-16-le")),
            ("UTF-16 behind a mebibyte", 2000, "40,001", "Get it now\r\n".encode("utf-16-le") + b"so it is\n" * 9),
            ("UTF-16 of the other order", 90, "1,80[01]", "Get it now\r\n".encode("utf-16-be")),
            ("UTF-16 of Russian", 90, "1,801", "Это так и есть\r\n".encode("utf-16-le")),
        )
    ],
    refuses(
        "UTF-16 below JSON lines",
        {"a.jsonl": json_lines({"text": t} for t in P * 90).encode() + '{"text": "So"}\r\n'.encode("utf-16-le")},
        ["line 1,081", "UTF-16"],
    ),
    refuses("UTF-8 below UTF-16", {"a.txt": WIDE + TEXT.encode()}, ["line 21", "UTF-8", "iconv"], "--encoding=utf-16"),
    refuses("UTF-16 with a byte too many", {"a.txt": WIDE + b"\n"}, ["ends within", "head -c"], "--encoding=utf-16"),
    refuses("UTF-16 that is cut", {"a.txt": WIDE[:-1]}, ["ends within", "head -c"], "--encoding=utf-16"),
    refuses("UTF-16 cut in a pair", {"a.txt": "So 😀".encode("utf-16")[:-2]}, "ends within", "--encoding=utf-16"),
    refuses("UTF-32 that is cut", {"a.txt": FRENCH.encode("utf-32")[:-3]}, "ends within", "--encoding=utf-32"),
    reads("few NULs in a text", {"a.txt": FRENCH + "a\0b\0c\n" + FRENCH}, [FRENCH + "a\0b\0c\n" + FRENCH]),
    reads("NULs in a row", {"a.txt": FRENCH + "a" + "\0" * 9 + "\n"}, [FRENCH + "a" + "\0" * 9 + "\n"]),
    reads("frames in UTF-16", {"a.txt": (FRAME * 9).encode("utf-16")}, [FRAME * 9], "--encoding=utf-16"),
    reads("Chinese in UTF-16", {"a.txt": (CHINESE * 9).encode("utf-16")}, [CHINESE * 9], "--encoding=utf-16"),
]
ENCODINGS = [
    refuses(
        "cp1252",
        {"a.txt": ("First.\n" + FRENCH).encode("cp1252")},
        ["0xE9 at offset 13 .line 2", "UTF-8", "--encoding=(cp1252|windows-1252)"],
    ),
    reads("cp1252, said", {"a.txt": FRENCH.encode("cp1252")}, [FRENCH], "--encoding=cp1252"),
    refuses("Latin-1", {"a.txt": GERMAN.encode("latin-1")}, ["0xDC at offset 0 .line 1", "--encoding="]),
    reads("Latin-1, said", {"a.txt": GERMAN.encode("latin-1")}, [GERMAN], "--encoding=latin-1"),
    refuses("Shift JIS", {"a.txt": JAPANESE.encode("shift_jis")}, ["not UTF-8", "--encoding=(cp932|shift)"]),
    reads("Shift JIS, said", {"a.txt": JAPANESE.encode("shift_jis")}, [JAPANESE], "--encoding=shift_jis"),
    refuses("GB 18030", {"a.txt": CHINESE.encode("gb18030")}, ["not UTF-8", "--encoding=gb"]),
    reads("GB 18030, said", {"a.txt": CHINESE.encode("gb18030")}, [CHINESE], "--encoding=gb18030"),
    refuses("KOI8-R", {"a.txt": RUSSIAN.encode("koi8-r")}, ["not UTF-8", "--encoding="]),
    reads("KOI8-R, said", {"a.txt": RUSSIAN.encode("koi8-r")}, [RUSSIAN], "--encoding=koi8-r"),
    refuses("ISO-2022-JP", {"a.txt": JAPANESE.encode("iso2022_jp")}, ["ISO-2022-JP", "iconv|--encoding"]),
    reads("ISO-2022-JP, said", {"a.txt": JAPANESE.encode("iso2022_jp")}, [JAPANESE], "--encoding=iso2022_jp"),
    refuses("UTF-16 with its mark", {"a.txt": FRENCH.encode("utf-16")}, ["UTF-16", "--encoding|iconv"]),
    refuses(
        "UTF-16 of the other order with its mark",
        {"a.txt": codecs.BOM_UTF16_BE + FRENCH.encode("utf-16-be")},
        ["UTF-16", "--encoding|iconv"],
    ),
    reads("UTF-16, said", {"a.txt": FRENCH.encode("utf-16")}, [FRENCH], "--encoding=utf-16"),
    refuses("UTF-16 without a mark", {"a.txt": TEXT.encode("utf-16-le")}, ["UTF-16", "--encoding|iconv"]),
    refuses(
        "UTF-16 of the other order without a mark", {"a.txt": TEXT.encode("utf-16-be")}, ["UTF-16", "--encoding|iconv"]
    ),
    reads("UTF-16 without a mark, said", {"a.txt": TEXT.encode("utf-16-be")}, [TEXT], "--encoding=utf-16-be"),
    refuses(
        "UTF-16 lines without a mark",
        {"a.jsonl": json_lines({"text": t} for t in P).encode("utf-16-le")},
        ["UTF-16", "--encoding|iconv"],
    ),
    refuses(
        "UTF-16 csv without a mark",
        {"a.csv": ("id,text\n" + "".join(f"{i},{t}\n" for i, t in enumerate(P))).encode("utf-16-le")},
        ["UTF-16", "--encoding|iconv"],
    ),
    refuses("UTF-32", {"a.txt": TEXT.encode("utf-32")}, ["UTF-32|UTF-16", "--encoding|iconv"]),
    refuses("UTF-32 without a mark", {"a.txt": TEXT.encode("utf-32-le")}, "UTF-32|NUL|binary"),
    refuses("a bad byte late", {"a.txt": (TEXT * 400).encode() + b"\xff\n"}, ["0xFF at offset", "line 4,801", "UTF-8"]),
    refuses("a letter cut at the end", {"a.txt": TEXT.encode() + b"caf\xc3"}, ["0xC3", "line 13"]),
    refuses("an encoding of no such name", {"a.txt": TEXT}, ["utf9", "encoding"], "--encoding=utf9"),
    refuses(
        "an encoding that does not fit", {"a.txt": FRENCH.encode("cp1252")}, ["0xE9", "UTF-8|utf-8"], "--encoding=utf-8"
    ),
    *[
        refuses(f"UTF-8 cut in a character, {name}", {name: (text + last).encode()[:-1]}, words)
        for name, text, last in (
            ("a.txt", FRENCH, "É"),
            ("b.txt", FRENCH, "€"),
            ("a.jsonl", json_lines(({"text": t} for t in T), ensure_ascii=False), '{"text": "É'),
        )
        for words in [["ends within a character of UTF-8", f"head -c {len((text + last[:-1]).encode())} keeps"]]
    ],
    refuses(
        "a byte behind a mebibyte of UTF-8",
        {"a.txt": ("é" * (1 << 19)).encode() + b"\xe9 is not"},
        ["offset 1,048,576", "the text before it is"],
    ),
    refuses("an encoding too small", {"a.txt": FRENCH}, ["ascii", "UTF-8"], "--encoding=ascii"),
    reads("a byte order mark", {"a.txt": "\ufeff" + TEXT}, [TEXT]),
    reads("a byte order mark, its encoding said", {"a.txt": "\ufeff" + TEXT}, [TEXT], "--encoding=utf-8"),
    reads(
        "every kind of line end",
        {"a.txt": "one\r\ntwo\rthree\nfour\r\r\n" + TEXT},
        ["one\ntwo\nthree\nfour\n\n" + TEXT],
    ),
    either("one NUL in a text", {"a.txt": "one\0two " + TEXT * 20}, [["one\0two " + TEXT * 20]], "NUL"),
]

TWEETS = [f"<|startoftext|>Tweet {i} about a {t}" for i, t in enumerate(P)]
SPELLED = "<|endoftext|>\n".join(TWEETS) + "<|endoftext|>\n"
BLOCKS = [f"{t}\n\nSecond paragraph, {i}" for i, t in enumerate(P)]
STANDARD = TEXT.encode()
CUTTING = [
    reads("a text", {"a.txt": TEXT}, [TEXT]),
    reads("end-of-text spelled out", {"a.txt": SPELLED}, [SPELLED], says=["12", r"<\|endoftext\|>", "--special"]),
    reads("end-of-text as text", {"a.txt": SPELLED}, [SPELLED], "--special=text"),
    either(
        "end-of-text as a token",
        {"a.txt": SPELLED},
        [
            TWEETS,
            [*TWEETS, "\n"],
            [TWEETS[0], *(f"\n{t}" for t in TWEETS[1:])],
            [TWEETS[0], *(f"\n{t}" for t in TWEETS[1:]), "\n"],
        ],
        [],
        "--special=token",
    ),
    reads(
        "end-of-text in rows",
        {"a.jsonl": json_lines({"text": f"{t}<|endoftext|>"} for t in P)},
        [f"{t}<|endoftext|>" for t in P],
        says=["12", "--special"],
    ),
    reads("a document a line", {"a.txt": TEXT}, TEXT.splitlines(), "--documents=lines"),
    reads(
        "a document a line, blank lines and CRLF",
        {"a.txt": "\r\n" + TEXT.replace("\n", "\r\n\r\n")},
        TEXT.splitlines(),
        "--documents=lines",
    ),
    reads(
        "a document a line, no line end at the end",
        {"a.txt": "\ufeff" + TEXT[:-1]},
        TEXT.splitlines(),
        "--documents=lines",
    ),
    reads(
        "a document a line, two files",
        {"a.txt": "one\ntwo\nthree", "b.txt": "four\nfive\nsix\nseven\n"},
        "one two three four five six seven".split(),
        "a.txt b.txt --documents=lines",
    ),
    reads(
        "a document a line, compressed", {"a.txt.gz": gzip.compress(STANDARD)}, TEXT.splitlines(), "--documents=lines"
    ),
    reads(
        "a document a line, of cp1252",
        {"a.txt": "\n".join(f"café {t}" for t in P).encode("cp1252")},
        [f"café {t}" for t in P],
        "--documents=lines --encoding=cp1252",
    ),
    reads(
        "other lines of Unicode are text",
        {"a.txt": "\n".join(f"a\u2028b\x0cc\x85{t}" for t in P)},
        [f"a\u2028b\x0cc\x85{t}" for t in P],
        "--documents=lines",
    ),
    reads("documents between blank lines", {"a.txt": "\n\n\n".join(BLOCKS)}, BLOCKS, r"'--documents=\n\n\n'"),
    reads("documents between rules", {"a.txt": "\n---\n".join(BLOCKS) + "\n---\n"}, BLOCKS, r"'--documents=\n---\n'"),
    reads("documents between rules, CRLF", {"a.txt": "\r\n---\r\n".join(BLOCKS)}, BLOCKS, r"'--documents=\n---\n'"),
    reads("documents between tabs", {"a.txt": "\t".join(P)}, P, r"'--documents=\t'"),
    reads("documents between marks", {"a.txt": "<|endoftext|>".join(P)}, P, "'--documents=<|endoftext|>'"),
    reads("a file a document, said", {f"d/{i:02}.txt": t for i, t in enumerate(P)}, P, "d --documents=file"),
    either("lines of a table", {"a.jsonl": json_lines({"text": t} for t in T)}, [T], "documents", "--documents=lines"),
    refuses("documents by nothing", {"a.txt": TEXT}, "documents", "--documents="),
    reads("pages of pdftotext", {"a.txt": "\f".join([*P, ""])}, P, r"'--documents=\f'"),
    reads(
        "a separator that is not there",
        {"a.txt": TEXT},
        [TEXT],
        r"'--documents=\n===\n'",
        says="no separator stands between two",
    ),
    reads("standard input", {}, [TEXT], "-", stdin=STANDARD),
    reads("lines of standard input", {}, TEXT.splitlines(), "- --documents=lines", stdin=STANDARD),
    reads(
        "shares that differ are said",
        {"a.jsonl": json_lines({"text": "word " * 4**i} for i in range(9))},
        ["word " * 4**i for i in range(9)],
        "--val_fraction=0.3",
        says=r"\d%",
    ),
]

CASES = [*MIXED, *ENCODINGS, *CUTTING]
