"""After training: write the report and print the diagnosis of a failed run."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Generator

from finetune.common.commands import command
from finetune.common.errors import Failure, UsageError
from finetune.config.recipe import Recipe


@contextlib.contextmanager
def report_after(recipe: Recipe) -> Generator[None]:
    """Around training: however it ends, write the report and print a diagnosis of at most two lines."""
    began = time.time()
    try:
        yield
    except UsageError:
        raise
    except Failure as error:
        error.args = ("\n".join([str(error), *_report(recipe, began, error.alone)]), *error.args[1:])
        raise
    except Exception:
        for line in _report(recipe, began):
            print(line, file=sys.stderr)
        raise
    for line in _report(recipe, began):
        print(line)


def _report(recipe: Recipe, began: float, alone: bool = False) -> list[str]:
    """Write the report on rank 0, or on the rank that fails alone; return the lines to print. An error here does not
    change how the run ends."""
    rank = int(os.environ.get("RANK", "0"))
    if recipe.eval_only or (rank != 0 and not alone):
        return []
    try:
        from finetune.runs.loss_plot import plot_loss
        from finetune.tools.report import diagnosis, html_report, record

        run = record.load(recipe.out_dir)
        is_older = run.started.get("time", 0) < began  # training failed before it began, and this run was before
        failed_elsewhere = run.failure and run.failure.get("rank", 0) != rank  # that rank writes the report
        if is_older or failed_elsewhere:
            return []
        if not run.ended and (run.updates or run.evaluations):  # a run that ended has drawn its losses
            plot_loss(run.out_dir)
        findings = diagnosis.diagnose(run)
        return [*diagnosis.brief(findings), f"report in {html_report.write(run, findings)}"]
    except UsageError:
        return []
    except Exception as error:
        again = command("report", out_dir=recipe.out_dir)
        return [f"no report ({type(error).__name__}: {error}); {again} tries again"]
