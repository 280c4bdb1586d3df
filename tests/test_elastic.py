"""Runs that go on by themselves: torchrun starts killed ranks again, a rank that hangs is named, and the number of
processes may change on the way."""

import dataclasses
import os
import random
import re
import signal
import socket
import sys
import time
from pathlib import Path

import forked
import psutil
import pytest
import torch
from ports import free_port
from test_trust import command, events, final, harness, record

from finetune.common.errors import UsageError
from finetune.runs.events import read_metrics
from finetune.runtime import process_group

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sends signals to processes of a launcher")
ROOT = Path(__file__).parents[1]
PLAIN = {"dropout": 0.0, "batch_size": 2, "gradient_accumulation_steps": 6, "learning_rate": 1e-3}
BUSY = 20  # seconds that other tests may take from this one
# a rank that does nothing but beat, for so many seconds
BEATS = """
import sys, time
from finetune.runtime import heartbeat, process_group

def main(argv):
    group = process_group.wait_for_all()
    end = time.monotonic() + float(argv[1]) + (group.rank == 0)  # who has the store goes last
    with heartbeat.beating(group, float(argv[0])):
        print("beats", flush=True)
        while time.monotonic() < end:
            time.sleep(0.1)
"""


def ranks(size, program, *argv, **more):
    """The ranks of a group, without a launcher: rank 0 has the store."""
    group = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(size)}
    group |= {"PYTHONPATH": os.pathsep.join([str(ROOT), "."]), "LOCAL_WORLD_SIZE": str(size), **more}
    names = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]
    return [forked.Process(program, *argv, env=group | name) for name in names]


def ends(processes, stopped):
    """(seconds until all but the stopped one have ended, their exit codes, what they said)."""
    began = time.monotonic()
    try:
        told = [process.communicate(60)[1] for process in processes if process is not stopped]
        seconds = time.monotonic() - began
    finally:
        for process in processes:
            process.kill()
            process.__exit__()
    return seconds, {process.returncode for process in processes if process is not stopped}, "".join(told)


LOST = """
from finetune.runtime import heartbeat
from finetune.runtime.process_group import Group

class Lost:
    \"\"\"A store that is gone when a rank has found another silent.\"\"\"

    def set(self, key, value):
        if key == heartbeat.ENDED:
            raise RuntimeError("the store is gone")

    def get(self, key):
        return b"1 there 0"

    def check(self, keys):
        return False

def main(argv):
    import time
    with heartbeat.beating(Group(Lost(), "start", 1, 2), 1):
        time.sleep(60)
"""


def test_a_rank_ends_though_it_cannot_tell_the_others():
    Path("lost.py").write_text(LOST)
    with forked.Process("lost", env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), "."])}) as process:
        _, told = process.communicate(60)
    assert process.returncode == 1 and told.startswith("rank 0 (process 1 on there) hangs"), told


@pytest.mark.heavy
@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_rank_that_is_stopped_is_named_within_the_time(number):
    Path("beats.py").write_text(BEATS)
    processes = ranks(3, "beats", 5, 60)
    for process in processes:
        assert process.stdout.readline() == "beats\n"
    processes[number].send_signal(signal.SIGSTOP)
    seconds, codes, told = ends(processes, processes[number])
    lines = [line for line in told.splitlines() if "hangs" in line]
    place = f"rank {number} (process {processes[number].pid} on {socket.gethostname()})" if number else "rank 0 at "
    assert len(lines) == 1 and lines[0].startswith(place) and "timeout=5 s" in lines[0], told
    assert codes == {1} and seconds < 5 + BUSY


LATE = """
import sys, time
from finetune.runtime import heartbeat, process_group

class Slow:
    \"\"\"A store that answers late to whether another rank is silent.\"\"\"

    def __init__(self, store):
        self.store = store

    def check(self, keys):
        if self.store.check(keys):
            time.sleep(2)
        return self.store.check(keys)

    def __getattr__(self, name):
        return getattr(self.store, name)

def main(argv):
    group = process_group.wait_for_all()
    if group.rank == 2:
        group = process_group.Group(Slow(group.store), group.name, group.rank, group.size)
    with heartbeat.beating(group, 5):
        print("beats", flush=True)
        time.sleep(60)
"""


@pytest.mark.heavy
def test_a_rank_that_reads_late_who_is_silent_blames_nobody_else():
    Path("late.py").write_text(LATE)
    processes = ranks(3, "late")
    for process in processes:
        assert process.stdout.readline() == "beats\n"
    processes[1].send_signal(signal.SIGSTOP)
    _, codes, told = ends(processes, processes[1])
    assert codes == {1} and told.count("hangs") == 1 and told.startswith("rank 1 (process "), told


LEAVES = """
import threading, time, torch
from finetune.runtime import heartbeat
from finetune.runtime.process_group import Group

def main(argv):
    store, rank = torch.distributed.HashStore(), int(argv[0])
    for other in range(3):
        store.set(f"beat/{other}", "1 there 0")
    store.set(heartbeat.ENDED, "1")  # rank 1 is silent

    def read():
        print("read", flush=True)
        for other in (0, 2):
            store.set(f"{heartbeat.ENDED}{other}", "")

    threading.Timer(3, read).start()
    with heartbeat.beating(Group(store, "start", rank, 3), 5):
        if argv[1:]:
            time.sleep(1)  # by then it is leaving
            raise ConnectionError("closed by peer")
        time.sleep(60)
"""
STORE = {"TORCHELASTIC_USE_AGENT_STORE": "True", "GROUP_WORLD_SIZE": "2"}


@pytest.mark.heavy
@pytest.mark.parametrize(
    "rank, environment, waits",
    [
        ("0", {}, True),
        ("0 lost", {}, True),  # its main thread has lost the connection to a rank that has left
        ("2", {}, False),
        ("0", STORE | {"GROUP_WORLD_SIZE": "1", "GROUP_RANK": "0"}, False),
        ("2", STORE | {"GROUP_RANK": "0"}, True),
        ("2", STORE | {"GROUP_RANK": "1"}, False),
    ],
)
def test_who_ends_the_store_waits_until_all_others_have_read_who_is_silent(rank, environment, waits):
    Path("leaves.py").write_text(LEAVES)
    here = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), "."]), **environment}
    with forked.Process("leaves", *rank.split(), env=here) as process:
        told, error = process.communicate(60)
    assert (process.returncode, told, error) == (1, "read\n" if waits else "", "")


@pytest.mark.heavy
def test_whoever_computes_waits_or_is_done_does_not_hang():
    """The program sleeps for longer than the time-out; so do all processes, stopped by a terminal or a scheduler; one
    ends before the other."""
    Path("beats.py").write_text(BEATS)
    processes = ranks(2, "beats", 8, 11)
    assert [process.stdout.readline() for process in processes] == ["beats\n", "beats\n"]
    for number, seconds in ((signal.SIGSTOP, 9), (signal.SIGCONT, 0)):
        for process in processes:
            process.send_signal(number)
        time.sleep(seconds)
    _, codes, told = ends(processes, None)
    assert (codes, told) == ({0}, "")


MEET = """
import time, torch
from finetune.runtime import process_group

def main(argv):
    group = process_group.wait_for_all()
    place = {"init_method": group.init_method, "rank": group.rank, "world_size": group.size}
    torch.distributed.init_process_group("gloo", **place)
    total = torch.ones(1)
    torch.distributed.all_reduce(total)
    print(group.name, int(total), flush=True)
    if argv == ["stay"]:
        torch.distributed.barrier() if group.rank else time.sleep(60)
    torch.distributed.destroy_process_group()
"""


def test_a_store_that_outlives_its_ranks_gives_no_address_of_the_dead():
    """As torchrun's, which counts no restart when machines come and go."""
    Path("meet.py").write_text(MEET)
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    names = set()
    for size, what in ((2, "stay"), (2, "stay"), (3, "end"), (1, "end"), (2, "end")):
        here = {"MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RUN_ID": "none"}
        processes = ranks(size, "meet", what, **here)
        (name, total), *others = [process.stdout.readline().split() for process in processes]
        assert total == str(size) and others == [[name, total]] * (size - 1) and name not in names
        names.add(name)
        if what == "stay":
            for process in processes:
                process.kill()
        _, codes, _ = ends(processes, None)
        assert codes == ({0} if what == "end" else {-signal.SIGKILL})


@pytest.mark.heavy
def test_a_stopped_rank_of_a_run_is_named(tiny):
    recipe = tiny(max_iters=10_000, eval_interval=10_000, save_interval=10, timeout=5.0)
    recipe = dataclasses.replace(recipe, gradient_accumulation_steps=2)
    _, program, *flags = command(recipe, "")
    processes = ranks(2, program, *flags)
    wait_for(lambda: list(Path("out/last").glob("step-*")))
    processes[1].send_signal(signal.SIGSTOP)
    seconds, codes, told = ends(processes, processes[1])
    assert codes == {1} and seconds < 5 + BUSY
    assert re.match(rf"rank 1 \(process {processes[1].pid} on .*\) hangs, or cannot be reached: .* timeout=5 s", told)
    assert told.count("hangs") == 1 and "Traceback" not in told


@pytest.mark.parametrize("are_far_apart", [False, True])
def test_ranks_that_fetch_a_run_one_after_the_other_are_waited_for(monkeypatch, are_far_apart):
    here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": 2, "RANK": 1, "LOCAL_RANK": 1}
    for name, value in here.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(process_group, "SECONDS", 0.1)
    monkeypatch.setattr(process_group, "SECONDS_OF_MACHINES", 0.5)
    with pytest.raises(UsageError, match=f"within {0.5 if are_far_apart else 0.1} s"):
        process_group.wait_for_all(are_far_apart)


def torchrun(processes, restarts, recipe):
    """torchrun with a run that resumes, or starts where there is none."""
    launcher = ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", f"--max-restarts={restarts}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    # what the recipe says of its start stays below auto
    argv = [*command(recipe, *launcher, "-m"), "--init_from=auto"]
    return forked.Process(*argv, env=environment, start_new_session=True)


def workers(process):
    """{rank: process} of what torchrun has started."""
    found = {}
    for child in psutil.Process(process.pid).children():
        try:
            found[int(child.environ()["RANK"])] = child
        except (psutil.Error, KeyError):  # it is ending, or just starting
            continue
    return found


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def newest(out_dir="out"):
    return max((path.name for path in Path(out_dir, "last").glob("step-*")), default="")


def same_run(one, other):
    assert final(one) == final(other)
    assert record(one) == record(other)


@pytest.mark.heavy
def test_a_run_whose_rank_is_killed_goes_on_by_itself(tiny):
    # eval_iters: ranks that torchrun starts have no economies and would read more of the train split
    recipe = tiny(max_iters=60, eval_interval=30, eval_iters=8, save_interval=2, gradient_accumulation_steps=2)
    assert harness(dataclasses.replace(recipe, out_dir="whole"), world=2)["codes"] == [0, 0]
    with torchrun(2, 3, recipe) as process:
        wait_for(newest)
        wait_for(lambda: workers(process).get(1)).kill()
        out, error = process.communicate(200)
        assert process.returncode == 0, error
    assert [event["step"] > 0 for event in read_metrics(Path("out/metrics.jsonl")) if event["event"] == "resume"]
    same_run("whole", "out")
    assert not list(Path("out").rglob(".finetune-tmp")) and out.count("step 60: ") == 1
    with torchrun(2, 3, recipe) as process:  # a job that is started once more is done, and says so
        out, error = process.communicate(200)
        assert process.returncode == 0 and "this run is done" in out, error


def test_a_mistake_is_told_once_and_not_started_again():
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max-restarts=50"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = forked.run(*launcher, "-m", "finetune.train", "--max_iter=3", env=environment)
    assert done.returncode != 0 and done.stderr.count("Did you mean '--max_iters'?") == 1, done.stderr


def strike(process, rng, number):
    """Send a signal to a random rank shortly after the next save; return (rank, signal, newest state)."""
    before = newest()
    wait_for(lambda: newest() != before or process.poll() is not None)
    assert process.poll() is None, "it was over before"
    time.sleep(rng.uniform(0, 0.2))
    running, rank = wait_for(lambda: len(found := workers(process)) == 3 and found), rng.randrange(3)
    running[rank].send_signal(number)
    if number == signal.SIGSTOP:  # torchrun would wait 30 s for it
        psutil.wait_procs([running[(rank + 2) % 3]], 100)
        running[rank].kill()
    psutil.wait_procs(running.values(), 100)
    return rank, number.name, newest()


@pytest.mark.slow
def test_ten_kills_of_three_processes_change_nothing(tiny):
    """KILLS=N sets another number; every fifth is a SIGSTOP."""
    kills = int(os.environ.get("KILLS", 10))
    lengths = {"max_iters": 20 * kills, "eval_interval": 5 * kills, "save_interval": 5, "log_interval": 10}
    recipe = tiny(**lengths, eval_iters=8, timeout=10.0)
    assert harness(dataclasses.replace(recipe, out_dir="whole"), world=3, as_launched=True)["codes"] == [0, 0, 0]
    rng, began = random.Random(kills), time.monotonic()
    with torchrun(3, 2 * kills, recipe) as process:
        hit = [strike(process, rng, signal.SIGSTOP if n % 5 == 4 else signal.SIGKILL) for n in range(kills)]
        _, error = process.communicate(300)
        assert process.returncode == 0, error
    print(f"{len(hit)} signals in {time.monotonic() - began:.0f} s: {hit}")
    same_run("whole", "out")
    assert error.count("hangs, or cannot be reached") == sum(name == "SIGSTOP" for _, name, _ in hit)


@pytest.mark.slow
def test_torchrun_goes_on_with_fewer_and_with_more_processes(tiny):
    """3, then 2, then 3 again, against one process all the way."""
    plain = PLAIN | {"lr_decay_iters": 12, "warmup_iters": 2}
    whole = tiny("whole", max_iters=12, **plain)
    assert harness(whole)["codes"] == [0]
    for processes, length in ((3, 4), (2, 8), (3, 12)):
        with torchrun(processes, 0, tiny(max_iters=length, **plain)) as process:
            out, error = process.communicate(300)
            assert process.returncode == 0, error
        assert f"{processes} processes on cpu" in out
    one, other = events("whole", "iter"), events("out", "iter")
    assert [event["iter"] for event in other] == list(range(12))
    for expected, event in zip(one, other, strict=True):
        assert event["loss"] == pytest.approx(expected["loss"], abs=1e-5) and event["lr"] == expected["lr"]
