"""Cases of files as people have them: what each holds, and what is right. Bins are read here with numpy alone."""

import csv
import io
import json
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

END = "<end>"  # the end-of-text token in documents as `documents_of` shows them
NOUNS = "river garden window lantern harbour meadow kitchen violin".split()
Files = dict[str, str | bytes] | Callable[[], object]
Document = str | re.Pattern


@dataclass(frozen=True)
class Case:
    """Files, the arguments of finetune.prepare, and what is right: one of the `readings`, or a refusal in one line that
    holds each pattern of `refusal`. What is read must also print `says`."""

    name: str
    files: Files
    arguments: list[str]
    readings: tuple[Sequence[Document], ...] = ()
    refusal: tuple[str, ...] | None = None
    says: tuple[str, ...] = ()
    stdin: bytes | None = None

    def write(self):
        if callable(self.files):
            self.files()
            return
        for name, content in self.files.items():
            path = Path(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)


def reads(name, files, documents, flags="", says=(), stdin=None):
    """A case that is read as these documents."""
    return Case(name, files, _arguments(files, flags), (documents,), says=_patterns(says), stdin=stdin)


def refuses(name, files, words, flags=""):
    """A case that is refused with these words."""
    return Case(name, files, _arguments(files, flags), refusal=_patterns(words))


def either(name, files, readings, words, flags="", says=()):
    """A case that may be read as any of the `readings`, or refused."""
    return Case(name, files, _arguments(files, flags), tuple(readings), _patterns(words), _patterns(says))


def _patterns(words):
    return (words,) if isinstance(words, str) else tuple(words)


def _arguments(files, flags):
    """The flags; the first file is the source unless they name one."""
    arguments = shlex.split(flags)
    if all(argument.startswith("--") for argument in arguments):
        arguments.insert(0, next(iter(files)))
    return arguments


def texts(count=12):
    """Texts with what a reader may change: quotes, commas, separators, line ends, escapes and letters beyond ASCII."""
    return [
        f'Number {i}: "the {noun}", so they said; café ☕ and \\n stay.\nA second line, about the {noun}.'
        for i, noun in zip(range(count), NOUNS * count)
    ]


def plain(count=12):
    """Texts of one line without anything special."""
    return [f"The {noun} of house {i} is old and quiet" for i, noun in zip(range(count), NOUNS * count)]


def json_lines(rows, **options):
    return "".join(json.dumps(row, **options) + "\n" for row in rows)


def csv_text(rows, header=("id", "text"), **dialect):
    out = io.StringIO()
    writer = csv.writer(out, **{"lineterminator": "\n"} | dialect)
    writer.writerows([header, *rows] if header else rows)
    return out.getvalue()


def as_column(values, name="text"):
    return [{name: value} for value in values]


def of(*columns, count=12, **fixed):
    """Rows with these (name, values) columns."""
    return [{**{name: values[i] for name, values in columns}, **fixed} for i in range(count)]


def changed(values, number, value):
    """The values with another one at row `number`, counted from 1."""
    return [*values[: number - 1], value, *values[number:]]


def without(values, *numbers):
    return [value for number, value in enumerate(values, 1) if number not in numbers]


def learned(text):
    return f"⟦{text}{END}⟧"


def talk(*turns):
    """A conversation as our template writes it, what is learned in ⟦⟧. A turn is "role: content"; of "assistant-: ..."
    nothing is learned."""
    out = ""
    for turn in turns:
        role, content = turn.split(": ", 1)
        name = role.removesuffix("-").capitalize()
        if name != "Assistant":
            out += f"{name}:\n{content}\n\n"
        else:
            out += f"{name}:\n" + (content + END if role.endswith("-") else learned(content))
    return out


def talks(count=12):
    return [talk(f"user: What is {i}?", f"assistant: It is {i}.") for i in range(count)]


def looks_like(*parts):
    """A document that holds these parts in this order, with anything between them."""
    return re.compile(".*?".join(map(re.escape, parts)) + r"(\s|<end>)*", re.S)


def is_same(found, expected):
    """Whether these are the same documents in any order."""
    rest = list(found)
    for document in expected:
        if isinstance(document, str):
            match = next((other for other in rest if other == document), None)
        else:
            match = next((other for other in rest if document.fullmatch(other)), None)
        if match is None:
            return False
        rest.remove(match)
    return not rest


def documents_of(directory, byte_of, eot, splits=("train", "val")):
    """The documents of train.bin and val.bin, where id i is the byte `byte_of[i]`. Learned runs stand in ⟦⟧ if there is
    a mask; the end-of-text of a document without one is left out."""
    meta = json.loads(Path(directory, "meta.json").read_text(encoding="utf-8"))
    found, joined = [], ([], [])
    for split in splits:
        ids, mask, ends = _read_split(Path(directory), split, meta, eot)
        if meta["split_by"] in ("text", "characters"):
            joined[0].append(ids)
            joined[1].append(mask)
        else:
            found += _cut(ids, mask, ends)
    if joined[0]:
        ids = np.concatenate(joined[0])
        found = _cut(ids, np.concatenate(joined[1]), np.flatnonzero(ids == eot) + 1)
    return [_show(ids, mask, byte_of, eot) for ids, mask in found]


def _read_split(directory, split, meta, eot):
    ids = np.fromfile(directory / f"{split}.bin", dtype=np.dtype(meta.get("dtype", "uint16")).newbyteorder("<"))
    path = directory / f"{split}_mask.bin"
    # 2 is a token of a corpus without a mask
    mask = np.fromfile(path, dtype=np.uint8) if path.is_file() else np.full(len(ids), 2, np.uint8)
    path = directory / f"{split}_documents.bin"
    ends = np.fromfile(path, dtype="<u8").astype(int) if path.is_file() else np.flatnonzero(ids == eot) + 1
    assert len(mask) == len(ids)
    return ids, mask, ends


def _cut(ids, mask, ends):
    parts = zip(np.split(ids, ends), np.split(mask, ends))
    return [(part, its_mask) for part, its_mask in parts if len(part)]


def _show(ids, mask, byte_of, eot):
    if mask[0] == 2 and ids[-1] == eot:
        ids, mask = ids[:-1], mask[:-1]
    out = ""
    for run, its_mask in _cut(ids, mask, np.flatnonzero(np.diff(mask)) + 1):
        text = END.join(bytes(byte_of[part]).decode() for part in _at_ends(run, eot))
        out += f"⟦{text}⟧" if its_mask[0] == 1 else text
    return out


def _at_ends(ids, eot):
    places = np.flatnonzero(ids == eot)
    return [part[part != eot] for part in np.split(ids, places + 1)]
