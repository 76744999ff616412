"""What GPL's study measures of a run: on the unlabelled nodes, whose classes the run did not see."""

from typing import Any

from torch import Tensor

from hf_ext.functional import edge_homophily
from hf_ext.metrics import PUMetrics
from hf_ext.studies.gpl.data import true_prior
from hf_ext.studies.study import Outcome

AUC, PRECISION = "AUC", "average precision"
AT_TRUTH, AT_ZERO, CALIBRATED = "F1 at the true prior", "F1 at score 0", "F1 at probability 0.5"
CALIBRATION, PRIOR, ERROR = "calibration error", "prior", "prior error"
COVERED = "truth in the prior's interval"
BEFORE, AFTER, WEIGHT = "edges between equals", "weight between equals", "mean weight"
GUIDED, WARM_UP_AUC, SEEN = "guide stays", "held-out AUC, guide minus network", "held-out AUC"


def measure(trainer: Any, data: Any) -> Outcome:
    """F1 at the prior's cut, with the AUC of held-out positives for validation, and details.

    Args:
        trainer: a GPLTrainer that has trained.
        data: its graph, with `pu_y`.
    """
    epochs, config = trainer.epochs, trainer.model.config
    logits, roles = epochs.logits().cpu().numpy(), trainer.training_graph.roles.numpy()
    truth = true_prior(data)
    found = PUMetrics(config.class_prior, config.score_offset).of(logits, roles)
    uncalibrated = PUMetrics(truth).of(logits, roles)
    details = {
        AUC: found["auc"],
        PRECISION: found["average_precision"],
        AT_TRUTH: uncalibrated["f1_at_prior"],
        AT_ZERO: uncalibrated["f1"],
        CALIBRATED: found["f1"],
        CALIBRATION: found["calibration_error"],
        PRIOR: config.class_prior,
        ERROR: abs(config.class_prior - truth),
        COVERED: _within(truth, config.prior_interval),
        **_of_edges(data, epochs.edge_weight()),
        GUIDED: None if trainer.args.gpl_guide == "self" else float(epochs.guide is not None),
        WARM_UP_AUC: epochs.aucs["guide_auc"] - epochs.aucs["gnn_auc"] if epochs.aucs else None,
        SEEN: found["held_out_auc"],
    }
    return Outcome(found["held_out_auc"], found["f1_at_prior"], details)


def _within(value: float, interval: list[float] | None) -> float | None:
    return None if interval is None else float(interval[0] <= value <= interval[1])


def _of_edges(data: Any, weights: Tensor | None) -> dict[str, float | None]:
    """Share of edges between nodes of the same class, positive or negative, and of the weight that was learnt."""
    if not data.edge_index.shape[1]:
        return {BEFORE: None, AFTER: None, WEIGHT: None}
    own = data.pu_y
    return {
        BEFORE: float(edge_homophily(data.edge_index, own)),
        AFTER: None if weights is None else float(edge_homophily(data.edge_index, own, edge_weight=weights.cpu())),
        WEIGHT: None if weights is None else float(weights.mean()),
    }
