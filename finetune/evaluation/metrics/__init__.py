"""Metrics of generated text, each an `evaluate.Metric` around a well-kept library; none of them needs a network.

load("bleu").compute(predictions=[...], references=[...])  # evaluate.load takes the file of one as well
"""

import difflib
import importlib
import importlib.util
from pathlib import Path

METRICS = {
    "bleu": "sacrebleu",
    "chrf": "sacrebleu",
    "rouge": "rouge_score",
    "exact_match": None,
}  # and the library behind each


def problem(name):
    """What is wrong with the name of a metric or the path of a metric file, in words; None when it can be loaded."""
    if name in METRICS:
        library = METRICS[name]
        missing = library and importlib.util.find_spec(library) is None
        return (
            f"{name} needs {library.replace('_', '-')}, which is not installed: pip install -e '.[metrics]' where"
            " finetune was cloned to"
            if missing
            else None
        )
    if Path(name).suffix == ".py":
        return None if Path(name).is_file() else f"{name}: there is no such file"
    nearest = difflib.get_close_matches(name, METRICS, 1)
    known = f"{name!r} is none of {', '.join(METRICS)}, nor the path of a metric.py"
    return known + (f". Did you mean {nearest[0]!r}?" if nearest else "")


def load(name):
    """The metric of that name, or that in a file of the user's own."""
    import evaluate

    if name not in METRICS:
        return evaluate.load(name, keep_in_memory=True)
    module = importlib.import_module(f"finetune.evaluation.metrics.{name}")
    return module.Metric(keep_in_memory=True)
