"""Sources that have to be laid into temporary files first: zip and tar archives, and standard input."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import posixpath
import re
import shutil
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO, TypeAlias

from finetune.common.errors import UsageError
from finetune.common.files import CHUNK_BYTES
from finetune.data import compressed
from finetune.data.file_kinds import HEAD_BYTES, check_binary

COMPRESSION = {"gz": ".gz", "tgz": ".gz", "bz2": ".bz2", "tbz2": ".bz2", "tbz": ".bz2", "xz": ".xz", "txz": ".xz"}
COMPRESSION |= {"zst": ".zst", "tzst": ".zst"}
FILE, LINK = 0o10, 0o12  # types of Unix files
DRIVE = re.compile("[a-zA-Z]:" if os.name == "nt" else r"[a-zA-Z]:[\\/]")
LONGEST_PATH = 4096
TAR = re.compile(r"\.(?:tar(?:\.(?P<outer>gz|bz2|xz|zst))?|(?P<short>tgz|tbz2?|txz|tzst))$", re.IGNORECASE)
ERRORS = (*compressed.READ_ERRORS, zipfile.BadZipFile, tarfile.TarError, NotImplementedError, RuntimeError)

Content: TypeAlias = IO[bytes] | str  # of a member; of a link, the path that it names


def is_archive(path: Path) -> bool:
    """Whether its suffix is that of a zip or a tar archive."""
    return path.suffix.lower() == ".zip" or bool(TAR.search(path.name))


def unpack(path: Path) -> Path:
    """A temporary directory with the files of a zip or tar archive, removed when the program ends.

    Hidden files, such as those of __MACOSX, are left out. Links within the archive are links there; others lead
    nowhere. Raises UsageError for an archive that is damaged or encrypted, or names files outside the directory."""
    directory = _temporary_directory() / path.name
    members = _zip_members if path.suffix.lower() == ".zip" else _tar_members
    links: dict[Path, str] = {}
    try:
        for name, content in members(path):
            parts = _safe_parts(name)
            if any(part.startswith(".") or part == "__MACOSX" for part in parts):
                continue
            target = directory.joinpath(*parts)
            if target in links or target.exists():
                raise ValueError(f"it holds {name} twice; unpack it and keep the right one")
            if isinstance(content, str):
                links[target] = content
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with content, open(target, "wb") as copy:
                shutil.copyfileobj(content, copy, CHUNK_BYTES)
        directory.mkdir(exist_ok=True)
        for place, named in links.items():
            _link(directory, place, named)
    except ERRORS as error:
        check_binary(path, str(path))
        if is_other := _other_kind(path):
            raise UsageError(f"{path}: {is_other}") from None
        raise UsageError(f"{path}: cannot be unpacked: {_explain(error, path)}") from None
    return directory


def _link(directory: Path, place: Path, named: str) -> None:
    """Make a link to what is `named` from the directory on; to nothing if that lies outside."""
    inner = posixpath.normpath(named.replace("\\", "/"))
    is_inside = not inner.startswith(("/", "../")) and inner not in (".", "..") and "\0" not in inner
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(directory / (inner if is_inside else ".outside"))


def from_stream(name: str, is_csv: bool = False) -> tuple[str, Path]:
    """What - (standard input) or the path of a pipe is called, and a temporary file with what it holds, removed when
    the program ends.

    Its name is stdin.jsonl if the first line is JSON (an object or a list), stdin.json if only the whole is, else
    stdin.csv if the user says so, else stdin.txt. Raises UsageError if there is nothing."""
    directory = _temporary_directory()
    path, place = directory / "stdin", "standard input" if name == "-" else name
    try:
        stream = contextlib.nullcontext(sys.stdin.buffer) if name == "-" else open(os.path.expanduser(name), "rb")
        with stream as content, open(path, "wb") as copy:
            shutil.copyfileobj(content, copy, CHUNK_BYTES)
    except OSError as error:
        raise UsageError(f"{place}: cannot be read: {error.strerror}") from None
    if not path.stat().st_size:
        raise UsageError(f"{place}: is empty, there is no text in it")
    suffix = _suffix_for(path)
    return place, path.rename(path.with_suffix(".csv" if is_csv and suffix == ".txt" else suffix))


def _suffix_for(path: Path) -> str:
    with open(path, "rb") as file:
        first = file.readline()
        rest = file.read(HEAD_BYTES)
    head = (first[:HEAD_BYTES] + rest).removeprefix(b"\xef\xbb\xbf").lstrip()
    if head.startswith(b"PAR1"):
        return ".parquet"
    try:
        value = json.loads(first.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return ".json" if re.match(rb"\[\s*[\[{\"]|\{\s*\"", head) else ".txt"
    if isinstance(value, list) and not rest.strip():
        return ".json"  # a table in one line
    return ".jsonl" if isinstance(value, dict | list) else ".txt"


def _temporary_directory() -> Path:
    """A directory that is removed when this process ends, also after an error."""
    directory = tempfile.mkdtemp(prefix="finetune-")
    owner = os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # not a process that was forked
            shutil.rmtree(directory, ignore_errors=True)

    atexit.register(remove)
    return Path(directory)


def _safe_parts(name: str) -> list[str]:
    """The parts of a member's name. Raises ValueError if it lies outside the directory."""
    path = PurePosixPath(name.encode("utf-8", "surrogateescape").decode("utf-8", "replace").replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or DRIVE.match(name):
        raise ValueError(f"its member {name!r} would be written outside the directory")
    return list(path.parts)


def _zip_members(path: Path) -> Iterator[tuple[str, Content]]:
    with zipfile.ZipFile(path) as archive:
        if not all(member.filename for member in archive.infolist()):
            raise ValueError("it is damaged: a member has no name")
        members = [member for member in archive.infolist() if not member.is_dir()]
        _check_space(sum(member.file_size for member in members))
        for member in members:
            kind = member.external_attr >> 28  # the type of a Unix file; 0 if it was not made on Unix
            if kind not in (0, FILE, LINK):
                continue
            if member.flag_bits & 1:
                raise ValueError(f"its member {member.filename!r} is encrypted; unpack it with its password")
            if kind == LINK:
                named = archive.read(member)[:LONGEST_PATH].decode("utf-8", "replace")
                yield member.filename, posixpath.join(posixpath.dirname(member.filename), named)
            else:
                yield member.filename, archive.open(member)


def _check_space(needed: int) -> None:
    place = tempfile.gettempdir()
    free = shutil.disk_usage(place).free
    if needed > free:
        raise ValueError(f"it holds {needed / 1e9:,.1f} GB, and {place} has {free / 1e9:,.1f} GB")


def _compression(path: Path) -> str:
    """The suffix of what an archive is compressed with."""
    found = TAR.search(path.name)
    kind = found and (found["outer"] or found["short"])
    return COMPRESSION[kind.lower()] if kind else path.suffix.lower()


def _other_kind(path: Path) -> str | None:
    """What an archive is that has the suffix of another, and the suffix under which it can be read."""
    kind = _compression(path)
    with open(path, "rb") as file:
        head = file.read(8)
    try:
        is_tar = tarfile.is_tarfile(path)
    except ERRORS:
        is_tar = False
    found = next((suffix for suffix, magic in compressed.MAGIC.items() if head.startswith(magic)), None)
    if found == kind or (found is None and (not is_tar or kind == ".tar")):
        return None
    if found is None or found == ".zip":
        what, suffix = ("a zip archive", ".zip") if found else ("a tar archive that is not compressed", ".tar")
    else:
        what, suffix = (
            f"compressed with {compressed.TOOLS[found]}",
            f".tar{found}" if is_tar or found == ".zst" else found,
        )
    return f"is {what}; name it with the suffix {suffix}"


def _explain(error: Exception, path: Path) -> str:
    """What is wrong with an archive, in words."""
    if isinstance(error, NotImplementedError):
        return "compressed by a method that is not supported; unpack it with 7z x"
    if isinstance(error, ValueError | RuntimeError):
        return str(error)
    suffix, message = _compression(path), str(error)
    if suffix != ".tar":
        return compressed.explain(error, path, suffix)
    if not path.stat().st_size or message.startswith(("damaged", "invalid", "bad checksum")):
        return compressed.DAMAGED
    return compressed.CUT_SHORT


class _Member(tarfile.TarInfo):
    """A member of a tar archive. A damaged header is an error; tarfile takes it for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Member:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if not buf.strip(b"\0"):
                raise  # the end
            raise tarfile.ReadError(f"damaged ({error})") from None


def _tar_members(path: Path) -> Iterator[tuple[str, Content]]:
    file: BinaryIO = compressed.open_decompressed(path, _compression(path))
    # a stream, which is read once from start to end
    with file, tarfile.open(fileobj=file, mode="r|", tarinfo=_Member) as archive:
        for member in archive:
            _check_space(member.size)
            if member.issym():
                yield member.name, posixpath.join(posixpath.dirname(member.name), member.linkname)
            elif member.islnk():
                yield member.name, member.linkname
            elif content := archive.extractfile(member) if member.isreg() else None:
                yield member.name, content
        while file.read(CHUNK_BYTES):  # to the checksum of the compression
            pass
