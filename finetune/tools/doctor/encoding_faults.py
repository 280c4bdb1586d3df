"""Faults that a wrong encoding leaves in a text, and the text without them."""

from __future__ import annotations

import re

# the first byte of two, three or four in UTF-8, then another of them, as Latin-1 or Windows-1252 shows them
SUSPECT = re.compile(r"[\xc2-\xf4][\x80-\xbf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]|[\xc2\xc3] ")
FAULTS = {
    "nul": re.compile("\0"),
    "control": re.compile("[\x01-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"),
    "bom": re.compile("\ufeff"),
    "lost": re.compile("\ufffd"),
}
LINE_END = re.compile("\r\n?")
ASCII_FAULT = re.compile("[\0-\x08\x0b-\x1f\x7f]")  # all that can be wrong with ASCII

Faults = dict[str, tuple[int, str]]  # kind: how many lines, and the first of them


def repair(text: str) -> tuple[str, Faults]:
    """The text without faults of encoding, and the faults. "lost" characters are counted and stay lost."""
    faults: Faults = {}
    if text.isascii() and not ASCII_FAULT.search(text):
        return text, faults
    if "\r" in text:
        first_line = text[: text.index("\r")].rpartition("\n")[2]
        text, count = LINE_END.subn("\n", text)
        faults["crlf"] = count, first_line
    if SUSPECT.search(text):
        import ftfy  # tells mojibake from „Spaß“, which looks suspect

        lines = text.split("\n")
        fixed = [ftfy.fix_encoding(line) if SUSPECT.search(line) else line for line in lines]
        wrong = [line for line, right in zip(lines, fixed) if line != right]
        if wrong:
            faults["mojibake"] = len(wrong), wrong[0]
            text = "\n".join(fixed)
    for kind, pattern in FAULTS.items():
        if pattern.search(text):
            wrong = [line for line in text.split("\n") if pattern.search(line)]
            faults[kind] = len(wrong), wrong[0]
            text = text if kind == "lost" else pattern.sub("", text)
    return text, faults
