"""What a file is if it is not text: recognised by its first bytes, with the way to its text."""

from __future__ import annotations

import json
import re
import tarfile
from pathlib import Path

from finetune.common.errors import UsageError
from finetune.data import encodings

HEAD_BYTES = 1 << 16  # of a file, enough to recognise it
EXTRA = "pip install 'finetune-gpt2[documents]'"
PAGE_SUFFIXES = (".html", ".htm", ".xhtml")
DOCUMENT_SUFFIXES = (".docx", ".epub", *PAGE_SUFFIXES, ".pdf", ".pptx")
NO_TEXT = "there is no text to train on in it; leave it out"
UNPACK = "unpack it, or name it with the suffix {suffix}"
EXPORT = "export its texts as csv or json lines"
DOCUMENT = f"save it as plain text, or {EXTRA} and name it with the suffix {{suffix}}"
WEB_ARCHIVE = "save the page as plain text or .html"
SAVE_AS_TEXT = "save it as plain text"
# (the first bytes, what the file is, the way out, the suffix under which it is read)
MAGIC: tuple[tuple[bytes, str, str, str], ...] = (
    (rb"version https://git-lfs\.github\.com/spec/", "a git-lfs pointer", "fetch the file with git lfs pull", ""),
    (rb"[^\n]{0,200}/annex/objects/[^\n]+\n?\Z", "a git-annex pointer", "fetch the file with git annex get", ""),
    (rb"\s*%PDF-", "a PDF", DOCUMENT, ".pdf"),
    (rb"\s*\{\\rtf", "RTF", f"{SAVE_AS_TEXT}, or as .docx, with a word processor or pandoc", ""),
    (rb"-----BEGIN PGP MESSAGE-----", "encrypted", "decrypt it with gpg -d", ""),
    (rb"From: <Saved by |MIME-Version: 1\.0\r?\nContent-Type: multipart/related", "a web archive", WEB_ARCHIVE, ""),
    (rb"%!PS", "PostScript", "convert it with ps2ascii", ""),
    (rb"\x1f\x8b", "compressed with gzip", UNPACK, ".gz"),
    (rb"\xfd7zXZ\0", "compressed with xz", UNPACK, ".xz"),
    (rb"BZh[1-9](1AY&SY|\x17rE8P\x90)", "compressed with bzip2", UNPACK, ".bz2"),
    (rb"\x28\xb5\x2f\xfd", "compressed with zstd", UNPACK, ".zst"),
    (rb"\x04\x22\x4d\x18|\x1f\x9d|LZIP[\0\x01]|\xff\x06\0\0sNaPpY", "compressed", "decompress it", ""),
    (rb"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it with 7z x", ""),
    (rb"Rar!\x1a\x07", "a rar archive", "unpack it with unrar x", ""),
    (rb"MSCF\0\0\0\0|!<arch>\n|\xed\xab\xee\xdb", "an archive", "unpack it", ""),
    (rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office file", f"{SAVE_AS_TEXT}, or as .docx", ""),
    (rb".{60}BOOKMOBI", "a Kindle book", "convert it with ebook-convert to .epub or .txt", ""),
    (rb"SQLite format 3\0", "an SQLite database", "export its texts, for example with sqlite3 -csv", ""),
    (rb".{8}DUCK", "a DuckDB database", EXPORT, ""),
    (rb"PAR1(?![\s,;|])|PARE", "a parquet file", "name it with the suffix {suffix}", ".parquet"),
    (rb"ARROW1\0\0|\xff\xff\xff\xff.{3}\0.{2}\0\0", "an Arrow file", "name it with the suffix {suffix}", ".arrow"),
    (rb"FEA1", "an old Feather file", "write it again as .feather (version 2) or .parquet", ""),
    (rb"ORC|Obj\x01|\x89HDF\r\n", "a table in a binary format", EXPORT, ""),
    (rb"\$FL[23]", "a file of SPSS", EXPORT, ""),
    (rb"<stata_dta>|[\x6c-\x73][\x01\x02]\x01\0", "a file of Stata", EXPORT, ""),
    (rb"\0{12}\xc2\xea\x81\x60|HEADER RECORD\*{7}L", "a file of SAS", EXPORT, ""),
    (rb".{3}\0[\x02\x07\x10]\w+\0", "BSON", "write it as lines with bsondump FILE > out.jsonl", ""),
    (rb"[\x81-\x8f](?:\xa2\w{2}|\xa4\w{4}|\xa5\w{5}|\xa6\w{6}|\xa7\w{7})[\x80-\xdf]", "msgpack", EXPORT, ""),
    (rb"\x93NUMPY", "a numpy array", EXPORT, ""),
    (rb"\x80[\x02-\x05]|\((?:lp|dp|ip)0\n|c[\w.]+\n\w+\np0\n", "a pickle", EXPORT, ""),
    (rb".{4}\0\0\0\0\{\s*\"", "a safetensors file", NO_TEXT, ""),
    (rb"GGUF|ggml|\x08\0\0\0TFL3", "the weights of a model", NO_TEXT, ""),
    (rb"\x89PNG\r\n|\xff\xd8\xff|GIF8[79]a|RIFF.{4}WEBP|II\*\0|MM\0\*|8BPS\0", "an image", NO_TEXT, ""),
    (rb"BM.{4}\0\0\0\0|\0\0[\x01\x02]\0.{2}|.{4}ftyp(?:heic|avif|mif1)|AT&TFORM", "an image", NO_TEXT, ""),
    (rb"ID3[\x02-\x04]|RIFF.{4}(?:WAVE|AVI )|fLaC\0|OggS\0|\xff[\xf2\xf3\xfa\xfb]|MThd\0|#!AMR", "audio", NO_TEXT, ""),
    (rb".{4}ftyp|\x1aE\xdf\xa3|FLV\x01|\0\0\x01[\xb3\xba]", "a video or audio", NO_TEXT, ""),
    (rb"\x7fELF|MZ.{2}\0|\xcf\xfa\xed\xfe|\xca\xfe\xba\xbe|\0asm|..\r\n[\x00-\x03]\0\0\0", "a program", NO_TEXT, ""),
    (rb"wOF[F2]|OTTO\0|\0\x01\0\0\0|true\0", "a font", NO_TEXT, ""),
    (rb"bplist00|DIRC\0|# v[23] git bundle\n|PACK\0\0\0\x02", "binary data", NO_TEXT, ""),
)
WORDS = re.compile(rb"ORC|PARE|FEA1|GGUF|ggml|GIF8|\$FL|.{4,8}(?:DUCK|ftyp)", re.DOTALL)  # marks that can begin a text
KINDS = tuple((re.compile(magic, re.DOTALL), what, way, suffix) for magic, what, way, suffix in MAGIC)
# what a zip holds, by the names of its members (and the content of the first, which is not compressed)
ZIPS: tuple[tuple[bytes, str, str, str], ...] = (
    (rb"word/", "a Word document (docx)", DOCUMENT, ".docx"),
    (rb"ppt/", "a PowerPoint file (pptx)", DOCUMENT, ".pptx"),
    (rb"xl/", "an Excel workbook (xlsx)", "save its sheet as csv", ""),
    (rb"\[Content_Types\]\.xml", "an Office document", SAVE_AS_TEXT, ""),
    (rb"mimetypeapplication/epub|META-INF/container\.xml", "an EPUB book", DOCUMENT, ".epub"),
    (rb"mimetypeapplication/vnd\.oasis\.opendocument\.text", "an OpenDocument text (odt)", SAVE_AS_TEXT, ""),
    (rb"mimetypeapplication/vnd\.oasis\.opendocument\.spread", "a spreadsheet (ods)", "save its sheet as csv", ""),
    (rb"mimetype", "an OpenDocument file", SAVE_AS_TEXT, ""),
    (rb"Index/\S*\.iwa", "a document of Apple iWork", SAVE_AS_TEXT, ""),
    (rb"(?:[^/]*/)?data\.pkl", "a PyTorch file", NO_TEXT, ""),
    (rb"\S*\.npy", "a numpy archive (npz)", EXPORT, ""),
    (rb"META-INF/MANIFEST\.MF|AndroidManifest\.xml|\S*\.dist-info/", "a package of a program (jar)", NO_TEXT, ""),
)
NOTEBOOK = re.compile(
    rb"\s*\{\s*\"(?:cells|metadata|nbformat(?:_minor)?)\"\s*:.*\"(?:cell_type|nbformat)\"\s*:", re.DOTALL
)
WEB_PAGE = re.compile(rb"\s*<(?:!doctype html|html|\?xml)\b", re.IGNORECASE)
TABLE_SUFFIXES = (".json", ".jsonl", ".ndjson", ".jsonlines", ".geojsonl", ".csv", ".tsv", ".tab", ".psv")


def check(name: str, head: bytes, encoding: str | None = None) -> None:
    """Raise UsageError if a file, of which `head` are the first (decompressed) bytes, is not text: what it is and the
    way out. Parquet, Arrow and web pages are accepted under their own suffix. `encoding` is the one that was named."""
    head = head[:HEAD_BYTES]
    found = _find_kind(head, Path(name).suffix.lower())
    if found:
        what, way, suffix = found
        own_suffix = Path(name).suffix.lower().replace(".feather", ".arrow")
        if suffix == own_suffix and suffix in (".parquet", ".arrow"):
            return
        if suffix in PAGE_SUFFIXES:
            return check_encoding(name, head, encoding)
        if suffix == own_suffix:
            way = f"{SAVE_AS_TEXT}, or {EXTRA}" if way == DOCUMENT else "unpack it"
        raise UsageError(f"{name}: is {what}, not text; {way.format(suffix=suffix)}")
    check_encoding(name, head, encoding)


def check_binary(path: Path, name: str) -> None:
    """Raise UsageError if a file that its reader cannot read is known to be of another kind than its suffix says."""
    with open(path, "rb") as file:
        found = _find_kind(file.read(HEAD_BYTES), ".json")
    own_suffix = path.suffix.lower().replace(".feather", ".arrow")
    if found and found[2] != own_suffix and (not found[2] or own_suffix in (".parquet", ".arrow", *DOCUMENT_SUFFIXES)):
        raise UsageError(f"{name}: is {found[0]}; {found[1].format(suffix=found[2])}")


def _find_kind(head: bytes, suffix: str) -> tuple[str, str, str] | None:
    """(what it is, the way out, the suffix under which it is read) of what is not text in any encoding."""
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")):
        return _find_zip_kind(head)
    is_text = encodings.control_share(head) < 0.01
    for pattern, *found in KINDS:
        match = pattern.match(head)
        if match and not (is_text and WORDS.match(match[0])):
            return found[0], found[1], found[2]
    if _is_tar(head):
        return "a tar archive", UNPACK, ".tar"
    if _is_notebook(head):
        return "a Jupyter notebook", "convert it with jupyter nbconvert --to markdown", ""
    if WEB_PAGE.match(head):
        if suffix in PAGE_SUFFIXES:
            return "a web page", DOCUMENT, suffix
        if suffix in TABLE_SUFFIXES:
            return "a web page under another name", "download the file again", ""
    return None


def _find_zip_kind(head: bytes) -> tuple[str, str, str]:
    names = []
    for match in re.finditer(rb"PK\x03\x04.{22}(..)(..)", head, re.DOTALL):
        length, extra = (int.from_bytes(size, "little") for size in match.groups())
        name = head[match.end() : match.end() + length]
        start = match.end() + length + extra
        names.append(name + head[start : start + 60] if name == b"mimetype" else name)
    for pattern, what, way, suffix in ZIPS:
        if any(re.match(pattern, name) for name in names):
            return what, way, suffix
    return "a zip archive", UNPACK, ".zip"


def _is_tar(head: bytes) -> bool:
    try:
        return len(head) >= 512 and bool(tarfile.TarInfo.frombuf(head[:512], "utf-8", "surrogateescape"))
    except tarfile.HeaderError:  # no header, or its checksum is wrong
        return False


def _is_notebook(head: bytes) -> bool:
    if not NOTEBOOK.match(head):
        return False
    try:  # a row of json lines may have such a column
        return "nbformat" in json.loads(head.split(b"\n")[0])
    except (ValueError, RecursionError):
        return True


def check_encoding(name: str, head: bytes, encoding: str | None) -> None:
    """Raise UsageError if some bytes are text in another encoding than UTF-8 or the one that is named, or no text."""
    named = encodings.find_codec(encoding) if encoding else "utf-8"
    marked, _ = encodings.encoding_of_mark(head)
    found = encodings.wide_or_escaped(head) if marked in (None, "utf-8") else marked
    is_wide = encodings.is_wide(named)
    if found and encoding and not encodings.is_wide(found):
        return  # escapes can be text, and the user chose
    if found and named not in (found, found[:6]):
        place = " (the byte order mark at offset 0)" if found == marked else ""
        raise UsageError(f"{name}: looks like {iconv_name(found)}{place}; {way_to_read(found)}")
    if not found and is_wide and 0 not in head and encodings.is_utf8(head):
        raise UsageError(f"{name}: is UTF-8, not {encoding}; leave --encoding={encoding} out")
    if not found and named in ("utf-16", "utf-32"):
        raise UsageError(f"{name}: has no byte order mark; name --encoding={named}-le or --encoding={named}-be")
    if not found and not is_wide and encodings.is_binary(head):
        share = f"{encodings.control_share(head):.0%} of its bytes are NULs and control characters"
        prepared = "; prepared data are used with --dataset=DIRECTORY" if name.endswith(".bin") else ""
        raise UsageError(f"{name}: is binary data, not text ({share}); convert it, or leave it out{prepared}")


def iconv_name(encoding: str) -> str:
    """The name of an encoding for iconv: UTF-16LE, ISO-2022-JP."""
    name = encoding.upper().replace("ISO2022_", "ISO-2022-").replace("_", "-")
    return name.replace("-LE", "LE").replace("-BE", "BE") if name.startswith("UTF") else name


def way_to_read(encoding: str) -> str:
    """The advice for text in another encoding than UTF-8."""
    return f"read it with --encoding={encoding}, or convert it with iconv -f {iconv_name(encoding)} -t UTF-8"
