"""The client of huggingface_hub, which the library `datasets` uses too, within the limits of `network`."""

from __future__ import annotations

import functools
import importlib
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from finetune.common import network
from finetune.common.network import Progress, Unreachable, watched

TRIES, PAUSE_SECONDS = 3, 1  # of a request that changes nothing; the pause grows with each
FAILED_SECONDS = 60  # for which a server that gave no answer is tried once: a command asks for several files
GPT2_REPOS = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
COMMIT_SECONDS = 60  # for which a branch is not asked for again: a command finds its model several times
_commits: dict[tuple[str, str | None], tuple[float, str | None]] = {}  # when which revision was which commit
_failed_at: dict[str, float] = {}  # when which server gave none
MOST_BYTES = 1 << 28  # of an answer that does not say its size, or of a kind that is small
PIECE_BYTES = 1 << 16  # of what is sent, so that its progress is seen
SMALL = (".json", ".txt", ".model", ".md", ".jinja")
BUSY = (408, 429, 500, 502, 503, 504)  # answers that another try may change


def hub_file(repo: str, name: str, revision: str | None = None) -> str:
    """The path of a file of a Hub repository in the local cache, downloaded if needed. Raises the errors of
    huggingface_hub within seconds."""
    from huggingface_hub import hf_hub_download

    if (folder := cached_folder(repo, name, revision)) and is_newest(repo, revision, folder):
        return str(folder / name)
    bound()
    # fails at once; a download would retry for half a minute
    model_info(repo, revision)
    return hf_hub_download(repo, name, revision=revision, etag_timeout=network.SECONDS)


def cached_folder(repo: str, name: str, revision: str | None) -> Path | None:
    """The directory in the local cache that holds a file of a revision, None without one."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repo, name, revision=revision)
    return Path(path).parent if isinstance(path, str) else None


def is_newest(repo: str, revision: str | None, folder: Path) -> bool:
    """Whether a snapshot of the cache is still what the Hub means by its branch or tag. A Hub that does not say counts
    as yes, with a line on standard error. GPT-2's own repositories are not asked about: they do not change."""
    if folder.name == revision or repo.removeprefix("openai-community/") in GPT2_REPOS:
        return True
    asked_at, commit = _commits.get((repo, revision), (-math.inf, None))
    if time.monotonic() > asked_at + COMMIT_SECONDS:
        commit = _asked_commit(repo, revision, folder)
    return commit in (None, folder.name)


def model_info(repo: str, revision: str | None) -> Any:
    """What the Hub says of a model."""
    from huggingface_hub import HfApi

    info = HfApi().model_info(repo, revision=revision, timeout=network.SECONDS)
    _commits[repo, revision] = time.monotonic(), info.sha
    return info


def ask_again(repo: str) -> None:
    """Ask the Hub again what the branches of a repository are: it was written to."""
    for key in [key for key in _commits if key[0] == repo]:
        del _commits[key]


def _asked_commit(repo: str, revision: str | None, folder: Path) -> str | None:
    from huggingface_hub import constants

    _commits[repo, revision] = time.monotonic(), None
    if constants.HF_HUB_OFFLINE:
        return None
    try:
        network.reach(constants.ENDPOINT)  # within seconds, without another try
        bound()
        return model_info(repo, revision).sha
    except Exception as error:  # each network failure has its own class
        say_cached(repo, folder, error)
        return None


def say_cached(repo: str, folder: Path, error: Exception) -> None:
    """Tell that a snapshot of the cache is used because of an error, once on each machine."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        copy = f"the copy in the cache is used, of commit {folder.name[:10]}"
        print(f"{repo}: the Hub {network.explain(error)}; {copy}", file=sys.stderr)


def plainer(error: Exception, repo: str) -> Exception:
    """An error of `datasets` about a dataset of the Hub, or what is behind it: that library says little of a server.
    The Hub is asked once more for that."""
    from huggingface_hub import HfApi

    try:
        if not any(isinstance(link, Unreachable) for link in network.causes(error)):
            HfApi().dataset_info(repo, timeout=network.SECONDS)
            return error
    except Exception as other:  # each network failure has its own class
        error = other
    return Unreachable(f"the Hub: {network.explain(error)}")


def bound() -> None:
    """Let huggingface_hub keep the limits in this process. Releases before 1.0 have their own."""
    import huggingface_hub.constants

    if "HF_HUB_DISABLE_XET" not in os.environ:  # hf_xet transfers files by itself, and waits for a server that drips
        huggingface_hub.constants.HF_HUB_DISABLE_XET = True
    usual = huggingface_hub.get_session()
    if hasattr(huggingface_hub, "set_client_factory") and not hasattr(usual, "keeps_limits"):
        kind, hooks = _bounded(type(usual)), usual.event_hooks
        huggingface_hub.set_client_factory(lambda: kind(event_hooks=hooks, follow_redirects=True, timeout=None))


class Sent:
    """The body of a request."""

    def __init__(self, inner: Any, progress: Progress) -> None:
        self.inner, self.progress = inner, progress

    def __iter__(self) -> Iterator[bytes]:
        for part in self.inner:
            for start in range(0, len(part), PIECE_BYTES):
                piece = part[start : start + PIECE_BYTES]
                self.progress.add(len(piece))
                yield piece


class Received:
    """The body of an answer, of at most `most` bytes."""

    def __init__(self, inner: Any, server: str, most: float) -> None:
        self.inner, self.server, self.most = inner, server, most

    def __iter__(self) -> Iterator[bytes]:
        size, progress, parts = 0, Progress(), iter(self.inner)
        while (part := self._next(parts)) is not None:
            size += len(part)
            progress.add(len(part))
            progress.check(self.server)
            if size > self.most:
                raise Unreachable(f"{self.server} sent more than {self.most:,} bytes")
            came = time.monotonic()
            yield part
            progress.at += time.monotonic() - came  # the reader may take its time

    def _next(self, parts: Iterator[bytes]) -> bytes | None:
        try:
            return next(parts, None)
        except Exception as error:  # of the network library
            raise Unreachable(f"{self.server} {network.explain(error)}") from error

    def close(self) -> None:
        self.inner.close()


@functools.cache
def _bounded(usual: Any) -> Any:
    """A class of clients, of the httpx that huggingface_hub has."""
    httpx = importlib.import_module(usual.__module__.partition(".")[0])
    sent, received = (type(kind.__name__, (kind, httpx.SyncByteStream), {}) for kind in (Sent, Received))

    class Client(usual):
        keeps_limits = True

        def send(self, request: Any, *, stream: bool = False, **options: Any) -> Any:
            seconds, server = network.IDLE_SECONDS, request.url.netloc.decode()
            asked = request.extensions.get("timeout", {})
            limits = {"connect": network.CONNECT_SECONDS, "read": seconds, "write": seconds, "pool": seconds}
            request.extensions["timeout"] = {kind: min(asked.get(kind) or most, most) for kind, most in limits.items()}
            if not stream:
                request.headers["Accept-Encoding"] = "identity"  # a small body could become a large one
            progress = Progress()
            if request.method not in ("GET", "HEAD"):
                request.stream = sent(request.stream, progress)
            send = functools.partial(super().send, request, stream=True, **options)
            response = _exchange(send, request.method, server, progress, httpx.TransportError)
            _check(response, server, stream)
            is_sized = "content-length" in response.headers
            is_small = "/api/" in request.url.path or request.url.path.endswith(SMALL)
            most = float("inf") if is_sized and not is_small else MOST_BYTES
            response.stream = received(response.stream, server, most)
            if not stream:
                response.read()
            return response

    return Client


def _exchange(send: Callable[[], Any], method: str, server: str, progress: Progress, errors: type[Exception]) -> Any:
    """The answer to a request, tried again unless it sends something. Raises Unreachable."""
    has_failed = time.monotonic() < _failed_at.get(server, -math.inf) + FAILED_SECONDS
    tries, problem = TRIES if method in ("GET", "HEAD") and not has_failed else 1, ""
    for number in range(tries):
        time.sleep(number * PAUSE_SECONDS)
        progress.at = time.monotonic()
        try:
            response = watched(send, server, progress)
        except errors as error:
            problem = f"{server} {network.explain(error)}"
            if "Timeout" in type(error).__name__:
                break
            continue
        if response.status_code not in BUSY:
            _failed_at.pop(server, None)
            return response
        if method not in ("GET", "HEAD"):  # huggingface_hub tries again, but not after the hour that a server may want
            for name in ("retry-after", "ratelimit"):
                response.headers.pop(name, None)
            return response
        problem = f"{server} answered {response.status_code} {response.reason_phrase}".rstrip()
        response.close()
    _failed_at[server] = time.monotonic()
    raise Unreachable(problem)


def _check(response: Any, server: str, stream: bool) -> None:
    """Raise Unreachable for a web page in the place of a file or of data."""
    kind = response.headers.get("content-type", "")
    is_page = kind.startswith("text/html") and not response.url.path.endswith((".html", ".htm"))
    if response.is_success and is_page or not stream and "content-encoding" in response.headers:
        response.close()
        raise Unreachable(f"{server} answered with {'a web page' if is_page else 'a compressed body'} instead of data")
