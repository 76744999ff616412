"""FedGELA at a client: training with the local view of a fixed simplex head, evaluation of both views."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from hf_ext._models import base_model
from hf_ext.functional import etf_class_weights
from hf_ext.models import ETFClassifier
from hf_ext.trainers.federated.fedgela.arguments import FedGELAArguments
from hf_ext.trainers.federated.fedgela.class_counts import as_counts, counts_of_labels
from hf_ext.trainers.federated.fedgela.views import scaled, with_personal
from hf_ext.trainers.federated.rounds import FederatedMixin
from hf_ext.trainers.groups import prefix_of


@dataclass
class FedGELAConfig(FedGELAArguments, TrainingArguments):
    """`TrainingArguments` with the arguments of FedGELA."""


class FedGELAMixin(FederatedMixin):
    """Trains a model with an `ETFClassifier` on logits `f(x) (M phi) / temperature`, phi the client's class weights.

    Evaluation is that of the global view, `f(x) M / temperature`; with `compute_metrics` the same forward pass gives
    the personal view too, `eval_personal_<metric>`, of logits times phi. Phi follows from the labels of
    `train_dataset`; it is saved nowhere and sent nowhere, and after training the model is the global view again.
    Without class weights the head is fixed, and all else is the wrapped Trainer's, bit for bit.

    Args:
        class_counts: samples of every class at this client, `[C]`; by default counted in `train_dataset`.

    Raises:
        ValueError: at construction, for a model without an ETF, a task that is no single-label classification, labels
            that are no classes of the head (-100 too), or counts that are none.
    """

    args: Any  # TrainingArguments with FedGELAArguments mixed in
    model: Any
    method = "fedgela"
    arguments = FedGELAArguments

    def __init__(self, *args: Any, class_counts: Sequence[float] | Tensor | None = None, **kwargs: Any) -> None:
        self._class_counts = class_counts
        self._trains_locally = False
        #: phi, float32 `[C]` on the CPU; None without class weights, and without anything to count
        self.class_weights: Tensor | None = None
        super().__init__(*args, **kwargs)

    # ---------------------------------------------------------------------------------------------- arguments
    def check_arguments(self) -> None:
        super().check_arguments()
        classes = heads_of(self.model)[0].out_features
        problem = getattr(getattr(base_model(self.model), "config", None), "problem_type", None)
        if problem not in (None, "single_label_classification"):
            raise ValueError(f"problem_type: found {problem!r}, allowed is 'single_label_classification' with an ETF")
        counts = None
        if self._class_counts is not None:
            counts = as_counts(self._class_counts, classes)
        elif self.args.fedgela_class_weights and self.train_dataset is not None:
            counts = counts_of_labels(self.train_dataset, classes)
        weights = None if counts is None else etf_class_weights(counts).float()
        self.class_weights = weights if self.args.fedgela_class_weights else None
        self._set_view(self.model)  # last: a refusal leaves the model as it was

    def _set_view(self, model: Any) -> None:
        """Norm and temperature as the arguments say, in the model and in the configuration that is saved with it."""
        norm, temperature = self.args.fedgela_feature_norm, self.args.fedgela_temperature
        if norm is None and temperature is None:
            return
        heads = heads_of(model)
        config: Any = getattr(base_model(model), "config", None)
        for head in heads:
            head.set_view(feature_norm=norm, temperature=temperature)
        if getattr(config, "model_type", None) == "etf":
            config.etf_feature_norm, config.etf_temperature = heads[0].feature_norm, heads[0].temperature

    # ---------------------------------------------------------------------------------------------- training
    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train with the local view; the model is left with the global one, however training ends."""
        self._trains_locally = True
        self._show(self.class_weights)
        try:
            return super().train(*args, **kwargs)
        finally:
            self._trains_locally = False
            self._show(None)

    def call_model_init(self, trial: Any = None) -> Any:
        """A fresh model with the same view; the one of the constructor gets it once it has been checked."""
        model = super().call_model_init(trial)
        if self._trains_locally:
            self._set_view(model)
            for head in heads_of(model):
                head.class_weights = self.class_weights
        return model

    def _show(self, class_weights: Tensor | None) -> None:
        for head in heads_of(self.model):
            head.class_weights = class_weights

    # ---------------------------------------------------------------------------------------------- evaluation
    def personal_logits(self, logits: Any) -> Any:
        """Logits of the personal view, `g phi`, of those of the global view, `[..., C]`, as `predict` gives them.

        Args:
            logits: a tensor, an array, or batches of these; of a tuple, the first.

        Raises:
            ValueError: no class weights here, or logits of another number of classes.
        """
        if self.class_weights is None:
            raise ValueError(
                "class_weights: found none, allowed is a Trainer with fedgela_class_weights=True and a train_dataset "
                "or class_counts"
            )
        return scaled(logits, self.class_weights)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate the global view, also in the midst of training, and the metrics of the personal view with it.

        Left out, with a warning, are those of `batch_eval_metrics`, whose function keeps one state, and of
        `preprocess_logits_for_metrics`, after which there may be no logits.
        """
        own = self.compute_metrics
        if own is not None and self.class_weights is not None and self._keeps_logits():
            self.compute_metrics = with_personal(own, self.class_weights, prefix_of(args, kwargs))
        self._show(None)
        try:
            return super().evaluation_loop(*args, **kwargs)
        finally:
            self.compute_metrics = own
            self._show(self.class_weights if self._trains_locally else None)

    def _keeps_logits(self) -> bool:
        for name, found in (
            ("batch_eval_metrics", self.args.batch_eval_metrics),
            ("preprocess_logits_for_metrics", self.preprocess_logits_for_metrics is not None),
        ):
            if found:
                self._say(f"{name}: found one, the metrics of the personal view are left out: they take none")
                return False
        return True


def heads_of(model: nn.Module) -> list[ETFClassifier]:
    """All of a model: PEFT may keep a copy of its head.

    Raises:
        ValueError: there is none.
    """
    heads = [module for module in model.modules() if isinstance(module, ETFClassifier)]
    if not heads:
        raise ValueError(
            f"model: found {type(base_model(model)).__name__} without an ETFClassifier, allowed is what "
            "hf_ext.models.replace_classifier(model) gives"
        )
    return heads


class FedGELATrainer(FedGELAMixin, Trainer):
    """`Trainer` with FedGELA's client; see `FedGELAMixin`. Takes `FedGELAConfig` as `args`."""
