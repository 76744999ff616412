"""UA, RA, TA, MIA and the gap to a retrained model, for `evaluate`."""

from typing import Any

import datasets
import evaluate

from hf_ext.metrics.forgetting import unlearning_metrics

_DESCRIPTION = """
How well a concept was forgotten by a classifier. UA: accuracy on the concept's training data (lower is more
forgotten); RA: on the other training data; TA: on test data outside the concept; MIA: share of the concept's training
data that a membership attack takes for never trained on; gap: mean absolute difference of the four to those of a model
retrained without the concept. All in percent.
"""
_INPUTS = """
Args:
    predictions: logits, one list of a number per class for every row.
    references: labels, in the model's label set.
    parts: "forget", "hidden", "retain" or "test" for every row.
    retrained: optional, a dictionary with UA, RA, TA and MIA of the retrained model.
"""
_CITATION = """
@inproceedings{zhu2026decoupling,
  title     = {Decoupling the Class Label and the Target Concept in Machine Unlearning},
  author    = {Zhu, Jianing and Han, Bo and Yao, Jiangchao and Xu, Jianliang and Niu, Gang and Sugiyama, Masashi},
  booktitle = {International Conference on Learning Representations (ICLR)},
  year      = {2026}
}
"""


class Unlearning(evaluate.Metric):
    """See `hf_ext.metrics.unlearning_metrics`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float32")),
                    "references": datasets.Value("int64"),
                    "parts": datasets.Value("string"),
                }
            ),
        )

    def _compute(self, predictions: Any, references: Any, parts: Any, **options: Any) -> dict[str, float]:
        return unlearning_metrics(predictions, references, parts, **options)
