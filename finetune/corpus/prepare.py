"""A corpus to a prepared directory, in stages that are resumed after a crash."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.common.errors import UsageError
from finetune.corpus import files
from finetune.corpus.plan import PLAN, TOKENIZER, Plan
from finetune.data import dataset as datasets
from finetune.data import target
from finetune.data.dataset import Dataset
from finetune.data.run_notes import runs_on
from finetune.data.sources import is_table
from finetune.data.tokenizer import Tokenizer, from_directory

WORK = ".corpus"  # in out_dir, until it is prepared
LOGS, DONE = "logs", "logs/merge/completions/00000"


@dataclass
class Cluster:
    """Who runs the stages. `workers` tasks run at once, 0 is one per core."""

    executor: str
    workers: int = 0
    slurm: str = ""


def prepare_corpus(
    names: Sequence[str],
    val: Sequence[str],
    out_dir: str | Path,
    tokenizer: Tokenizer,
    plan: Plan,
    cluster: Cluster,
    **reading: str | None,
) -> Dataset | None:
    """The prepared directory; None where jobs of SLURM were submitted that make it. `plan` has all values but files.
    Raises UsageError, and Failure if a task fails; then the same call goes on."""
    check_installed(cluster.executor)
    from finetune.corpus.executors import slurm_arguments

    if cluster.slurm:
        slurm_arguments(cluster.slurm)
    plan.files, plan.notes = files.find_files(names, val, read_options=plan.options, **reading)
    plan.tasks = min(plan.tasks, len(plan.files))
    plan.ends_lines = tokenizer.eot_text is None and len({is_table(Path(file.url)) for file in plan.files}) > 1
    work = Path(out_dir).absolute() / WORK
    with target.held(out_dir, plan.overwrite):
        if work.is_dir() and plan.overwrite:
            shutil.rmtree(work)
        if (work / PLAN).is_file():
            plan.check(work, out_dir)
        else:
            _write_plan(plan, work, tokenizer, out_dir)
        if not (work / DONE).is_file():
            if cluster.executor == "slurm":
                return _submit(plan, work, cluster)
            _run(plan, work, cluster)
        shutil.rmtree(work)
    return datasets.load(out_dir)


def check_installed(executor: str) -> None:
    """Raise UsageError if a package of an executor is missing."""
    for name in ("datatrove", *["ray"] * (executor == "ray")):
        if importlib.util.find_spec(name) is None:
            raise UsageError(f"executor: needs the package {name}: pip install 'finetune-gpt2[cluster]'")


def _write_plan(plan: Plan, work: Path, tokenizer: Tokenizer, out_dir: str | Path) -> None:
    """Write the plan and the tokenizer for all processes. Raises UsageError for data that a run was trained on."""
    if not plan.overwrite and (run := next(runs_on(out_dir), None)):
        problem = f"the run {run} was trained on what it holds"
        raise UsageError(f"out_dir {out_dir}: {problem}; choose another --out_dir, or --overwrite=true replaces it")
    shutil.rmtree(work, ignore_errors=True)
    (work / TOKENIZER).mkdir(parents=True)
    tokenizer.save(work / TOKENIZER)
    saved = from_directory(work / TOKENIZER)
    assert saved and saved.fingerprint == tokenizer.fingerprint
    plan.save(work)


def _run(plan: Plan, work: Path, cluster: Cluster) -> None:
    from finetune.corpus.executors import run_here
    from finetune.corpus.stages import stages

    try:
        run_here(stages(plan, work), work / LOGS, cluster.workers, cluster.executor)
    except UsageError:  # the sources have to change, so nothing of it can be used
        shutil.rmtree(work, ignore_errors=True)
        raise


def _submit(plan: Plan, work: Path, cluster: Cluster) -> None:
    from finetune.corpus.executors import submit
    from finetune.corpus.stages import stages

    submit(stages(plan, work), work / LOGS, cluster.workers, cluster.slurm)
