"""Commands in forks of a process that has imported torch and ours, so that a start costs a tenth of a second, not 4 s.

    with forked.Process("finetune.train", "--max_iters=5") as process:
        process.send_signal(signal.SIGTERM)
    done = forked.run("finetune.export", "--out_dir=out", "--to=mine")

They are processes with a directory, an environment and streams of their own, as `python -m MODULE` or `python FILE.py`
starts them. What a library reads when it is imported (HF_HOME, HF_ENDPOINT, OMP_NUM_THREADS) can no longer be given to
them. torch is never used in the process that forks, because a fork of one that has computed with several threads
hangs."""

import atexit
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from importlib import import_module
from inspect import signature
from multiprocessing import forkserver
from pathlib import Path
from runpy import run_path
from unittest import mock

WARM = """accelerate datasets matplotlib.backends.backend_agg torch torch._dynamo torch.distributed.fsdp
    transformers.models.gpt2.modeling_gpt2 finetune.export finetune.report finetune.train finetune.training.trainer
    finetune.runs.loss_plot finetune.tools.report.after_training""".split()
forks = multiprocessing.get_context("forkserver")
forks.set_forkserver_preload(WARM)
first_environment = dict(os.environ)


def warm():
    """Start the process that forks, if it is not there, with no variable of the test that is the first to want it."""
    with mock.patch.dict(os.environ, first_environment, clear=True):
        forkserver.ensure_running()


def pool(processes):
    warm()
    return forks.Pool(processes)


def move(environment, directory):
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)


def end():
    """What Python does at the end of a process, but not of a fork."""
    threading._shutdown()
    atexit._run_exitfuncs()


def become(program, argv, environment, directory, new_session, out, error):
    """In the fork: be the command."""
    if new_session:
        os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    move(environment, directory)
    sys.path[:0] = [str(Path(__file__).parent), "."]
    sys.argv = [program, *argv]
    os.dup2(out.fileno(), 1)
    os.dup2(error.fileno(), 2)
    out.close()
    error.close()
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", buffering=1, closefd=False)
    import economies

    from finetune.config.cli import run

    economies.save_time()
    try:
        if program.endswith(".py"):
            run_path(program, run_name="__main__")
        else:
            main = import_module(program).main
            run(main if signature(main).parameters else lambda _: main())
    finally:
        end()


class Process:
    """A command that runs, with what tests need of subprocess.Popen."""

    def __init__(self, program, *argv, env=None, cwd=None, start_new_session=False):
        pipes = [forks.Pipe(duplex=False) for _ in range(2)]
        environment = dict(os.environ if env is None else env)
        place = str(cwd or os.getcwd())
        writing = [write for _, write in pipes]
        job = (str(program), list(map(str, argv)), environment, place, start_new_session, *writing)
        warm()
        self.process = forks.Process(target=become, args=job)
        self.process.start()
        for _, write in pipes:
            write.close()
        self.stdout, self.stderr = (open(os.dup(read.fileno()), encoding="utf-8") for read, _ in pipes)
        self.pid = self.process.pid

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.stdout.close()
        self.stderr.close()
        self.wait()

    def poll(self):
        return self.process.exitcode

    @property
    def returncode(self):
        return self.poll()

    def wait(self, timeout=None):
        self.process.join(timeout)
        if self.poll() is None:
            raise subprocess.TimeoutExpired(self.process.name, timeout)
        return self.poll()

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout=None):
        """What it prints until its end: (standard output, standard error)."""
        told = {}

        def read(stream):
            with stream:
                told[stream] = stream.read()

        readers = [threading.Thread(target=read, args=(stream,), daemon=True) for stream in (self.stdout, self.stderr)]
        for reader in readers:
            reader.start()
        self.wait(timeout)
        for reader in readers:
            reader.join(timeout)
        return told[self.stdout], told[self.stderr]


def run(program, *argv, timeout=200, **options):
    """Run a command to its end, as subprocess.run does."""
    with Process(program, *argv, **options) as process:
        try:
            out, error = process.communicate(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    return subprocess.CompletedProcess([program, *argv], process.returncode, out, error)
