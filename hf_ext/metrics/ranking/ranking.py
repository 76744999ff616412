"""NDCG, HR, MRR and AUC of ranked targets, over users and by group, for `evaluate`."""

from typing import Any

import datasets
import evaluate

from hf_ext.metrics.recommendation import ranking_report

_DESCRIPTION = """
How well targets are ranked among their candidates, one target a row. ndcg@k and hr@k: by rank among the first k; mrr:
mean of 1 / rank; ties count against the target. auc, gauc: share of the other candidates below the target (ties:
half), over rows and over users. With groups of users, for ndcg@k and auc: head, tail, gap (head minus tail) and std
(standard deviation of the two means).
"""
_INPUTS = """
Args:
    predictions: scores, one list of a number per candidate for every row; -inf for what is no candidate.
    references: place of the target among the candidates, from 0.
    users: optional, the user of every row; rows of a user count as their mean. By default all are of different users.
    groups: optional, 1 for every row of a head user, 0 for the others.
    k: the cut, 10 by default.
"""
_CITATION = """
@article{jarvelin2002cumulated,
  title   = {Cumulated Gain-Based Evaluation of {IR} Techniques},
  author  = {J{\\"a}rvelin, Kalervo and Kek{\\"a}l{\\"a}inen, Jaana},
  journal = {ACM Transactions on Information Systems},
  volume  = {20},
  number  = {4},
  pages   = {422--446},
  year    = {2002}
}
"""


class Ranking(evaluate.Metric):
    """See `hf_ext.metrics.ranking_report`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float32")),
                    "references": datasets.Value("int64"),
                }
            ),
        )

    def _compute(self, predictions: Any, references: Any, **options: Any) -> dict[str, float]:
        return ranking_report(predictions, references, **options)
