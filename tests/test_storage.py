"""A run whose out_dir is an address: sent while it trains, found again by a machine that has nothing."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from finetune import GPT
from finetune.common import addresses, files
from finetune.common.errors import Failure, UsageError
from finetune.common.network import Unreachable
from finetune.common.storage import Storage, in_one_line
from finetune.config import mirror, run_directory
from finetune.config.cli import parse
from finetune.config.recipe import Recipe
from finetune.run import Run
from finetune.runs import uploads
from finetune.train import train_and_push
from finetune.training.state import Hooks

STATES = ("last/step-00000010", "last/step-00000008")
SAVES = ("--save_interval=2", "--eval_interval=5")


def refusable(name):
    """A method of Flaky that changes what the server holds, unless that is refused."""

    def method(self, *given, **named):
        self.change(given)
        getattr(MemoryFileSystem, name)(self, *given, **named)

    return method


class Flaky(MemoryFileSystem):
    """A server in memory that refuses what changes it: from the given change on, for a number of changes, or files of
    one name."""

    protocol, store, pseudo_dirs = "flaky", {}, [""]
    changes, breaks_at, breaks_for, refuses = 0, None, 0, None

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("flaky://", "memory://"))

    def change(self, given):
        kind = type(self)
        kind.changes += 1
        if kind.refuses and any(kind.refuses in str(each) for each in given):
            raise ConnectionError("the line is dead")
        if kind.breaks_at is not None and 0 <= kind.changes - kind.breaks_at < kind.breaks_for:
            raise ConnectionError("the line is dead")

    put_file, pipe_file, cp_file, rm_file = map(refusable, ("put_file", "pipe_file", "cp_file", "rm_file"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    Flaky.store.clear()
    Flaky.changes, Flaky.breaks_at, Flaky.breaks_for, Flaky.refuses = 0, None, 0, None
    return tmp_path / "cache"


@pytest.fixture
def address(tmp_path):
    return f"file://{tmp_path}/remote/run"


def another_machine(cache):
    """What was here is gone."""
    shutil.rmtree(cache, ignore_errors=True)


def weights(directory):
    return [Path(directory, name, "model.safetensors").read_bytes() for name in ("best", STATES[0])]


def names_in(directory):
    """Its files, without those of the older state: a slow upload leaves one out, and keeps the one before."""
    names = {path.relative_to(directory).as_posix() for path in Path(directory).rglob("*") if path.is_file()}
    return {name for name in names if not name.startswith("last/") or name.startswith(STATES[0])}


def stopped_at(step, recipe):
    """Train, and end the run by SIGTERM in an update, when the state before it has been sent."""

    def before_update(setup, state):
        if state.step == step:
            ends = time.monotonic() + 60
            while not Path(f"remote/run/last/step-{step:08d}/manifest.json").exists() and time.monotonic() < ends:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGTERM)

    hooks = Hooks(before_update=before_update)
    with pytest.raises(Failure) as stopped:
        train_and_push(recipe, {}, hooks)
    return str(stopped.value)


@pytest.fixture
def half(tiny_run, tmp_path, address):
    """A run of which 7 of 10 updates were made and sent; returns the weights of the unbroken run."""
    tiny_run("out", *SAVES)
    recipe, _ = parse(Recipe, ["out/recipe.yaml", f"--out_dir={address}"], "")
    assert f"train --out_dir={address} --init_from=resume" in stopped_at(6, recipe)
    return weights("out")


def test_another_machine_goes_on_to_the_same_weights(half, command, cache, address, tmp_path):
    before = json.loads(Path("remote/run/metrics.jsonl").read_text().splitlines()[0])
    another_machine(cache)
    code, out, err = command("train", f"--out_dir={address}", "--init_from=resume")
    assert code == 0, err
    assert "at iteration 7" in out and f"{address}: the run is there" in out
    here = addresses.mirror_of(address)
    assert weights(here) == weights("remote/run") == half
    sent, kept = names_in("remote/run"), names_in(here)
    assert kept - sent == {".lock", ".storage.lock"} and not sent - kept
    assert not any(map(files.find_damage, [Path("remote/run/best"), *run_directory.states("remote/run")]))
    events = [json.loads(line) for line in Path("remote/run/metrics.jsonl").read_text().splitlines()]
    assert events[0] == before and [event["iter"] for event in events if event["event"] == "iter"] == list(range(10))


def test_auto_starts_and_resumes(tiny_run, command, cache, address):
    tiny_run(address, *SAVES)
    first = weights("remote/run")
    another_machine(cache)
    tiny_run(address, *SAVES, "--init_from=auto", text="corpus.txt")
    assert weights("remote/run") == first
    assert "this run is done" in command("train", f"--out_dir={address}", "--init_from=auto")[1]


def test_an_upload_that_was_cut_does_not_count(half, command, cache, address):
    newest = max(Path("remote/run/last").iterdir())
    cut = newest / "optimizer.safetensors"
    os.truncate(cut, 100)
    begun = Path("remote/run/last/step-00000001")  # in shards, as another launch of the run would write them
    begun.mkdir()
    (begun / "shard-00001-model-00001-of-00001.safetensors").write_bytes(b"a part")
    another_machine(cache)
    code, out, err = command("train", f"--out_dir={address}", "--init_from=resume")
    assert code == 0 and "at iteration 6" in out, err
    assert weights("remote/run") == half and not any(path.is_file() for path in begun.rglob("*"))


def test_a_file_of_the_right_size_with_other_bytes_does_not_count(half, command, cache, address):
    path = max(Path("remote/run/last").iterdir()) / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    another_machine(cache)
    code, out, err = command("train", f"--out_dir={address}", "--init_from=resume")
    assert code == 0 and "at iteration 6" in out and "its sha256 differs" in err
    assert weights("remote/run") == half


@pytest.mark.parametrize("damage", ["cut", "manifest", "gone"])
def test_what_is_cut_on_the_server_is_sent_again(tiny_run, command, address, damage):
    tiny_run(address, *SAVES)
    newest = Path("remote/run", STATES[0])
    if damage == "cut":
        os.truncate(newest / "model.safetensors", 10)
    elif damage == "manifest":
        (newest / files.MANIFEST).unlink()
    else:
        shutil.rmtree(newest)
    code, out, err = command("train", f"--out_dir={address}", "--init_from=resume")
    assert code == 0 and "this run is done" in out, err
    assert not files.find_damage(newest)


def test_the_newer_of_here_and_there_counts(tiny_run, command, cache, address, tmp_path):
    tiny_run(address, *SAVES, "--max_iters=6")
    shutil.copytree(cache, tmp_path / "older")
    assert command("train", f"--out_dir={address}", "--init_from=resume", "--max_iters=10")[0] == 0
    newer = weights("remote/run")
    another_machine(cache)
    shutil.copytree(tmp_path / "older", cache)
    out = command("train", f"--out_dir={address}", "--init_from=resume", "--max_iters=10")[1]
    assert "this run is done" in out and weights("remote/run") == newer == weights(addresses.mirror_of(address))


def test_commands_read_a_run_from_its_address(tiny_run, command, cache, address):
    tiny_run(address, *SAVES)
    commands = [
        ("sample", f"--out_dir={address}", "--num_samples=1", "--max_new_tokens=5"),
        ("sample", f"--init_from={address}/best", "--num_samples=1", "--max_new_tokens=5"),
        ("eval", f"--out_dir={address}"),
        ("export", f"--out_dir={address}", "--to=exported"),
        ("report", address),
        ("diagnose", f"--out_dir={address}"),
        ("compare", address, address),
    ]
    for verb, *flags in commands:
        another_machine(cache)
        code, _, err = command(verb, *flags)
        assert code == 0, (verb, err)
        assert not Path("file:").exists() and not list(cache.rglob("last"))
    assert Run.open(address).status == "finished"
    another_machine(cache)
    ours, here = GPT.from_pretrained(f"{address}/best"), GPT.from_pretrained("remote/run/best")
    assert all(torch.equal(one, other) for one, other in zip(ours.parameters(), here.parameters()))


def test_a_model_at_an_address_is_a_start(tiny_run, command, cache, address, tmp_path):
    tiny_run(address, *SAVES)
    another_machine(cache)
    tiny_run(
        "second", f"--init_from={address}/best", "--n_layer=none", "--n_head=none", "--n_embd=none", text="corpus.txt"
    )
    shutil.copytree("remote/run/best", "remote/model")
    os.unlink("remote/model/manifest.json")
    flags = ("--num_samples=1", "--max_new_tokens=5", "--seed=1")
    texts = [
        command("sample", f"--init_from={name}", *flags)[1] for name in (f"file://{tmp_path}/remote/model", "second")
    ]
    assert all(texts)
    shutil.copy("second/best/model.safetensors", "remote/model/model.safetensors")  # changed there
    assert (
        command("sample", f"--init_from=file://{tmp_path}/remote/model", *flags)[1].splitlines()[1:]
        == texts[1].splitlines()[1:]
    )


def test_a_new_run_does_not_mix_with_the_one_that_is_there(tiny_run, command, cache, address):
    tiny_run(address, *SAVES)
    before = weights("remote/run")
    another_machine(cache)
    flags = ["train", "--init_from=scratch", "--dataset=corpus.txt", "--tokenizer=char", f"--out_dir={address}"]
    shape = ["--n_layer=1", "--n_head=1", "--n_embd=8", "--block_size=16", "--max_iters=3", "--batch_size=2"]
    code, _, err = command(*flags, *shape)
    assert code == 2 and "holds a run already (best, last, metrics.jsonl)" in err and weights("remote/run") == before
    code, _, err = command(*flags, *shape, "--overwrite=true")
    assert code == 0, err
    there = {path.name for path in Path("remote/run/last").iterdir()}  # those between may never have been sent
    assert "step-00000003" in there <= {f"step-{step:08d}" for step in (1, 2, 3)}
    assert Path("remote/run/best/model.safetensors").read_bytes() != before[0]


REFUSED = {
    "s3:/bucket/run": "did you mean s3://bucket/run?",
    "s3://key:geheimnis@bucket/run": "credentials come from the environment",
    "https://example.com/run": "cannot be written to",
    "simplecache::s3://bucket/run": "cannot be written to",
    "s3://bucket/../run": "is no address of a directory",
    "memory://": "is no address of a directory",
    "nosuch://bucket/run": "cannot be opened",
}


@pytest.mark.parametrize("text", sorted(REFUSED))
def test_what_is_no_address_is_refused(text, command, corpus, cache):
    small = ["--n_layer=1", "--n_head=1", "--n_embd=8", "--block_size=16", "--max_iters=1"]
    train = ["train", "--init_from=scratch", f"--dataset={corpus()}", "--tokenizer=char", *small]
    for verb, *flags in (train, ["sample"]):
        code, _, err = command(verb, f"--out_dir={text}", *flags)
        assert code == 2 and REFUSED[text] in err and "geheimnis" not in err and "Traceback" not in err, err
        assert len(err.strip().splitlines()) == 1
    assert sorted(os.listdir()) in (["corpus.txt"], ["cache", "corpus.txt"])


def test_a_recipe_sends_no_run_away(command, corpus):
    Path("theirs.yaml").write_text(f"out_dir: memory://theirs\ndataset: {corpus()}\n")
    code, _, err = command("train", "theirs.yaml")
    assert code == 2 and "theirs.yaml:1: out_dir: a recipe must not send a run to memory://theirs" in err


@pytest.mark.parametrize(
    "argv", [("prepare", "corpus.txt", "--out_dir"), ("tour", "--out_dir"), ("export", "--init_from=x", "--to")]
)
def test_other_commands_write_directories(argv, command, corpus):
    corpus()
    code, _, err = command(*argv[:-1], f"{argv[-1]}=memory://bucket/x")
    assert code == 2 and "this command writes to a directory" in err


def test_a_missing_package_is_named(command, monkeypatch):
    def missing(*given, **named):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    code, _, err = command("sample", "--out_dir=s3://bucket/run")
    assert code == 2 and "s3://bucket/run: needs the package s3fs: pip install 'finetune-gpt2[storage]'" in err


def test_errors_show_no_secret(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    error = OSError("GET https://b.example/x?X-Amz-Signature=abc refused wJalrXUtnFEMI\nmore")
    assert in_one_line(error) == "GET https://b.example/x?... refused ***"
    long = OSError("x" * 195 + "wJalrXUtnFEMI")
    assert in_one_line(long) == "x" * 195 + "***"
    server = OSError('Could not connect to the endpoint URL: "http://me:geheimnis@s3.example:9000/bucket"')
    assert in_one_line(server).endswith('URL: "http://***@s3.example:9000/bucket"')
    assert in_one_line(KeyError()) == "KeyError"


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "a\\b", "c:x", "", "a\nb"])
def test_names_from_a_server_stay_below_their_directory(name, tmp_path):
    storage = Storage(f"file://{tmp_path}/remote")
    storage.write("best/manifest.json", json.dumps({"format": 1, "files": {name: {"bytes": 1, "sha256": ""}}}).encode())
    assert storage.manifest({"best/manifest.json": 9, f"best/{name}": 1}, "best") is None


@pytest.mark.parametrize(
    "text", ["s3://bucket/a/b", "hf://datasets/me/name/run", "file:///a/b", "memory://x", "S3://b//c/"]
)
def test_a_mirror_knows_its_address(text):
    place = addresses.mirror_of(text)
    again = addresses.address_of(place)
    assert again and addresses.mirror_of(again) == place
    assert addresses.address_of(place / "best") == f"{again}/best"
    assert addresses.address_of("out") is None and addresses.address_of(place.parents[1 + text.count("a")]) != again


def test_training_goes_on_without_the_server(tiny_run, command, cache, monkeypatch, capsys):
    monkeypatch.setattr(uploads, "PAUSE_SECONDS", 0.01)
    tiny_run("out", *SAVES)
    Flaky.breaks_at, Flaky.breaks_for = 8, 8
    code, out, _ = command("train", "out/recipe.yaml", "--out_dir=flaky://run")
    assert code == 0 and Flaky.changes > 16
    assert len(re.findall("warning: flaky://run: the line is dead; training goes on", out)) == 1
    assert "flaky://run: all is sent again" in out
    another_machine(cache)
    assert command("train", "--out_dir=flaky://run", "--init_from=resume")[0] == 0
    assert weights(addresses.mirror_of("flaky://run")) == weights("out")


def test_what_could_not_be_sent_is_named(tiny_run, command, cache, monkeypatch):
    monkeypatch.setattr(uploads, "PAUSE_SECONDS", 0.01)
    tiny_run("out", *SAVES)
    Flaky.breaks_at, Flaky.breaks_for = 4, 10**9
    with monkeypatch.context() as patch:
        patch.setattr(uploads, "IDLE_SECONDS", 0.3)
        code, _, err = command("train", "out/recipe.yaml", "--out_dir=flaky://run")
    assert code == 4 and "last/step-00000010" in err and "to go on: finetune train --out_dir=flaky://run" in err
    assert Run.open(addresses.mirror_of("flaky://run")).status == "finished"
    Flaky.breaks_at, held = None, dict(Flaky.store)
    time.sleep(0.1)
    assert Flaky.store == held  # who was told that it ended is not told of more
    assert command("train", "--out_dir=flaky://run", "--init_from=resume")[0] == 0
    another_machine(cache)
    assert "this run is done" in command("train", "--out_dir=flaky://run", "--init_from=resume")[1]


def test_what_could_not_be_sent_hides_no_condition(tiny_run, command, monkeypatch):
    monkeypatch.setattr(uploads, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(uploads, "IDLE_SECONDS", 0.3)
    tiny_run("out", *SAVES)
    Flaky.breaks_at, Flaky.breaks_for = 4, 10**9
    code, out, err = command("train", "out/recipe.yaml", "--out_dir=flaky://run", "--require=val_loss<0.001")
    assert code == 5 and "require: val_loss<0.001 is not met" in err, err
    assert re.search("warning: flaky://run: .*could not be sent", out)


def test_a_server_that_cannot_be_written_to_is_refused_at_the_start(command, corpus, cache):
    Flaky.breaks_at, Flaky.breaks_for = 0, 10**9
    flags = ["--init_from=scratch", f"--dataset={corpus()}", "--tokenizer=char", "--out_dir=flaky://run"]
    code, _, err = command("train", *flags)
    assert code == 2 and "out_dir flaky://run: the line is dead" in err
    assert not list(cache.rglob("metrics.jsonl"))


def test_the_best_model_is_there_at_every_moment(tmp_path, cache):
    """Whatever change is the last one that the server accepts, the old or the new model is found there."""
    from finetune.runs.sending import send_directory

    out_dir = addresses.mirror_of("flaky://run")
    out_dir.mkdir(parents=True)

    def write(content, *names):
        files.write_directory(out_dir / "best", lambda work: [(work / name).write_text(content) for name in names])

    def send():
        storage = Storage("flaky://run")
        send_directory(storage, storage.files(), out_dir, "best")

    for last in range(1, 40):
        Flaky.store.clear()
        Flaky.breaks_at = None
        write("old", "model", "adapter")
        send()
        write("new!", "model", "card")
        Flaky.breaks_at, Flaky.breaks_for = Flaky.changes + last, 10**9
        try:
            send()
        except Unreachable:
            is_done = False
        else:
            is_done = True
        Flaky.breaks_at = None
        Storage("flaky://run").write("metrics.jsonl", b"{}\n")
        other = tmp_path / f"machine{last}"
        shutil.copytree(out_dir.parents[2], other)
        shutil.rmtree(out_dir)
        mirror.fetch_run(out_dir)
        found = {path.name: path.read_text() for path in (out_dir / "best").iterdir() if path.name != files.MANIFEST}
        assert found in ({"model": "old", "adapter": "old"}, {"model": "new!", "card": "new!"}), last
        write("new!", "model", "card")
        send()  # goes on after the interruption
        names = {name.rpartition("/")[2] for name in Flaky.store if "/best/" in name}
        assert names == {"model", "card", files.MANIFEST}
        assert not [name for name in Flaky.store if files.WORK in name], last
        if is_done:
            break
    assert is_done and last > 8


def test_training_does_not_wait_for_an_upload(tiny_run, command, monkeypatch):
    """A server that keeps a file until training is over has stopped no update, and gets the newest state alone."""
    tiny_run("out", *SAVES)
    over, put = threading.Event(), Flaky.put_file

    def slow(self, path, name, **named):
        if "step-" in name:
            assert over.wait(60)
        put(self, path, name, **named)

    monkeypatch.setattr(Flaky, "put_file", slow)
    recipe, _ = parse(Recipe, ["out/recipe.yaml", "--out_dir=flaky://run"], "")
    hooks = Hooks(before_update=lambda setup, state: state.step == 9 and over.set())
    train_and_push(recipe, {}, hooks)
    assert Storage("flaky://run").manifest(Storage("flaky://run").files(), STATES[0])
    assert weights(addresses.mirror_of("flaky://run")) == weights("out")


def test_a_run_that_is_there_and_was_trained_here_is_not_mixed_up(tiny_run, command, cache, address, tmp_path):
    tiny_run(address, *SAVES)
    shutil.copytree(cache, tmp_path / "first")
    another_machine(cache)
    tiny_run(address, *SAVES, "--overwrite=true", text="corpus.txt")
    another_machine(cache)
    shutil.copytree(tmp_path / "first", cache)
    with pytest.raises(UsageError, match="holds another run than"):
        mirror.fetch_run(addresses.mirror_of(address), to_resume=True)


@pytest.mark.heavy
def test_a_machine_that_dies_before_it_has_sent_a_state_ends_no_job(tiny_run, command, cache, monkeypatch):
    """Wherever the upload was cut, `auto` goes on, or starts anew. Training was further than what was sent."""
    monkeypatch.setattr(uploads, "PAUSE_SECONDS", 0.01)
    tiny_run("out", *SAVES)
    auto = ("train", "out/recipe.yaml", "--out_dir=flaky://run", "--init_from=auto")
    seen = set()
    cuts = ((6, None), (12, None), (None, "optimizer.safetensors"))  # in best/, after it, in the state
    for breaks_at, refuses in cuts:
        Flaky.store.clear()
        Flaky.changes, Flaky.breaks_at, Flaky.breaks_for, Flaky.refuses = 0, breaks_at, 10**9, refuses
        with monkeypatch.context() as patch:
            patch.setattr(uploads, "IDLE_SECONDS", 0.2)
            assert command(*auto)[0] in (2, 4)
        seen |= {name.split("/")[2] for name in Flaky.store}
        Flaky.breaks_at = Flaky.refuses = None
        another_machine(cache)
        code, _, err = command(*auto)
        assert code == 0, (breaks_at, sorted(Flaky.store), err)
        assert weights(addresses.mirror_of("flaky://run")) == weights("out")
        another_machine(cache)
    assert {"best", "last", mirror.METRICS} <= seen


@pytest.mark.parametrize("start", [(), ("--init_from=auto",)])
@pytest.mark.parametrize("name", ["best/model.safetensors", "report.html", "last/notes"])
def test_files_of_others_are_not_replaced(command, corpus, address, name, start):
    theirs = Path("remote/run", name)
    theirs.parent.mkdir(parents=True)
    theirs.write_text("theirs")
    Path("mine.yaml").write_text(
        f"init_from: scratch\ndataset: {corpus()}\ntokenizer: char\nn_layer: 1\nn_head: 1\nn_embd: 8\nblock_size: 16\n"
        "max_iters: 1\n"
    )
    flags = ["train", "mine.yaml", f"--out_dir={address}", *start]
    code, _, err = command(*flags)
    assert code == 2 and name.split("/")[0] in err and len(err.strip().splitlines()) == 1, err
    if name.startswith("best"):
        code, _, err = command(*flags, "--overwrite=true")
        assert code == 2 and "was not written by a run" in err
    assert [path.read_text() for path in Path("remote").rglob("*") if path.is_file()] == ["theirs"]


def test_states_of_a_run_that_was_being_removed_do_not_count(half, command, cache, address):
    """Its metrics go first: it is none then, and nobody goes on with it."""
    Path("remote/run/metrics.jsonl").unlink()
    another_machine(cache)
    for start in ("resume", "auto"):
        code, _, err = command("train", "out/recipe.yaml", f"--out_dir={address}", f"--init_from={start}")
        assert code == 2, err
    assert "holds best, last, loss.png, " in err and "without the metrics.jsonl of a run" in err
    assert len(list(Path("remote/run/last").iterdir())) == 2


def test_several_machines_go_on_from_the_state_that_all_can_see(tiny_run, command, address, monkeypatch):
    """The machine that sent was killed before it had sent its newest state."""
    tiny_run(address, *SAVES)
    here = addresses.mirror_of(address)
    shutil.rmtree("remote/run/last")
    shutil.copytree(here / STATES[1], Path("remote/run", STATES[1]))  # which a slow upload leaves out
    mirror.fetch_run(here, to_resume=True)
    assert (here / STATES[0]).is_dir()
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    mirror.fetch_run(here, to_resume=True)
    assert [path.name for path in here.glob("last/step-*")] == [STATES[1].split("/")[1]]
    monkeypatch.delenv("GROUP_WORLD_SIZE")
    assert command("train", f"--out_dir={address}", "--init_from=resume")[0] == 0
    assert weights("remote/run") == weights(here)


def test_other_commands_do_not_import_what_storage_needs():
    program = "import sys, finetune.config.cli; print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "finetune.config.arguments" in done.stdout and "finetune.config.mirror" not in done.stdout


@pytest.mark.parametrize("name", ["RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK"])
def test_one_rank_sends(name, address, monkeypatch):
    recipe, _ = parse(Recipe, ["--dataset=x", f"--out_dir={address}"], "")
    monkeypatch.setenv(name, "1")
    with uploads.uploading(recipe) as sends:
        assert sends is None
    assert not Path("remote").exists()


def test_nothing_is_sent_for_a_run_that_was_refused(monkeypatch):
    """What was being sent is; then the thread ends, because the program may go on, as a notebook does."""
    recipe, _ = parse(Recipe, ["--dataset=x", "--out_dir=flaky://run"], "")
    Path(recipe.out_dir).mkdir(parents=True)
    Path(recipe.out_dir, "metrics.jsonl").write_text('{"event": "start", "time": 1}\n')
    Path(recipe.out_dir, "recipe.yaml").write_text("dataset: x\n")
    begun, over, pipe = threading.Event(), threading.Event(), Flaky.pipe_file

    def slow(self, path, value=None, **named):
        begun.set()
        assert over.wait(60)
        pipe(self, path, value, **named)

    monkeypatch.setattr(Flaky, "pipe_file", slow)
    with pytest.raises(UsageError), uploads.uploading(recipe) as sends:
        sends.send()
        assert begun.wait(60)
        raise UsageError("refused")
    over.set()
    sends.thread.join(60)
    assert not sends.thread.is_alive() and list(Flaky.store) == ["/run/metrics.jsonl"]


@pytest.mark.parametrize("argv", ["sample --out_dir=", "eval --dataset=data --init_from=", "report --out_dir="])
def test_an_address_with_nothing_is_said(command, argv):
    verb, *flags = f"{argv}memory://bucket/gone".split()
    code, _, err = command(verb, *flags)
    assert code == 2 and err == "memory://bucket/gone: nothing is there; check the address\n"


def test_what_another_machine_removes_meanwhile_is_not_there(tmp_path):
    """Between the list of a state's files and their reading, the run that writes there may have removed it."""
    storage, state = Storage(f"file://{tmp_path}/remote"), "last/step-00000002"
    storage.write(f"{state}/{files.MANIFEST}", b'{"format": 1, "files": {}}')
    sizes = storage.files()
    assert storage.manifest(sizes, state)
    storage.remove(sizes)
    assert storage.manifest(sizes, state) is None
    storage.remove(sizes)  # again
