"""After training: write the report and print the diagnosis of a failed run."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Generator

from finetune.common.errors import Failure, UsageError
from finetune.config.recipe import Recipe


@contextlib.contextmanager
def report_after(recipe: Recipe) -> Generator[None]:
    """Around training: however the run ends, write its report and print the diagnosis in at most two lines."""
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
    """Write the report; return the lines to print. Only rank 0 does it, or the rank that fails alone. An error here
    does not change how the run ends."""
    rank = int(os.environ.get("RANK", "0"))
    if recipe.eval_only or (rank != 0 and not alone):
        return []
    try:
        from finetune.tools.report import diagnosis, html_report, record

        run = record.load(recipe.out_dir)
        if run.started.get("time", 0) < began:  # training failed before it began, so this is the run before it
            return []
        if run.failure and run.failure.get("rank", 0) != rank:  # the rank that failed first writes the report
            return []
        findings = diagnosis.diagnose(run)
        return [*diagnosis.brief(findings), f"report in {html_report.write(run, findings)}"]
    except UsageError:
        return []
    except Exception as error:
        again = f"python -m finetune.report --out_dir={recipe.out_dir}"
        return [f"no report ({type(error).__name__}: {error}); {again} tries again"]
