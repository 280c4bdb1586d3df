"""Archives, standard input and documents with a layout: unpacked, converted, or refused in one line."""

import bz2
import codecs
import gzip
import importlib.util
import io
import json
import lzma
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pyarrow
import pytest

from finetune.common.errors import UsageError
from finetune.data import archives, converted, directories, prompts, sources, tokenizer

FILES = {"a.txt": "one\n", "sub/b.jsonl": '{"text": "größe"}\n', "sub/deep/ü.txt": "three\n"}
TARS = ("tar", "tar.gz", "tgz", "tar.bz2", "tbz2", "tar.xz", "txz", "TAR.GZ")


def zipped(name, files=FILES, **options):
    with zipfile.ZipFile(name, "w", **options) as archive:
        for member, content in files.items():
            archive.writestr(member, content)
    return Path(name)


def tarred(name, files=FILES, members=()):
    """A tar of some files, and of further members."""
    kind = next((kind for kind, ends in MODES.items() if name.lower().endswith(ends)), "")
    with tarfile.open(name, f"w:{kind}") as archive:
        for member, content in files.items():
            info = tarfile.TarInfo(member)
            info.size = len(content.encode())
            archive.addfile(info, io.BytesIO(content.encode()))
        for info in members:
            archive.addfile(info)
    return Path(name)


MODES = {"gz": ("gz",), "bz2": ("bz2",), "xz": ("xz",)}


def link(name, target, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def read(directory):
    return {str(path.relative_to(directory)): path.read_text() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", ["zip", "ZIP", *TARS, "tar.zst"])
def test_an_archive_is_unpacked(kind):
    name = f"corpus.{kind}"
    if kind.lower() == "zip":
        zipped(name, FILES, compression=zipfile.ZIP_DEFLATED)
    elif kind == "tar.zst":
        tarred("corpus.tar")
        Path(name).write_bytes(pyarrow.compress(Path("corpus.tar").read_bytes(), "zstd", asbytes=True))
    else:
        tarred(name.replace("TAR.GZ", "tgz")).rename(name)
    assert archives.is_archive(Path(name))
    directory = archives.unpack(Path(name))
    assert read(directory) == FILES and directory.name == name


def test_other_files_are_no_archives():
    for name in ("a.txt", "a.txt.gz", "a.jsonl.zst", "a.zip.txt", "tar", "a.star"):
        assert not archives.is_archive(Path(name))


def test_hidden_members_are_left_out_and_links_stay_inside():
    hidden = {"__MACOSX/._a.txt": "x", ".DS_Store": "x", "sub/.git/c.txt": "x", ".hidden.txt": "x"}
    assert read(archives.unpack(zipped("a.zip", FILES | hidden))) == FILES
    links = [link("passwd.txt", "/etc/passwd"), link("up", "../.."), link("again.txt", "a.txt", tarfile.LNKTYPE)]
    links.append(link("sub/deep/up.txt", "../../a.txt"))
    directory = archives.unpack(tarred("a.tar", FILES | hidden, [*links, link("pipe", "", tarfile.FIFOTYPE)]))
    assert read(directory) == FILES | {"again.txt": "one\n", "sub/deep/up.txt": "one\n"}
    found = directories.find_files(str(directory), lambda path: True)
    assert [path.read_text() for path in found.files["train"]] == [*FILES.values()]  # each once
    assert found.describe_left_out() == "2 broken links"
    os.symlink("/etc/passwd", "passwd.txt")
    info = zipfile.ZipInfo("passwd.txt")
    info.create_system, info.external_attr = 3, os.lstat("passwd.txt").st_mode << 16
    with zipfile.ZipFile("links.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
        archive.writestr("a.txt", "one\n")
    assert read(archives.unpack(Path("links.zip"))) == {"a.txt": "one\n"}


@pytest.mark.parametrize("name", ["../evil.txt", "/evil.txt", "sub/../../evil.txt", "..\\evil.txt", "C:\\evil.txt"])
@pytest.mark.parametrize("write", [zipped, tarred])
def test_members_outside_the_directory_are_refused(name, write):
    archive = write("a.zip" if write is zipped else "a.tar", {"a.txt": "one\n", name: "evil"})
    with pytest.raises(UsageError, match=r"a\.(zip|tar): .* would be written outside the directory"):
        archives.unpack(archive)
    assert not list(Path().rglob("evil*")) and not Path("/evil.txt").exists()


def test_damaged_and_encrypted_archives_are_refused():
    content = {f"{i}.txt": os.urandom(600).hex() for i in range(40)}
    for name in ("a.zip", "a.tar", "a.tar.gz", "a.tar.xz"):
        path = (zipped if name.endswith("zip") else tarred)(name, content)
        data = path.read_bytes()
        for damaged in (data[: len(data) // 2], data[:300], b"", b"no archive" * 200):
            path.write_bytes(damaged)
            with pytest.raises(UsageError, match=f"^{name}: cannot be unpacked: ") as caught:
                archives.unpack(path)
            assert "\n" not in str(caught.value)
    tar = bytearray(tarred("b.tar", content).read_bytes())
    tar[20 * (512 + 1536) + 5] ^= 1  # the name of a member in the middle: tarfile alone would stop there without a word
    Path("b.tar").write_bytes(tar)
    with tarfile.open("b.tar") as archive:
        assert len(archive.getnames()) < 40
    with pytest.raises(UsageError, match="b.tar: cannot be unpacked: damaged"):
        archives.unpack(Path("b.tar"))
    data = bytearray(zipped("c.zip").read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1  # what an encrypted zip says in its directory
    Path("c.zip").write_bytes(data)
    with pytest.raises(UsageError, match=r"c.zip: cannot be unpacked: .*'a.txt' is encrypted"):
        archives.unpack(Path("c.zip"))
    for nameless in ("", "\0"):
        with zipfile.ZipFile("d.zip", "w") as archive:
            info = zipfile.ZipInfo("x")
            info.filename = nameless
            archive.writestr(info, "text")
        with pytest.raises(UsageError, match="d.zip: cannot be unpacked: it is damaged: a member has no name"):
            archives.unpack(Path("d.zip"))


@pytest.mark.parametrize("end", ["", "; raise SystemExit(2)", "; 1 / 0"])
def test_the_temporary_directory_is_gone_at_the_end(end):
    tarred("a.tar")
    program = (
        f"from pathlib import Path; from finetune.data import archives; print(archives.unpack(Path('a.tar'))){end}"
    )
    run = subprocess.run([sys.executable, "-c", program + end], stdout=-1, stderr=-1, text=True)
    directory = Path(run.stdout.strip())
    assert directory.name == "a.tar" and not directory.parent.exists()


ROW = {"text": "größe\n"}
STDIN = {
    "plain text": (b"some text\nand more\n", "stdin.txt"),
    "json lines": ((json.dumps(ROW) + "\n").encode() * 3, "stdin.jsonl"),
    "json lines with a byte order mark": (b"\xef\xbb\xbf" + (json.dumps(ROW) + "\n").encode() * 3, "stdin.jsonl"),
    "one row": (json.dumps(ROW).encode(), "stdin.jsonl"),
    "lists": (b'[{"role": "user"}]\n[{"role": "user"}]\n', "stdin.jsonl"),
    "a table in one line": (json.dumps([ROW, ROW]).encode(), "stdin.json"),
    "a table in many lines": (json.dumps([ROW, ROW], indent=1).encode(), "stdin.json"),
    "an object in many lines": (json.dumps({"data": [ROW]}, indent=1).encode(), "stdin.json"),
    "a text in brackets": (b"[Verse 1]\n{la la la}\n", "stdin.txt"),
    "a number": (b"1984\nBy George Orwell\n", "stdin.txt"),
    "bytes": (b"\xff\xfe\x00", "stdin.txt"),
    "a parquet file": (b"PAR1rest", "stdin.parquet"),
}


@pytest.mark.parametrize("case", STDIN)
def test_standard_input_is_a_file_with_a_name_that_fits(case, monkeypatch):
    content, name = STDIN[case]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    place, path = archives.from_stream("-")
    assert place == "standard input"
    assert path.name == name and path.read_bytes() == content


def test_an_empty_standard_input_is_refused(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"")))
    with pytest.raises(UsageError, match="standard input: is empty"):
        archives.from_stream("-")


@pytest.fixture
def pipe():
    """A function that gives the path of a pipe with a content."""
    ends = []

    def make(content):
        reading, writing = os.pipe()
        os.write(writing, content)
        os.close(writing)
        ends.append(reading)
        return f"/dev/fd/{reading}"

    yield make
    for end in ends:
        os.close(end)


@pytest.mark.skipif(not os.path.exists("/dev/fd"), reason="pipes have no path here")
def test_a_pipe_is_read_or_refused_in_one_line(pipe, tiny_run, command):
    text = b"The old fox sings.\nA hill is green.\n" * 40
    Path("here.txt").write_bytes(text)
    for source, out_dir in (("here.txt", "file"), (pipe(text), "pipe")):
        assert command("prepare", source, "--tokenizer=char", f"--out_dir={out_dir}")[0] == 0
    assert Path("pipe/train.bin").read_bytes() == Path("file/train.bin").read_bytes()
    tiny_run("out", text="here.txt")
    code, out, _ = command("sample", "out", f"--prompts={pipe(b'The')}", "--num_samples=1", "--max_new_tokens=2")
    assert code == 0 and "The" in out
    for argv, told in (
        (["prepare", pipe(b""), "--tokenizer=char"], "is empty, there is no text in it"),
        (["train", f"--config={pipe(b'seed: 1')}"], "is a pipe; write the recipe into a .yaml file and give that"),
        (
            ["train", pipe(text), "--out_dir=new"],
            "is a pipe; write it into a file, or give the pipe to finetune prepare",
        ),
        (["eval", "out", f"--dataset={pipe(text)}"], "is a pipe; write it into a file, or give the pipe to"),
    ):
        code, _, error = command(*argv)
        assert code == 2 and told in error and error.count("\n") == 1, error


def test_an_archive_of_other_texts_names_a_way_that_works():
    """Nobody can name files within an archive; a README of it was learned alone."""
    files = {"news/1.tokens": "Hello there.\n", "news/2.tokens": "So it is.\n"}
    for name, members in (("a.zip", files), ("b.zip", files | {"README.md": "# About it\n"})):
        zipped(name, members)
        with pytest.raises(UsageError, match=r"^(a|b).zip: no text there.*; unpack it to DIRECTORY; .*") as caught:
            sources.find([name])
        folder, pattern = name[0], re.search(r"'DIRECTORY(/[^']*)'", str(caught.value))[1]
        zipfile.ZipFile(name).extractall(folder)
        assert [path.name for path in sources.find([folder + pattern])[0].files] == ["1.tokens", "2.tokens"]


def test_a_directory_of_compressed_texts_of_other_suffixes_names_their_pattern():
    Path("d").mkdir()
    Path("d/a.sql.gz").write_bytes(gzip.compress(b"INSERT INTO a VALUES (1);\n"))
    Path("d/b.bin.gz").write_bytes(gzip.compress(bytes(99)))
    Path("d/c.gz").write_bytes(b"\x1f\x8b not gzip")
    with pytest.raises(UsageError, match=r"'d/\*\*/\*.sql.gz'"):
        sources.find(["d"])
    assert [chunk.text for chunk in sources.find(["d/**/*.sql.gz"])[0].chunks()][0] == "INSERT INTO a VALUES (1);\n"


def docx(path, text):
    kind = f"{OPEN}officeDocument/2006/relationships/officeDocument"
    relation = f'<Relationship Id="r" Type="{kind}" Target="word/document.xml"/>'
    body = f'<w:document xmlns:w="{OPEN}wordprocessingml/2006/main"><w:body><w:p><w:r><w:t>{text}</w:t></w:r></w:p>'
    members = {
        "[Content_Types].xml": f'<Types xmlns="{OPEN}package/2006/content-types"/>',
        "_rels/.rels": f'<Relationships xmlns="{OPEN}package/2006/relationships">{relation}</Relationships>',
        "word/document.xml": f"{body}</w:body></w:document>",
    }
    return zipped(path, members)


OPEN = "http://schemas.openxmlformats.org/"


def epub(path, text):
    namespace = "urn:oasis:names:tc:opendocument:xmlns:container"
    root = '<rootfiles><rootfile full-path="c.opf"/></rootfiles>'
    members = {
        "mimetype": "application/epub+zip",
        "META-INF/container.xml": f'<container xmlns="{namespace}">{root}</container>',
        "c.opf": '<package xmlns="http://www.idpf.org/2007/opf"><manifest><item id="a" href="a.xhtml" media-type='
        '"application/xhtml+xml"/></manifest><spine><itemref idref="a"/></spine></package>',
        "a.xhtml": f'<html xmlns="http://www.w3.org/1999/xhtml"><body><p>{text}</p></body></html>',
    }
    return zipped(path, members)


def html(path, text):
    Path(path).write_text(f"<!DOCTYPE html><html><meta charset='utf-8'><body><p>{text}</p></body></html>", "utf-8")
    return Path(path)


DOCUMENTS = {"a.docx": docx, "a.epub": epub, "a.html": html}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents_give_their_text(name):
    pytest.importorskip("markitdown")
    path = DOCUMENTS[name](name, "A letter of größe.")
    assert converted.is_installed() and converted.to_text(path).strip() == "A letter of größe."
    with pytest.raises(UsageError, match=f"{name}: has no text in it"):
        converted.to_text(DOCUMENTS[name](name, " "))


POLISH, FRENCH = "Zażółć gęślą jaźń, świętej pamięci", "L’été déjà, à 5 €"
PAGES = {  # what the page says, the encoding that it is in, its text
    "a name": ("<meta charset='iso-8859-2'>", "iso8859_2", POLISH),
    "a name of old HTML": (
        '<META http-equiv=Content-Type content="text/html; charset=windows-1250">',
        "cp1250",
        POLISH,
    ),
    "a name as browsers take it": ("<meta charset=ISO-8859-1>", "cp1252", FRENCH),
    "a name of browsers alone": ("<meta charset=x-sjis>", "cp932", "①東京、晴れ"),
    "no name": ("", "utf-8", POLISH),
    "a name that was left": ("<meta charset=iso-8859-1>", "utf-8", POLISH),
    "a name of nothing": ("<meta charset=klingon>", "utf-8", POLISH),
    "a mark": ("", "utf-16", POLISH),
}


@pytest.mark.parametrize("name", PAGES)
def test_a_web_page_is_in_the_encoding_that_it_names(name):
    said, encoding, text = PAGES[name]
    page = f"<!DOCTYPE html><html>{said}<body><p>{text}</p></body></html>"
    Path("a.html").write_bytes(page.encode(encoding))
    assert converted.page_text(Path("a.html")) == page
    if importlib.util.find_spec("markitdown"):
        assert converted.to_text(Path("a.html")).strip() == text


def test_a_web_page_that_names_no_encoding_is_not_guessed():
    """A guess made Zaŋóģæ of it."""
    page = f"<html><body><p>{POLISH}</p></body></html>"
    Path("a.html").write_bytes(page.encode("iso8859_2"))
    with pytest.raises(UsageError, match="a.html: byte 0xBF .* is not UTF-8; probably .*: --encoding="):
        converted.page_text(Path("a.html"))
    assert converted.page_text(Path("a.html"), "iso8859_2") == page
    for said in ("utf-8", "undefined", "hex"):  # Python knows the last two, and they are none
        Path("b.html").write_bytes(f"<meta charset={said}>{page}".encode("iso8859_2"))
        with pytest.raises(UsageError, match="b.html: byte 0xBF .* is not UTF-8"):
            converted.page_text(Path("b.html"))


def test_a_document_that_is_cut_is_refused():
    for name in ("a.docx", "a.epub"):
        path = DOCUMENTS[name](name, "A letter.")
        path.write_bytes(path.read_bytes()[:-40])
        with pytest.raises(UsageError, match=f"{name}: .* cut short; download or copy it again"):
            converted.to_text(path)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents_are_refused_without_the_extra(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "markitdown", None)  # as if it were not installed
    with pytest.raises(
        UsageError, match=rf"{name}: reading {Path(name).suffix} needs pip install 'finetune-gpt2\[documents\]'"
    ):
        converted.to_text(DOCUMENTS[name](name, "A letter."))


def test_what_is_no_document_is_refused():
    Path("a.docx").write_text("not a document")
    Path("a.rtf").write_text(r"{\rtf1 hello}")
    Path("a.odt").write_bytes(zipped("x.zip", {"mimetype": "application/vnd.oasis.opendocument.text"}).read_bytes())
    Path("b.odt").write_text("text")
    for name, message in (
        ("a.docx", "no .docx"),
        ("a.rtf", "RTF"),
        ("a.odt", "an OpenDocument"),
        ("b.odt", "not read"),
    ):
        with pytest.raises(UsageError, match=f"{name}: .*is {message}"):
            converted.to_text(Path(name))


def test_prompts_of_files_have_no_byte_order_mark_and_no_carriage_returns():
    Path("p.txt").write_bytes(b"\xef\xbb\xbfHello there\r\nSecond prompt\r\n")
    Path("p.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt":"Hello\\r\\nthere"}\r\n')
    assert [text for _, text in prompts.read("p.txt")] == ["Hello there", "Second prompt"]
    assert [text for _, text in prompts.read("p.jsonl")] == ["Hello\nthere"]
    chars = tokenizer.CharTokenizer(sorted(set("Hello there\nSecond prompt")))
    assert chars.decode(tokenizer.prompt_ids(chars, "FILE:p.txt")) == "Hello there\nSecond prompt\n"


def test_rows_of_tables_are_no_prompts():
    """Their commas and brackets would be part of the prompts, and the header one of them."""
    rows = [{"prompt": f"What is {i}?"} for i in range(3)]
    for name in ("p.ndjson", "p.JSONL", "p.jsonlines"):
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert [text for _, text in prompts.read(name)] == [row["prompt"] for row in rows]
    Path("p.json").write_text(json.dumps(rows))
    Path("p.csv").write_text("prompt,id\nWhat is 1?,1\n")
    for name, way in (("p.json", r"jq -c '\.\[\]' p.json > prompts.jsonl"), ("p.csv", "with the suffix .jsonl")):
        with pytest.raises(UsageError, match=f"^{name}: is a table; prompts are lines of text, .*{way}"):
            prompts.read(name)


@pytest.mark.parametrize("encoding, name", [("utf-16", "UTF-16"), ("cp1252", "CP1252")])
def test_prompts_that_are_not_utf8_are_refused_with_their_conversion(encoding, name):
    Path("p.txt").write_text("Où est-ce ?\n", encoding=encoding)
    with pytest.raises(UsageError, match=f"is not UTF-8; convert it, as iconv -f {name} does$"):
        prompts.read("p.txt")
    Path("q.txt").write_bytes(Path("p.txt").read_bytes().decode(codecs.lookup(name).name).encode())
    assert [text for _, text in prompts.read("q.txt")] == ["Où est-ce ?"]


def test_a_compressed_tar_is_read_to_its_checksum():
    """The end of a tar comes before that of its compression."""
    tar = tarred("a.tar", {"a.txt": os.urandom(3000).hex()}).read_bytes()
    for name, pack in {"b.tar.gz": gzip.compress, "b.tar.bz2": bz2.compress, "b.tar.xz": lzma.compress}.items():
        packed = bytearray(pack(tar))
        packed[len(packed) // 2] ^= 0xFF
        Path(name).write_bytes(packed)
        problem = f"{name}: cannot be unpacked: (damaged|cut short); download or copy it again"
        with pytest.raises(UsageError, match=problem):
            archives.unpack(Path(name))
