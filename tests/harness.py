"""Runs that are forked, so that a start costs milliseconds, and killed. A process of its own: forked.run("harness",
"JOB.json"), or python harness.py JOB.json

torch is imported once and never used here, because a fork of a process that has computed with several threads hangs.
The job is {"recipe": {...}, "world": N} with, to be killed at random, {"kills": K, "seed": S, "slowest": seconds}, or,
to meet a bad number once, {"nan": {"rank": R, "iteration": I}}, or a signal, {"signal": {"rank": R, "number": N,
"iteration": I}}, or, with "full", "blocked" or "slow", a disk that is so. Its "environment" is what the launcher would
have set; with "as_launched" its runs have the bits of a launcher's. Of a list of jobs one runs after the other. The
outcome, or a list of them, is printed as JSON."""

import dataclasses
import json
import os
import random
import resource
import select
import signal
import sys
import time
import traceback
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from ports import free_port

torch.set_num_threads(1)

import accelerate  # noqa: F401  every fork would have to import these
import datasets  # noqa: F401
import economies
import torch._dynamo  # noqa: F401  the optimizer wants it
import torch.distributed.fsdp  # noqa: F401

from finetune.common import files
from finetune.common.errors import Failure
from finetune.config.recipe import Recipe
from finetune.gpt import recompute
from finetune.runs import checkpoints, loss_plot
from finetune.runtime import device as devices
from finetune.runtime import fsdp
from finetune.training import saving, trainer
from finetune.training.state import Hooks

devices.peak_flops = lambda device, dtype: (1e12, "not measured")  # a matrix product would only cost time
loss_plot.plot_loss = lambda *given, **named: None
economies.save_time()
MANY_TOKENS = recompute.MANY_TOKENS


def poison(rank, iteration):
    """Hooks for `start`: on one rank one gradient of one update becomes NaN, once: before the processes sum gradients,
    or after it in its shard."""
    handles, done = [], []

    def before_update(setup, state):
        if state.step == iteration and not done and not fsdp.is_sharded(setup.model):
            handles.append(setup.model.ln_f.bias.register_hook(lambda gradient: gradient * float("nan")))

    def after_backward(setup, state):
        if state.step == iteration and not done:
            done.append(True)
            if fsdp.is_sharded(setup.model):
                fsdp.local_shard(setup.model.wte.weight.grad).mul_(float("nan"))
            else:
                handles.pop().remove()

    hooks = Hooks(before_update, after_backward)
    return lambda this_rank: hooks if this_rank == rank else Hooks()


def signalled(rank, number, iteration):
    """Hooks for `start`: one rank sends itself a signal in one update."""

    def before_update(setup, state):
        if state.step == iteration:
            os.kill(os.getpid(), number)

    return lambda this_rank: Hooks(before_update) if this_rank == rank else Hooks()


def full(rank, iteration):
    """Hooks for `start`: from an update on, no file of one rank can grow beyond 4 KB."""

    def before_update(setup, state):
        if state.step == iteration:
            setup.saves.wait()
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))

    return lambda this_rank: Hooks(before_update) if this_rank == rank else Hooks()


def blocked(rank, iteration):
    """Hooks for `start`: from an update on, for two updates, one rank can begin no state."""

    def before_update(setup, state):
        place = Path(setup.recipe.out_dir, "last", files.WORK)
        if state.step == iteration:
            setup.saves.wait()
            place.touch()
        elif state.step == iteration + 2:
            setup.saves.wait()
            place.unlink()

    return lambda this_rank: Hooks(before_update) if this_rank == rank else Hooks()


def slow(rank, iteration):
    """Hooks for `start`: one rank takes its time to write; it notes in which updates a state was being written."""
    sync = files.sync

    def slowly(path):
        time.sleep(0.2)
        sync(path)

    def before_update(setup, state):
        files.sync = slowly
        if any(save.is_sharded and not save.written.is_set() for save in setup.saves.begun):
            with open("written-beside", "a") as file:
                file.write(f"{state.step}\n")

    return lambda this_rank: Hooks(before_update) if this_rank == rank else Hooks()


def start(recipe, world=1, report=None, hooks=lambda rank: Hooks()):
    """Fork `world` processes that train with `hooks(rank)`; return their pids. Saved steps are written to the
    descriptor `report` once acknowledged."""
    port = free_port()
    pids = []
    for rank in range(world):
        pid = os.fork()
        if pid:
            pids.append(pid)
            continue
        code = 1
        try:
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            if world > 1:
                os.environ |= {
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": str(world),
                    "LOCAL_WORLD_SIZE": str(world),
                }
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
            if report is not None:
                seal = checkpoints.seal_state

                def sealed(out_dir, state, write):
                    seal(out_dir, state, write)
                    os.write(report, f"{state['iteration']}\n".encode())

                checkpoints.seal_state = sealed
            if report is not None or recipe.sharded_checkpoints:
                saving.SMALL = 0  # so that saves are made in the background
            trainer.train(recipe, hooks=hooks(rank))
            code = 0
        except Failure as failure:
            code = failure.code
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pids


def run(recipe, world=1, **options):
    """Train to the end; return the exit codes."""
    codes = []
    for pid in start(recipe, world, **options):
        codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    return codes


def killed(recipe, world, kills, seed, slowest):
    """SIGKILL all processes of a run at random times, `kills` times over, check after each, and let it finish at
    last."""
    rng = random.Random(seed)
    acknowledged, lost, inside_save, broken = 0, 0, 0, []
    work = f"{recipe.out_dir}/last/{files.WORK}"
    for number in range(kills + 1):
        read, write = os.pipe()
        resumed = any(files.find_damage(state) is None for state in checkpoints.states(recipe.out_dir))
        this = dataclasses.replace(recipe, init_from="resume" if resumed else recipe.init_from, overwrite=not resumed)
        pids = start(this, world, report=write)
        os.close(write)
        if number == kills:
            codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
            os.close(read)
            return {
                "codes": codes,
                "acknowledged": acknowledged,
                "lost": lost,
                "inside_save": inside_save,
                "broken": broken,
            }
        # wait until it has begun to save, then a random while, and every second time until it saves again
        text = b""
        ready, _, _ = select.select([read], [], [], 30)
        if ready:
            time.sleep(rng.uniform(0.0, slowest))
        patience = time.monotonic() + 2 * (number % 2)
        while not os.path.isdir(work) and time.monotonic() < patience:
            pass
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for pid in pids:
            os.waitpid(pid, 0)
        while chunk := os.read(read, 4096):
            text += chunk
        os.close(read)
        acknowledged = max([acknowledged, *map(int, text.split())])
        inside_save += os.path.isdir(work)
        valid = []
        for state in checkpoints.states(recipe.out_dir):
            problem = files.find_damage(state)
            valid.append(int(state.name.split("-")[1])) if problem is None else broken.append(f"{state}: {problem}")
        lost += max(valid, default=0) < acknowledged


def outcome(job):
    recipe = Recipe(**job["recipe"])
    # small runs do what large ones do, unless they are compared with ranks of a launcher: DDP sums gradients in the
    # order in which they are ready, which decides about the last bits of three ranks
    recompute.MANY_TOKENS = MANY_TOKENS if job.get("as_launched") else 1
    os.environ |= job.get("environment", {})
    if recipe.lora_rank:
        import peft  # noqa: F401  as above, where it is wanted
    if "kills" in job:
        found = killed(recipe, job["world"], job["kills"], job["seed"], job["slowest"])
    else:
        began = time.perf_counter()
        kinds = {"nan": poison, "signal": signalled, "full": full, "blocked": blocked, "slow": slow}
        hooks = next((make(**job[kind]) for kind, make in kinds.items() if kind in job), None)
        options = {"hooks": hooks} if hooks else {}
        found = {"codes": run(recipe, job["world"], **options), "seconds": time.perf_counter() - began}
    for name in job.get("environment", {}):
        del os.environ[name]
    return found


def main(argv):
    with open(argv[0], encoding="utf-8") as file:
        asked = json.load(file)
    print(json.dumps([outcome(job) for job in asked] if isinstance(asked, list) else outcome(asked)))


if __name__ == "__main__":
    main(sys.argv[1:])
