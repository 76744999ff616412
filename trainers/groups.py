"""Metrics of groups of samples (tasks, domains) in any Trainer's evaluation."""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn
from transformers import EvalPrediction, Trainer
from transformers.trainer_utils import denumpify_detensorize

from hf_ext.data.columns import group_label
from hf_ext.hub_cards.callback import CardCallback

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object

#: last words of the names of metrics of which less is better
_ERRORS = {"error", "errors", "perplexity", "nll", "mse", "rmse", "mae", "mape", "wer", "cer", "ter", "brier", "ece"}


class GroupMetricsMixin(_Base):
    """Evaluation calls `compute_metrics` for every group too, and reports the worst."""

    columns_of: Callable[[Mapping[str, Any]], dict[str, Tensor]]  # of MethodMixin
    card: CardCallback | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._evaluated_groups: dict[str, list[np.ndarray]] | None = None  # by column, batch by batch; in a loop only
        self._said_of_groups: set[str] = set()

    @property
    def groups(self) -> dict[str, str]:
        """Columns by the name of their groups. Cooperative: `super().groups | {"task": "task_ids"}`."""
        return {}

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Predict, and note the batch's groups."""
        columns = {} if self._evaluated_groups is None else self.columns_of(inputs)
        result = super().prediction_step(model, inputs, *args, **kwargs)
        if self._evaluated_groups is not None:
            # in one order in all processes, which gather together
            for column in dict.fromkeys(column for column in self.groups.values() if column in columns):
                gathered = self.accelerator.gather_for_metrics(columns[column])
                self._evaluated_groups.setdefault(column, []).append(gathered.cpu().numpy())
        return result

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate; `compute_metrics` is called for all samples and then for every group, in the order of their ids.

        Reports `<prefix>_<group>_<value>_<metric>`, whatever the metric is, and for numbers
        `<prefix>_worst_<group>_<metric>`: of those that are not NaN the largest of a loss or an error (by its name:
        "loss", "mse", "wer", "perplexity", ...), the smallest of every other metric. A metric that `compute_metrics`
        gives under one of these names stays as it is.

        A group sees its rows of predictions, labels and inputs, batch by batch with `eval_do_concat_batches=False`.
        Its `losses` are NaN, since a Trainer knows means over batches alone. Groups for which `compute_metrics` raises
        are left out, and so are all with `batch_eval_metrics`, whose function keeps one state. A warning says so once.
        """
        whole: list[EvalPrediction] = []
        own, self._evaluated_groups = self.compute_metrics, {}
        if own is not None and not self.args.batch_eval_metrics:
            self.compute_metrics = _noting(own, whole)
        try:
            output = super().evaluation_loop(*args, **kwargs)
            evaluated = self._evaluated_groups
        finally:
            self.compute_metrics, self._evaluated_groups = own, None
        metrics = getattr(output, "metrics", None)
        if own is None or not isinstance(metrics, dict) or not evaluated:
            return output
        if self.args.batch_eval_metrics:
            self._say("batch_eval_metrics: found True, the metrics of groups are left out: they take False")
        elif output.label_ids is not None and not whole:  # a loop of the user's, with metrics of its own
            whole.append(EvalPrediction(output.predictions, output.label_ids))
        if whole:
            if whole[-1].losses is not None:
                self._say(
                    "include_for_metrics: found 'loss', of groups the losses are NaN: known are means of batches"
                )
            dataset = getattr(kwargs.get("dataloader", args[0] if args else None), "dataset", None)
            prefix = prefix_of(args, kwargs)
            for name, column in self.groups.items():
                if column in evaluated:
                    found = self._group_metrics(whole[-1], name, column, evaluated[column], dataset, prefix)
                    metrics.update({key: value for key, value in found.items() if key not in metrics})
        return output

    def _group_metrics(
        self, whole: EvalPrediction, name: str, column: str, ids: list[np.ndarray], dataset: Any, prefix: str
    ) -> dict[str, Any]:
        by_metric: dict[str, dict[str, Any]] = {}  # and by label
        assert self.compute_metrics is not None
        for group in np.unique(np.concatenate(ids)):
            label = group_label(dataset, column, int(group))
            try:
                picked = [batch == group for batch in ids]
                prediction = _part(whole, picked, concatenated=self.args.eval_do_concat_batches)
                found = dict(denumpify_detensorize(self.compute_metrics(prediction)))
            except Exception as error:  # a user's function may need more than some groups have, as two classes
                self._say(f"compute_metrics: found {type(error).__name__} ({error})", f" for {name} {label}, left out")
                continue
            for metric, value in found.items():
                by_metric.setdefault(metric.removeprefix(f"{prefix}_"), {})[label] = value
        metrics: dict[str, Any] = {}
        for metric, values in by_metric.items():
            keys = {f"{prefix}_{name}_{label}_{metric}": label for label in values}
            metrics |= {key: values[label] for key, label in keys.items()}
            numbers = [value for value in values.values() if isinstance(value, Real)]
            if numbers:
                metrics[f"{prefix}_worst_{name}_{metric}"] = worst(metric, numbers)
            if self.card is not None:
                self.card.add_groups({key: (f"{name} {label}", metric) for key, label in keys.items()})
        return metrics

    def _say(self, what: str, where: str = "") -> None:
        """Warn of something once, wherever it occurs first."""
        if what not in self._said_of_groups:
            self._said_of_groups.add(what)
            warnings.warn(what + where, stacklevel=2)


def prefix_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """What the names of metrics begin with, from the arguments of an `evaluation_loop`."""
    return str(kwargs.get("metric_key_prefix", args[4] if len(args) > 4 else "eval"))


def worst(metric: str, values: Iterable[Any]) -> Any:
    """The worst of the values of a metric of this name that are not NaN; NaN if there is none."""
    known = [value for value in values if value == value]  # whatever kind of number it is
    name = metric.lower()
    less_is_better = name.endswith(("loss", "error_rate")) or name.rpartition("_")[2] in _ERRORS
    return (max if less_is_better else min)(known) if known else math.nan


def _noting(compute_metrics: Callable[..., Any], whole: list[EvalPrediction]) -> Callable[..., Any]:
    """The same function, which notes what it is given."""

    def noting(*args: Any, **kwargs: Any) -> Any:
        whole.extend(value for value in (*args, *kwargs.values()) if isinstance(value, EvalPrediction))
        return compute_metrics(*args, **kwargs)

    return noting


def _part(whole: EvalPrediction, picked: list[np.ndarray], *, concatenated: bool) -> EvalPrediction:
    """The picked rows of an evaluation, of which `picked` has a mask for every batch."""

    def rows(values: Any) -> Any:
        if concatenated or values is None:
            return _rows(values, np.concatenate(picked))
        return [_rows(batch, mask) for batch, mask in zip(values, picked, strict=True) if mask.any()]

    unknown = [np.full(len(mask), np.nan, dtype=np.float32) for mask in picked]
    losses = None if whole.losses is None else np.concatenate(unknown) if concatenated else unknown
    return EvalPrediction(rows(whole.predictions), rows(whole.label_ids), rows(whole.inputs), rows(losses))


def _rows(arrays: Any, picked: np.ndarray) -> Any:
    if arrays is None:
        return None
    if isinstance(arrays, Mapping):
        return {name: _rows(value, picked) for name, value in arrays.items()}
    if isinstance(arrays, tuple | list):
        return type(arrays)(_rows(value, picked) for value in arrays)
    if np.shape(arrays)[:1] != picked.shape:
        raise ValueError(f"an array of shape {np.shape(arrays)} where there are {len(picked)} samples")
    return arrays[picked]
