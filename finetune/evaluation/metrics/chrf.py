"""chrF of a corpus, 0 to 100, by sacrebleu: F-score of character 1- to 6-grams, for every language alike."""

import datasets
import evaluate

TEXTS = datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")})


class Metric(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=__doc__,
            citation="Popović, chrF: character n-gram F-score for automatic MT evaluation, WMT 2015",
            inputs_description="predictions and references, one text each",
            features=TEXTS,
        )

    def _compute(self, predictions, references):
        from sacrebleu.metrics import CHRF

        chrf = CHRF()
        return {"chrf": chrf.corpus_score(predictions, [references]).score, "chrf_signature": str(chrf.get_signature())}
