"""What Windows and macOS lack is not needed: a run trains, resumes and samples without it.

These tests run on Linux; on Windows itself nothing has been run yet."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.runs.events import read_metrics

HIDDEN_MODULES = "fcntl resource pwd grp termios posix_ipc".split()
HIDDEN_NAMES = {
    "os": "sched_getaffinity sched_setaffinity fork forkpty O_DIRECTORY O_DIRECT O_NONBLOCK O_NOFOLLOW O_SYNC geteuid"
    " getuid getgid getpgid setsid killpg uname nice getloadavg mkfifo posix_fadvise posix_fallocate sendfile"
    " copy_file_range memfd_create chown lchown fchown fchmod fdatasync",
    "signal": "SIGUSR1 SIGUSR2 SIGHUP SIGQUIT SIGALRM SIGPIPE SIGCHLD SIGKILL SIGTSTP setitimer alarm pause",
    "time": "tzset",
    "socket": "AF_UNIX",
}
# heavy packages that need their own hidden names are imported first: what is tested is finetune
PROGRAM = """
import importlib, json, os, sys
sys.path.insert(0, {root!r})
import accelerate, datasets, matplotlib.pyplot, psutil, torch, tqdm, transformers, torch.utils.data, torch._dynamo
import multiprocessing.util, tempfile, asyncio, socket
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel, PreTrainedTokenizerFast
names = json.loads({names!r})
for name in {modules!r}:
    sys.modules[name] = None  # an import raises ImportError
for module, hidden in names.items():
    for name in hidden.split():
        if hasattr(sys.modules[module], name):
            delattr(sys.modules[module], name)
for name in [name for name in sys.modules if name.split(".")[0] == "filelock"]:
    del sys.modules[name]  # chooses its kind of lock when it is imported
import filelock
assert filelock.FileLock is filelock.SoftFileLock, "no kernel lock without fcntl"
for verb, *argv in json.loads(sys.argv[1]):
    assert not importlib.import_module("finetune." + verb).main(argv), verb
loaded = {{"wandb", "evaluate", "peft", "markitdown", "sacrebleu"}} & set(sys.modules)
print("LOADED", json.dumps(sorted(loaded)))
"""
SHAPE = "--n_layer=1 --n_head=2 --n_embd=32 --block_size=32 --batch_size=4 --log_interval=1 --dtype=float32".split()


@pytest.mark.heavy
def test_nothing_that_only_unix_has_is_needed(corpus):
    train = ["--init_from=scratch", f"--dataset={corpus()}", "--tokenizer=char", "--gradient_accumulation_steps=1"]
    commands = [
        ["train", *train, *SHAPE, "--max_iters=4", "--num_samples=1", "--max_new_tokens=5"],
        ["train", "out/recipe.yaml", "--init_from=resume", "--max_iters=6"],
        ["sample", "--out_dir=out", "--num_samples=1", "--max_new_tokens=5"],
        ["eval", "--out_dir=out"],
        ["export", "--out_dir=out", "--to=exported"],
        ["doctor", corpus()],
        ["env"],
    ]
    root = str(Path(__file__).parents[1])
    program = PROGRAM.format(root=root, names=json.dumps(HIDDEN_NAMES), modules=HIDDEN_MODULES)
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(commands)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    iterations = [event["iter"] for event in read_metrics("out/metrics.jsonl") if event["event"] == "iter"]
    assert iterations == list(range(6)) and Path("exported/model.safetensors").is_file()
    # what was not asked for was not imported: wandb and evaluate are dependencies
    assert json.loads(done.stdout.rpartition("LOADED ")[2]) == []
