"""Servers that never answer, drip, never end or answer nonsense: every command that uses a network ends in one line.

A server on 127.0.0.1 is the Hub, the place of GPT-2's vocabulary, or both; the limits are shrunk."""

import contextlib
import gzip
import json
import re
import socket
import struct
import threading
import time
from pathlib import Path

import pytest

from finetune.common import hub_client, network
from finetune.common.network import Unreachable

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
def serving(fault, honest=None):
    """The URL of a server that does this to everybody, but where `honest(method, path)` answers."""
    clients = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve(client):
            with contextlib.suppress(OSError), client:
                asked = client.recv(65536).decode("latin-1").split(" ")[:2]
                fitting = (honest(*asked) if honest else None) or fault
                fitting(client) if callable(fitting) else client.sendall(fitting)

        def accept():
            with contextlib.suppress(OSError):
                while True:
                    clients.append(listening.accept()[0])
                    threading.Thread(target=serve, args=(clients[-1],), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            for open_ in (listening, *clients):  # nobody drips on
                with contextlib.suppress(OSError):
                    open_.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def at(monkeypatch, tmp_path):
    """A function that makes a URL the Hub and the place of GPT-2's vocabulary, with limits of a blink."""
    monkeypatch.setattr(network, "IDLE_SECONDS", 1.0)
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
        monkeypatch.setattr("finetune.data.named_texts.SHAKESPEARE_URL", f"{url}/input.txt")

    return point


COMMANDS = {
    "sample": ("sample", "--init_from=owner/model"),
    "train": ("train", "--init_from=owner/model", "--dataset=bins", "--out_dir=out", "--device=cpu"),
    "a dataset": ("prepare", "owner/set", "--tokenizer=char", "--out_dir=data/set"),
    "the tokenizer": ("prepare", "t.txt", "--tokenizer=gpt2", "--out_dir=data/t"),
    "a tokenizer of the Hub": ("prepare", "t.txt", "--tokenizer=owner/model", "--out_dir=data/t"),
    "a named text": ("prepare", "shakespeare", "--tokenizer=char", "--out_dir=data/t"),
    "plan": ("plan", "--init_from=owner/model", "--dataset=bins", "--quick"),
    "a baseline": ("eval", "--init_from=model", "--dataset=bins", "--baseline=owner/model", "--device=cpu"),
    "export": ("export", "--init_from=owner/model", "--to=new"),
    "push": ("export", "--init_from=model", "--to=exported", "--push_to_hub=me/it"),
}


SLOW = [name for name in FAULTS if "drip" in name or name == "silence"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.heavy) if name in SLOW else name for name in FAULTS]
)
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
        if "silent" in told:  # every command waits that long
            monkeypatch.setattr(network, "IDLE_SECONDS", 0.3)
        for title, argv in COMMANDS.items():
            began = time.monotonic()
            code, out, error = command(*argv)
            took = time.monotonic() - began
            assert code == (4 if title == "push" else 2), (title, code, out, error)
            assert took < 20, (title, took)
            lines = error.splitlines()
            assert len(lines) == 1 and len(lines[0]) < 700 and "Traceback" not in error, (title, error)
            assert re.search(told, lines[0]), (title, lines[0])
            assert not Path("data/set").exists() and not Path("data/t").exists() and not Path("out/best").exists()


SHA = "a" * 40


def good_hub(files, more=""):
    """Honest answers about owner/model, but for the contents of its files."""
    listed = {"id": "owner/model", "modelId": "owner/model", "sha": SHA, "private": False}
    listed["siblings"] = [{"rfilename": name} for name in files]
    tree = [{"type": "file", "path": name, "size": len(files[name]), "oid": "b" * 40} for name in files]

    def honest(method, path):
        if path.startswith("/api/"):
            return answer(body=json.dumps(tree if "/tree/" in path else listed).encode())
        name = path.rsplit("/", 1)[1].partition("?")[0]
        if method == "HEAD" and name in files:
            known = f'ETag: "{"c" * 40}"\r\nX-Repo-Commit: {SHA}\r\n{more}'
            return answer(body=files[name], kind="text/plain", more=known).partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
        return None

    return honest


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("silence", marks=pytest.mark.heavy),
        "500",
        "a page of a proxy",
        "a cut body",
        pytest.param("a body that drips", marks=pytest.mark.heavy),
        "a body without an end",
        "a reset",
    ],
)
def test_a_hub_that_fails_in_the_middle_costs_one_line(name, at, command):
    fault, told = FAULTS[name]
    with serving(fault, good_hub({"config.json": b"x" * 1000, "model.safetensors": b"x" * 100_000})) as url:
        at(url)
        began = time.monotonic()
        code, out, error = command("sample", "--init_from=owner/model")
        assert code == 2 and len(error.splitlines()) == 1 and re.search(told, error), (code, out, error)
        assert time.monotonic() - began < 20


def test_a_busy_server_is_asked_again(at, monkeypatch):
    monkeypatch.setattr(hub_client, "TRIES", 3)
    monkeypatch.setattr(hub_client, "PAUSE_SECONDS", 0.01)
    asked = []

    def honest(method, path):
        asked.append(path)
        return answer("503 Service Unavailable", more="Retry-After: 3601\r\n") if len(asked) < 3 else good(method, path)

    good = good_hub({"config.json": b"{}"})
    with serving(b"", honest) as url:
        at(url)
        hub_client.bound()
        from huggingface_hub import HfApi

        assert HfApi().model_info("owner/model", timeout=5).sha == SHA and len(asked) == 3


def test_a_server_that_just_failed_is_tried_once(at, monkeypatch):
    """And three times again when a minute has passed, or after an answer."""
    monkeypatch.setattr(hub_client, "TRIES", 3)
    monkeypatch.setattr(hub_client, "PAUSE_SECONDS", 0.01)
    asked, is_busy = [], True

    def server(method, path):
        asked.append(path)
        return answer("503 Service Unavailable") if is_busy else good(method, path)

    good = good_hub({"config.json": b"{}"})
    with serving(b"", server) as url:
        at(url)
        hub_client.bound()
        from huggingface_hub import HfApi

        counts = []
        for seconds in (60, 60, 0):
            monkeypatch.setattr(hub_client, "FAILED_SECONDS", seconds)
            with pytest.raises(Unreachable):
                HfApi().model_info("owner/model", timeout=5)
            counts.append(len(asked))
        assert counts == [3, 4, 7]
        monkeypatch.setattr(hub_client, "FAILED_SECONDS", 60)
        is_busy = False
        assert HfApi().model_info("owner/model", timeout=5).sha == SHA
        is_busy = True
        with pytest.raises(Unreachable):
            HfApi().model_info("owner/model", timeout=5)
        assert len(asked) == 11


def test_files_come_within_the_limits_and_not_through_hf_xet(at, monkeypatch):
    """hf_xet would wait for a storage server that drips."""
    monkeypatch.delenv("HF_HUB_DISABLE_XET", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
    asked, content = [], b'{"n_layer": 1}'
    xet = f'X-Xet-Hash: {"d" * 64}\r\nLink: <https://huggingface.co/xet>; rel="xet-auth"\r\n'
    good = good_hub({"config.json": content}, xet)

    def honest(method, path):
        asked.append(path)
        file = answer(body=content, kind="text/plain") if method == "GET" and path.endswith("/config.json") else None
        return file or good(method, path)

    with serving(dripping(OK + b"\r\n"), honest) as url:
        at(url)
        assert Path(hub_client.hub_file("owner/model", "config.json")).read_bytes() == content
    assert asked and not any("xet" in path for path in asked)


def test_a_proxy_that_swallows_everything_is_given_up(at, command, monkeypatch):
    Path("t.txt").write_text("the quick brown fox. " * 50)
    with serving(lambda client: time.sleep(5)) as proxy:
        at("https://example.invalid")
        for name in ("http_proxy", "https_proxy"):
            monkeypatch.setenv(name, proxy)
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        began = time.monotonic()
        code, _, error = command("prepare", "t.txt", "--tokenizer=gpt2", "--out_dir=data/t")
        assert code == 2 and "silent" in error and "--tokenizer=DIR" in error and time.monotonic() - began < 20
        assert len(error.splitlines()) == 1


@pytest.mark.parametrize("name", FAULTS)
def test_a_download_is_bounded(name, at):
    with serving(FAULTS[name][0]) as url:
        at(url)
        began = time.monotonic()
        with contextlib.suppress(Unreachable):
            assert len(network.download(f"{url}/file", most=1 << 16)) < 1 << 16
        assert time.monotonic() - began < 15


@pytest.mark.heavy
def test_a_file_that_says_its_size_may_be_large_and_slow_readers_are_no_fault(at, monkeypatch):
    content = bytes(range(256)) * 10_000  # over MOST_BYTES of the fixture
    with serving(answer(body=content, kind="application/octet-stream")) as url:
        at(url)
        hub_client.bound()
        import huggingface_hub

        with huggingface_hub.get_session().stream("GET", f"{url}/weights.safetensors") as response:
            got = b""
            for number, part in enumerate(response.iter_bytes(1 << 18)):
                time.sleep(1.2 if number < 2 else 0)  # longer than IDLE_SECONDS
                got += part
        assert got == content
        with pytest.raises(Unreachable, match="more than"):
            huggingface_hub.get_session().get(f"{url}/config.json")


@pytest.mark.slow  # a busy machine can stop it for longer than the limit
def test_an_upload_may_take_long_as_long_as_it_goes_on(at):
    size = 30_000_000  # more than the buffers of the sockets

    def slow(client):
        got = 0
        while got < size - 8_000_000:
            got += len(client.recv(1 << 18))
            time.sleep(0.01)
        while got < size:
            got += len(client.recv(1 << 20))
        client.sendall(answer())

    with serving(slow) as url:
        at(url)
        hub_client.bound()
        import huggingface_hub

        began = time.monotonic()
        assert huggingface_hub.get_session().put(f"{url}/lfs/x", content=bytes(size)).status_code == 200
        assert time.monotonic() - began > 0.5  # longer than IDLE_SECONDS


def test_an_offline_mode_is_named_once():
    from huggingface_hub.errors import OfflineModeIsEnabled

    error = OfflineModeIsEnabled("a long message")
    assert network.unreachable(error) == "cannot be reached (HF_HUB_OFFLINE is set)"
    assert network.unreachable(ConnectionError("x")) == "cannot be reached (ConnectionError)"
