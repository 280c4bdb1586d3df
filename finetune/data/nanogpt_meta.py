"""nanoGPT's meta.pkl, read and written as plain data.

A pickle is a program. This reader knows only the instructions that build numbers, strings, lists and dictionaries; any
other instruction, among them all that import or call something, is refused by name, so nothing in the file is ever run.
"""

import pickletools
import struct

MAX_BYTES = 16 * 1024 * 1024
IGNORED = {"PROTO", "FRAME"}
VALUES = {
    "INT",
    "BININT",
    "BININT1",
    "BININT2",
    "LONG",
    "LONG1",
    "UNICODE",
    "BINUNICODE",
    "SHORT_BINUNICODE",
    "BINUNICODE8",
    "FLOAT",
    "BINFLOAT",
}


def read(data):
    """The `{"vocab_size", "stoi", "itos"}` of a meta.pkl's bytes, as `chars`, the list of characters in id order.

    Raises ValueError, saying at which byte, for anything but such plain data.
    """
    if len(data) > MAX_BYTES:
        raise ValueError(f"{len(data):,} bytes are too many for a character vocabulary")
    meta = _interpret(data)
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


def write(chars):
    """The bytes of a meta.pkl (protocol 2) that nanoGPT loads."""

    def number(value):
        return b"J" + struct.pack("<i", value)

    def text(value):
        raw = value.encode("utf-8", "surrogatepass")
        return b"X" + struct.pack("<I", len(raw)) + raw

    def dictionary(pairs):
        return b"}(" + b"".join(key + value for key, value in pairs) + b"u"

    itos = dictionary((number(i), text(char)) for i, char in enumerate(chars))
    stoi = dictionary((text(char), number(i)) for i, char in enumerate(chars))
    body = dictionary([(text("vocab_size"), number(len(chars))), (text("itos"), itos), (text("stoi"), stoi)])
    return b"\x80\x02" + body + b"."


def _interpret(data):
    stack, marks, memo = [], [], {}
    try:
        for opcode, argument, position in pickletools.genops(data):
            name = opcode.name
            if name in IGNORED:
                continue
            elif name in VALUES:
                stack.append(argument)
            elif name in ("EMPTY_DICT", "DICT", "EMPTY_LIST", "LIST"):
                if name in ("DICT", "LIST"):  # protocol 0 builds these from what lies above the mark
                    items = _pop_mark(stack, marks)
                    stack.append(dict(zip(items[::2], items[1::2], strict=True)) if name == "DICT" else items)
                else:
                    stack.append({} if name == "EMPTY_DICT" else [])
            elif name == "MARK":
                marks.append(len(stack))
            elif name == "SETITEM":
                value, item = stack.pop(), stack.pop()
                stack[-1][item] = value
            elif name == "SETITEMS":
                items = _pop_mark(stack, marks)
                stack[-1].update(zip(items[::2], items[1::2], strict=True))
            elif name in (
                "PUT",
                "BINPUT",
                "LONG_BINPUT",
                "MEMOIZE",
            ):  # a dictionary, so that a huge index costs nothing
                memo[len(memo) if name == "MEMOIZE" else argument] = stack[-1]
            elif name in ("GET", "BINGET", "LONG_BINGET"):
                stack.append(memo[argument])
            elif name == "STOP":
                return stack.pop()
            else:
                raise ValueError(
                    f"instruction {name} at byte {position} is not plain data; refused, because a pickle can run code"
                )
    except (IndexError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a well-formed pickle of plain data ({type(error).__name__})") from None
    raise ValueError("it ends too early")


def _pop_mark(stack, marks):
    start = marks.pop()
    items = stack[start:]
    del stack[start:]
    return items
