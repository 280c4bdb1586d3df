"""Commands that are forked and killed at random moments. A process of its own: forked.run("kills", "JOB.json")

The jobs are a list of {"argv": [verb, flags...], "kills": K, "seed": S, "shows": [paths]}. A command is run twice to
its end; then it is killed K times at a random moment of its time, and run to its end after every fifth kill. `shows`
are the files that hold the result: they must be whole after every kill. Of a command that "makes" a directory they must
be the same after every end, and the directory is removed then, so that the next kills meet its beginning; so is what a
server holds, by the address "forget". The outcomes are printed as JSON: how many kills, results lost, restarts that
failed and what was left behind."""

import hashlib
import importlib
import json
import os
import random
import re
import shutil
import signal
import sys
import time
import traceback
import urllib.request
from pathlib import Path

from finetune.common.errors import Failure, UsageError
from finetune.common.files import WORK


def begin(argv):
    """Fork a process that runs the command; return its pid."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        log = os.open("kills.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        code = importlib.import_module(f"finetune.{argv[0]}").main(argv[1:]) or 0
    except (UsageError, Failure) as error:
        print(error, file=sys.stderr)
        code = 2
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def finish(argv):
    """Run the command to its end; return its code and seconds."""
    began = time.perf_counter()
    code = os.waitstatus_to_exitcode(os.waitpid(begin(argv), 0)[1])
    return code, time.perf_counter() - began


def content(paths):
    """A digest of each file, of meta.json what it says of the bins, of a report all but the minute; None for one that
    is not there."""
    found = {}
    for path in map(Path, paths):
        data = path.read_bytes() if path.is_file() else None
        if data and path.name == "meta.json":  # it tells the time too
            data = json.dumps(json.loads(data)["splits"]).encode()
        if data and path.suffix == ".html":
            data = re.sub(rb"\d{4}-\d\d-\d\d \d\d:\d\d", b"", data)
        found[str(path)] = data and hashlib.sha256(data).hexdigest()
    return found


def begin_anew(directory, url):
    if directory:
        shutil.rmtree(directory, ignore_errors=True)
    if url:
        urllib.request.urlopen(url).close()


def killed(argv, kills, seed, shows, makes=None, forget=None):
    rng = random.Random(seed)
    seconds = []
    for _ in range(2):  # the first reads libraries from disk
        begin_anew(makes, forget)
        code, took = finish(argv)
        seconds.append(took)
        assert code == 0, Path("kills.log").read_text()
    result = content(shows)
    assert None not in result.values(), result
    found = {"kills": 0, "too_late": 0, "lost": [], "failed": [], "inside": 0}
    window = min(seconds)
    begin_anew(makes, forget)
    while found["kills"] < kills:
        for cache in Path(".").rglob(".arrow"):
            shutil.rmtree(cache)
        pid = begin(argv)
        time.sleep(rng.uniform(0, window))
        os.kill(pid, signal.SIGKILL)
        if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0:  # it was over: it is quicker than was measured
            found["too_late"] += 1
            assert found["too_late"] < 20 + kills, f"{argv[0]} is over before every kill"
            window *= 0.9
            begin_anew(makes, forget)
            continue
        found["kills"] += 1
        found["inside"] += any(Path(".").rglob(WORK))
        if not makes and (now := content(shows)) != result:
            found["lost"].append([found["kills"], [path for path in shows if now[path] != result[path]]])
        if found["kills"] % 5 == 0 or found["kills"] == kills:
            code, _ = finish(argv)
            if code or content(shows) != result:
                found["failed"].append([found["kills"], code, Path("kills.log").read_text()[-500:]])
            begin_anew(makes, forget)
    found["left"] = sorted(map(str, Path(".").rglob(WORK)))
    return found


def main(argv):
    with open(argv[0], encoding="utf-8") as file:
        jobs = json.load(file)
    print(json.dumps([killed(**job) for job in jobs]))


if __name__ == "__main__":
    main(sys.argv[1:])
