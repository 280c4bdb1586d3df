"""nanoGPT's meta.pkl, read and written as plain data: nothing in the file is ever executed."""

from __future__ import annotations

import io
import pickle
import pickletools
from dataclasses import dataclass
from pathlib import Path

from finetune.common.errors import UsageError

MAX_BYTES = 16 * 1024 * 1024
MAX_IDS = 1 << 20
MAX_MARKS = 8  # open at once; a vocabulary has at most two
# opcodes that build numbers, strings, lists and dictionaries; none imports, calls or allocates a buffer of a given size
PLAIN = (
    "PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 FLOAT BINFLOAT"
    " UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 EMPTY_DICT DICT EMPTY_LIST LIST APPEND APPENDS SETITEM SETITEMS"
    " PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET"
)

OPCODE_NAMES = {opcode.code: opcode.name for opcode in pickletools.opcodes}


class _Dispatch(dict):
    def __missing__(self, code: int) -> None:
        name = OPCODE_NAMES.get(chr(code), f"{code:#04x}")
        raise pickle.UnpicklingError(f"opcode {name} is not plain data; refused, because a pickle can run code")


class _Unpickler(pickle._Unpickler):
    """The unpickler in Python, whose memo is a dict: a huge index costs no memory."""

    metastack: list[object]
    dispatch = _Dispatch(
        {getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]] for name in PLAIN.split()}
    )

    def load_mark(self) -> None:
        if len(self.metastack) == MAX_MARKS:
            raise pickle.UnpicklingError("it is nested too deeply")
        super().load_mark()  # pyrefly: ignore[missing-attribute]

    dispatch[pickle.MARK[0]] = load_mark

    def find_class(self, module: str, name: str) -> None:  # a second guard: no opcode in `dispatch` calls it
        raise pickle.UnpicklingError("it imports something; refused, because a pickle can run code")


@dataclass(frozen=True)
class NanoGPTMeta:
    """A meta.pkl of nanoGPT or of one of its forks."""

    vocab_size: int  # of a model from scratch; more than the tokens if it was padded
    tokens: list[str] | None  # in the order of their ids; None if they are not listed

    @property
    def chars(self) -> list[str] | None:
        """The tokens if all are single characters, else None: nothing says how a text is cut into longer ones."""
        return self.tokens if self.tokens and all(len(token) == 1 for token in self.tokens) else None


def read(data: bytes) -> NanoGPTMeta:
    """The content of a meta.pkl. Raises ValueError, in one line, if it is not a valid vocabulary."""
    if len(data) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES:,} bytes are too many for a vocabulary")
    meta = _load(data)
    if not isinstance(meta, dict) or not {"vocab_size", "itos", "stoi"} & meta.keys():
        raise ValueError("expected a dictionary of vocab_size, stoi and itos")
    tokens = _tokens(meta.get("itos"), meta.get("stoi"))
    vocab_size = meta.get("vocab_size", len(tokens or []))
    if type(vocab_size) is not int or not 1 <= vocab_size <= MAX_IDS:
        raise ValueError(f"vocab_size must be a whole number from 1 to {MAX_IDS:,}")
    if tokens and vocab_size < len(tokens):
        raise ValueError("vocab_size, stoi and itos contradict each other")
    return NanoGPTMeta(vocab_size, tokens)


def read_file(path: Path) -> NanoGPTMeta:
    """As `read`. Raises UsageError."""
    try:
        with open(path, "rb") as file:
            return read(file.read(MAX_BYTES + 1))
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None


def _tokens(itos: object, stoi: object) -> list[str] | None:
    """The tokens in the order of their ids, from either table; None without both. Raises ValueError."""
    if isinstance(itos, list):
        itos = dict(enumerate(itos))
    if itos is None and isinstance(stoi, dict):
        itos = {i: token for token, i in stoi.items()}
    if not itos and not stoi:
        return None
    if not isinstance(itos, dict) or itos.keys() != set(range(len(itos))):
        raise ValueError("itos must number its tokens from 0 on")
    tokens = [itos[i] for i in range(len(itos))]
    if not all(isinstance(token, str) and token for token in tokens):
        raise ValueError("itos must hold texts")
    if len(set(tokens)) < len(tokens) or stoi not in (None, {token: i for i, token in enumerate(tokens)}):
        raise ValueError("vocab_size, stoi and itos contradict each other")
    return tokens


def write(chars: list[str]) -> bytes:
    """The bytes of a meta.pkl (protocol 2) that nanoGPT loads."""
    itos = dict(enumerate(chars))
    return pickle.dumps({"vocab_size": len(chars), "itos": itos, "stoi": {char: i for i, char in itos.items()}}, 2)


def _load(data: bytes) -> object:
    try:
        return _Unpickler(io.BytesIO(data)).load()
    except EOFError:
        raise ValueError("it ends too early") from None
    except pickle.UnpicklingError as error:
        raise ValueError(str(error)[:200]) from None  # the index of a memo can have thousands of digits
    except Exception as error:  # struct.error, IndexError, TypeError and more, depending on the file
        raise ValueError(f"not a well-formed pickle of plain data ({type(error).__name__})") from None
