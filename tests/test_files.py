"""Files as people have them: what is not text is named, with the way out."""

import bz2
import gzip
import io
import itertools
import json
import lzma
import pickle
import re
import shutil
import sqlite3
import tarfile
import wave
import zipfile
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import save_file

from finetune.common.errors import UsageError
from finetune.data import file_kinds, sources, text_files
from finetune.data.text_files import TextOptions

TEXT = "Some plain text, line by line.\nAnd a second line.\n"
TABLE = pyarrow.table({"text": ["a", "b"]})


def zipped(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content, zipfile.ZIP_STORED if name == "mimetype" else None)
    return buffer.getvalue()


def tarred(**options):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **options) as archive:
        member = tarfile.TarInfo("a.txt")
        member.size = len(TEXT)
        archive.addfile(member, io.BytesIO(TEXT.encode()))
    return buffer.getvalue()


def written(write, name="written"):
    """What `write` puts into a file of that path."""
    path = Path(name)
    write(path)
    content = path.read_bytes()
    path.unlink()
    return content


def sqlite(path):
    with sqlite3.connect(path) as database:
        database.execute("create table a (b text)")


def sound(path):
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 8000, 100, "NONE", ""))
        file.writeframes(bytes(range(200)))


def picture(path, kind):
    from PIL import Image

    Image.new("RGB", (9, 9), "red").save(path, kind)


def notebook(**options):
    cell = {"cell_type": "markdown", "metadata": {}, "source": ["text"]}
    return json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}, **options).encode()


def image(kind):
    return lambda: written(lambda path: picture(path, kind))


LFS = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 1234567\n".encode()
TYPES = {"[Content_Types].xml": "<Types/>", "_rels/.rels": "<x/>"}
ODT = {"mimetype": "application/vnd.oasis.opendocument.text", "content.xml": "<x/>"}
EPUB = {"mimetype": "application/epub+zip", "META-INF/container.xml": "<x/>"}
TAR = tarfile.USTAR_FORMAT
# (name, content, what the message says of it)
KINDS = [
    ("a.pdf", b"%PDF-1.7\n1 0 obj\n", "a PDF, .*finetune-gpt2.documents"),
    ("a.txt", b"%PDF-1.4\nplain", "a PDF, .*suffix .pdf"),
    ("a.txt", rb"{\rtf1\ansi hello}", "RTF, .*plain text"),
    ("a.rtf", rb"{\rtf1\ansi hello}", "RTF, "),
    ("a.docx", zipped(TYPES | {"word/document.xml": "<w/>"}), r"\(docx\), .*pip install 'finetune-gpt2\[documents\]'"),
    ("a.txt", zipped(TYPES | {"word/document.xml": "<w/>"}), r"\(docx\), .*pip install .* suffix .docx"),
    ("a.xlsx", zipped(TYPES | {"xl/workbook.xml": "<w/>"}), r"\(xlsx\), .*csv"),
    ("a.csv", zipped(TYPES | {"xl/workbook.xml": "<w/>"}), r"\(xlsx\), .*csv"),
    ("a.pptx", zipped(TYPES | {"ppt/presentation.xml": "<w/>"}), r"\(pptx\), .*finetune-gpt2\[documents\]"),
    ("a.odt", zipped(ODT), r"\(odt\), .*plain text"),
    ("a.ods", zipped({"mimetype": "application/vnd.oasis.opendocument.spreadsheet"}), r"\(ods\), .*csv"),
    ("a.epub", zipped(EPUB), r"an EPUB book, .*finetune-gpt2\[documents\]"),
    ("a.jar", zipped({"META-INF/MANIFEST.MF": "x", "A.class": "x"}), r"\(jar\)"),
    ("a.zip", zipped({"a.txt": TEXT}), "a zip archive, .*unpack"),
    ("corpus.txt", zipped({"a.txt": TEXT, "b.txt": TEXT}), "a zip archive, .*unpack.* suffix .zip"),
    ("empty.zip", zipped({}), "a zip archive"),
    ("a.npz", lambda: written(lambda path: np.savez(path, a=np.arange(3)), "a.npz"), r"\(npz\)"),
    ("a.pt", lambda: written(lambda path: torch.save({"a": torch.ones(2)}, path)), "a PyTorch file"),
    ("a.tar", tarred(format=TAR), "a tar archive, .*unpack"),
    ("a.txt", tarred(format=TAR), "a tar archive, .*unpack.* suffix .tar"),
    ("a.txt", tarred(format=tarfile.GNU_FORMAT), "a tar archive"),
    ("a.jsonl", tarred(format=tarfile.PAX_FORMAT, pax_headers={"comment": "x"}), "a tar archive"),
    ("a.txt.gz", gzip.compress(tarred(format=TAR)), "a tar archive"),
    ("a.txt", gzip.compress(TEXT.encode()), "compressed with gzip, .* suffix .gz"),
    ("a.txt.gz", gzip.compress(gzip.compress(TEXT.encode())), "compressed with gzip, .*unpack it$"),
    ("a.csv", lzma.compress(TEXT.encode()), "compressed with xz, .* suffix .xz"),
    ("a.txt", bz2.compress(TEXT.encode()), "compressed with bzip2, .* suffix .bz2"),
    ("a.txt", pyarrow.compress(TEXT.encode(), "zstd", asbytes=True), "compressed with zstd, .* suffix .zst"),
    ("a.txt", b"7z\xbc\xaf\x27\x1c\0\4rest", "a 7z archive, .*7z x"),
    ("a.txt", b"Rar!\x1a\x07\x01\0rest", "a rar archive, .*unrar"),
    ("a.doc", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500), "an old Office file, .*docx"),
    ("a.ipynb", notebook(indent=1), "a Jupyter notebook, .*jupyter nbconvert --to markdown"),
    ("a.ipynb", notebook(), "a Jupyter notebook"),
    ("a.json", notebook(indent=2), "a Jupyter notebook"),
    ("a.txt", notebook(indent=1, sort_keys=True), "a Jupyter notebook"),
    ("a.jsonl", LFS, "a git-lfs pointer, .*git lfs pull"),
    ("a.parquet", LFS, "a git-lfs pointer, .*git lfs pull"),
    ("a.txt", b"/annex/objects/SHA256E-s5--abc.txt\n", "git annex get"),
    ("a.db", lambda: written(sqlite), "an SQLite database, .*sqlite3 -csv"),
    ("a.txt", lambda: written(sqlite), "an SQLite database"),
    ("a.txt", image("png"), "an image"),
    ("a.txt", image("jpeg"), "an image"),
    ("a.txt", image("gif"), "an image"),
    ("a.txt", image("webp"), "an image"),
    ("a.txt", image("tiff"), "an image"),
    ("a.txt", image("bmp"), "an image"),
    ("a.txt", image("ico"), "an image"),
    ("a.txt", lambda: written(sound), "audio"),
    ("a.txt", b"ID3\x04\0\0\0\0\0\x23TSSE", "audio"),
    ("a.mp4", b"\0\0\0\x20ftypisom\0\0\2\0", "a video"),
    *[(f"a.pkl{n}", pickle.dumps([TEXT, {"a": 1}], n), "a pickle, .*csv") for n in range(2, 6)],
    ("a.txt", pickle.dumps([TEXT, TEXT], 0), "a pickle"),
    ("a.txt", pickle.dumps({"text": TEXT}, 0), "a pickle"),
    ("a.txt", lambda: written(lambda path: save_file({"a": torch.ones(2)}, path)), "a safetensors file"),
    ("a.txt", lambda: written(lambda path: np.save(path, np.arange(3)), "a.npy"), "a numpy array"),
    (
        "a.txt",
        lambda: written(lambda path: pyarrow.parquet.write_table(TABLE, path)),
        "a parquet file, .*suffix .parquet",
    ),
    (
        "a.csv",
        lambda: written(lambda path: pyarrow.parquet.write_table(TABLE, path)),
        "a parquet file, .*suffix .parquet",
    ),
    (
        "a.jsonl",
        lambda: written(lambda path: pyarrow.feather.write_feather(TABLE, path)),
        "an Arrow file, .*suffix .arrow",
    ),
    ("a.txt", lambda: Path(shutil.which("sh")).read_bytes(), "a program"),
    ("a.txt", lambda: compiled(), "a program"),
    ("a.jsonl", b"<!doctype html><html>Sign in</html>", "a web page under another name, .*download"),
    ("a.csv", b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "a web page under .*download"),
    ("train.bin", np.arange(9).repeat(9).astype("<u2").tobytes(), "binary data, .*--dataset"),
    ("train.bin", np.arange(400).repeat(9).astype("<u4").tobytes(), "binary data"),
    ("a.txt", TEXT.encode() + bytes(4096), "binary data"),
    ("a.txt", bytes(4096), "binary data"),
]


def compiled():
    import importlib.util
    import py_compile

    Path("a.py").write_text("a = 1\n")
    return Path(py_compile.compile("a.py", importlib.util.cache_from_source("a.py"))).read_bytes()


@pytest.mark.parametrize("name, content, message", KINDS, ids=[f"{i}-{row[0]}" for i, row in enumerate(KINDS)])
def test_what_is_not_text_is_named_with_the_way_out(name, content, message):
    Path(name).write_bytes(content() if callable(content) else content)
    if not name.endswith(".parquet"):
        with pytest.raises(UsageError, match=f"^{re.escape(name)}: is .*{message}") as caught:
            text_files.open_text(Path(name)).read()
        assert "\n" not in str(caught.value)
    if text_files.suffix_of(Path(name)) == Path(name).suffix:  # not compressed
        with pytest.raises(UsageError, match=message):
            file_kinds.check(name, Path(name).read_bytes())
        with pytest.raises(UsageError, match=message):
            list(text_files.read_file(Path(name), options=TextOptions(encoding="latin-1")))


PLAIN = {
    "a page saved as text": ("a.txt", b"<!DOCTYPE html>\n<html><body>text</body></html>"),
    "rows with a column cell_type": ("a.jsonl", b'{"metadata": 1, "cell_type": "code", "text": "x"}\n'),
    "words that begin a format": ("a.txt", b"PKZIP, BMW, MZ, ID3, ORC and BZh are names"),
    "BM at the start": ("a.txt", b"BM is short for business manager"),
    "an object of JSON": ("a.json", b'{"metadata": {"a": 1}, "text": "nbformat"}'),
    "colours of a terminal": ("a.txt", b"\x1b[31mred\x1b(B\x1b[m and \x1b[0m" * 20),
    "a stray NUL": ("a.txt", b"text " * 100 + b"\0" + b" text" * 100),
    "format strings of Lisp": ("a.txt", b'(format t "~{~a~^, ~}~%" items) ~{ab~} ~{name~}'),
    "form feeds": ("a.txt", b"page\f\npage\f\n" * 20),
    "the words of a pointer": ("a.txt", b"The version https://git-lfs.github.com/spec/v1 is a line of pointers"),
    "parentheses": ("a.txt", b"(lp0 is not a pickle)\n"),
}


@pytest.mark.parametrize("name", PLAIN)
def test_text_that_looks_like_something_else_is_text(name):
    path, content = PLAIN[name]
    Path(path).write_bytes(content)
    assert text_files.open_text(Path(path)).read() == content.decode()


def test_tables_in_binary_formats_are_accepted_under_their_suffix():
    pyarrow.parquet.write_table(TABLE, "a.parquet")
    pyarrow.feather.write_feather(TABLE, "a.feather")
    with pyarrow.ipc.new_stream("a.arrow", TABLE.schema) as stream:
        stream.write_table(TABLE)
    for name in ("a.parquet", "a.feather", "a.arrow"):
        file_kinds.check(name, Path(name).read_bytes())
        with pytest.raises(UsageError, match="suffix .(parquet|arrow)"):
            file_kinds.check("a.txt", Path(name).read_bytes())


OTHERS = ("a.parquet", "a.arrow", "a.zip", "a.tar", "a.tar.gz", "a.txt.gz", "a.jsonl.zst", "a.docx", "a.pdf", "a.epub")


@pytest.mark.parametrize("name", OTHERS)
def test_a_pointer_under_a_binary_suffix_is_named(name):
    for content, message in ((LFS, "git-lfs pointer.*git lfs pull"), (b"<!DOCTYPE html><html>", "web page.*download")):
        Path(name).write_bytes(content)
        with pytest.raises(UsageError, match=f"^{name}: is a {message}"):
            list(itertools.chain(*(source.chunks() for source in sources.find([name]))))


def test_a_table_under_another_binary_suffix_is_named():
    pyarrow.parquet.write_table(TABLE, "a.arrow")
    pyarrow.feather.write_feather(TABLE, "a.parquet")
    for name, message in (
        ("a.arrow", "a parquet file; name it .* .parquet"),
        ("a.parquet", "an Arrow file; .* .arrow"),
    ):
        with pytest.raises(UsageError, match=f"^{name}: is {message}"):
            list(sources.find([name])[0].chunks())


@pytest.mark.parametrize(
    "first, told",
    [
        ('"prompt,completion\r\n{rows}"prompt,completion', "line 1: a quote opens a cell here"),
        ('prompt,completion\r\n{rows}"prompt" x,completion', "line 11: text follows a closing quote"),
        ('"title" x\r\nprompt,completion', "line 1: text follows a closing quote"),
    ],
)
def test_a_quote_that_is_wrong_anywhere_is_told_with_its_line(first, told):
    rows = "".join(f"what is {number}?,it is {number + 1}\r\n" for number in range(9))
    Path("q.csv").write_bytes((first.replace("{rows}", rows) + "\r\n" + rows * 4).encode())
    with pytest.raises(UsageError, match=f"q.csv: cannot be read as csv: {re.escape(told)}") as caught:
        list(sources.find(["q.csv"])[0].chunks())
    assert "\n" not in str(caught.value)
