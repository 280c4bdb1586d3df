"""A run on S3, where the server is moto's: `pip install s3fs 'moto[server]'` runs these tests."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from finetune.common import addresses, files
from finetune.common.storage import Storage
from finetune.config import mirror

pytest.importorskip("s3fs")
moto_server = pytest.importorskip("moto.server")

ADDRESS = "s3://bucket/runs/one"
LENGTH = 40


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A function that stops the server for some seconds; what it holds stays."""
    import boto3

    for name, value in {
        "ACCESS_KEY_ID": "testing",
        "SECRET_ACCESS_KEY": "geheimnis",
        "DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    running = [moto_server.ThreadedMotoServer(port=0)]
    running[0].start()
    port = running[0].get_host_and_port()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    client = boto3.client("s3")
    client.create_bucket(Bucket="bucket")

    def away(seconds):
        running[0].stop()
        time.sleep(seconds)
        running[0] = moto_server.ThreadedMotoServer(port=port)
        running[0].start()

    yield away
    for key in client.list_objects_v2(Bucket="bucket").get("Contents", []):
        client.delete_object(Bucket="bucket", Key=key["Key"])
    client.delete_bucket(Bucket="bucket")
    running[0].stop()


@pytest.fixture
def begin(server):
    """A function that trains in another process, which prints into train.log."""
    program = "import sys; from finetune.__main__ import main; sys.argv[0] = 'finetune'; sys.exit(main())"
    begun = []

    def make(*flags):
        command = [sys.executable, "-c", program, "train", f"--out_dir={ADDRESS}", *flags]
        with open("train.log", "a") as log:
            begun.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT))
        return begun[-1]

    yield make
    for process in begun:
        process.kill()
        process.wait()


@pytest.fixture
def steps(server):
    """A function that returns the steps of the states at the address, newest first."""
    storage = Storage(ADDRESS)
    return lambda: list(mirror.whole_states(storage, storage.files()))


def wait_for(condition, process):
    ends = time.monotonic() + 300
    while not condition():
        assert process.poll() is None and time.monotonic() < ends, Path("train.log").read_text()
        time.sleep(0.2)


def weights(directory):
    return [Path(directory, name, "model.safetensors").read_bytes() for name in ("best", f"last/step-{LENGTH:08d}")]


@pytest.fixture
def unbroken(tiny_run):
    """The weights of the same run on a disk."""
    saves = ("--save_interval=1", "--eval_interval=5", f"--max_iters={LENGTH}", "--n_embd=64")
    return weights(tiny_run("out", *saves))


def go_on(process):
    assert process.wait(300) == 0, Path("train.log").read_text()


def test_kills_and_machines_that_have_nothing(server, begin, steps, unbroken):
    reached = [0]
    while True:  # two kills on the way
        process = begin("out/recipe.yaml" if reached == [0] else "--init_from=auto")
        if len(reached) == 3:
            break
        wait_for(lambda: max(steps(), default=0) >= reached[-1] + 8, process)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        reached.append(max(steps()))
        shutil.rmtree("cache")
    go_on(process)
    assert weights(addresses.mirror_of(ADDRESS)) == unbroken
    shutil.rmtree("cache")
    mirror.fetch_run(addresses.mirror_of(ADDRESS), to_resume=True)
    assert weights(addresses.mirror_of(ADDRESS)) == unbroken
    assert "geheimnis" not in Path("train.log").read_text()


@pytest.mark.parametrize("seconds", [3, pytest.param(60, marks=pytest.mark.slow)])
def test_a_server_that_is_away(server, begin, steps, unbroken, seconds):
    process = begin("out/recipe.yaml")
    wait_for(lambda: steps(), process)
    server(seconds)
    go_on(process)
    told = Path("train.log").read_text()
    assert told.count("training goes on, and it is tried again") == 1, told
    assert f"{ADDRESS}: all is sent again" in told and f"{ADDRESS}: the run is there" in told
    shutil.rmtree("cache")
    mirror.fetch_run(addresses.mirror_of(ADDRESS), to_resume=True)
    assert weights(addresses.mirror_of(ADDRESS)) == unbroken


def test_an_object_that_was_cut(server, begin, steps, unbroken):
    """By its server: the state does not count, the one before is found, and the run sends it again."""
    process = begin("out/recipe.yaml")
    wait_for(lambda: len(steps()) == 2, process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    newest, before = steps()
    storage, name = Storage(ADDRESS), f"last/step-{newest:08d}/model.safetensors"
    storage.fs.pipe_file(f"bucket/runs/one/{name}", storage.read(name)[:100])
    assert steps() == [before]
    shutil.copytree("cache", "kept")
    shutil.rmtree("cache")
    mirror.fetch_run(addresses.mirror_of(ADDRESS), to_resume=True)
    assert [path.name for path in Path(addresses.mirror_of(ADDRESS), "last").glob("step-*")] == [f"step-{before:08d}"]
    shutil.rmtree("cache")
    shutil.move("kept", "cache")
    go_on(begin("--init_from=resume"))
    assert weights(addresses.mirror_of(ADDRESS)) == unbroken and max(steps()) == LENGTH


def test_large_files_are_known_by_the_sums_of_their_parts(server, tmp_path, monkeypatch):
    content = os.urandom(1 << 20) * 120  # three parts
    path = tmp_path / "large"
    path.write_bytes(content)
    storage, reads = Storage("s3://bucket/large"), []
    kind, get = type(storage.fs), type(storage.fs).open
    monkeypatch.setattr(kind, "open", lambda *given, **named: reads.append(given) or get(*given, **named))
    storage.send(path, "file", files.sha256_of(path))
    assert "-3" in storage.fs.info("bucket/large/file")["ETag"] and not reads
    other = tmp_path / "other"
    other.write_bytes(content[:-1] + b"x")
    with pytest.raises(OSError, match="another file than was sent"):
        storage.check(other, "file", files.sha256_of(other))
