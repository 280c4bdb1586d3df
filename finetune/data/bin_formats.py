"""What train.bin and val.bin hold if nothing describes them: 16-bit token ids, or something that is named and refused.

Statistics look at three windows of a file. In 16-bit ids, values at even and at odd places are alike, and so are the
low bytes of any larger vocabulary; in other formats they are not."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

import numpy as np

from finetune.common.errors import UsageError
from finetune.common.files import CHUNK_BYTES
from finetune.data.bpe_files import GPT2_EOT

WINDOW = 1 << 16  # bytes
LEAST = 64  # values that statistics need
PREPARE = "prepare the text with finetune prepare"
# (the first bytes, what the file is, the way out)
KINDS = (
    (
        rb"\x88\xd8\x34\x01",
        "a bin of llm.c for GPT-2, with a header of 1,024 bytes",
        "numpy.fromfile({name!r}, '<u2')[512:].tofile({name!r}) drops it",
    ),
    (rb"\xa1\xd9\x34\x01", "a bin of llm.c for Llama 3, with a header and 32-bit ids", PREPARE),
    (rb"\x93NUMPY", "a numpy array (.npy)", "numpy.load({name!r}).astype('<u2').tofile({name!r}) writes plain ids"),
    (rb"LITPKDS", "a packed file of LitGPT", PREPARE),
    (rb"PK\x03\x04", "a zip archive, such as .npz or a PyTorch file", PREPARE),
    (rb"\x1f\x8b\x08|\x28\xb5\x2f\xfd|\xfd7zXZ\0", "compressed", "decompress it"),
    (rb"ARROW1\0\0|PAR1|\x89HDF\r\n", "a table in a binary format", PREPARE),
    (rb"\x80[\x04\x05]\x95.{4}\0\0\0\0|\x80[\x02\x03](?:[\]}]q\0|c[a-z_]{4,})", "a pickle", PREPARE),
)
OTHERS = {  # files of a directory without train.bin
    ".npy": "numpy arrays",
    ".npz": "numpy arrays",
    ".idx": "tokens of Megatron-LM",
    ".mds": "tokens of MosaicML's streaming",
}


def check(path: Path) -> None:
    """Raise UsageError if a bin holds something else than little-endian 16-bit token ids."""
    with open(path, "rb") as file:
        head = file.read(32)
    for magic, what, way in KINDS:
        if re.match(magic, head, re.DOTALL):
            raise UsageError(f"{path}: is {what}; {way.format(name=path.name)}")
    if path.with_suffix(".idx").is_file():
        raise UsageError(f"{path}: is a bin of Megatron-LM, with {path.stem}.idx beside it; {PREPARE}")
    data = _windows(path)
    if len(data) < 2 * LEAST:
        return
    if _is_text(data):
        raise UsageError(f"{path}: is a text, not token ids; {PREPARE}")
    if width := _other_width(data):
        raise UsageError(f"{path}: looks like {width}; bins without meta.json hold 16-bit ids. {_rewrite(path, width)}")


def _windows(path: Path) -> bytes:
    """The begin, the middle and the end of a file, in whole 64-bit values."""
    size = path.stat().st_size
    if size <= 3 * WINDOW:
        return path.read_bytes()[: size // 8 * 8]
    with open(path, "rb") as file:
        parts = []
        for place in (0, size // 2, size - WINDOW):
            file.seek(place // 8 * 8)
            parts.append(file.read(WINDOW))
    return b"".join(parts)


def _is_text(data: bytes) -> bool:
    """Whether they are UTF-8 and printable: ids below 256 have a byte 0."""
    try:
        text = data[:WINDOW].decode("utf-8", "strict")
    except UnicodeDecodeError as error:
        if error.start < min(len(data), WINDOW) - 3:
            return False
        text = data[: error.start].decode()
    return re.search(r"[\0-\x08\x0e-\x1a\x1c-\x1f]", text) is None


def _other_width(data: bytes) -> str | None:
    """Which values, other than little-endian 16-bit ids, the bytes look like; None if those."""
    ids = np.frombuffer(data, "<u2")
    quarters, halves, swapped = ids.reshape(-1, 4).T, ids.reshape(-1, 2).T, ids.byteswap()
    for dtype, bits in (("<f8", 64), ("<f4", 32)):
        if _are_whole_numbers(np.frombuffer(data, dtype)):
            return f"{bits}-bit floating-point numbers"
    if _is_high(quarters[3], quarters[0]) and _is_high(quarters[2], quarters[0]):
        return "64-bit token ids"
    if _is_high(halves[1], halves[0]):
        return "32-bit token ids"
    if _is_high(halves[0].byteswap(), halves[1]):
        width = 64 if not quarters[:2].any() else 32
        return f"{width}-bit big-endian token ids"
    is_shifted = not (ids & 0xFF).any() and len(np.unique(ids)) > 1
    fits_swapped = ids.max() > GPT2_EOT >= swapped.max() and len(np.unique(ids)) >= LEAST
    if is_shifted or fits_swapped:
        return "16-bit big-endian token ids"
    bytes_ = np.frombuffer(data, np.uint8).reshape(-1, 2).T
    # of 16-bit ids, the low bytes reach 255, or the high bytes are all small
    if len(ids) >= 1024 and bytes_.max() < 200 and min(len(np.unique(part)) for part in bytes_) >= 16:
        return "8-bit token ids"
    return None


def _is_high(high: np.ndarray, low: np.ndarray) -> bool:
    """Whether these are the high halves of some values: nearly all 0, or few small numbers (0xFFFF in negative ones)
    beside many."""
    if (high == 0).mean() > 0.9 and (low == 0).mean() < 0.9:
        return True
    numbers = np.unique(high)
    numbers = numbers[numbers != 0xFFFF]
    is_small = len(numbers) <= 4 and bool((numbers < 32).all())
    return is_small and len(np.unique(low)) >= max(32, 8 * len(numbers))


def _are_whole_numbers(values: np.ndarray) -> bool:
    with np.errstate(all="ignore"):
        return bool((values == np.trunc(values)).all() and values.max() >= 1 and values.min() >= 0)


def _rewrite(path: Path, width: str) -> str:
    """How a file of another width becomes a bin."""
    bits, is_big = int(width.partition("-")[0]), "big-endian" in width
    kind = "f" if "floating" in width else "u"
    dtype = f"{'>' if is_big else '<'}{kind}{bits // 8}" if bits > 8 else "u1"
    largest = np.memmap(path, dtype, "r", shape=(path.stat().st_size * 8 // bits,)).max()
    if largest > 0xFFFF:
        return f"These reach {int(largest):,} and do not fit: {PREPARE} --tokenizer=DIR"
    name = path.name
    return f"To write them again: numpy.fromfile({name!r}, {dtype!r}).astype('<u2').tofile({name!r})"


def other_files(directory: Path) -> str | None:
    """What a directory without train.bin holds, if it is tokens in another format."""
    for suffix, what in OTHERS.items():
        if found := sorted(directory.glob(f"*{suffix}")):
            return f"{directory}: holds {what} ({found[0].name}); {PREPARE} --out_dir=DIR"
    for path in sorted(directory.glob("*.bin")):
        with open(path, "rb") as file:
            head = file.read(32)
        for magic, what, _ in KINDS:
            if re.match(magic, head, re.DOTALL):
                return f"{directory}: {path.name} is {what}; {PREPARE} --out_dir=DIR"
    return None


def largest_id(path: Path) -> int:
    """The largest 16-bit id in a bin, which is read once as long as it does not change."""
    facts = path.stat()
    return _largest_id(path, facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=64)
def _largest_id(path: Path, size: int, changed: int) -> int:
    ids = np.memmap(path, dtype="<u2", mode="r")
    return max(int(ids[first : first + CHUNK_BYTES].max()) for first in range(0, len(ids), CHUNK_BYTES))
