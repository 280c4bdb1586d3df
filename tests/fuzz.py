"""Calls of commands in this process that are watched: how they end, what they print, how long and how much they take,
and what they wrote. And values that somebody might send."""

import contextlib
import copy
import hashlib
import importlib
import io
import json
import logging
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import unicodedata
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest import mock

from hypothesis import strategies as st

from finetune.config import cli

SECONDS, BYTES = 20, 2 << 30  # of a call: of processor time, or three times as many where it waits
MAY_FAIL = ("plan",)  # 1 if memory or disk are too small; everywhere else 1 would be an error that nobody foresaw
CODES = {0, 2, 3, 4, 5}


class TooSlow(BaseException):
    """A call took more than SECONDS."""


@dataclass
class Ended:
    code: int
    out: str
    err: str


@contextlib.contextmanager
def inside(place):
    """A context with this working directory."""
    before = os.getcwd()
    os.chdir(place)
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def example(base, *without):
    """A context in a new copy of a directory, some names in it left out. `..` and `~` lead to one of its own."""
    with tempfile.TemporaryDirectory(prefix="fuzz-", ignore_cleanup_errors=True) as home:
        place = Path(home, "here")
        place.mkdir()
        for path in base.iterdir():
            if path.name not in without and path.name != "files":
                copy_all = partial(shutil.copytree, copy_function=shutil.copyfile)
                (copy_all if path.is_dir() else shutil.copyfile)(path, Path(place, path.name))
        with mock.patch.dict(os.environ, HOME=home), inside(place):
            yield


def sign(path):
    """Let the manifest of a directory describe a file as it is now."""
    manifest = path.parent / "manifest.json"
    content, whole = path.read_bytes(), json.loads(manifest.read_text())
    whole["files"][path.name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest.write_text(json.dumps(whole))


def listing(directory="."):
    """{path: size} of all files and links, without caches and locks."""
    return {
        str(path): path.lstat().st_size
        for path in Path(directory).rglob("*")
        if not path.is_dir() and ".arrow" not in path.parts and path.name != ".lock"
    }


@contextlib.contextmanager
def watched():
    """A context that raises TooSlow, and MemoryError for more than BYTES."""

    def stop(number, frame):
        raise TooSlow(f"over {SECONDS} s")

    used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()  # data and stack
    before = resource.getrlimit(resource.RLIMIT_DATA)
    usual = {number: signal.signal(number, stop) for number in (signal.SIGALRM, signal.SIGPROF)}
    resource.setrlimit(resource.RLIMIT_DATA, (used + BYTES, before[1]))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, 3 * SECONDS)
    try:
        yield
    finally:
        for timer in (signal.ITIMER_PROF, signal.ITIMER_REAL):
            signal.setitimer(timer, 0)
        for number, handler in usual.items():
            signal.signal(number, handler)
        resource.setrlimit(resource.RLIMIT_DATA, before)


def call(verb, *argv, answers=""):
    """A command as its process would run it. Raises what would be a traceback."""
    module = importlib.import_module(f"finetune.{verb}")
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors) for errors in ("strict", "backslashreplace"))
    kept = sys.argv, sys.stdin
    sys.argv, sys.stdin = [verb, *argv], io.TextIOWrapper(io.BytesIO(answers.encode("utf-8", "surrogatepass")), "utf-8")
    code = None
    logging.disable(logging.INFO)  # pytest would keep each line of an ONNX export, thousands of times over
    try:
        with watched(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.run(module.main)
    except SystemExit as end:
        code = end.code
    finally:
        sys.argv, sys.stdin = kept
        logging.disable(logging.NOTSET)
    texts = []
    for stream in (out, err):
        stream.flush()
        texts.append(stream.buffer.getvalue().decode("utf-8", "backslashreplace"))
    return Ended(code, *texts)


def check(verb, *argv, answers=""):
    """Call a command in the directory of an example; what holds of every call is asserted. Return how it ended."""
    before, began = listing(), time.perf_counter()
    ended = call(verb, *argv, answers=answers)
    told = f"finetune {verb} {' '.join(map(repr, argv))}\n{ended.code} after {time.perf_counter() - began:.1f} s\n"
    told += f"{ended.out[-2000:]}\n{ended.err[-4000:]}"
    assert ended.code in CODES or (ended.code == 1 and (verb in MAY_FAIL or "dry_run" in str(argv))), told
    assert "Traceback" not in ended.err, told
    shown = ended.err + ended.out * (verb != "sample")  # what a model writes is not changed
    strange = {char for char in shown if unicodedata.category(char) in ("Cc", "Cs") and char not in "\n\t\r"}
    assert not strange, f"{strange} on the terminal\n{told}"
    if ended.code:
        longest = max(map(len, (ended.err or ended.out or " ").splitlines()))
        assert longest <= 500, f"a line of {longest} characters\n{told}"
        assert (ended.err + ended.out).strip(), f"not a word\n{told}"
    if ended.code == 2:
        after = listing()
        assert after == before, f"refused, and wrote {set(after.items()) ^ set(before.items())}\n{told}"
    return ended


NUMBERS = [
    *("0", "1", "-1", "2", "3", "1e30", "1e308", "-1e308", "1e12", "1e-320", "1e-300", "0.5", "nan"),
    *("inf", "-inf", "1e400"),
    *("9" * 19, str(2**63), str(2**64), "9" * 400, "9" * 5000, "1e5", "1_0", "0x10", "١", "²"),
    *("1,5", "--", "", " ", "1 2"),
    *("2147483648", "65536", "100000", "1000000"),
]  # fmt: skip
SIZES = "0 1 2 3 7 8 100 1023 65535 65536 100000 1000000 1e9 1e12 1e15 9e18 1e19 1e30 1e300 99999999999".split()
RATES = "0 1 0.5 1e-5 1e-300 1e-320 5e-324 0.999999999999 1e5 1e30 1e300 1e308 1.7e308 0.1 2 -0.0".split()
WORDS = [
    *("", " ", "none", "null", "true", "auto", "char", "a" * 300, "x\0y", "\udcff", "\ud800"),
    *("\x1b[31mred", "a\nb", "\r"),
    *("..", ".", "/", "~", "~nobody", "/dev/null", "/dev/zero", "/proc/self/environ"),
    *("FILE:/dev/zero", "FILE:", "data"),
    *("run", "run/best", "run/metrics.jsonl", "data/train.bin", "text.txt", ",", "a,b", "{", "{x}"),
    *("{0.__class__}", "%s"),
    *("*", "[", "(", "\\", "'", '"', "<|endoftext|>", "東京", "e\u0301", "\u202e", "\ufeff", "="),
    *("=x", "-", "--", "#"),
    *("val_loss<3", "val_loss<nan", "val_loss<1e400", "bleu", "no.py", "dedup", "0.7,0.3"),
    *("1e308,1e308", "a/b", "a" * 5000),
]  # fmt: skip
numbers = st.one_of(st.sampled_from(NUMBERS), st.integers().map(str), st.floats().map(repr))
# the characters of st.text() itself, which encodes each character there is to find them
characters = st.characters(exclude_categories=["Cs"])
words = st.one_of(st.sampled_from(WORDS), st.text(characters, max_size=20))
values = st.one_of(numbers, words)


def deep(depth, ends="[]"):
    """A value as text that is nested `depth` levels."""
    return ends[0] * depth + ends[1] * depth


class Raw(str):
    """JSON as it is written."""


hostile = st.one_of(
    st.sampled_from([None, True, False, 0, -1, 1, 2, 1.5, -0.0, 10**6, 10**9, 2**31, 2**63, 2**64,
        10**400, 1e308]),
    st.sampled_from([Raw("NaN"), Raw("-Infinity"), Raw("1e999"), Raw("9" * 5000), Raw(deep(50)),
        Raw(deep(100_000))]),
    st.sampled_from(["", "x", "\x1b[2Jgone", "a\nb", "\0", "\ud800", "a" * 1000, "1", "../x",
        "/etc/passwd", "<script>"]),
    st.sampled_from([[], {}, [[]], [None], {"": {}}, ["a"] * 3, list(range(50)), {"a": 1}, [1e400]]),
)  # fmt: skip


def places(value, above=()):
    """The way to each part of a JSON value."""
    yield above
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(min(len(value), 8)):
            yield from places(value[key], (*above, key))


@st.composite
def changed_json(draw, value):
    """JSON text of `value` with one to three parts replaced, removed, doubled or added."""
    value = copy.deepcopy(value)
    raw = {}
    for number in range(draw(st.integers(1, 3))):
        *way, last = ("", *draw(st.sampled_from(list(places(value)))))
        parent, holder = {"": value}, None
        for key in way:
            parent = parent[key]
        how = draw(st.sampled_from(["replace", "replace", "replace", "remove", "add"]))
        new = copy.deepcopy(draw(hostile))
        if isinstance(new, Raw):
            raw[f"@{number}@"] = new
            new = f"@{number}@"
        if how == "remove" and last != "":
            del parent[last]
        elif how == "add" and isinstance(parent, dict) and last != "":
            parent[draw(st.sampled_from(["x", "", "format", "__class__", "\x1b", "type"]))] = new
        elif how == "add" and isinstance(parent, list):
            parent.append(new)
        elif last == "":
            value = new
        else:
            parent[last] = new
        holder = value
        if not isinstance(holder, dict | list):
            break
    text = json.dumps(value)
    for mark, content in raw.items():
        text = text.replace(f'"{mark}"', content)
    return text.encode()


@st.composite
def changed_bytes(draw, content):
    """`content` with a few bytes flipped, cut, doubled or put in."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        where = draw(st.integers(0, max(len(content) - 1, 0)))
        how = draw(st.sampled_from(["flip", "flip", "cut", "insert", "double", "zero", "head"]))
        if how == "flip" and content:
            content[where] = draw(st.integers(0, 255))
        elif how == "cut":
            del content[where : where + draw(st.sampled_from([1, 2, 8, 100, 1 << 30]))]
        elif how == "insert":
            content[where:where] = draw(st.sampled_from(INSERTED))
        elif how == "double":
            content[where:where] = content[where : where + 200]
        elif how == "zero":
            content[where : where + 4] = bytes(4)
        elif how == "head":
            content[: draw(st.integers(0, 8))] = b"\xff\xff\xff\xff\x7f"
    return bytes(content)


INSERTED = [
    *(b"\0", b"\xff", b"\xef\xbb\xbf", b"\x1b[31m", b"\r", b"\n\n", b'"', b"'", b",", b";", b"\t"),
    *(b"{", b"}", b"[", b"]"),
    *(b"\xed\xa0\x80", b"\\ud800", b"\\u0000", b"NaN", b"1e999", b"9" * 5000, b"null", b"# ", b": "),
    *(b"- ", b"&a ", b"*a"),
    *(b"[" * 100_000, b"{" * 100_000, b'{"a":' * 3000, b"!!python/object/apply:os.system "),
    *(b" " * 100_000, b"a" * 70_000),
    *(b"key: a" + b" " * 60_000 + b"b", b"x: \"" + b"\\a" * 20_000, b"<|endoftext|>"),
    *(b"base: recipe.yaml\n", b"? [a]\n: b\n"),
]  # fmt: skip
