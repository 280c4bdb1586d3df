"""The share of texts that are exactly their reference, 0 to 1."""

import datasets
import evaluate

TEXTS = datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")})


class Metric(evaluate.Metric):
    def _info(self):
        inputs = "predictions and references, one text each"
        return evaluate.MetricInfo(description=__doc__, citation="", inputs_description=inputs, features=TEXTS)

    def _compute(self, predictions, references):
        return {"exact_match": sum(map(str.__eq__, predictions, references)) / len(predictions)}
