"""Metrics of generated text, each an `evaluate.Metric` around a well-kept library; none of them needs a network.

load("bleu").compute(predictions=[...], references=[...])
"""

from __future__ import annotations

import difflib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import evaluate


def bleu(predictions: list[str], references: list[str]) -> dict[str, float | str]:
    """BLEU of a corpus, 0 to 100, by sacrebleu: Post, A Call for Clarity in Reporting BLEU Scores, WMT 2018."""
    from sacrebleu.metrics import BLEU

    metric = BLEU()
    score = metric.corpus_score(predictions, [references]).score
    return {"bleu": score, "bleu_signature": str(metric.get_signature())}


def chrf(predictions: list[str], references: list[str]) -> dict[str, float | str]:
    """chrF of a corpus, 0 to 100, by sacrebleu: F-score of character 1- to 6-grams, for every language alike (Popović,
    WMT 2015)."""
    from sacrebleu.metrics import CHRF

    metric = CHRF()
    score = metric.corpus_score(predictions, [references]).score
    return {"chrf": score, "chrf_signature": str(metric.get_signature())}


def rouge(predictions: list[str], references: list[str]) -> dict[str, float | str]:
    """Mean F-scores, 0 to 1, by rouge-score without stemming, which knows a-z and 0-9 only (Lin, ACL 2004)."""
    from rouge_score.rouge_scorer import RougeScorer

    kinds = ["rouge1", "rouge2", "rougeL"]
    scores = list(map(RougeScorer(kinds).score, references, predictions))
    return {kind: sum(score[kind].fmeasure for score in scores) / len(scores) for kind in kinds}


def exact_match(predictions: list[str], references: list[str]) -> dict[str, float | str]:
    """The share of texts that equal their reference, 0 to 1."""
    return {"exact_match": sum(map(str.__eq__, predictions, references)) / len(predictions)}


METRICS = {score.__name__: score for score in (bleu, chrf, rouge, exact_match)}
# the names of their figures
SCORES = {
    "bleu": ("bleu",),
    "chrf": ("chrf",),
    "rouge": ("rouge1", "rouge2", "rougeL"),
    "exact_match": ("exact_match",),
}
LIBRARIES = {"bleu": "sacrebleu", "chrf": "sacrebleu", "rouge": "rouge_score"}


def find_problem(name: str) -> str | None:
    """Why a metric of that name, or in that file, cannot be loaded; None if it can."""
    if name in METRICS:
        library = LIBRARIES.get(name)
        if library is None or importlib.util.find_spec(library):
            return None
        missing = f"{library.replace('_', '-')}, which is not installed"
        return f"{name} needs {missing}: pip install 'finetune-gpt2[metrics]'"
    if Path(name).suffix == ".py":
        return None if Path(name).is_file() else f"{name}: there is no such file"
    unknown = f"{name!r} is none of {', '.join(METRICS)}, nor the path of a metric.py"
    nearest = difflib.get_close_matches(name, METRICS, 1)
    return f"{unknown}. Did you mean {nearest[0]!r}?" if nearest else unknown


def load(name: str) -> evaluate.EvaluationModule:
    """The metric of that name, or the one in that file."""
    import datasets
    import evaluate

    if name not in METRICS:
        return evaluate.load(name, keep_in_memory=True)

    class Metric(evaluate.Metric):
        def _info(self) -> evaluate.MetricInfo:
            text = datasets.Value("string")
            return evaluate.MetricInfo(
                description=METRICS[name].__doc__ or "",
                citation="",
                inputs_description="predictions and references, one text each",
                features=datasets.Features(predictions=text, references=text),
            )

        # pyrefly: ignore[bad-override]
        def _compute(self, *, predictions: list[str], references: list[str], **_: object) -> dict[str, float | str]:
            return METRICS[name](predictions, references)

    return Metric(keep_in_memory=True)
