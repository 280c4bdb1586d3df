"""Character encodings: names that users give, and which one some bytes are probably in."""

from __future__ import annotations

import codecs
import contextlib
import difflib
import encodings.aliases
import re
import unicodedata

from finetune.common.errors import UsageError
from finetune.data import letters

# the wide ones first: the mark of UTF-32LE begins with that of UTF-16LE
MARKS = {
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
ESCAPES = {  # of the 7-bit encodings that switch between alphabets
    "iso2022_jp": rb"\x1b\$[@B]|\x1b\([JI]",
    "iso2022_jp_2": rb"\x1b\$\(D|\x1b\.[AF]",
    "iso2022_kr": rb"\x1b\$\)C",
}
HZ = re.compile(rb"~\{((?:[\x21-\x57][\x21-\x7e])+)~\}")
# common in text of any language: ASCII, punctuation and spaces of CJK
COMMON_CHARACTERS = re.compile("[\t\n\r -~\u3000-\u3002\uff0c\uff01\uff1f]")
KANA = re.compile("[\u3041-\u3096\u30a1-\u30fc]")  # not those of half width, which are the letters of others
# what editors and spreadsheets of Windows call encodings
OF_EDITORS = {"ansi": ["cp1252"], "oem": ["cp437", "cp850"], "unicode": ["utf-16"], "unicode_text": ["utf-16"]}
NO_FILES = ("undefined", "idna", "punycode")  # codecs of text, but not of files
CONTROLS = bytes({*range(32)} - {*b"\t\n\v\f\r\x1b"})
# what charset-normalizer may choose from: it knows rare ones, which short texts happen to fit
CANDIDATES = """
    cp1252 cp1251 koi8_r cp866 cp932 euc_jp gb18030 big5 cp949 cp1250 cp1253 cp1254 cp1255 cp1256 cp874
    mac_roman cp850 cp437
""".split()


def find_codec(name: str) -> str:
    """Python's name of a text encoding. Raises UsageError with the names that are similar."""
    if codec := codec_of_text(name.strip()):
        return codec
    wanted = re.sub("[- ]", "_", name.strip().lower()).replace("windows_", "cp")
    known = {*encodings.aliases.aliases, *encodings.aliases.aliases.values()}
    similar = map(codec_of_text, OF_EDITORS.get(wanted) or difflib.get_close_matches(wanted, known, 4, 0.7))
    near = sorted({codec for codec in similar if codec})
    advice = f"; did you mean {' or '.join(near)}?" if near else "; examples are utf-8, utf-16, cp1252 and shift_jis"
    raise UsageError(f"encoding: no encoding {name!r}{advice}")


def codec_of_text(name: str) -> str | None:
    """Python's name of an encoding of text; None for another name, such as base64, or ansi where Windows is not."""
    with contextlib.suppress(LookupError, ValueError):
        codec = codecs.lookup(name)
        with contextlib.suppress(UnicodeError):
            b"a".decode(codec.name)  # LookupError for codecs such as base64, which do not give text
        if codec.name not in NO_FILES:
            return "utf-8" if codec.name == "utf-8-sig" else codec.name
    return None


def encoding_of_mark(data: bytes) -> tuple[str | None, int]:
    """The encoding that a byte order mark at the start names, and its length; two programs may each have put one."""
    for mark, encoding in MARKS.items():
        if data.startswith(mark):
            return encoding, len(mark) * (1 + data.startswith(mark, len(mark)))
    return None, 0


def codec_of(data: bytes, codec: str) -> tuple[str, int]:
    """The codec of a file that begins with `data` if `codec` is named, and the length of the byte order mark."""
    marked, length = encoding_of_mark(data)
    if marked is None and codec in ("utf-16", "utf-32"):
        return wide_or_escaped(data) or codec, 0
    return marked or codec, length


def is_utf8(data: bytes) -> bool:
    """Whether bytes, which may end within a character, are UTF-8."""
    return _decode(data, "utf-8") is not None


def is_surely_utf8(data: bytes) -> bool:
    """Whether bytes are UTF-8 with so many characters beyond ASCII that no other encoding gives them by chance."""
    text = _decode(data, "utf-8")
    return text is not None and sum(not char.isascii() for char in text[: 1 << 16]) >= 4


def flaw_in_utf8(error: UnicodeDecodeError, size: int) -> str | None:
    """What is wrong where bytes are not UTF-8 although others around them are; None if they are another encoding."""
    data, start = error.object, error.start
    if re.match(rb"\xed[\xa0-\xbf][\x80-\xbf]", data[start : start + 3]):
        return ": half of a surrogate pair, which is no character of its own; convert it with uconv -f CESU-8 -t UTF-8"
    text = data[max(0, start - size) : start + size].decode("utf-8", "replace")
    bad = text.count("\ufffd")
    good = sum(not char.isascii() for char in text) - bad
    if good >= 4 * max(1, bad) or (good and error.reason == "unexpected end of data"):
        return f", the text {'around' if data[:start].isascii() else 'before'} it is; repair it"
    return ": a character in more bytes than it has; repair it" if data[start : start + 2] == b"\xc0\x80" else None


def wide_or_escaped(data: bytes) -> str | None:
    """The encoding of text that may pass for UTF-8 although it is UTF-16, UTF-32, ISO-2022 or HZ; else None."""
    for encoding, escapes in ESCAPES.items():
        if b"\x1b" in data and re.search(escapes, data) and _decode(data, encoding) is not None:
            return encoding
    if len(b"".join(HZ.findall(data))) > 12 and _decode(data, "hz") is not None:
        return "hz"
    # letters of ASCII and of Cyrillic in UTF-16 are UTF-8 too, but every second byte is a control character
    if is_utf8(data) and control_share(data) < 0.3:
        return None
    for encoding in ("utf-32-le", "utf-32-be"):
        if len(data) >= 4 and _is_text(_decode(data, encoding)):
            return encoding
    found = {encoding: _decode(data, encoding) for encoding in ("utf-16-le", "utf-16-be")}
    common = {name: len(COMMON_CHARACTERS.findall(text or "")) for name, text in found.items() if _is_text(text)}
    best = max(common, key=lambda name: common[name], default=None)
    if best is None or not common[best]:
        return None
    # two bytes of another encoding often make an assigned character, but rarely a common one
    return best if 0 in data and common[best] >= 0.005 * len(data) / 2 else None


def control_share(data: bytes) -> float:
    """The share of NULs and of control characters that are rare in text."""
    return 1 - len(data.translate(None, CONTROLS)) / len(data) if data else 0.0


def is_binary(data: bytes) -> bool:
    """Whether bytes hold more NULs (1%) or control characters (10%) than any text."""
    return data.count(0) > 0.01 * len(data) or control_share(data) > 0.1


def guess(data: bytes) -> str | None:
    """The encoding that bytes are probably in, by their letters, else by charset-normalizer; None if none fits."""
    from charset_normalizer import from_bytes

    if found := wide_or_escaped(data) or _japanese(data) or _punctuated(data) or letters.guess(data):
        return found
    matches = from_bytes(data, cp_isolation=[*CANDIDATES], preemptive_behaviour=False)
    best = matches.best()
    if best is None:
        return None
    # Western European is by far the commonest among those that fit equally well
    western = [match for match in matches if "cp1252" in (match.encoding, *match.could_be_from_charset)]
    foreign = [char for char in _decode(data, best.encoding) or "" if not char.isascii()]
    is_half_width = all("\uff61" <= char <= "\uff9f" for char in foreign)  # kana that no text has alone
    fits = (match.chaos <= best.chaos and match.coherence >= best.coherence - 0.05 for match in western)
    if any(fits) or (is_half_width and _decode(data, "cp1252") is not None):
        return "cp1252"
    return best.encoding


def _japanese(data: bytes) -> str | None:
    """The encoding of Japanese, which is full of kana."""
    for encoding in ("euc_jp", "cp932"):
        text = _decode(data, encoding) or ""
        if len(KANA.findall(text)) > 0.25 * sum(not char.isascii() for char in text):
            return encoding
    return None


def _punctuated(data: bytes) -> str | None:
    """The encoding of Chinese in which all that is not ASCII is quotes, dashes or dots of an English text."""
    for encoding in ("big5", "gb18030"):
        foreign = [char for char in _decode(data, encoding) or "" if not char.isascii()]
        if foreign and all("\u2010" <= char <= "\u2027" for char in foreign):
            return encoding
    return None


def is_wide(codec: str) -> bool:
    """Whether a codec is UTF-16 or UTF-32, of whose bytes many are NUL."""
    return codec.startswith(("utf-16", "utf-32"))


def _decode(data: bytes, encoding: str) -> str | None:
    try:
        return codecs.getincrementaldecoder(encoding)().decode(data)
    except UnicodeError:
        return None


def _is_text(text: str | None) -> bool:
    """Whether nearly all characters are assigned ones and no control characters."""
    if not text:
        return False
    odd = sum(unicodedata.category(char) in ("Cc", "Cn", "Co", "Cs") and char not in "\t\n\f\r\ufeff" for char in text)
    return odd <= 0.02 * len(text)
