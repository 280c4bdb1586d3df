"""What SIGKILL leaves: training that saves at every step is killed at a random moment, and asked to resume.

    python scripts/kill_test.py [--kills=25] [--nanogpt=PATH]

Each contender trains the same tiny GPT-2 in its own process tree (forked, so that a start costs little): finetune,
Hugging Face Trainer and, given a checkout, nanoGPT. A kill counts as survived when the same command, resumed, finds its
newest checkpoint whole and makes another step. The table goes to docs/benchmarks/."""

import datetime
import json
import os
import random
import re
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

from finetune.config.cli import parse, run
from finetune.config.options import option

ROOT = Path(__file__).parents[1]
SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 64, "block_size": 64}


@dataclass
class Options:
    kills: int = option(25, "kills of each contender")
    nanogpt: str = option("", "a checkout of nanoGPT")
    contender: str = option("", "only this one, its result as JSON; used by the script itself")
    seed: int = option(0, "of the moments of the kills")
    out: str = option(str(ROOT / "docs" / "benchmarks"), "directory for the table")


def main(argv):
    options, _ = parse(Options, argv, __doc__)
    if options.contender:
        print(json.dumps(measure(options)))
        return
    contenders = ["finetune", "Trainer"] + (["nanoGPT"] if options.nanogpt else [])
    rows = []
    for name in contenders:
        command = [
            sys.executable,
            __file__,
            f"--contender={name}",
            f"--kills={options.kills}",
            f"--seed={options.seed}",
            f"--nanogpt={options.nanogpt}",
        ]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        if done.returncode:
            sys.exit(done.stderr)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(rows[-1], flush=True)
    write(rows, options)


def measure(options):
    """Kill one contender again and again, each time from a fresh start."""
    import torch._dynamo  # noqa: F401  every optimizer wants it, and a fork should not have to import it

    contender = {"finetune": Ours, "Trainer": Trainer, "nanoGPT": NanoGPT}[options.contender](options)
    rng, unusable, reasons = random.Random(options.seed), 0, {}
    for _ in range(options.kills):
        with tempfile.TemporaryDirectory() as work:
            os.chdir(work)
            contender.prepare(Path(work))
            pid = forked(contender.train)
            deadline = time.time() + 60
            while not contender.has_saved() and time.time() < deadline:
                time.sleep(0.002)
            time.sleep(rng.uniform(0.05, 0.5))
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            log = Path(work) / "resumed.log"
            code = os.waitstatus_to_exitcode(os.waitpid(forked(contender.resume, log), 0)[1])
            if code:
                unusable += 1
                reason = (log.read_text().strip().splitlines() or ["?"])[-1][:100].replace(work, "")
                reason = re.sub(r"\d+", "N", reason)
                reasons[reason] = reasons.get(reason, 0) + 1
            os.chdir("/")
    return {
        "tool": options.contender,
        "kills": options.kills,
        "newest checkpoint unusable": unusable,
        "what it said": "; ".join(f"{n}x {r}" for r, n in reasons.items()),
    }


def forked(action, log=os.devnull):
    """The pid of a child that runs `action` and ends with 0, or with 1 and its error in the log."""
    pid = os.fork()
    if pid:
        return pid
    handle = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(handle, 1), os.dup2(handle, 2)
    code = 1
    try:
        action()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


class Ours:
    def __init__(self, options):
        import torch

        from finetune.runtime import device as devices
        from finetune.training import session, trainer

        torch.set_num_threads(1)
        devices.peak_flops = lambda device, dtype: (1e12, "not measured")
        session.plot_loss = lambda out_dir: None
        self.loop = trainer

    def prepare(self, work):
        tokens(work)

    def recipe(self, **values):
        from finetune.config.recipe import Recipe

        common = {
            "dataset": "data",
            "batch_size": 4,
            "gradient_accumulation_steps": 1,
            "save_interval": 1,
            "eval_interval": 1000,
            "cpu_threads": 1,
            "device": "cpu",
        }
        return Recipe(**{**common, "dtype": "float32", **values})

    def train(self):
        self.loop.train(self.recipe(init_from="scratch", **SHAPE, max_iters=10_000, learning_rate=1e-3))

    def has_saved(self):
        return any(Path("out/last").glob("step-*"))

    def resume(self):
        from finetune.common import files

        newest = max(int(path.name.split("-")[1]) for path in Path("out/last").glob("step-*"))
        assert files.find_damage(f"out/last/step-{newest:08d}") is None
        _, state = self.loop.train(self.recipe(init_from="resume", max_iters=newest + 1, learning_rate=1e-3))
        assert state.step == newest + 1


class Trainer:
    def __init__(self, options):
        import torch
        import transformers

        torch.set_num_threads(1)
        transformers.logging.set_verbosity_error()
        self.transformers = transformers

    def prepare(self, work):
        pass

    def trainer(self, steps):
        import torch

        config = self.transformers.GPT2Config(
            n_layer=2, n_head=2, n_embd=64, n_positions=64, vocab_size=500, bos_token_id=0, eos_token_id=0
        )
        torch.manual_seed(0)
        data = [{"input_ids": row, "labels": row} for row in torch.randint(0, 500, (400, 64)).tolist()]
        args = self.transformers.TrainingArguments(
            "out",
            per_device_train_batch_size=4,
            max_steps=steps,
            save_steps=1,
            save_total_limit=2,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
        )
        return self.transformers.Trainer(self.transformers.GPT2LMHeadModel(config), args, train_dataset=data)

    def train(self):
        self.trainer(10_000).train()

    def has_saved(self):
        return any(Path("out").glob("checkpoint-*/trainer_state.json"))

    def resume(self):
        newest = max(int(path.name.split("-")[1]) for path in Path("out").glob("checkpoint-*"))
        self.trainer(newest + 1).train(resume_from_checkpoint=True)


class NanoGPT:
    def __init__(self, options):
        import torch

        torch.set_num_threads(1)
        self.checkout = Path(options.nanogpt).resolve()
        sys.path.insert(0, str(self.checkout))

    def prepare(self, work):
        tokens(work)
        (work / "data" / "tiny").mkdir()
        for name in ("train.bin", "val.bin", "meta.pkl"):
            os.rename(work / "data" / name, work / "data" / "tiny" / name)
        for name in ("train.py", "model.py", "configurator.py"):
            os.symlink(self.checkout / name, work / name)

    def argv(self, *more):
        shape = [f"--{name}={value}" for name, value in SHAPE.items()]
        common = (
            "--dataset=tiny --device=cpu --compile=False --eval_iters=1 --batch_size=4 --gradient_accumulation_steps=1"
            " --out_dir=out".split()
        )
        return ["train.py", *shape, *common, *more]

    def train(self):
        sys.argv = self.argv("--eval_interval=1", "--always_save_checkpoint=True", "--max_iters=10000")
        runpy.run_path("train.py", run_name="__main__")

    def has_saved(self):
        return Path("out/ckpt.pt").exists()

    def resume(self):
        sys.argv = self.argv("--init_from=resume", "--eval_interval=1000000", "--max_iters=0")
        runpy.run_path("train.py", run_name="__main__")


def tokens(work):
    """Random bins of 500 ids in work/data, with the meta.pkl that tells nanoGPT so."""
    import numpy as np

    from finetune.data import nanogpt_meta

    (work / "data").mkdir()
    (work / "data" / "meta.pkl").write_bytes(nanogpt_meta.write([chr(256 + i) for i in range(500)]))
    rng = np.random.default_rng(0)
    for split, size in (("train", 26_000), ("val", 2_000)):
        rng.integers(0, 500, size, dtype=np.uint16).tofile(work / "data" / f"{split}.bin")


def write(rows, options):
    sys.path.insert(0, str(ROOT / "scripts"))
    from bench import hardware_name, versions

    columns = list(rows[0])
    lines = [
        "# What SIGKILL leaves",
        "",
        "A tiny GPT-2 saved at every step, killed at a random moment, then resumed. Each kill from a fresh start.",
        "",
    ]
    lines += [
        (
            f"{hardware_name()}; {datetime.date.today().isoformat()};"
            f" {', '.join(f'{k} {v}' for k, v in versions().items())}."
        ),
        "",
    ]
    lines += [
        f"    python scripts/kill_test.py --kills={options.kills}{' --nanogpt=PATH' if options.nanogpt else ''}",
        "",
    ]
    lines += ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)] + [
        "| " + " | ".join(str(row[c]) for c in columns) + " |" for row in rows
    ]
    path = Path(options.out) / f"kills_{datetime.date.today().isoformat()}.md"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    run(main)
