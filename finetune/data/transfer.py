"""Texts that were written in ASCII to be sent: UTF-7, base64, quoted-printable, mail in them, and Twitter's archive."""

from __future__ import annotations

import base64
import binascii
import quopri
import re

from finetune.common.errors import UsageError
from finetune.data.encodings import is_binary, is_surely_utf8, is_utf8

MIN_FOREIGN, MIN_LINES, LOOK_CHARACTERS = 4, 4, 1 << 16
MAIL = re.compile(
    r"(From \S+.*\n)?(From|To|Date|Subject|Received|Return-Path|Message-ID|MIME-Version|Delivered-To|X-[\w-]+):",
    re.IGNORECASE,
)
# of a message, of the next one in a file of several, and of a part of a message
HEADERS = re.compile(r"(?:^(?:From |--)\S.*\n|\A)(?:[\w-]+:.*\n|[ \t]+\S.*\n)*", re.MULTILINE)
ENCODED = re.compile(r"^Content-Transfer-Encoding:\s*(base64|quoted-printable)", re.IGNORECASE | re.MULTILINE)
ARCHIVE = re.compile(r"\s*window\.YTD\.[\w.]+\s*=")
QUOTED = re.compile(r"=[0-9A-F]{2}|=\r?\n")
BASE64_LINE = re.compile(r"\s*[A-Za-z0-9+/]+={0,2}\s*$", re.MULTILINE)


def check(text: str, name: str, way_out: str) -> None:
    """Raise UsageError for a text, of which the beginning is given, whose letters are hidden behind others."""
    head = text[:LOOK_CHARACTERS]
    head = head if head.isascii() else ""
    if MAIL.match(text) and (kind := _mail_kind(text)):
        way = "save the messages as text from a mail program"
        raise UsageError(f"{name}: is mail in {kind}, so its text is encoded; {way}, {way_out}")
    if ARCHIVE.match(head):
        way = f"sed '1s/^[^=]*=//' '{name}' writes it to a file with the suffix .json"
        raise UsageError(f"{name}: is JSON of Twitter's archive behind the name of a variable; {way}, {way_out}")
    if _is_utf7(head):
        way = f"iconv -f UTF-7 -t UTF-8 '{name}' converts it"
        raise UsageError(f"{name}: is in UTF-7, so its text is encoded; {way}, {way_out}")
    for kind, is_kind in (("base64", _is_base64), ("quoted-printable", _is_quoted)):
        if is_kind(head):
            way = f"Python's {'base64' if kind == 'base64' else 'quopri'} module converts it"
            raise UsageError(f"{name}: is in {kind}, so its text is encoded; {way}, {way_out}")


def _mail_kind(text: str) -> str | None:
    """The encoding that hides the words below one of the headers."""
    for headers in HEADERS.finditer(text):
        if found := ENCODED.search(headers[0]):
            kind = found[1].lower()
            if BASE64_LINE.match(text, headers.end()) if kind == "base64" else QUOTED.search(text, headers.end()):
                return kind
    return None


def _is_utf7(head: str) -> bool:
    if head.count("+") < MIN_FOREIGN:
        return False
    try:
        decoded = head[: head.rfind("\n") + 1 or None].encode().decode("utf-7")
    except UnicodeError:
        return False
    foreign = [char for char in decoded if not char.isascii()]
    return len(foreign) >= MIN_FOREIGN and all(map(str.isprintable, foreign))


def _is_base64(head: str) -> bool:
    lines = head.split("\n")[:-1]
    width = len(lines[0]) if lines else 0
    if not 40 <= width <= 80 or len(lines) < MIN_LINES or {len(line) for line in lines[:-1]} != {width}:
        return False
    try:
        content = base64.b64decode("".join(lines[:-1])[: 4 * (width * (len(lines) - 1) // 4)], validate=True)
    except (binascii.Error, ValueError):
        return False
    return is_utf8(content) and not is_binary(content)


def _is_quoted(head: str) -> bool:
    return len(QUOTED.findall(head)) >= 2 * MIN_FOREIGN and is_surely_utf8(quopri.decodestring(head.encode()))
