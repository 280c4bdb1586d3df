"""The files at an address, through fsspec. What is sent is compared with what the server holds."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from finetune.common import hub_client, network
from finetune.common.errors import UsageError, first_line
from finetune.common.files import CHUNK_BYTES, MANIFEST, read_chunks, sha256_of
from finetune.common.json_text import parse_json
from finetune.common.network import Progress, Unreachable

T = TypeVar("T")
PART_BYTES = 50 << 20  # of a large file on S3; its ETag is a sum over the sums of its parts
LIMITS = {
    "connect_timeout": network.CONNECT_SECONDS,
    "read_timeout": network.IDLE_SECONDS,
    "retries": {"max_attempts": 2},
}
S3 = ("s3", "s3a")
OPTIONS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(S3, {"config_kwargs": LIMITS, "use_listings_cache": False}),
    **dict.fromkeys(("file", "local"), {"auto_mkdir": True}),
}
FOLDERS = ("sftp", "ssh", "ftp", "smb", "hdfs", "webhdfs")  # where a directory must be made before its files
PACKAGES = {
    **dict.fromkeys(S3, "s3fs"),
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
}
SECRET = re.compile("KEY|SECRET|TOKEN|PASS|CREDENTIAL", re.IGNORECASE)  # in the name of a variable
Sizes = dict[str, int]  # {name below the address: bytes}


class Missing(Unreachable):
    """The server has no such file."""


class Storage:
    """The files below an address. Every method raises Unreachable with one line if the storage does not do it."""

    def __init__(self, address: str) -> None:
        """Raises UsageError if fsspec knows no such address, or lacks a package for it."""
        import fsspec

        self.address, self.progress = address, Progress()
        self.num_changes = 0  # that the server has made
        self.is_closed = False  # then all is refused
        self.protocol = address.partition("://")[0]
        if self.protocol == "hf":
            hub_client.bound()
        try:
            # no cached instance: credentials and servers in the environment may have changed
            options = OPTIONS.get(self.protocol, {}) | {"skip_instance_cache": True}
            self.fs, root = fsspec.core.url_to_fs(address, **options)
        except ImportError as error:
            package = PACKAGES.get(self.protocol)
            install = "'finetune-gpt2[storage]'" if package == "s3fs" else package
            way = f"needs the package {package}: pip install {install}" if package else first_line(error)
            raise UsageError(f"{address}: {way}") from None
        except Exception as error:  # of many libraries
            raise UsageError(f"{address}: cannot be opened: {in_one_line(error)}") from None
        self.root = root.rstrip("/")

    def files(self, below: str = "") -> Sizes:
        """All files, or those below one directory."""

        def find() -> dict[str, Any]:
            self.fs.invalidate_cache()
            try:
                return self.fs.find(self._path(below), detail=True)
            except FileNotFoundError:
                return {}

        start = len(self.root) + 1
        sizes = {path[start:]: info["size"] for path, info in self._call(find).items() if info["type"] == "file"}
        return {name: size for name, size in sizes.items() if is_safe(name)}

    def key(self, name: str) -> str:
        """What changes whenever a file does."""
        return self._call(lambda: self.fs.ukey(self._path(name)))

    def read(self, name: str) -> bytes:
        return self._call(lambda: self.fs.cat_file(self._path(name)))

    def write(self, name: str, content: bytes) -> None:
        """Write a small file, and read it back."""

        def write() -> bytes:
            self._make_folder(name)
            self.fs.pipe_file(self._path(name), content)
            self.fs.invalidate_cache()
            return self.fs.cat_file(self._path(name))

        if self._call(write) != content:
            raise Unreachable(f"{self.address}: holds another {name} than was sent")
        self.num_changes += 1

    def fetch(self, name: str, path: Path) -> None:
        """Read a file into `path`."""
        self._call(lambda: self.fs.get_file(self._path(name), str(path), callback=self._callback()))

    def send(self, path: Path, name: str, sha256: str) -> None:
        """Write a file, and compare what the server holds then."""
        parts = {"chunksize": PART_BYTES} if self.protocol in S3 else {}

        def put() -> None:
            self._make_folder(name)
            self.fs.put_file(str(path), self._path(name), callback=self._callback(), **parts)

        self._call(put, watch=False)  # a part is sent without a sign of progress
        self.check(path, name, sha256)
        self.num_changes += 1

    def copy(self, source: str, name: str) -> None:
        """Copy a file on the server."""
        self._call(lambda: self.fs.cp_file(self._path(source), self._path(name)), watch=False)
        self.num_changes += 1

    def check(self, path: Path, name: str, sha256: str) -> None:
        """Raise Unreachable unless the server holds the file `path`: its sum says so, or it is read back."""

        def info() -> dict[str, Any]:
            self.fs.invalidate_cache()
            return self.fs.info(self._path(name))

        found, size = self._call(info), os.path.getsize(path)
        if found["size"] != size:
            raise Unreachable(f"{self.address}: holds {found['size']:,} of {size:,} bytes of {name}")
        if _etag(path, found.get("ETag")) == found.get("ETag", ""):
            return
        digest = getattr(found.get("lfs"), "sha256", None) or self._call(lambda: self._sha256(name))
        if digest != sha256:
            raise Unreachable(f"{self.address}: holds another {name} than was sent")

    def remove(self, names: Iterable[str]) -> None:
        """Delete files, one after the other."""
        for name in names:
            with contextlib.suppress(Missing):
                self._call(lambda name=name: self._remove(self._path(name)))
                self.num_changes += 1

    def manifest(self, sizes: Sizes, directory: str) -> dict[str, Any] | None:
        """What `files.write_directory` wrote about a directory, if all its files are there in full; else None."""
        name = f"{directory}/{MANIFEST}"
        if name not in sizes:
            return None
        try:
            found = parse_json(self.read(name))
            entries = [
                (is_safe(file), sizes.get(f"{directory}/{file}") == entry["bytes"], entry["sha256"])
                for file, entry in found["files"].items()
            ]
        except (ValueError, KeyError, TypeError, AttributeError, Missing):  # the run that writes it has removed it
            return None
        return found if all(safe and whole for safe, whole, _ in entries) else None

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}" if name else self.root

    def _make_folder(self, name: str) -> None:
        if self.protocol in FOLDERS:
            self.fs.makedirs(self._path(name).rpartition("/")[0], exist_ok=True)

    def _remove(self, path: str) -> None:
        self.fs.rm_file(path)
        if self.protocol in ("file", "local", *FOLDERS):
            with contextlib.suppress(OSError):  # others are in it
                self.fs.rmdir(path.rpartition("/")[0])

    def _sha256(self, name: str) -> str:
        digest = hashlib.sha256()
        with self.fs.open(self._path(name), "rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                self.progress.add(len(chunk))
                digest.update(chunk)
        return digest.hexdigest()

    def _callback(self) -> Any:
        from fsspec.callbacks import Callback

        progress = self.progress

        class Moved(Callback):
            def call(self, *given: object, **named: object) -> None:
                progress.add(network.LEAST_BYTES)

        return Moved()

    def _call(self, call: Callable[[], T], watch: bool = True) -> T:
        self.progress.add(network.LEAST_BYTES)  # the clock begins anew
        if self.is_closed:
            raise Unreachable(f"{self.address}: is closed")
        try:
            return network.watched(call, self.address, self.progress) if watch else call()
        except Unreachable:
            raise
        except FileNotFoundError as error:
            raise Missing(f"{self.address}: nothing is there; check the address") from error
        except Exception as error:  # each network library has its own
            raise Unreachable(f"{self.address}: {in_one_line(error)}") from error


def is_safe(name: str) -> bool:
    """Whether a name that a server gives stays below its directory here."""
    parts = PurePosixPath(name).parts
    return bool(parts) and not name.startswith("/") and ".." not in parts and not re.search(r"[\\:\x00-\x1f]", name)


def in_one_line(error: BaseException) -> str:
    """An error in one line, without what is secret: the values of such variables, and what stands before an @ or after
    a ? in a URL."""
    text = str(error).strip() or type(error).__name__
    for name, value in os.environ.items():
        if SECRET.search(name) and len(value) >= 8:
            text = text.replace(value, "***")
    text = re.sub(r"://[^/\s'\"]*@", "://***@", re.sub(r"\?[^\s'\"]*", "?...", text))
    return first_line(Exception(text))


def fetch_sealed(storage: Storage, directory: str, manifest: dict[str, Any], work: Path) -> None:
    """Fill `work` with a directory that has a manifest. Raises Unreachable if a file differs from it."""
    for file, entry in manifest["files"].items():
        path = work / file
        path.parent.mkdir(parents=True, exist_ok=True)
        storage.fetch(f"{directory}/{file}", path)
        if sha256_of(path) != entry["sha256"]:
            raise Unreachable(f"{storage.address}/{directory}: {file} is not what was sent (its sha256 differs)")


def _etag(path: Path, given: str | None) -> str | None:
    """The ETag that S3 gives to a file: its md5, or that of its parts' md5; None if `given` is of another kind."""
    if not given or not re.fullmatch(r'"[0-9a-f]{32}(-\d+)?"', given):
        return None
    size = PART_BYTES if "-" in given else max(1, os.path.getsize(path))
    sums, left = [hashlib.md5(usedforsecurity=False)], size
    for chunk in read_chunks(path):
        while chunk:
            if not left:
                sums, left = [*sums, hashlib.md5(usedforsecurity=False)], size
            sums[-1].update(chunk[:left])
            chunk, left = chunk[left:], left - min(left, len(chunk))
    if "-" not in given:
        return f'"{sums[0].hexdigest()}"'
    whole = hashlib.md5(b"".join(one.digest() for one in sums), usedforsecurity=False)
    return f'"{whole.hexdigest()}-{len(sums)}"'
