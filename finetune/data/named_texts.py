"""Texts with a name of their own: `python_docs` and `shakespeare`."""

from __future__ import annotations

import hashlib
from pathlib import Path

from finetune.common import network
from finetune.common.errors import UsageError
from finetune.common.files import write_file

SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


def python_docs() -> bytes:
    """Python's language reference, the text of help(): 465,048 characters in Python 3.11."""
    from pydoc_data.topics import topics

    return "\n".join(topics.values()).encode("utf-8")


def shakespeare(url: str = "") -> Path:
    """Tiny Shakespeare (1,115,394 characters) as data/shakespeare/input.txt, downloaded if missing. Raises
    UsageError."""
    path, url = Path("data/shakespeare/input.txt"), url or SHAKESPEARE_URL
    if path.is_file():
        return path
    try:
        content = network.download(url, most=1 << 22)
    except OSError as error:
        advice = f"Put the file {url} at {path} by hand, or use python_docs, which needs no download"
        raise UsageError(f"shakespeare: cannot be downloaded ({error}). {advice}") from None
    if hashlib.sha256(content).hexdigest() != SHAKESPEARE_SHA256:
        raise UsageError(f"shakespeare: the file at {url} is not tiny Shakespeare (its sha256 differs); nothing saved")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, content)
    return path
