"""The file of `sample --out`: a JSON object for each sample, in order. What a killed command left is continued."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from finetune.common.errors import UsageError

if TYPE_CHECKING:
    from finetune.gpt import GPT

BEGINNING = b'{"prompt": "'  # of each line
WAY_OUT = "name another file, or --overwrite=true replaces it"


def problem_of(out: Path, overwrite: bool) -> str | None:
    """Why there can be no samples in this file, as far as it can be told before they are known."""
    if not out.parent.is_dir():
        return f"cannot be written: there is no directory {out.parent}"
    if not os.path.lexists(out):
        return None
    if out.is_symlink() or not out.is_file():
        return "is there already and is no file; name another file"
    with open(out, "rb") as file:
        start = file.read(len(BEGINNING))
    return None if overwrite or BEGINNING.startswith(start) else f"is there already; {WAY_OUT}"


@dataclass(frozen=True)
class Wanted:
    """What a command writes: `number` samples of each of the `prompts`, each line with the keys `how`."""

    prompts: list[str]
    number: int
    how: dict[str, Any]  # settings, and what else decides what the samples are

    @property
    def total(self) -> int:
        return len(self.prompts) * self.number

    def beginning(self, place: int) -> dict[str, Any]:
        """The keys of a line that are known before the sample is drawn."""
        return {"prompt": self.prompts[place // self.number], "sample": place % self.number, **self.how}


def fingerprint(model: GPT, copy_blocker: Any) -> str:
    """A hash of the weights with their dtype, and of the text that must not be copied."""
    from finetune.gpt.pretrained import bytes_of

    digest = hashlib.sha256(str(model.wte.weight.dtype).encode())
    for _, tensor in sorted(model.state_dict().items()):
        digest.update(bytes_of(tensor.cpu()).data)
    if copy_blocker is not None:
        digest.update(copy_blocker.entries)
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def continued(out: Path, wanted: Wanted, overwrite: bool) -> Generator[tuple[list[str], SampleWriter]]:
    """The texts of the samples in the file, and what writes the others. Raises UsageError, and leaves the file as it
    is, if another command wrote it or is writing it."""
    with _opened(out) as file:
        _lock(file, out)
        if overwrite:
            file.truncate(0)
        file.seek(0)
        texts, end = _read(file, out, wanted)
        file.truncate(end)  # without the beginning of a line
        try:
            yield texts, SampleWriter(file, wanted, len(texts))
        finally:
            if not os.path.getsize(out):
                out.unlink()


def _opened(out: Path) -> BinaryIO:
    try:
        return open(out, "ab+")
    except OSError as error:
        raise UsageError(f"out {out}: cannot be written: {error.strerror}; name another file") from None


class SampleWriter:
    """Writes lines, each at once. `done` are in the file."""

    def __init__(self, file: BinaryIO, wanted: Wanted, done: int) -> None:
        self.file, self.wanted, self.done = file, wanted, done

    def add(self, text: str, finish_reason: str | None, ids: list[int]) -> None:
        known = self.wanted.beginning(self.done)
        first = {"prompt": known["prompt"], "text": text, "sample": known["sample"]}
        row = {**first, "finish_reason": finish_reason, "tokens": ids, **self.wanted.how}
        self.file.write(_encode(row) + b"\n")
        self.file.flush()
        self.done += 1


def _read(file: BinaryIO, out: Path, wanted: Wanted) -> tuple[list[str], int]:
    """The texts of the samples with their prompts, and where the last whole line ends. Raises UsageError."""
    texts, end = [], 0
    for place, line in enumerate(file):
        where = f"out {out}: line {place + 1}"
        if not line.endswith(b"\n"):
            _check_beginning(line, where, wanted, place)
            break
        if place >= wanted.total:
            raise UsageError(f"out {out}: has more than the {wanted.total:,} samples of this command; {WAY_OUT}")
        row = _parse(line)
        for key, ours in wanted.beginning(place).items():
            if key not in row or row[key] != ours:
                theirs = f"{row[key]!r:.80}" if key in row else "none"
                problem = f"is not by this command: its {key} is {theirs}, here it is {ours!r:.80}"
                raise UsageError(f"{where} {problem}; {WAY_OUT}")
        texts.append(f"{row['prompt']}{row.get('text', '')}")
        end += len(line)
    return texts, end


def _check_beginning(line: bytes, where: str, wanted: Wanted, place: int) -> None:
    """Raise UsageError for a last line that is no beginning of sample number `place`."""
    if place < wanted.total:
        begin = _encode({"prompt": wanted.beginning(place)["prompt"], "text": ""}).removesuffix(b'"}')
        if line.startswith(begin) or begin.startswith(line):
            return
    raise UsageError(f"{where} is no sample of this command; {WAY_OUT}")


def _encode(row: dict[str, Any]) -> bytes:
    """A row as JSON; a byte of the command line that is not UTF-8 is written as \\udcXX, which JSON reads back."""
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace")


def _parse(line: bytes) -> dict[str, Any]:
    with contextlib.suppress(ValueError, RecursionError):
        row = json.loads(line)
        if isinstance(row, dict):
            return row
    return {}


def _lock(file: BinaryIO, out: Path) -> None:
    """Hold the file; the kernel frees it however the process ends. Windows has no such lock. Raises UsageError."""
    if sys.platform == "win32":
        return
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(f"out {out}: another command is writing it; end that one or name another file") from None
    except OSError:  # a file system without locks
        return
