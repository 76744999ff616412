"""F1, AUC, calibration, the error of a prior and measures without negatives, for `evaluate`."""

from typing import Any

import datasets
import evaluate

from hf_ext.metrics.positive_unlabeled import PUMetrics

_DESCRIPTION = """
What a classifier from positive and unlabelled rows is worth. Where the truth of unlabelled rows is known: f1 at the
cut 0, f1_at_prior (positive is the share `prior` of the unlabelled rows with the highest logits), auc,
average_precision, calibration_error, prior_error. Where known positives were held out: held_out_auc (of these against
all unlabelled rows), held_out_recall, lee_liu (held_out_recall^2 / share of unlabelled rows called positive).
"""
_INPUTS = """
Args:
    predictions: logits.
    references: what each row is: 1 and 0, unlabelled and in truth positive or negative, -1, unlabelled and unknown, 2,
        a known positive that was held out of training, -100, not evaluated.
    prior: optional, estimated share of positives among the unlabelled rows.
    offset: added to the logits, 0 by default.
    true_prior: optional, by default the share of positives among the unlabelled rows whose truth is known.
"""
_CITATION = """
@inproceedings{lee2003learning,
  title     = {Learning with Positive and Unlabeled Examples Using Weighted Logistic Regression},
  author    = {Lee, Wee Sun and Liu, Bing},
  booktitle = {International Conference on Machine Learning (ICML)},
  year      = {2003}
}
"""


class PU(evaluate.Metric):
    """See `hf_ext.metrics.PUMetrics`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("float32"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions: Any, references: Any, **options: Any) -> dict[str, float]:
        return PUMetrics(**options).of(predictions, references)
