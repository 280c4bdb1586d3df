"""Which one-byte encoding gives a text of some bytes: that in which they are the letters of one language.

Statistics over bytes, as charset-normalizer has them, need more text than one word with an accent."""

from __future__ import annotations

import codecs
import re
from functools import lru_cache

WESTERN = ("cp1252", "mac_roman", "cp850", "cp437")
CENTRAL = ("cp1250", "iso8859_2", "cp852", "mac_latin2")
CYRILLIC = ("cp1251", "koi8_r", "koi8_u", "cp866", "iso8859_5", "mac_cyrillic")
EBCDIC = ("cp037", "cp500", "cp273", "cp1140")
PUNCTUATION = "’‘“”„–—…•«»€°§ £¢©®™·×½¼¾²³"  # of every Latin alphabet
# letters beyond ASCII by language, and the encodings that it is written in, the commoner first
LATIN = (
    ("éèàçêâôîûùëïœæÿÉÈÀÇÊÂÔÎÛÙËÏŒÆ", WESTERN),
    ("äöüßÄÖÜéàẞ", WESTERN),
    ("áéíóúñü¿¡ÁÉÍÓÚÑÜªº", WESTERN),
    ("ãõçáéíóúâêôàüÃÕÇÁÉÍÓÚÂÊÔÀªº", WESTERN),
    ("àèéìíòóùÀÈÉÌÒÓÙ", WESTERN),
    ("åäöéæøÅÄÖÉÆØ", WESTERN),
    ("ąćęłńóśźżĄĆĘŁŃÓŚŹŻ", CENTRAL),
    ("áčďéěíňóřšťúůýžľĺŕôäÁČĎÉĚÍŇÓŘŠŤÚŮÝŽĽĹŔÔÄ", CENTRAL),
    ("áéíóöőúüűÁÉÍÓÖŐÚÜŰ", CENTRAL),
    ("čćđšžČĆĐŠŽ", CENTRAL),
    ("ăâîşţĂÂÎŞŢ", CENTRAL),
    ("çğıöşüâîÇĞİÖŞÜ", ("cp1254",)),
    ("äöõüšžÄÖÕÜŠŽ", ("cp1257", "cp1252")),
    ("ąčęėįšųūžĄČĘĖĮŠŲŪŽ", ("cp1257",)),
    ("āčēģīķļņšūžĀČĒĢĪĶĻŅŠŪŽ", ("cp1257",)),
    ("áðéíóúýþæöÁÉÍÓÚÝÞÆÖ", ("cp1252", "mac_iceland")),
    ("éèàçáíóúñäöüßåøæãõôêâîëïìòùŠšŽžÉÈÀÇÁÍÓÚÑÄÖÜÅØÆÃÕÔÊÂÎËÏ", WESTERN),  # names of several languages
)
# alphabets by the frequency of their letters
OTHERS = (
    ("оеаинтсрвлкмдпуяыьгзбчйхжшюцщэфъё", CYRILLIC),
    ("оаинвітерскмлудпязьбгчйхїєжшюцщфґ", CYRILLIC),
    ("аиоетнрсвлкдпмзгябъучцжщхшюйфь", CYRILLIC),
    ("αοιετσνηυρπκμλςγδωάίόέήύώθφχβξζψϊΐ", ("cp1253", "iso8859_7")),
    ("יוהלאתרבמשנקםדעחפכצגטזןסךץף", ("cp1255", "iso8859_8")),
    ("اليمونرتبةعدسفهكقحجشطصخغىأذئزثضءظإآؤ", ("cp1256", "iso8859_6")),
    ("านรกอเงมยลวดทสตะปบคหแจพชขใไโผซถณศธษภัิีึืุู่้็์ำ", ("cp874",)),
)
# what no word is: a capital behind small letters, another mark between letters, and no letter of ASCII
BROKEN_LATIN = re.compile(
    r"[a-zß-ÿ](?=[À-ÖØ-ÞĀĂĄĆČĎĐĒĖĘĚĢĪĶĻŁŃŅŇŐŒŘŚŞŠŤŮŰŽ])"
    r"|[A-Za-z][„…•€°§£¢©®™·×½¼¾²³«»¿¡](?=[a-z])"
    r"|[^\W\d_A-Za-z]{5}"
)
# a dash between words without spaces, and what says that a text has dashes at all: quotes around words, and "don’t"
DASHED = re.compile(r"[A-Za-z][—–](?=[a-z])")
QUOTED = re.compile(r"(?:^|[\s(])“\w[^“”]*[\w.,!?…]”(?=\W|$)|n’t\b", re.MULTILINE)
# Hebrew: no letters of ASCII beside its own, and some end only words
HEBREW = re.compile(r"[\x00-\x7f\xa0א-ת–—‘’“”₪]*")
NO_HEBREW = re.compile("[A-Za-z][א-ת]|[א-ת][A-Za-z]|[ךםןףץ][א-ת]")
FINAL = re.compile(r"[א-ת][ךםןףץ]\b")
ENOUGH, NEARLY = 0.9, 0.02
ENOUGH_OF_OTHERS = 0.7  # whose rare letters count less
LOOK_BYTES = 1 << 13


def guess(data: bytes) -> str | None:
    """The encoding in which bytes are a language's letters; None if no language has nearly all of them."""
    data = data[:LOOK_BYTES]
    if _is_ebcdic(data):
        return max(EBCDIC, key=lambda codec: (_latin(data.decode(codec), LATIN[-1][0]), -EBCDIC.index(codec)))
    hebrew = _decode(data, "cp1255") or ""
    if HEBREW.fullmatch(hebrew) and FINAL.search(hebrew) and not NO_HEBREW.search(hebrew):
        return "cp1255"
    found: dict[str, float] = {}
    for languages, score_of, enough in ((LATIN, _latin, ENOUGH), (OTHERS, _other, ENOUGH_OF_OTHERS)):
        for letters, encodings in languages:
            for encoding in encodings:
                text = _decode(data, encoding)
                score = score_of(text, letters) if text is not None else 0.0
                if score >= enough:
                    found[encoding] = max(score, found.get(encoding, 0.0))
    best = max(found.values(), default=0.0)
    good = [name for name, score in found.items() if score >= best - NEARLY]
    western = [name for name in WESTERN if name in good]  # the commoner first, whatever language fits
    return western[0] if western and good[0] in western else next(iter(good), None)


@lru_cache(maxsize=64)
def _decode(data: bytes, encoding: str) -> str | None:
    try:
        return codecs.decode(data, encoding)
    except UnicodeError:
        return None


def _latin(text: str, letters: str) -> float:
    """The share of characters beyond ASCII that are these letters, less the places that no word has."""
    foreign = [char for char in text if not char.isascii()]
    broken = len(BROKEN_LATIN.findall(text)) + (0 if QUOTED.search(text) else len(DASHED.findall(text)))
    return (sum(char in letters or char in PUNCTUATION for char in foreign) - broken) / max(1, len(foreign))


def _other(text: str, letters: str) -> float:
    """The same for an alphabet of its own: common letters count more; letters beside ASCII ones, capitals and changes
    of case within a word less."""
    foreign = [char for char in text if not char.isascii()]
    small = text.lower()
    counted = sum(1 - 0.6 * letters.index(char) / len(letters) for char in small if char in letters)
    counted += sum(char in PUNCTUATION for char in foreign)
    word = f"[{letters}]"
    broken: float = len(re.findall(f"[a-z]{word}|{word}[a-z]", small))
    if letters.upper() != letters:
        broken += len(re.findall(f"{word}[{letters.upper()}]", text)) + max(
            0, sum(map(str.isupper, foreign)) - len(foreign) / 2
        )
    return (counted - broken) / max(1, len(foreign))


def _is_ebcdic(data: bytes) -> bool:
    """Whether bytes are text of a mainframe: its blanks, and small letters from 0x81 to 0xA9."""
    small = sum(0x81 <= byte <= 0x89 or 0x91 <= byte <= 0x99 or 0xA2 <= byte <= 0xA9 for byte in data)
    return small > 0.5 * len(data) and data.count(0x40) > 0.08 * len(data) and data.count(0x20) < 0.01 * len(data)
