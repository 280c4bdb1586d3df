"""`finetune` and `python -c` for the shell of a test, in forks of a process that has imported what they need: a start
costs a tenth of a second, not 3 s of a core.

    with warm_shell.serving(environment, directory):  # of two programs, to be the first place of a PATH
        subprocess.run(["bash", "-c", "finetune env"], env={**environment, "PATH": f"{directory}:{path}"})

The process imports in `environment`, so that libraries read it; torch is never used in it, because a fork of one that
has computed with several threads hangs."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from importlib import import_module
from pathlib import Path

import forked

WARM = """accelerate datasets matplotlib.backends.backend_agg torch transformers.models.gpt2.modeling_gpt2
    transformers.pipelines finetune.__main__ finetune.eval finetune.export finetune.prepare finetune.report
    finetune.sample finetune.train finetune.training.trainer finetune.runs.loss_plot
    finetune.tools.report.after_training""".split()

PROGRAM = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as place:
    place.connect({address!r})
    job = {{"argv": sys.argv, "directory": os.getcwd(), "environment": dict(os.environ)}}
    socket.send_fds(place, [json.dumps(job).encode() + b"\\n"], [0, 1, 2])
    sys.exit(int(place.makefile().readline() or 1))
"""


@contextlib.contextmanager
def serving(environment, directory):
    """Write both programs into a new directory; within the context they start."""
    directory.mkdir()
    short = tempfile.mkdtemp()  # the name of a socket has 108 bytes at most
    address = f"{short}/socket"
    for name in ("finetune", "python"):
        path = directory / name
        path.write_text(PROGRAM.format(python=sys.executable, address=address))
        path.chmod(0o755)
    server = subprocess.Popen(
        [sys.executable, __file__, address], env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert server.stdout.readline() == "ready\n"
        yield
    finally:
        os.killpg(server.pid, signal.SIGKILL)  # with forks that hang
        server.communicate()
        shutil.rmtree(short)


def serve(address):
    for name in WARM:
        import_module(name)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        listening.listen()
        print("ready", flush=True)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
        while True:
            place, _ = listening.accept()
            text, handles, *_ = socket.recv_fds(place, 1 << 20, 3)
            while not text.endswith(b"\n"):
                text += (more := place.recv(1 << 20))
                assert more, "the program ended before it had told what it wants"
            if not os.fork():
                listening.close()
                become(place, json.loads(text), handles)
            for handle in (place.detach(), *handles):
                os.close(handle)


def become(place, job, handles):
    """In the fork: be the command, and tell its exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number, handle in enumerate(handles):
        os.dup2(handle, number)
        os.close(handle)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)
    forked.move(job["environment"], job["directory"])
    name, *sys.argv = Path(job["argv"][0]).name, *job["argv"]
    code = 1
    try:
        if name == "finetune":
            import_module("finetune.__main__").main()
        else:
            option, text = sys.argv[1:]
            assert option == "-c"
            sys.path[:1], sys.argv = [""], ["-c"]
            exec(compile(text, "<string>", "exec"), {"__name__": "__main__"})
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1 if end.code else 0
    except BaseException:
        traceback.print_exc()
    forked.end()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    place.sendall(f"{code}\n".encode())
    os._exit(code)


if __name__ == "__main__":
    serve(sys.argv[1])
