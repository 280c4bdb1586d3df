"""Texts in ASCII that hide their letters, and what stands below or behind a table."""

import base64
import json
import quopri

from front_door import plain, reads, refuses

P = plain()
GERMAN = "".join(f"{line}. Größe und Übermut tun selten gut.\n" for line in P)
ASCII = "".join(f"{line}, and it stays so.\n" for line in P)
QUOTED, BASE64 = quopri.encodestring(GERMAN.encode()), base64.encodebytes(GERMAN.encode())
WAY_OUT = "--documents=file"


def mail(encoding, body, first=b""):
    head = f"From: a@b.de\nSubject: Hello\nMIME-Version: 1.0\nContent-Transfer-Encoding: {encoding}\n\n"
    return first + head.encode() + body + b"\n"


MBOX = b"From a@b.de Mon Jan  1 10:00:00 2024\n"
MULTIPART = (
    b"From: a@b.de\nContent-Type: multipart/mixed;\n boundary=x\n\nSome text.\n--x\nContent-Type: text/plain\n"
    b"Content-Transfer-Encoding: base64\n\n"
)
ABOUT = (
    "I learned what a mail holds.\n\nContent-Transfer-Encoding: base64\nstood above it.\n\n"
    "Content-Transfer-Encoding: quoted-printable\nstood above another, and x =3D 1 in it.\n"
)
TWEETS = [{"tweet": {"id": str(i), "full_text": text}} for i, text in enumerate(P)]
HIDDEN = [
    refuses("UTF-7", {"a.txt": GERMAN.encode("utf-7")}, ["UTF-7", "iconv -f UTF-7", WAY_OUT]),
    refuses("UTF-7, Japanese", {"a.txt": ("東京は日本の首都。\n" * 20).encode("utf-7")}, "UTF-7"),
    refuses("UTF-7, markdown", {"a.md": GERMAN.encode("utf-7")}, "UTF-7"),
    refuses("base64", {"a.txt": BASE64}, ["base64", WAY_OUT]),
    refuses("quoted-printable", {"a.txt": QUOTED}, ["quoted-printable", WAY_OUT]),
    refuses("mail in base64", {"a.eml": mail("base64", BASE64)}, ["mail in base64", WAY_OUT]),
    refuses("mail in quoted-printable", {"a.eml": mail("quoted-printable", QUOTED)}, "mail in quoted-printable"),
    refuses("mail as .txt", {"a.txt": mail("Base64", BASE64)}, "mail in base64"),
    refuses("mbox", {"a.mbox": mail("7bit", ASCII.encode(), MBOX) + mail("base64", BASE64, MBOX)}, "mail in base64"),
    refuses("tweets.js", {"tweets.js": f"window.YTD.tweets.part0 = {json.dumps(TWEETS)}"}, ["Twitter", "sed '1s/"]),
    refuses(
        "tweets.js over lines", {"tweet.js": f"window.YTD.tweet.part1 = {json.dumps(TWEETS, indent=1)}"}, "Twitter"
    ),
    refuses("short Hebrew", {"a.txt": "שלום עולם".encode("cp1255")}, "--encoding=cp1255"),
    refuses("short Hebrew among others", {"a.txt": "Hello, שלום עולם.\n".encode("cp1255")}, "--encoding=cp1255"),
    refuses("mail in base64, in a part", {"a.eml": MULTIPART + BASE64 + b"--x--\n"}, "mail in base64"),
    refuses(
        "an mbox in quoted-printable",
        {"a.mbox": mail("7bit", ASCII.encode(), MBOX) + mail("quoted-printable", QUOTED, MBOX)},
        "mail in quoted-printable",
    ),
    refuses("mail with \\r\\n", {"a.eml": mail("base64", BASE64).replace(b"\n", b"\r\n")}, "mail in base64"),
    *[
        reads(f"prose that begins with {first!r}", {"a.txt": first + ABOUT}, [first + ABOUT])
        for first in ("Subject: my first day\n", "To: my sister\n\n", "Date: a play\n\n", "From Rome: a letter\n\n")
    ],
    reads(
        "mail of plain words",
        {"a.eml": mail("quoted-printable", b"Hello.\n")},
        [mail("quoted-printable", b"Hello.\n").decode()],
    ),
    reads("mail in 7bit", {"a.eml": mail("7bit", ASCII.encode())}, [mail("7bit", ASCII.encode()).decode()]),
    reads(
        "a sum with plus",
        {"a.txt": "A+B=C and x+1 is +2- fine, C++ +- Java -\n" * 20},
        ["A+B=C and x+1 is +2- fine, C++ +- Java -\n" * 20],
    ),
    reads(
        "an address",
        {"a.txt": "https://a.b/?q=a+few+words+here&x=%20\n" * 20},
        ["https://a.b/?q=a+few+words+here&x=%20\n" * 20],
    ),
    reads("genes", {"a.txt": ("ACGTTGCA" * 8 + "\n") * 20}, [("ACGTTGCA" * 8 + "\n") * 20]),
    reads("assignments", {"a.txt": "x=3D and y=2A or z=FF\n" * 20}, ["x=3D and y=2A or z=FF\n" * 20]),
    reads("UTF-7 as it is", {"a.txt": GERMAN.encode("utf-7")}, [GERMAN.encode("utf-7").decode()], "--documents=file"),
]


def table(*more, head="text,label\n", rows=P):
    return {"a.csv": head + "".join(f"{text},good\n" for text in rows) + "".join(more)}


ONE = {"head": "text\n"}
BELOW = [
    refuses("a second table", table("\nname,city\n", "Ann,Rome\nBob,Oslo\n"), ["another table", "line 15"]),
    refuses("a second table, further", table("\n\n,\nname,city\n", "Ann,Rome\n"), "another table"),
    refuses("a second table with numbers", table("\nName,Age\n", "Ann,12\n"), ["another table", "line 15"]),
    refuses("a second table of texts", table("\ntitle,genre\n", "The long way,drama\n"), "another table"),
    refuses(
        "a second table of words below ids",
        {"a.csv": "id,text\n" + "".join(f"{i},{t}\n" for i, t in enumerate(P)) + "\nname,body\nx,bye you all\n"},
        ["another table", "line 15"],
    ),
    reads(
        "no second table: a word among ids",
        {"a.csv": "id,text\n" + "".join(f"{i},{t}\n" for i, t in enumerate(P)) + "\nx,Hello\n13,So it is\n"},
        [*P, "Hello", "So it is"],
    ),
    reads(
        "no second table: words among other ids",
        {
            "a.csv": "id,text\nx,So it was\n"
            + "".join(f"{i},{t}\n" for i, t in enumerate(P))
            + "\nz,Hello\ny,So it is\n"
        },
        ["So it was", *P, "Hello", "So it is"],
    ),
    *[
        reads(
            f"no second table: {label} and {', '.join(below)}",
            {"a.csv": "text,label\n" + "".join(f"{t},{label}\n" for t in P) + "\n" + "".join(f"{r}\n" for r in below)},
            [*P, *(row.partition(",")[0] for row in below)],
        )
        for label, *below in (
            ("1", "Great,pos"),
            ("1", "Great,pos", "This was bad,0"),
            ("It was so", "Hello,Hi"),
            ("It was so", "hello,hi", "thanks,welcome"),
            ("It was so", "Hello,Hi", "How are you?,I am fine"),
            ("It was so", "Hello,Hi", "Thanks,Welcome"),
            ("good", "Hello,Hi", "How are you?,Fine"),
        )
    ],
    reads("an empty line between rows", table(f"\n{P[0]} again,bad\n"), [*P, f"{P[0]} again"]),
    reads("a word behind an empty line", table("\nThanks!,good\n"), [*P, "Thanks!"]),
    reads(
        "empty lines between all rows",
        {"a.csv": "text,label\n" + "".join(f"{t},x\n\n" for t in [*P, "Thanks"])},
        [*P, "Thanks"],
    ),
    *[
        reads(
            f"a note below: {note}",
            {"a.csv": "text\n" + "".join(f"{t}\n" for t in P) + note + "\n"},
            P,
            says="left out 1 line below",
        )
        for note in (
            "* figures are preliminary",
            "Source: Eurostat",
            "Generated on 2024-01-01",
            "Note: not complete",
            "Sources : Eurostat",
            "*1 estimated",
            "Downloaded from Eurostat",
            "† estimated",
        )
    ],
    *[
        reads(f"a last row: {row}", {"a.csv": "text\n" + "".join(f"{t}\n" for t in [*P, row])}, [*P, row])
        for row in (
            "Note that he came late.",
            "Notes from the underground.",
            "*laughs* That is funny",
            "**Bold** is this",
            "Source code is text.",
            "Generated texts are long.",
            "Remarques sur la ville.",
        )
    ],
    *[
        reads(
            f"sums below: {below!r}",
            {"a.csv": "text,score\n" + "".join(f"{t},3\n" for t in P) + below + "\n"},
            P,
            says=f"left out {below.count(',') - below.count(chr(10) + ',')} line",
        )
        for below in (
            "Total,60",
            "\nTOTAL: ,60.0",
            "Average,3\nGrand total,60",
            "Summe,60%",
            "Total,60\n,",
            "Total: 60,",
            "Source: Eurostat,",
        )
    ],
    reads(
        "sums below an id",
        {"a.csv": "id,text,score\n" + "".join(f"{i},{t},3\n" for i, t in enumerate(P)) + "Total,,60\n"},
        P,
        says="left out 1 line",
    ),
    reads(
        "a sum of one column",
        {"a.csv": "text\n" + "".join(f"{t}\n" for t in P) + "Total: 1234\n"},
        P,
        says="left out 1 line",
    ),
    *[
        reads(f"no sums: {row}", {"a.csv": "text,score\n" + "".join(f"{t},3\n" for t in P) + row + "\n"}, [*P, text])
        for row, text in (
            ("Sum of all it was,60", "Sum of all it was"),
            ("Total war is over,3", "Total war is over"),
            ("The count,of Monte Cristo", "The count"),
        )
    ],
    reads("a list with stars", {"a.csv": "text\n" + "".join(f"* {t}\n" for t in P)}, [f"* {t}" for t in P]),
    reads(
        "notes among rows",
        {"a.csv": f"text\nNote: a\n{P[0]}\nNote: b\n{P[1]}\n{P[2]}\n"},
        ["Note: a", P[0], "Note: b", *P[1:3]],
    ),
]
HALF = "id,text\n1,the house +2AA- is old\n2,the river is wide\n"
SAID = [
    refuses("half a surrogate pair in UTF-7", {"a.csv": HALF}, ["line 2", "surrogate pair"], "--encoding=utf-7"),
    refuses("half a surrogate pair in a text of UTF-7", {"a.txt": HALF}, ["line 2", "pair"], "--encoding=utf-7"),
    refuses(
        "half a surrogate pair as an escape", {"a.txt": "so \\ud800"}, ["line 1", "pair"], "--encoding=unicode_escape"
    ),
    reads("UTF-7, said", {"a.csv": ("text\n" + GERMAN).encode("utf-7")}, GERMAN.splitlines(), "--encoding=utf-7"),
    reads("UTF-7 with a pair", {"a.txt": "a 😀 b".encode("utf-7")}, ["a 😀 b"], "--encoding=utf-7"),
]
CASES = [*HIDDEN, *BELOW, *SAID]
