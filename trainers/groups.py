"""Metrics of groups of samples (tasks, domains) in any Trainer's evaluation."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import EvalPrediction, Trainer
from transformers.trainer_utils import denumpify_detensorize

from hf_ext.data.columns import group_label
from hf_ext.hub_cards.callback import CardCallback

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object


class GroupMetricsMixin(_Base):
    """Evaluation calls `compute_metrics` for every group too, and reports the worst."""

    batch_columns: dict[str, Tensor]  # of MethodMixin
    card: CardCallback | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._evaluated_groups: dict[str, list[Tensor]] = {}

    @property
    def groups(self) -> dict[str, str]:
        """Columns by the name of their groups. Cooperative: `super().groups | {"task": "task_ids"}`."""
        return {}

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Predict, and note the batch's groups."""
        result = super().prediction_step(model, inputs, *args, **kwargs)
        # in one order in all processes, which gather together
        for column in dict.fromkeys(column for column in self.groups.values() if column in self.batch_columns):
            gathered = self.accelerator.gather_for_metrics(self.batch_columns[column])
            self._evaluated_groups.setdefault(column, []).append(gathered)
        return result

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate; `compute_metrics` is called for all samples and then for every group.

        Reports `<prefix>_<group>_<value>_<metric>` and `<prefix>_worst_<group>_<metric>`: the largest value of a
        metric that ends in "loss", the smallest of every other.
        """
        self._evaluated_groups = {}
        output = super().evaluation_loop(*args, **kwargs)
        evaluated, self._evaluated_groups = self._evaluated_groups, {}
        if self.compute_metrics is not None and output.predictions is not None:
            assert output.metrics is not None  # a loop's own always are
            dataset = getattr(kwargs.get("dataloader", args[0] if args else None), "dataset", None)
            prefix = kwargs.get("metric_key_prefix", "eval")
            for name, column in self.groups.items():
                if column in evaluated:
                    ids = torch.cat(evaluated[column]).cpu().numpy()
                    output.metrics.update(self._group_metrics(output, name, column, ids, dataset, prefix))
        return output

    def _group_metrics(
        self, output: Any, name: str, column: str, ids: np.ndarray, dataset: Any, prefix: str
    ) -> dict[str, float]:
        by_metric: dict[str, dict[str, float]] = {}  # and by label
        for group in np.unique(ids):
            picked = ids == group
            prediction = EvalPrediction(_rows(output.predictions, picked), _rows(output.label_ids, picked))
            assert self.compute_metrics is not None
            label = group_label(dataset, column, int(group))
            for metric, value in denumpify_detensorize(self.compute_metrics(prediction)).items():
                by_metric.setdefault(metric.removeprefix(f"{prefix}_"), {})[label] = value
        metrics: dict[str, float] = {}
        for metric, values in by_metric.items():
            keys = {f"{prefix}_{name}_{label}_{metric}": label for label in values}
            metrics |= {key: values[label] for key, label in keys.items()}
            metrics[f"{prefix}_worst_{name}_{metric}"] = (max if metric.endswith("loss") else min)(values.values())
            if self.card is not None:
                self.card.add_groups({key: (f"{name} {label}", metric) for key, label in keys.items()})
        return metrics


def _rows(arrays: Any, picked: np.ndarray) -> Any:
    if arrays is None:
        return None
    if isinstance(arrays, Mapping):
        return {name: _rows(value, picked) for name, value in arrays.items()}
    if isinstance(arrays, tuple | list):
        return type(arrays)(_rows(value, picked) for value in arrays)
    return arrays[picked]
