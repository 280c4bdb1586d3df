"""Text files, their encodings, and files that are not text."""

import bz2
import gzip
import io
import json
import lzma
import pickle
import sqlite3
import tarfile
import zipfile
from pathlib import Path

from front_door import either, json_lines, plain, reads, refuses, texts

T, P = texts(), plain()
TEXT = "".join(f"{line}, and it stays so.\n" for line in P)


def archive(members, kind="zip"):
    """The bytes of a zip, tar or tar.gz with these members."""
    out = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
            for name, content in members.items():
                file.writestr(name, content)
        return out.getvalue()
    with tarfile.open(fileobj=out, mode="w:gz" if kind == "tar.gz" else "w") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content.encode())
            file.addfile(info, io.BytesIO(content.encode()))
    return out.getvalue()


DOCUMENTS = {f"texts/{i:02}.txt": text for i, text in enumerate(P)}
OFFICE = "http://schemas.openxmlformats.org/{}/2006/{}"
CONTENT_TYPE = "application/vnd.openxmlformats-{}+xml"
DOCX_MEMBERS = {
    "[Content_Types].xml": f"""<Types xmlns="{OFFICE.format("package", "content-types")}">
        <Default Extension="rels" ContentType="{CONTENT_TYPE.format("package.relationships")}"/>
        <Override PartName="/word/document.xml"
            ContentType="{CONTENT_TYPE.format("officedocument.wordprocessingml.document.main")}"/></Types>""",
    "_rels/.rels": f"""<Relationships xmlns="{OFFICE.format("package", "relationships")}">
        <Relationship Id="r1" Type="{OFFICE.format("officeDocument", "relationships")}/officeDocument"
            Target="word/document.xml"/></Relationships>""",
    "word/document.xml": f"""<w:document xmlns:w="{OFFICE.format("wordprocessingml", "main")}"><w:body>
        <w:p><w:r><w:t>A letter of some words</w:t></w:r></w:p></w:body></w:document>""",
}
DOCX = archive(DOCX_MEMBERS)
EPUB = archive({"mimetype": "application/epub+zip", "META-INF/container.xml": "<container/>"})
ODT = archive({"mimetype": "application/vnd.oasis.opendocument.text", "content.xml": "<x/>"})
XLSX = archive(
    {"[Content_Types].xml": "<Types/>", "xl/workbook.xml": "<workbook/>", "xl/worksheets/sheet1.xml": "<x/>"}
)
PDF = (
    b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n2 0 obj<</Type/Pages/Kids[]/Count 0>>endobj\n"
    b"trailer<</Root 1 0 R>>\n%%EOF\n"
)
PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\1\0\0\0\1\x08\x06" + bytes(range(256)) * 4
LFS = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'4d7a2146' * 8}\nsize 12345\n"
NOTEBOOK = json.dumps(
    {
        "cells": [{"cell_type": "markdown", "metadata": {}, "source": ["# Hi"]}],
        "metadata": {},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
)
RTF = r"{\rtf1\ansi\deff0 {\fonttbl {\f0 Times;}}\f0\fs24 Hello, this is a letter.\par}"
PAGE = "<!DOCTYPE html>\n<p>" + TEXT
CONVERTED = r"finetune-gpt2\[documents\]"


def database():
    connection = sqlite3.connect("a.txt")
    connection.execute("create table notes (text)")
    connection.commit()
    connection.close()


NOT_TEXT = [
    either("PDF", {"a.pdf": PDF}, [], ["PDF", CONVERTED]),
    refuses("PDF as text", {"a.txt": PDF}, "PDF"),
    either("docx", {"a.docx": DOCX}, [["A letter of some words"]], ["docx|Word", CONVERTED]),
    refuses("docx as text", {"a.txt": DOCX}, "docx|Word"),
    refuses("docx of the old kind", {"a.doc": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600)}, "Office|Word|doc|OLE"),
    refuses("epub as text", {"a.txt": EPUB}, "epub|zip"),
    refuses("odt as text", {"a.txt": ODT}, "odt|OpenDocument|zip"),
    refuses("xlsx", {"a.xlsx": XLSX}, "Excel|xlsx|spreadsheet"),
    refuses("rtf as text", {"a.txt": RTF}, "RTF"),
    either("rtf", {"a.rtf": RTF}, [], "RTF"),
    refuses("a notebook", {"a.ipynb": NOTEBOOK}, "notebook"),
    refuses("a notebook as JSON", {"a.json": NOTEBOOK}, "notebook|cells"),
    refuses("a pointer of LFS, lines", {"a.jsonl": LFS}, ["LFS", "git lfs pull"]),
    refuses("a pointer of LFS, text", {"a.txt": LFS}, ["LFS", "git lfs pull"]),
    refuses("a pointer of LFS, parquet", {"a.parquet": LFS}, ["LFS", "git lfs pull"]),
    refuses("a pointer of LFS, csv", {"a.csv": LFS}, ["LFS", "git lfs pull"]),
    refuses("a pointer of LFS, zip", {"a.zip": LFS}, ["LFS", "git lfs pull"]),
    refuses("a picture as text", {"a.txt": PNG}, "PNG|image|picture"),
    refuses("a JPEG", {"a.md": b"\xff\xd8\xff\xe0\0\x10JFIF\0" + bytes(range(256)) * 4}, "JPEG|image|picture|JPG"),
    refuses("a pickle as text", {"a.txt": pickle.dumps([T, 1])}, "pickle"),
    refuses("a pickle", {"a.pkl": pickle.dumps([T, 1])}, "pickle|pkl"),
    refuses("a database", database, "SQLite", "a.txt"),
    refuses(
        "arrays of numpy",
        {"a.txt": b"\x93NUMPY\x01\0v\0{'descr': '<i8', 'fortran_order': False, 'shape': (9,), }" + bytes(200)},
        "numpy|npy",
    ),
    refuses(
        "weights",
        {
            "a.txt": (80).to_bytes(8, "little")
            + json.dumps({"w": {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]}}).ljust(80).encode()
            + bytes(32)
        },
        "safetensors|binary|not text|NUL",
    ),
    refuses("a program", {"a.txt": b"\x7fELF\x02\x01\x01" + bytes(300)}, "ELF|binary|program|not text|NUL"),
    refuses("token ids as text", {"a.txt": bytes(range(0, 250, 2)) * 3 + bytes(300)}, "binary|not text|NUL|UTF-8"),
    either(
        "a page of HTML",
        {"a.html": f"<!DOCTYPE html><html><body><p>{P[0]}</p></body></html>"},
        [P[:1], [f"<!DOCTYPE html><html><body><p>{P[0]}</p></body></html>"]],
        [CONVERTED, "HTML"],
    ),
    refuses("a page of HTML as text", {"a.txt": PAGE}, ["web page", ".html", "--documents=file"]),
    reads("a page of HTML as text, said", {"a.txt": PAGE}, [PAGE], "--documents=file"),
    reads(
        "a text that begins as others do",
        {"a.txt": "PK and BM are letters; {rtf} is not RTF. " + TEXT},
        ["PK and BM are letters; {rtf} is not RTF. " + TEXT],
    ),
    refuses("nothing", {"a.txt": ""}, "empty|no text"),
    refuses("a byte order mark alone", {"a.txt": "\ufeff"}, "no text|empty"),
    refuses("a directory of nothing", lambda: Path("d").mkdir(), "no text", "d"),
]

ARCHIVES = [
    either("zip of texts", {"a.zip": archive(DOCUMENTS)}, [P], ["zip", "unzip|unpack"]),
    reads("members with a colon", {"a.zip": archive({"C: the drive.txt": P[0], "b: so.txt": P[1]})}, P[:2]),
    refuses("a member of a drive", {"a.zip": archive({"C:/a.txt": P[0]})}, "outside"),
    *[
        refuses(f"{what} named {name}", {name: content}, [says, rf"name it with the suffix \{suffix}$"])
        for what, name, content, says, suffix in (
            ("tar.gz", "a.tar", archive(DOCUMENTS, "tar.gz"), "gzip", ".tar.gz"),
            ("tar.gz", "a.zip", archive(DOCUMENTS, "tar.gz"), "gzip", ".tar.gz"),
            ("gzip of a text", "b.tar", gzip.compress(TEXT.encode()), "gzip", ".gz"),
            ("tar.gz", "a.txz", archive(DOCUMENTS, "tar.gz"), "gzip", ".tar.gz"),
            ("zip", "c.tar", archive(DOCUMENTS), "a zip archive", ".zip"),
            ("tar", "a.tar.gz", archive(DOCUMENTS, "tar"), "not compressed", ".tar"),
        )
    ],
    either("zip of JSON lines", {"a.zip": archive({"a.jsonl": json_lines({"text": t} for t in T)})}, [T], "zip"),
    either(
        "zip of a Mac",
        {"a.zip": archive({**DOCUMENTS, "__MACOSX/texts/._00.txt": "\0\5\x16\7", ".DS_Store": "x"})},
        [P],
        "zip",
    ),
    either("tar of texts", {"a.tar": archive(DOCUMENTS, "tar")}, [P], ["tar"]),
    either("tar.gz of texts", {"a.tar.gz": archive(DOCUMENTS, "tar.gz")}, [P], ["tar"]),
    either("tgz of texts", {"a.tgz": archive(DOCUMENTS, "tar.gz")}, [P], ["tar|gzip"]),
    either(
        "zip of splits",
        {
            "a.zip": archive(
                {
                    f"{split}.jsonl": json_lines({"text": f"{split} {t}"} for t in P)
                    for split in ("train", "validation", "test")
                }
            )
        },
        [[f"{split} {t}" for split in ("train", "validation") for t in P]],
        "zip",
        says="test",
    ),
    either(
        "zip beyond its directory",
        {"a.zip": archive({**DOCUMENTS, "../evil.txt": "evil"})},
        [P],
        "evil|outside|unsafe|path|zip",
    ),
    either(
        "tar beyond its directory",
        {"a.tar": archive({**DOCUMENTS, "../../evil.txt": "evil"}, "tar")},
        [P],
        "evil|outside|unsafe|path|tar",
    ),
    refuses("zip without a text", {"a.zip": archive({"a.png": "x"})}, "no text|zip"),
    refuses("zip that is cut", {"a.zip": archive(DOCUMENTS)[:-40]}, "zip"),
    refuses("zip as text", {"a.txt": archive(DOCUMENTS)}, "zip"),
    refuses("tar as text", {"a.txt": archive(DOCUMENTS, "tar")}, "tar"),
    either("gzip as text", {"a.txt": gzip.compress(TEXT.encode())}, [[TEXT]], "gzip|gz"),
    either(
        "gzip as JSON lines", {"a.jsonl": gzip.compress(json_lines({"text": t} for t in T).encode())}, [T], "gzip|gz"
    ),
    refuses("text as gzip", {"a.txt.gz": TEXT}, "gz|cannot be read"),
    refuses("gzip that is cut", {"a.txt.gz": gzip.compress(TEXT.encode())[:-20]}, "a.txt.gz"),
    refuses("gzip of a picture", {"a.txt.gz": gzip.compress(PNG)}, "PNG|image|picture"),
    reads(
        "text in gz, bz2 and xz",
        {
            "a.txt.gz": gzip.compress(P[0].encode()),
            "b.txt.bz2": bz2.compress(P[1].encode()),
            "c.txt.xz": lzma.compress(P[2].encode()),
        },
        P[:3],
        "a.txt.gz b.txt.bz2 c.txt.xz",
    ),
]

WORDS = "ORCHESTRA PARENTS PARECE GGUF-files ggml-files GIF89a LZIP FEA1 XXXXXXXXDUCK 1234ftyp $FLAT".split()
FIRST_WORDS = [
    *(
        reads(
            f"a text that begins with {word}", {"a.txt": f"{word} stand here\n{TEXT}"}, [f"{word} stand here\n{TEXT}"]
        )
        for word in WORDS
    ),
    *(
        reads(
            f"a table that begins with {word}",
            {"a.csv": f"{word},text\n" + "".join(f"{i},{t}\n" for i, t in enumerate(P))},
            P,
        )
        for word in ("ORCHESTRA", "PARENT_ID", "PAR1", "GGUF")
    ),
    refuses("ORC", {"a.txt": b"ORC\x01\x00\x02\x03" * 9}, "binary format"),
    refuses("the start of parquet as text", {"a.txt": b"PAR1\x15\x04\x15" * 9}, ["parquet", ".parquet"]),
    refuses("SPSS", {"a.sav": b"$FL2@(#) SPSS" + bytes(90)}, "SPSS"),
    refuses("Stata", {"a.dta": b"<stata_dta><header>" + bytes(90)}, "Stata"),
    refuses("old Stata", {"a.dta": b"\x72\x02\x01\0" + bytes(90)}, "Stata"),
    refuses("SAS", {"a.sas7bdat": bytes(12) + b"\xc2\xea\x81\x60" + bytes(90)}, "SAS"),
    refuses("BSON", {"a.bson": b"\x16\0\0\0\x02hello\0\x06\0\0\0world\0\0"}, ["BSON", "bsondump"]),
    refuses("msgpack", {"a.msgpack": b"\x82\xa4text\xa5hello\xa2id\x07"}, "msgpack"),
]

CASES = [*NOT_TEXT, *ARCHIVES, *FIRST_WORDS]
