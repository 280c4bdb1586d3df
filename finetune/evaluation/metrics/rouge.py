"""ROUGE-1, ROUGE-2 and ROUGE-L, F-scores of 0 to 1 by rouge-score, without stemming: means over the texts. Knows a-z
and 0-9 only."""

import datasets
import evaluate

KINDS = ["rouge1", "rouge2", "rougeL"]
TEXTS = datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")})


class Metric(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=__doc__,
            citation="Lin, ROUGE: A Package for Automatic Evaluation of Summaries, ACL 2004",
            inputs_description="predictions and references, one text each",
            features=TEXTS,
        )

    def _compute(self, predictions, references):
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer(KINDS)
        scores = [scorer.score(reference, prediction) for prediction, reference in zip(predictions, references)]
        return {kind: sum(score[kind].fmeasure for score in scores) / len(scores) for kind in KINDS}
