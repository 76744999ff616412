"""The FER matcher's losses over the whole batch of an update, in any Trainer, and logged.

Li et al., "Knowledge-Enhanced Facial Expression Recognition with Emotional-to-Neutral Transformation", IEEE
Transactions on Multimedia 2025, arXiv:2409.08598. Two of the losses are means over the faces that are not neutral,
whose number differs between micro-batches and processes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from hf_ext._models import base_model
from hf_ext.functional import fer_losses
from hf_ext.functional.fer import label_counts_of
from hf_ext.hub_cards.methods.fer import losses_shown
from hf_ext.models.fer.portable import check_labels
from hf_ext.trainers.cards import with_hyper_parameters
from hf_ext.trainers.fer.arguments import FERArguments
from hf_ext.trainers.labels import check_train_labels
from hf_ext.trainers.labels_by_name import LabelsByNameMixin


@dataclass
class FERTrainingConfig(FERArguments, TrainingArguments):
    """`TrainingArguments` with the arguments of FER."""


class FERMixin(LabelsByNameMixin):
    """Trains a `FERForImageClassification`, alone or within PEFT.

    The terms of the loss are those of all faces of an update, in all its micro-batches and processes; they are logged
    as `fer_match`, `fer_transform` and `fer_contrast`. (A plain Trainer takes means over each micro-batch.) Data whose
    class labels have the model's names in another order are counted in the model's.

    Raises:
        ValueError: at construction, for another model, or for arguments that would put another loss in its place.
    """

    args: Any  # TrainingArguments with FERArguments mixed in
    model: Any
    method = "fer"
    arguments = FERArguments
    replaces_loss = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._label_counts: Tensor | None = None
        self._micro_batches = 1
        super().__init__(*args, **kwargs)
        self.loss_is_scaled_for_ga = True

    def check_arguments(self) -> None:
        super().check_arguments()
        kind = getattr(getattr(self._matcher, "config", None), "model_type", None)
        if kind != "fer" or not hasattr(self._matcher, "classifier"):
            raise ValueError(f"model: found a {type(self._matcher).__name__}, allowed is a FERForImageClassification")
        if self.args.n_gpu > 1:
            raise ValueError("fer: found several GPUs in one process, allowed is one per process (accelerate)")
        if self.args.label_smoothing_factor > 0:
            raise ValueError(
                f"label_smoothing_factor: found {self.args.label_smoothing_factor}, allowed is 0: the texts say how "
                "near classes are"
            )
        if self.compute_loss_func is not None:
            raise ValueError("compute_loss_func: found a function, allowed is None: FER brings its own loss")
        self.warn_of_other_loss(FERMixin)
        check_train_labels(self, self._fer_config.num_labels)
        self.align_train_labels()

    @property
    def _matcher(self) -> Any:
        return base_model(self.model)

    @property
    def _fer_config(self) -> Any:
        return self._matcher.config

    def _setting(self, name: str) -> Any:
        own = getattr(self.args, f"fer_{name}")
        return getattr(self._fer_config, name) if own is None else own

    # ---------------------------------------------------------------------------------------------- losses
    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """The micro-batches of an update; how often each label occurs in those of all processes is counted."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        counts = torch.zeros(self._fer_config.num_labels, device=device)
        for batch in batches:
            counts += label_counts_of(check_labels(batch.get("labels")).to(device), len(counts))
        self._label_counts = self.accelerator.reduce(counts, reduction="sum")
        self._micro_batches = max(len(batches), 1)
        return batches, num_items

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """This micro-batch's part of the loss of an update; in evaluation the model's own."""
        if not self.model.training:
            return super().compute_loss(
                model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
            )
        outputs: Any = model(
            **{name: value for name, value in inputs.items() if name != "labels"}, output_features=True
        )
        terms = fer_losses(
            outputs.features,
            outputs.neutral_features,
            outputs.text_features,
            inputs["labels"],
            neutral_id=self._fer_config.neutral_id,
            logit_scale=outputs.logit_scale,
            contrast_pairs=self._setting("contrast_pairs"),
            lambda_s=self._setting("lambda_s"),
            lambda_t=self._setting("lambda_t"),
            lambda_c=self._setting("lambda_c"),
            label_counts=self._label_counts,
        )
        processes = self.accelerator.num_processes
        scale = self._micro_batches * processes  # logged are means over micro-batches and processes
        self.record(terms={f"fer_{name}": terms[name].detach() * scale for name in ("match", "transform", "contrast")})
        loss = terms["total"] * processes  # DDP takes the mean over processes
        return (loss, outputs) if return_outputs else loss

    # ---------------------------------------------------------------------------------------------- card
    def card_facts(self) -> dict[str, Any]:
        facts, config = super().card_facts(), self._fer_config
        used = {name: self._setting(name) for name in ("contrast_pairs", "lambda_s", "lambda_t", "lambda_c")}
        facts = with_hyper_parameters(facts, losses_shown(used, config.neutral_id))
        unit = F.normalize(self._matcher.classifier.text_features.float(), dim=-1)
        texts = {"classes": list(config.id2label.values()), "similarities": (unit @ unit.T).tolist()}
        return facts | {"facts": {**facts.get("facts", {}), "texts": texts}}


class FERTrainer(FERMixin, Trainer):
    """`Trainer` for FER matchers; see `FERMixin`. Takes `FERTrainingConfig` as `args`."""
