"""Servers that never answer, drip, never end or answer nonsense: every command that uses a network ends in one line.

A server on 127.0.0.1 is the Hub, the place of GPT-2's vocabulary, or both; the limits are shrunk."""

import contextlib
import gzip
import re
import socket
import struct
import threading
import time
from pathlib import Path

import pytest

from finetune.common import hub_client, network

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


def answer(status="200 OK", body=b"{}", kind="application/json", more=""):
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{more}Connection: close\r\n\r\n"
    )
    return head.encode() + body


def dripping(before):
    """What a server says before it goes on letter by letter."""

    def talk(client):
        client.sendall(before)
        while True:
            client.sendall(b"x")
            time.sleep(0.02)

    return talk


def endless(before, part):
    def talk(client):
        client.sendall(before)
        while True:
            client.sendall(part)

    return talk


def reset(client):
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


FAULTS = {  # what a server does, and what the line says of it
    "silence": (lambda client: time.sleep(5), "silent"),
    "a reset": (reset, "cannot be reached|was not expected"),
    "an end without an answer": (b"", "cannot be reached|was not expected"),
    "garbage": (b"\x00\xff\x13 SSH-2.0 hello\r\n\r\n" * 20, "cannot be reached|was not expected"),
    "429 for an hour": (answer("429 Too Many Requests", more="Retry-After: 3601\r\n"), "429"),
    "429 with a limit": (answer("429 Too Many Requests", more='RateLimit: "api";r=0;t=3601\r\n'), "429"),
    "500": (answer("500 Internal Server Error"), "500"),
    "502 as a page": (answer("502 Bad Gateway", b"<html>no</html>", "text/html"), "502"),
    "503": (answer("503 Service Unavailable", more="Retry-After: 3601\r\n"), "503"),
    "a page of a proxy": (answer(body=b"<html>log in</html>", kind="text/html; charset=utf-8"), "web page"),
    "no JSON": (answer(body=b"{not json"), "not JSON|was not expected|no whole answer|sha256|hash|not GPT-2"),
    "other JSON": (answer(body=b"[1, 2]"), "."),
    "a cut body": (OK + b"Content-Length: 1000\r\n\r\n{", "cannot be reached|was not expected"),
    "headers that drip": (dripping(b"HTTP/1.1 200 OK\r\nX: "), "silent"),
    "a body that drips": (dripping(OK + b"Content-Length: 100000\r\n\r\n"), "less than|silent"),
    "a body without an end": (endless(OK + b"\r\n", b"x" * 65536), "more than"),
    "headers without an end": (endless(b"HTTP/1.1 200 OK\r\n", b"X-Y: z\r\n" * 1000), "cannot be reached|not expected"),
    "a circle of redirects": (answer("302 Found", more="Location: /again\r\n"), "was not expected|redirects|cannot"),
    "a compressed bomb": (
        answer(body=gzip.compress(b" " * 50_000_000), more="Content-Encoding: gzip\r\n"),
        "compressed|more than",
    ),
}


@contextlib.contextmanager
def serving(fault):
    """The URL of a server that does this to everybody."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve(client):
            with contextlib.suppress(OSError), client:
                client.recv(65536)
                fault(client) if callable(fault) else client.sendall(fault)

        def accept():
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def at(monkeypatch, tmp_path):
    """A function that makes a URL the Hub and the place of GPT-2's vocabulary, with limits of a blink."""
    monkeypatch.setattr(network, "IDLE_SECONDS", 0.3)
    monkeypatch.setattr(network, "CONNECT_SECONDS", 0.3)
    monkeypatch.setattr(hub_client, "TRIES", 1)
    monkeypatch.setattr(hub_client, "MOST_BYTES", 1 << 20)
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "no-cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)

    def point(url):
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
        template = url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("datasets.config.HF_ENDPOINT", url)
        monkeypatch.setattr("finetune.data.tokenizer.TIKTOKEN_URL", url)

    return point


COMMANDS = {
    "sample": ("sample", "--init_from=owner/model"),
    "train": ("train", "--init_from=owner/model", "--dataset=bins", "--out_dir=out", "--device=cpu"),
    "a data set": ("prepare", "owner/set", "--tokenizer=char", "--out_dir=data/set"),
    "the tokenizer": ("prepare", "t.txt", "--tokenizer=gpt2", "--out_dir=data/t"),
    "push": ("export", "--init_from=model", "--to=exported", "--push_to_hub=me/it"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FAULTS)
def test_a_bad_server_costs_each_command_one_line(name, at, command, monkeypatch, byte_tokenizer):
    import shutil

    import numpy as np
    from conftest import write_bins

    from finetune import GPT, GPTConfig

    fault, told = FAULTS[name]
    Path("t.txt").write_text("the quick brown fox. " * 50)
    write_bins(Path("bins"), np.arange(400) % 5, np.arange(400) % 5)
    GPT.from_scratch(GPTConfig(block_size=16, vocab_size=257, n_layer=1, n_head=1, n_embd=8)).save_pretrained("model")
    shutil.copy(byte_tokenizer[0] / "tokenizer.json", "model")
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    assert command("export", "--init_from=model", "--to=exported")[0] == 0  # is only pushed below
    with serving(fault) as url:
        at(url)
        for title, argv in COMMANDS.items():
            began = time.monotonic()
            code, out, error = command(*argv)
            took = time.monotonic() - began
            assert code == (4 if title == "push" else 2), (title, code, out, error)
            assert took < 6, (title, took)
            lines = error.splitlines()
            assert len(lines) == 1 and len(lines[0]) < 700 and "Traceback" not in error, (title, error)
            assert re.search(told, lines[0]), (title, lines[0])
            assert not Path("data/set").exists() and not Path("data/t").exists() and not Path("out/best").exists()
