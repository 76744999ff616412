"""Reprogramming distillation with any Trainer, around an RD model.

RD (Zhou et al., MICCAI 2024, arXiv:2407.06504). Written from public summaries; the authors' code was not available.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from hf_ext._models import base_model
from hf_ext.data.rows import WithColumns
from hf_ext.functional import rd_losses_of_logits
from hf_ext.functional._dtypes import at_least_float32
from hf_ext.models.rd.modeling_rd import RDForImageClassification
from hf_ext.models.rd.portable import check_labels
from hf_ext.trainers.cards import with_hyper_parameters
from hf_ext.trainers.labels import check_train_labels
from hf_ext.trainers.labels_by_name import LabelsByNameMixin
from hf_ext.trainers.processes import gather_rows
from hf_ext.trainers.rd.arguments import Coefficients, RDArguments, coefficients_of
from hf_ext.trainers.rd.teacher_cache import COLUMN, check_features, features_of
from hf_ext.trainers.rd.teacher_comparison import TeacherComparison, compare, count_parameters


@dataclass
class RDTrainingConfig(RDArguments, TrainingArguments):
    """`TrainingArguments` with the arguments of RD."""


class RDMixin(LabelsByNameMixin):
    """Trains an `RDForImageClassification`, whose forward makes RD's loss in any Trainer, with more than that.

    More than in the plain Trainer: every loss term is logged (`student_loss`, `reprogrammed_loss`, `cka_loss`,
    `kl_loss`), the alignment is over the batches of all processes, alpha and beta may decay, baselines are a setting
    away, the teacher's features may be computed once, and label smoothing is honoured.

    The alignment is no sum over samples. It is taken over a micro-batch: with gradient accumulation the loss is the
    mean over the micro-batches of an update, which is not that of one large batch. N processes with
    `rd_cka_scope="global"` are like one with N times the batch.

    The teacher is no part of the model's weights: neither optimiser nor checkpoints have it. Attach it again to
    resume. Where no term has a gradient for phi (all baselines), phi is frozen. Evaluation is the student's alone.

    Args:
        teacher_classifier: for `rd_method="kd"`, gives logits `[B, C]` for the teacher's features `[B, W]` of a batch;
            a module is moved to the device, and not trained.

    Raises:
        ValueError: at construction, for a model or settings that cannot work; in the first step, without a teacher.
    """

    args: Any  # TrainingArguments with RDArguments mixed in
    model: Any
    method = "rd"
    arguments = RDArguments
    replaces_loss = True
    needs_row_counts = True  # its terms are means over rows

    def __init__(
        self, *args: Any, teacher_classifier: Callable[[Tensor], Tensor] | None = None, **kwargs: Any
    ) -> None:
        self.teacher_classifier = teacher_classifier
        #: the last one of `compare_with_teacher`
        self.teacher_comparison: TeacherComparison | None = None
        super().__init__(*args, **kwargs)
        if isinstance(teacher_classifier, nn.Module):
            teacher_classifier.to(self.args.device)

    # ---------------------------------------------------------------------------------------------- arguments
    def _rd_model(self) -> Any:
        return base_model(self.model)

    def check_arguments(self) -> None:
        super().check_arguments()
        model = self._rd_model()
        if not isinstance(model, RDForImageClassification):
            raise ValueError(
                f"model: found {type(model).__name__}, allowed is RDForImageClassification, see its from_student"
            )
        self.refuse_other_methods("its loss is of whole batches, of student and teacher", but=["mola"])
        if self.compute_loss_func is not None:
            raise ValueError("compute_loss_func: found one, allowed is none: RD has a loss of its own")
        if (self.args.rd_method == "kd") != (self.teacher_classifier is not None):
            found = "none" if self.teacher_classifier is None else "one"
            raise ValueError(
                f"teacher_classifier: found {found} with rd_method={self.args.rd_method!r}, allowed is one with 'kd'"
            )
        check_train_labels(self, int(model.config.num_labels or 0))
        self.align_train_labels()
        self.warn_of_other_loss(RDMixin)
        coefficients = self._first_coefficients()
        self._set_trained()
        if coefficients.teach:
            check_features(self.train_dataset)
        rows = self._train_batch_size * (self.accelerator.num_processes if self._is_global else 1)
        if coefficients.gamma and rows < 4:
            warnings.warn(
                f"the alignment of RD is over batches of {rows}: for 2 it is always 1, for 1 there is none, and "
                "debiased it takes 4; 32 or more are sensible",
                stacklevel=2,
            )

    def _set_trained(self) -> None:
        if not self._first_coefficients().train_phi:
            self._rd_model().phi.requires_grad_(False)  # DDP waits for the gradients of all that has one

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer's; of the weights that are trained, also those of a model that `model_init` has just made."""
        self._set_trained()
        return super().create_optimizer(*args, **kwargs)

    @property
    def _is_global(self) -> bool:
        return self.args.rd_cka_scope == "global"

    def _first_coefficients(self) -> Coefficients:
        return coefficients_of(self.args, self._rd_model().config)

    def _coefficients(self) -> Coefficients:
        """Those of the update that comes."""
        coefficients = self._first_coefficients()
        if self.args.rd_decay == "none" or self.state.max_steps <= 0:
            return coefficients
        remaining = 1 - self.state.global_step / self.state.max_steps
        return coefficients._replace(alpha=coefficients.alpha * remaining, beta=coefficients.beta * remaining)

    # ---------------------------------------------------------------------------------------------- teacher
    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; with `rd_cache_teacher` the teacher sees every image before, once."""
        caches = self.args.rd_cache_teacher and self._first_coefficients().teach
        if caches and COLUMN not in getattr(self.train_dataset, "columns", ()):
            if not hasattr(self.train_dataset, "__len__"):
                raise ValueError("rd_cache_teacher: found a data set without a length, allowed are those with one")
            with torch.random.fork_rng(devices=[]):  # loaders draw a seed
                self.train_dataset = self._with_teacher_features(self.train_dataset)
        return super().train(*args, **kwargs)

    def _with_teacher_features(self, rows: Any) -> WithColumns:
        model = self._rd_model()
        names = ("pixel_values", "teacher_features", "teacher_pixel_values")

        def compute(batch: dict[str, Any]) -> Tensor:
            inputs = self._prepare_inputs(batch)
            with self.compute_loss_context_manager():
                features = model.get_teacher_features(**{name: inputs[name] for name in names if name in inputs})
            # without the rows that fill up the last batches of several processes
            gathered: Tensor = self.accelerator.gather_for_metrics(features)
            return gathered

        features = features_of(lambda: self.get_test_dataloader(rows), compute, names[0])
        cached = WithColumns(rows, **{COLUMN: features})
        check_features(cached)
        return cached

    # ---------------------------------------------------------------------------------------------- losses
    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """RD's loss of this micro-batch, a mean; the student's own in evaluation."""
        if not self.model.training:
            return super().compute_loss(
                model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
            )
        coefficients = self._coefficients()
        labels = check_labels(inputs.get("labels"))
        outputs = model(**{k: v for k, v in inputs.items() if k != "labels"}, output_details=coefficients.teach)
        losses = self._losses(outputs, labels, coefficients)
        loss = losses.pop("total")
        self.record(terms={f"{name}_loss": value for name, value in losses.items()})
        return (loss, outputs) if return_outputs else loss

    def _losses(self, outputs: Any, labels: Tensor, coefficients: Coefficients) -> dict[str, Tensor]:
        """The total and the terms that are a part of it."""
        smoothing, sizes = self.args.label_smoothing_factor, self.rows_of_all(len(labels))
        share = 1.0 if sizes is None else len(labels) * len(sizes) / sum(sizes)  # DDP takes the mean over processes
        if not coefficients.teach:
            loss = share * F.cross_entropy(at_least_float32(outputs.logits), labels, label_smoothing=smoothing)
            return {"student": loss, "total": loss}
        logits, features, own = outputs.reprogrammed_logits, outputs.reprogrammed, outputs.student_features
        if self.args.rd_method == "cka":
            features = outputs.teacher_features.flatten(1)
        if self.teacher_classifier is not None:
            with torch.no_grad():
                logits = self.teacher_classifier(outputs.teacher_features)
        if coefficients.gamma and self._is_global:
            features, own = gather_rows(features, sizes), gather_rows(own, sizes)
        losses = rd_losses_of_logits(
            outputs.logits,
            logits,
            labels,
            features,
            own,
            label_smoothing=smoothing,
            share=share,
            **coefficients._asdict(),
        )
        names = zip(("reprogrammed", "cka", "kl"), coefficients[:3], strict=True)
        used = ("student", *(name for name, coefficient in names if coefficient), "total")
        return {name: losses[name] for name in used}

    # ---------------------------------------------------------------------------------------------- card
    def compare_with_teacher(self, eval_dataset: Any = None) -> dict[str, float]:
        """Size, speed and accuracy of student and teacher on the same images; logged, and in all cards made later.

        Both run alone, in evaluation mode, on the Trainer's device and in its precision; the teacher's time is from
        the images that the student sees to its features. Weights, modes and random state stay as they are.

        Args:
            eval_dataset: rows with `pixel_values` `[C, H, W]`, `labels` int64 and, where there is no teacher to run,
                `teacher_features`; or the name of one of several data sets. By default the Trainer's.

        Returns:
            `student_accuracy`, `student_ms_per_image` (the median over batches) and `student_weights`; where phi is
            trained `reprogrammed_accuracy`, that of the reprogrammed features through the shared classifier; where the
            teacher can be run `teacher_ms_per_image` and, of a module, `teacher_weights`.

        Raises:
            ValueError: no data set or several, one without rows or classes, or no teacher and no features of one.
        """
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        if rows is None or isinstance(rows, dict):
            found = "none" if rows is None else f"several ({', '.join(rows)})"
            raise ValueError(f"eval_dataset: found {found}, allowed is one data set, or the name of one of several")
        model = self._rd_model()
        self.teacher_comparison = compare(
            self,
            model,
            self.get_eval_dataloader(eval_dataset),
            reprogrammed=any(weight.requires_grad for weight in model.phi.parameters()),
            step=self.card.step if self.card is not None else self.state.global_step,
        )
        self.log(dict(self.teacher_comparison.metrics))  # which Trainer adds the epoch to
        return self.teacher_comparison.metrics

    def card_facts(self) -> dict[str, Any]:
        facts, model = super().card_facts(), self._rd_model()
        about: dict[str, Any] = {f"rd_{name}": value for name, value in self._first_coefficients()._asdict().items()}
        about["weights of the student"] = count_parameters(model.student)
        if self._first_coefficients().teach:
            about["teacher"] = model.config.teacher_name or model.config.teacher_kind
            if isinstance(model.teacher, nn.Module):
                about["weights of the teacher"] = count_parameters(model.teacher)
        if self.teacher_comparison is not None and self.card is not None:
            evaluated = facts.get("results", ())
            compared = self.teacher_comparison.results(self.card.step, known=evaluated)
            facts["results"] = [*evaluated, *compared]
        return with_hyper_parameters(facts, about)


class RDTrainer(RDMixin, Trainer):
    """`Trainer` with RD; see `RDMixin`. Takes `RDTrainingConfig` as `args`."""
