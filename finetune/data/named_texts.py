"""Texts with a name of their own: `python_docs` and `shakespeare`."""

from __future__ import annotations

import hashlib
from pathlib import Path
from urllib.parse import urlsplit

from finetune.common import network
from finetune.common.errors import UsageError
from finetune.common.files import write_file

SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


def python_docs() -> bytes:
    """Python's language reference, the text of help(): 465,048 characters in Python 3.11."""
    from pydoc_data.topics import topics

    return "\n".join(topics.values()).encode("utf-8")


def shakespeare(url: str = SHAKESPEARE_URL) -> Path:
    """Tiny Shakespeare (1,115,394 characters) as data/shakespeare/input.txt, downloaded if missing. Raises
    UsageError."""
    import urllib.request

    path = Path("data/shakespeare/input.txt")
    if path.is_file():
        return path
    progress = network.Progress()

    def read() -> bytes:
        content = b""
        with urllib.request.urlopen(url, timeout=network.CONNECT_SECONDS) as response:
            while len(content) < 1 << 22 and (part := response.read1(1 << 16)):
                progress.add(len(part))
                content += part
        return content

    try:
        content = network.watched(read, urlsplit(url).netloc, progress)
    except OSError as error:
        advice = f"Put the file {url} at {path} by hand, or use python_docs, which needs no download"
        raise UsageError(f"shakespeare: cannot be downloaded ({error}). {advice}") from None
    if hashlib.sha256(content).hexdigest() != SHAKESPEARE_SHA256:
        raise UsageError(f"shakespeare: the file at {url} is not tiny Shakespeare (its sha256 differs); nothing saved")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, content)
    return path
