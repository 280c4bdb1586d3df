"""Network access with bounds: a server that is silent, drips, never ends or answers nonsense ends a step in one line.

`hub_client` keeps these limits for the Hub."""

from __future__ import annotations

import contextlib
import contextvars
import queue
import socket
import threading
import time
from collections.abc import Callable
from typing import TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

T = TypeVar("T")
SECONDS = 5  # to see whether a server is there at all
CONNECT_SECONDS = 10
IDLE_SECONDS = 30  # without progress
LEAST_BYTES = 1 << 15  # in IDLE_SECONDS: less is no progress


class Unreachable(OSError):
    """A server that gives no usable answer; the message is one line that says which and how."""


class Progress:
    """When the last LEAST_BYTES came or went."""

    def __init__(self) -> None:
        self.at, self.bytes = time.monotonic(), 0

    def add(self, count: int) -> None:
        self.bytes += count
        if self.bytes >= LEAST_BYTES:
            self.at, self.bytes = time.monotonic(), 0

    def check(self, server: str) -> None:
        """Raise Unreachable after IDLE_SECONDS."""
        if time.monotonic() - self.at > IDLE_SECONDS:
            how = f"sent less than {LEAST_BYTES:,} bytes in" if self.bytes else "was silent for"
            raise Unreachable(f"{server} {how} {IDLE_SECONDS} s")


def reach(url: str) -> None:
    """Connect once to the server of a URL, through the proxy of the environment. Raises OSError."""
    address = urlsplit(url)
    proxies = getproxies()
    proxy = proxies.get(address.scheme) or proxies.get("all")
    if proxy and not proxy_bypass(address.hostname or ""):
        address = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    port = address.port or {"https": 443, "http": 80}.get(address.scheme, 1080)  # else a SOCKS proxy
    socket.create_connection((address.hostname, port), timeout=SECONDS).close()


def download(url: str, most: int) -> bytes:
    """The content of a small file. Raises Unreachable."""
    import requests

    server, progress, parts = urlsplit(url).netloc, Progress(), []

    def read() -> bytes:
        with requests.get(url, stream=True, timeout=(CONNECT_SECONDS, IDLE_SECONDS)) as response:
            response.raise_for_status()
            if response.headers.get("Content-Type", "").startswith("text/html"):
                raise Unreachable(f"{server} answered with a web page instead of data")
            size = 0
            for part in response.iter_content(1 << 12):
                progress.add(len(part))
                parts.append(part)
                size += len(part)
                if size > most:
                    raise Unreachable(f"{server} sent more than {most:,} bytes")
        return b"".join(parts)

    try:
        return watched(read, server, progress)
    except Unreachable:
        raise
    except OSError as error:  # each of requests is one
        raise Unreachable(f"{server} {explain(error)}") from None


def causes(error: BaseException) -> list[BaseException]:
    """An error and what it came from."""
    chain = [error]
    while link := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(link)
    return chain


def explain(error: BaseException) -> str:
    """What a server did, from an error of any network library: `cannot be reached (...)`, `answered 500`."""
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    chain = causes(error)
    for link in chain:
        if isinstance(link, Unreachable):
            return str(link)
        if (response := getattr(link, "response", None)) is not None:
            return f"answered {response.status_code}"
    kinds = " ".join(base.__name__ for link in chain for base in type(link).__mro__)
    if "OfflineMode" in kinds:
        return "HF_HUB_OFFLINE is set"
    if "JSON" in kinds:
        return "answered what is not JSON"
    if "Timeout" in kinds:
        return f"was silent ({type(error).__name__})"
    if "Connect" in kinds or "Network" in kinds or "Protocol" in kinds or "OSError" in kinds:
        return f"cannot be reached ({type(error).__name__})"
    return f"answered what was not expected ({type(error).__name__})"


def unreachable(error: BaseException) -> str:
    """`cannot be reached`, with what the server did."""
    why = explain(error)
    return why if why.startswith("cannot be reached") else f"cannot be reached ({why})"


def watched(call: Callable[[], T], server: str, progress: Progress | None = None) -> T:
    """`call()`, given up with Unreachable when it makes no progress. A thread of its own makes it, since no library
    limits all its waits: names that are looked up, proxies, headers that come letter by letter."""
    progress, outcome = progress or Progress(), queue.SimpleQueue()

    def run() -> None:
        try:
            outcome.put((call(), None))
        except BaseException as error:
            outcome.put((None, error))

    threading.Thread(target=contextvars.copy_context().run, args=(run,), daemon=True).start()
    while True:
        with contextlib.suppress(queue.Empty):
            result, error = outcome.get(timeout=IDLE_SECONDS / 10)
            if error:
                raise error
            return result
        progress.check(server)
