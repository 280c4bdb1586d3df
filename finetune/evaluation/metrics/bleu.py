"""BLEU of a corpus, 0 to 100, by sacrebleu."""

import datasets
import evaluate

TEXTS = datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")})


class Metric(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=__doc__,
            citation="Post, A Call for Clarity in Reporting BLEU Scores, WMT 2018",
            inputs_description="predictions and references, one text each",
            features=TEXTS,
        )

    def _compute(self, predictions, references):
        from sacrebleu.metrics import BLEU

        bleu = BLEU()
        return {"bleu": bleu.corpus_score(predictions, [references]).score, "bleu_signature": str(bleu.get_signature())}
