"""What is told by itself when training is over: the report is written, and a run that ended badly is diagnosed."""

import contextlib
import os
import sys
import time

from finetune.common.errors import Failure, UsageError


@contextlib.contextmanager
def report_after(recipe):
    """Around training. However it ends, its report is written and what is wrong with it is said, in two lines at
    most."""
    began = time.time()
    try:
        yield
    except UsageError:
        raise
    except Failure as error:
        error.args = ("\n".join([str(error), *_afterwards(recipe, began, error.alone)]), *error.args[1:])
        raise
    except Exception:
        for line in _afterwards(recipe, began):
            print(line, file=sys.stderr)
        raise
    for line in _afterwards(recipe, began):
        print(line)


def _afterwards(recipe, began, alone=False):
    """The lines to say, on the process that speaks. Nothing that goes wrong here changes how a run ended."""
    if recipe.eval_only or not (alone or os.environ.get("RANK", "0") == "0"):
        return []
    try:
        from finetune.tools.report import diagnosis, html_report, record

        run = record.load(recipe.out_dir)
        if run.started.get("time", 0) < began:  # it failed before it began, and these are the records of another run
            return []
        failed = next((event.get("rank", 0) for event in run.session if event["event"] == "failed"), None)
        if failed is not None and failed != int(os.environ.get("RANK", "0")):  # whoever failed first has told it
            return []
        findings = diagnosis.diagnose(run)
        return [*diagnosis.brief(findings), f"report in {html_report.write(run, findings)}"]
    except UsageError:
        return []
    except Exception as error:
        return [
            f"no report ({type(error).__name__}: {error}); python -m finetune.report --out_dir={recipe.out_dir} tries"
            " again"
        ]
