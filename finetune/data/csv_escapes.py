r"""The escapes of tab-separated values as mysql -B, jq's @tsv and Postgres' COPY write them: \n, \t, \r and \\."""

from __future__ import annotations

import re
from typing import Any

NULL = "\\N"  # of mysql and COPY
MEANINGS = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", "0": "\0", "b": "\b", "f": "\f", "v": "\v"}
ESCAPE = re.compile(r"\\([\s\S]?)")
LINE_END = re.compile(
    r"""(?:[.!?:…)]["'”]?|[^\x00-\x7f])\s?(?:(?:\\r)?\\n)+[ *-]{0,3}["'“]?(?:[A-Z][a-z ']|[^\x00-\x7f])"""
)  # between sentences
CODE = re.compile(
    r"""(?<![.!?,…])["'`]\\[ntr]|\\[ntr]["'`](?![A-Z])|^(["']).*\1$|(?<![A-Za-z])[A-Za-z]:\\[ntr]"""
)  # strings of a program, and paths of Windows
JSON = re.compile(r"""\s*[{\[]\s*["'{\[]""")
TEX = re.compile(
    r"\\(nabla|neq|notin|newline|newcommand|noindent|text\w+|theta|times|tau|tilde|rho|right\w*|ref|rangle|frac|forall"
    r"|footnote|beta|begin|bf|vec|varphi|vspace)(?![A-Za-z])"
)  # none of them is a word behind its first letter
# a backslash that begins no path, pattern or word of TeX
PLAIN = re.compile(r"""\\(?:[_'"*~.>#`+!&/\s\\-]|[^\x00-\x7f]|[om]/|$)""")


def find_escapes(lines: list[str]) -> str | None:
    r"""The letters of the escapes in the first lines; "" if they may be characters, None if they surely are.

    A writer of escapes leaves no other backslash. \N as a cell shows it, or \n between sentences in most of the cells
    with \n."""
    cells = [cell for line in lines for cell in line.rstrip("\r\n").split("\t") if "\\" in cell]
    texts = [cell for cell in cells if cell != NULL]
    has_null = len(texts) < len(cells)
    known = "ntr\\0" + "bfv" * has_null
    singles = [text.replace("\\\\", "\x01") for text in texts]
    is_json = not has_null and any(map(JSON.match, texts))
    if is_json or not {*ESCAPE.findall("\n".join(texts))} <= {*known}:
        return None
    if any(map(TEX.search, singles)):
        return ""
    with_ends = [text for text in singles if "\\n" in text]
    has_ends = bool(with_ends) and 2 * sum(bool(LINE_END.search(text)) for text in with_ends) >= len(with_ends)
    return known if has_null or (has_ends and not any(map(CODE.search, singles))) else ""


def unescape(cell: str, facts: dict[str, Any]) -> tuple[str, str | None]:
    r"""(a cell with a backslash as it is meant, what is wrong with it); `facts` gets counts of cells: `escaped`, and
    `unread`, whose backslashes are kept.

    A writer that replaces only line ends leaves a backslash such as that of \_, and doubles none."""
    known = facts.get("escapes")
    others = [match for match in ESCAPE.finditer(cell) if match[1] not in known] if known else []
    if known and others:
        are_left = "b" not in known and "doubled" not in facts and not (TEX.search(cell) or CODE.search(cell))
        if are_left and all(PLAIN.match(cell, match.start()) for match in others):
            known = facts["escapes"] = known.replace("\\", "")
        elif "escaped" in facts:
            problem = (
                f"\\{others[0][1]} is no escape, and cells before it have those of mysql, jq or COPY: \\n, \\t, \\\\"
            )
            return cell, f"{problem}; write the table as csv or jsonl"
        else:
            known = facts["escapes"] = None
    marks = {*ESCAPE.findall(cell)}
    if known is not None and (marks - {*known} if known else marks & {*"ntr"}):
        facts["unread"] = facts.get("unread", 0) + 1
    if not known or not marks & {*known}:
        return cell, None
    facts["escaped"] = facts.get("escaped", 0) + 1
    if "\\" in marks & {*known}:
        facts["doubled"] = True
    text = ESCAPE.sub(lambda match: MEANINGS[match[1]] if match[1] in known else match[0], cell)
    return text.replace("\r\n", "\n").replace("\r", "\n"), None
