"""What a run leaves beside the model's weights: prior and cut, weights of edges, whether the graph helps."""

import math
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hf_ext._files import replaced_file
from hf_ext.metrics import reliability_curve
from hf_ext.trainers.gpl.epochs import Epochs
from hf_ext.trainers.gpl.prior import calibration, estimated_prior

EDGE_WEIGHTS = "edge_weights.safetensors"
_VERDICTS = {
    True: "the graph helps",
    False: "the graph does not help",
    None: "whether the graph helps is not known",
}


def with_calibration(epochs: Epochs, config: Any) -> None:
    """Write prior, interval, offset and threshold into a model's configuration.

    Before the warm-up is over, and of a naive run, the prior is estimated from the present logits; where nothing is
    held out and no prior given, the configuration stays as it is.
    """
    logits, graph = epochs.logits(), epochs.graph
    prior, interval = epochs.prior, epochs.interval
    if prior is None:
        if not bool(graph.held_out.any()):
            return
        prior, interval = estimated_prior(logits, graph, epochs.args)
    config.class_prior, config.prior_interval = prior, None if interval is None else list(interval)
    for name, value in calibration(logits, graph, prior).items():
        setattr(config, name, value)


def save_edge_weights(epochs: Epochs | None, folder: str | os.PathLike[str]) -> None:
    """Write learnt weights beside a model that has no scorer for them; an older file goes where there are none."""
    path = Path(folder) / EDGE_WEIGHTS
    learnt = epochs is not None and epochs.edges is not None and epochs.args.gpl_edges == "free"
    weights = epochs.edge_weight() if epochs is not None and learnt else None
    if epochs is None or weights is None:
        path.unlink(missing_ok=True)
        return
    tensors = {"edge_index": epochs.graph.edge_index, "edge_weight": weights}
    with replaced_file(path) as new:
        save_file({name: value.cpu().contiguous() for name, value in tensors.items()}, new)


def load_edge_weights(folder: str | os.PathLike[str]) -> tuple[Tensor, Tensor] | None:
    """The weights of edges that were learnt with a model, as they lie beside it.

    Args:
        folder: of the model.

    Returns:
        `edge_index`, int64 `[2, M]`, the training graph's without self-loops, and `edge_weight`, `[M]`; None where no
        weights were learnt, or by a scorer, which is a part of the model.

    Raises:
        ValueError: a file without them.
    """
    path = Path(folder) / EDGE_WEIGHTS
    if not path.is_file():
        return None
    found = load_file(path)
    index, weight = found.get("edge_index"), found.get("edge_weight")
    if index is None or weight is None or index.shape != (2, len(weight)):
        raise ValueError(f"{path}: found {sorted(found)}, allowed are edge_index [2, M] and edge_weight [M]")
    return index, weight


# ------------------------------------------------------------------------------------------------ reports
def graph_helps(epochs: Epochs | None) -> dict[str, Any]:
    """Whether the network finds held-out positives better than one that sees no edges.

    Returns:
        `gnn_auc` and `features_auc`, of held-out positives against the unlabelled after the warm-up, None where they
        were not compared; `helps`, True or False where they differ by more than two standard errors, else None; and
        `verdict`, in words.
    """
    aucs = {} if epochs is None else epochs.aucs
    if not aucs:
        words = "not compared: that takes gpl_guide='auto' or 'mlp', held-out positives and more epochs than warm-up"
        return {"gnn_auc": None, "features_auc": None, "helps": None, "verdict": words}
    gnn, features = aucs["gnn_auc"], aucs["guide_auc"]
    helps = gnn > features if abs(gnn - features) > 2 * aucs["auc_error"] else None
    words = (
        f"{_VERDICTS[helps]}: {gnn:.3f} with edges, {features:.3f} by features alone, difference ± "
        f"{aucs['auc_error']:.3f} (AUC of held-out positives after the warm-up, and its standard error)"
    )
    return {"gnn_auc": gnn, "features_auc": features, "helps": helps, "verdict": words}


def facts_of(epochs: Epochs) -> dict[str, Any]:
    """What a card shows: the prior over epochs, and a reliability curve where the truth is known."""
    graph, facts = epochs.graph, dict[str, Any]()
    known = graph.hidden & (graph.truth >= 0) if graph.truth is not None else torch.zeros_like(graph.hidden)
    truth = graph.truth[known] if graph.truth is not None else None
    if epochs.curves["epoch"]:
        curves = {name: [_or_none(value) for value in values] for name, values in epochs.curves.items()}
        true_prior = float(truth.double().mean()) if truth is not None and len(truth) else None
        interval = None if epochs.interval is None else list(epochs.interval)
        facts["prior_epochs"] = {**curves, "interval": interval, "true_prior": true_prior}
    if truth is not None and len(truth):
        offset = float(epochs.model.config.score_offset)
        probabilities = (epochs.logits()[known] + offset).sigmoid()
        facts["reliability"] = reliability_curve(probabilities.cpu().numpy(), truth.cpu().numpy())
    return facts


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
