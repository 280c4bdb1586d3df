"""Faults that a wrong encoding leaves in a text, and the text without them."""

import re

# a first byte of two, three or four in UTF-8, then one of the others, as Latin-1 or Windows-1252 shows them
SUSPECT = re.compile(r"[\xc2-\xf4][\x80-\xbf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]|[\xc2\xc3] ")
FAULTS = {"nul": "\0", "control": "[\x01-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", "bom": "\ufeff", "lost": "\ufffd"}
FAULTS = {kind: re.compile(characters) for kind, characters in FAULTS.items()}
LINE_END = re.compile("\r\n?")
ODD = re.compile("[\0-\x08\x0b-\x1f\x7f]")  # all that can be wrong with ASCII


def repair(text):
    """The text without faults of encoding, and {kind: (how many lines, the first of them)}. "lost" is counted and
    cannot be mended."""
    faults = {}
    if text.isascii() and not ODD.search(text):
        return text, faults
    if "\r" in text:
        faults["crlf"] = len(LINE_END.findall(text)), text[: text.index("\r")].rpartition("\n")[2]
        text = LINE_END.sub("\n", text)
    if SUSPECT.search(text):
        import ftfy  # its heuristic tells „Spaß“, which looks suspect, from mojibake

        lines = text.split("\n")
        mended = [ftfy.fix_encoding(line) if SUSPECT.search(line) else line for line in lines]
        wrong = [line for line, right in zip(lines, mended) if line != right]
        if wrong:
            faults["mojibake"] = len(wrong), wrong[0]
            text = "\n".join(mended)
    for kind, pattern in FAULTS.items():
        if pattern.search(text):
            wrong = [line for line in text.split("\n") if pattern.search(line)]
            faults[kind] = len(wrong), wrong[0]
            text = text if kind == "lost" else pattern.sub("", text)
    return text, faults
