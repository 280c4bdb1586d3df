"""nanoGPT's meta.pkl, read and written as plain data: nothing in the file is ever executed."""

from __future__ import annotations

import io
import pickle
import pickletools

MAX_BYTES = 16 * 1024 * 1024
MAX_MARKS = 8  # open at once; a vocabulary has at most two
# opcodes that build numbers, strings, lists and dictionaries; none imports, calls or allocates a buffer of a given size
PLAIN = (
    "PROTO FRAME STOP MARK INT BININT BININT1 BININT2 LONG LONG1 FLOAT BINFLOAT"
    " UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 EMPTY_DICT DICT EMPTY_LIST LIST SETITEM SETITEMS"
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


def read(data: bytes) -> list[str]:
    """The characters of a meta.pkl in id order. Raises ValueError, in one line, if it is not a valid vocabulary."""
    if len(data) > MAX_BYTES:
        raise ValueError(f"{len(data):,} bytes are too many for a character vocabulary")
    meta = _load(data)
    if not isinstance(meta, dict) or not {"vocab_size", "stoi", "itos"} <= meta.keys():
        raise ValueError("expected a dictionary of vocab_size, stoi and itos")
    itos, stoi = meta["itos"], meta["stoi"]
    if not isinstance(itos, dict) or not isinstance(stoi, dict) or itos.keys() != set(range(len(itos))):
        raise ValueError("itos must number its characters from 0 on")
    chars = [itos[i] for i in range(len(itos))]
    if not all(isinstance(char, str) and len(char) == 1 for char in chars):
        raise ValueError("itos must hold single characters")
    if stoi != {char: i for i, char in enumerate(chars)} or not meta["vocab_size"] == len(stoi) == len(chars):
        raise ValueError("vocab_size, stoi and itos contradict each other")
    return chars


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
