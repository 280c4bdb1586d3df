"""Who runs the steps: processes of this machine, Ray, or jobs of SLURM."""

from __future__ import annotations

import copy
import inspect
import logging
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, redirect_stderr, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
from datatrove.executor.base import PipelineExecutor
from datatrove.utils.logging import setup_default_logger
from filelock import FileLock
from loguru import logger

from finetune.common.errors import Failure, UsageError, first_line
from finetune.common.machine import num_cores
from finetune.common.progress import progress
from finetune.corpus.plan import write

FAILURES = "failures"
WRITTEN = f"{FAILURES}/[0-9]*"


@dataclass
class Stage:
    """Steps that each task runs; the next stage begins when all tasks have ended."""

    name: str
    title: str
    pipeline: list[Callable[..., Any]]
    tasks: int


class Task(PipelineExecutor):
    """One process at a time works on a task, also after its launcher was killed; why a task failed is written down."""

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> Any:
        folder = Path(self.logging_dir.path)
        (folder / "locks").mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "locks" / f"{rank:05d}"):
            try:
                return super()._run_for_rank(rank, local_rank, node_rank)
            except Exception as error:
                problem = str(error) if isinstance(error, UsageError) else first_line(error)
                with suppress(OSError):  # the disk can be full
                    write(folder / FAILURES / f"{rank:05d}", f"{type(error).__name__}\n{problem}")
                raise


class Local(Task, LocalPipelineExecutor):
    """datatrove's own pool waits for ever for a process that was killed; this one ends with an error."""

    def run(self) -> None:
        ranks = self.get_incomplete_ranks()
        if self.workers == 1 or len(ranks) == 1:
            for rank in ranks:
                _run(copy.deepcopy(self), rank)
            return
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(self.workers, context, initializer=_start_process) as pool:
            futures = [pool.submit(_run, self, rank) for rank in ranks]
            try:
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


class Ray(Task, RayPipelineExecutor):
    pass


class Slurm(Task, SlurmPipelineExecutor):
    pass


def _start_process() -> None:
    """A process of the pool says nothing, its log does, and ends with its launcher, even one that was killed."""
    sys.stderr = open(os.devnull, "w")
    parent = multiprocessing.parent_process()
    assert parent
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _run(executor: Task, rank: int) -> None:
    with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):
        executor._run_for_rank(rank, 1)


def run_here(stages: Sequence[Stage], logs: Path, workers: int, executor: str) -> None:
    """Run all stages, without the tasks that are done already. Raises UsageError or Failure of the first task that
    fails."""
    cores = _start_ray() if executor == "ray" else num_cores()
    logger.remove()
    with ExitStack() as stack, progress(stages, desc="preparing", unit="stage", leave=False) as bar:
        stack.callback(setup_default_logger)
        for stage in bar:
            bar.set_description(stage.title)
            folder = logs / stage.name
            for old in folder.glob(f"{FAILURES}/*"):
                old.unlink()
            given: dict[str, Any] = {"pipeline": stage.pipeline, "tasks": stage.tasks, "logging_dir": str(folder)}
            given["workers"] = min(workers or cores, stage.tasks)
            made = Ray(**given, mem_per_cpu_gb=0) if executor == "ray" else Local(**given)
            try:
                made.run()
            except BrokenProcessPool:
                raise Failure(f"{stage.title}: a process was killed; the same command goes on", 1) from None
            except OSError as error:
                if not any(folder.glob(WRITTEN)):
                    raise Failure(f"{stage.title}: {first_line(error)}; the same command goes on", 1) from None
            except Exception:
                if not any(folder.glob(WRITTEN)):
                    raise
            check(made, stage, folder)


def _start_ray() -> int:
    """Join the cluster that RAY_ADDRESS names, or start one of this machine; return its number of cores."""
    import ray

    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False, ignore_reinit_error=True)
    except Exception as error:  # a plain one
        raise Failure(f"executor: ray did not start: {first_line(error)}", 1) from None
    return int(ray.cluster_resources().get("CPU", 1))


def check(made: PipelineExecutor, stage: Stage, folder: Path) -> None:
    """Raise UsageError or Failure if a task of a stage is not done."""
    if not (missing := made.get_incomplete_ranks(range(stage.tasks))):
        return
    for path in sorted(folder.glob(WRITTEN)):
        kind, _, problem = path.read_text(encoding="utf-8").partition("\n")
        if kind == UsageError.__name__:
            raise UsageError(problem)
        log = folder / "logs" / f"task_{path.name}.log"
        raise Failure(f"{stage.title}: {kind}: {problem} ({log}); the same command goes on", 1)
    raise Failure(f"{stage.title}: {len(missing)} of {stage.tasks} tasks are not done; the same command goes on", 1)


def submit(stages: Sequence[Stage], logs: Path, workers: int, given: str) -> None:
    """Submit the jobs of all stages, without the tasks that are done already. Raises Failure if sbatch fails."""
    logger.remove()
    try:
        slurm(stages, logs, workers, given).run()
    except (OSError, subprocess.CalledProcessError) as error:
        raise Failure(f"executor: the jobs could not be submitted: {first_line(error)}", 1) from None


def slurm(stages: Sequence[Stage], logs: Path, workers: int, given: str) -> Slurm:
    """The jobs of SLURM, one for each stage; running the last one submits all. Raises UsageError."""
    values = slurm_arguments(given)
    made = None
    for stage in stages:
        folder = str(logs / stage.name)
        arguments: dict[str, Any] = {
            "tasks": stage.tasks,
            "workers": workers or -1,
            "job_name": f"finetune-{stage.name}",
        }
        arguments |= values
        made = Slurm(stage.pipeline, **arguments, depends=made, logging_dir=folder)
    assert made
    return made


def slurm_arguments(given: str) -> dict[str, Any]:
    """`partition=cpu,time=24:00:00,mem_per_cpu_gb=4` as arguments of datatrove's executor; what it does not know goes
    to sbatch. Raises UsageError."""
    pairs = [part.partition("=") for part in given.split(",") if part.strip()]
    if wrong := [key for key, sign, value in pairs if not (key.strip() and sign and value)]:
        raise UsageError(f"slurm: {wrong[0]!r} is no KEY=VALUE, such as partition=cpu,time=24:00:00")
    values = {key.strip(): value.strip() for key, _, value in pairs}
    if missing := [key for key in ("partition", "time") if key not in values]:
        raise UsageError(f"slurm: names no {missing[0]}; --slurm=partition=NAME,time=24:00:00")
    known = inspect.signature(SlurmPipelineExecutor).parameters
    numbers = [key for key in values if key in known and str(known[key].annotation) == "int"]
    if wrong := [key for key in numbers if not values[key].isdecimal()]:
        raise UsageError(f"slurm: {wrong[0]}={values[wrong[0]]} is not a whole number")
    arguments: dict[str, Any] = {key: value for key, value in values.items() if key in known}
    arguments |= {key: int(values[key]) for key in numbers}
    if sys.prefix != sys.base_prefix and not {"venv_path", "condaenv", "env_command"} & values.keys():
        arguments["venv_path"] = str(Path(sys.prefix, "bin", "activate"))
    return arguments | {"sbatch_args": {key: value for key, value in values.items() if key not in known}}
