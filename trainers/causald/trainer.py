"""Distillation of many teachers, averaged by the front door, into one recommender, with any Trainer.

CausalD (Zhang et al., TKDE 2024, arXiv:2405.20626). Written from the abstract and public summaries; neither the
paper's full text nor the authors' code was available.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from hf_ext._models import base_model
from hf_ext.data.interactions import NextItems, NextItemsCollator
from hf_ext.functional import causald_loss, inverse_propensity_weights
from hf_ext.metrics import RankingMetrics, ranks_of_logits
from hf_ext.models.recsys.modeling_recsys import SequentialRecommenderForNextItem
from hf_ext.trainers.base import MethodMixin
from hf_ext.trainers.cards import with_hyper_parameters
from hf_ext.trainers.causald.arguments import CausalDArguments
from hf_ext.trainers.causald.bank import draw_bank
from hf_ext.trainers.causald.candidates import (
    EFFECT,
    WEIGHT,
    CandidateRows,
    check_rows,
    fingerprint,
    targets_of,
)
from hf_ext.trainers.causald.effects import (
    Adjustment,
    is_complete,
    key_of,
    logger,
    open_effects,
    write_effects,
)
from hf_ext.trainers.causald.teachers import Teacher, check_items, check_teacher, identity_of
from hf_ext.trainers.passes import same_randomness
from hf_ext.trainers.processes import decided_by_main

#: metrics of a group of users, as `RankingMetrics` calls them after an evaluation's prefix
_GROUP = re.compile(r".+?_(?P<group>head|tail)_(?P<metric>.+)")


@dataclass
class CausalDConfig(CausalDArguments, TrainingArguments):
    """`TrainingArguments` with the arguments of CausalD."""


class CausalDMixin(MethodMixin):
    """Trains a `SequentialRecommenderForNextItem` on the next item and on what its teachers say of some candidates.

    Every training row gets `causald_num_candidates` candidates, the same in every epoch. Before the first step the
    main process computes the teachers' effect on them, one teacher at a time, into a file that all processes read
    from; it is found again by what it was made of (rows, candidates, the teachers' weights, the bank). The teachers
    are then let go: they are no part of the model, of checkpoints or of what is saved, and not on the device.

    The loss of a row, whose mean over an update's rows is minimised, with micro-batches and processes as with one
    large batch: `(1 - alpha) L_rec + alpha tau^2 L_dist`. Logged: `recommendation_loss` and `distillation_loss`, the
    latter without alpha and tau^2. With `causald_alpha=0` and no debiasing this is the plain Trainer on the same
    rows, bit for bit.

    Evaluation of `NextItems` ranks the whole catalogue, for head and tail users, if no `compute_metrics` is given.

    Args:
        teachers: recommenders of the same catalogue, folders of saved ones or Hub ids, in any number and mixture.

    Raises:
        ValueError: at construction, or before the first step: a model, teachers, rows or settings that cannot work; a
            folder with effects that were made of something else.
    """

    args: Any  # TrainingArguments with CausalDArguments mixed in
    model: Any
    eval_dataset: Any
    preprocess_logits_for_metrics: Any
    method = "causald"
    arguments = CausalDArguments
    replaces_loss = True

    def __init__(self, *args: Any, teachers: Iterable[Any] = (), **kwargs: Any) -> None:
        self._teachers = [Teacher(source, number) for number, source in enumerate(_listed(teachers))]
        self._about_teachers = [teacher.architecture for teacher in self._teachers]
        if len(args) < 3:  # the third one is a collator
            kwargs["data_collator"] = kwargs.get("data_collator") or NextItemsCollator()
        super().__init__(*args, **kwargs)
        self._ranks_by_default = self.compute_metrics is None and self.preprocess_logits_for_metrics is None
        if self.train_dataset is not None:
            self.train_dataset = self._with_candidates(self.train_dataset)

    # ---------------------------------------------------------------------------------------------- arguments
    def _student(self) -> Any:
        return base_model(self.model)

    @property
    def _distils(self) -> bool:
        return self.args.causald_alpha > 0

    def check_arguments(self) -> None:
        super().check_arguments()
        self.refuse_other_methods("its loss is that of a batch with its teachers' effect, in one pass")
        student, args = self._student(), self.args
        if not isinstance(student, SequentialRecommenderForNextItem):
            raise ValueError(
                f"model: found {type(student).__name__}, allowed is SequentialRecommenderForNextItem (with PEFT's "
                "adapters or without)"
            )
        if self.compute_loss_func is not None:
            raise ValueError("compute_loss_func: found one, allowed is none: CausalD has a loss of its own")
        if args.label_smoothing_factor:
            raise ValueError(f"label_smoothing_factor: found {args.label_smoothing_factor}, allowed is 0")
        if student.config.loss != args.causald_kind:
            raise ValueError(
                f"causald_kind: found {args.causald_kind!r} and a model of loss={student.config.loss!r}, allowed is "
                "the model's"
            )
        if self.train_dataset is not None:
            check_rows(self.train_dataset, student.config.num_items, args.causald_num_candidates)
        if self._distils:
            self._check_distillation(student.config)
        self.warn_of_other_loss(CausalDMixin)

    def _check_distillation(self, config: Any) -> None:
        args, number = self.args, len(self._teachers)
        if not number:
            raise ValueError(
                f"teachers: found none with causald_alpha={args.causald_alpha}, allowed are one or more (or "
                "causald_alpha=0, the student alone)"
            )
        if config.direct_rank:
            raise ValueError(
                f"model: found a direct path (direct_rank={config.direct_rank}), allowed is a student without, "
                "direct_rank=0: it is what the teachers are adjusted for"
            )
        weights = args.causald_teacher_weights
        if weights is not None and len(weights) != number:
            raise ValueError(
                f"causald_teacher_weights: found {len(weights)}, allowed is one for each of {number} teachers"
            )
        for teacher in self._teachers:
            check_teacher(teacher, config.num_items)
        if args.causald_front_door == "bank" and not any(teacher.has_direct_path for teacher in self._teachers):
            raise ValueError(
                "causald_front_door: found 'bank' and teachers that all have no direct path (direct_rank=0), allowed "
                "is 'ensemble': histories of a bank would change nothing"
            )

    # ---------------------------------------------------------------------------------------------- data
    def _with_candidates(self, dataset: Any) -> CandidateRows:
        args, num_items = self.args, self._student().config.num_items
        rows = CandidateRows(dataset, num_items, args.causald_num_candidates, seed=args.causald_candidate_seed)
        if args.causald_debias == "none":
            return rows
        targets, split = targets_of(dataset), getattr(dataset, "split", None)
        counts = np.bincount(targets) if split is None else np.asarray(split.item_counts)
        weights = inverse_propensity_weights(
            torch.from_numpy(counts[targets]), power=args.causald_ips_power, clip=args.causald_ips_clip
        )
        return rows.with_columns(**{WEIGHT: weights.float().numpy()})

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns: Any = [*(self._signature_columns or []), EFFECT, WEIGHT]

    # ---------------------------------------------------------------------------------------------- effects
    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; before that the teachers' effect is computed, or found, and the teachers are let go."""
        rows: Any = self.train_dataset
        if self._distils and isinstance(rows, CandidateRows) and EFFECT not in rows.columns:
            folder = decided_by_main(lambda: self._folder_of_effects(rows))
            self._teachers = []
            self.train_dataset = rows.with_columns(**{EFFECT: open_effects(folder)})
        return super().train(*args, **kwargs)

    def _folder_of_effects(self, rows: CandidateRows) -> str:
        args = self.args
        folder = Path(args.causald_cache_dir or os.path.join(str(args.output_dir), "causald_effects"))
        with same_randomness(args.device):
            adjustment, data = self._adjustment(rows.dataset), fingerprint(rows.dataset)
            key = key_of(rows, data, [self._identity(teacher) for teacher in adjustment.teachers], adjustment)
            if is_complete(folder, key, (len(rows), rows.num_candidates)):
                logger.info(f"the teachers' effects were found in {folder}")
            else:
                write_effects(folder, key, rows, adjustment, device=args.device, collate=self.data_collator)
        return str(folder)

    def _adjustment(self, dataset: Any) -> Adjustment:
        args, number = self.args, len(self._teachers)
        weights = np.array(args.causald_teacher_weights or [1.0] * number)
        bank = None
        if args.causald_front_door == "bank":
            options = {"method": args.causald_bank_method, "seed": args.causald_bank_seed}
            bank = draw_bank(dataset, args.causald_bank_size, **options)
        shares = (weights / weights.sum()).tolist()
        return Adjustment(self._teachers, shares, bank, args.causald_average, args.causald_kind)

    def _identity(self, teacher: Teacher) -> dict[str, str]:
        with teacher.on(torch.device("cpu")) as model:
            check_items(teacher, model, self._student().items)
            return identity_of(teacher, model)

    # ---------------------------------------------------------------------------------------------- loss
    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """CausalD's loss; the model's own in evaluation, and in training where nothing is added to it."""
        if not self.model.training:
            return super().compute_loss(
                model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
            )
        effect, weights = inputs.get(EFFECT), inputs.get(WEIGHT)
        if effect is None and weights is None:
            loss, outputs = super().compute_loss(
                model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch
            )
            steps = self.current_gradient_accumulation_steps if self._is_normalised(num_items_in_batch) else 1
            self.record(terms={"recommendation_loss": loss.detach() * steps})
            return (loss, outputs) if return_outputs else loss
        outputs = model(**{name: inputs[name] for name in inputs if name not in ("labels", EFFECT, WEIGHT)})
        losses = self._losses(outputs.logits, inputs["labels"], effect, weights)
        share = self.share_of_rows(len(losses["total"]))
        self.record(terms={f"{name}_loss": share * value.mean() for name, value in losses.items() if name != "total"})
        loss = losses["total"].mean()
        if num_items_in_batch is not None and self._is_normalised(num_items_in_batch):
            loss = losses["total"].sum() / num_items_in_batch
            if self.args.average_tokens_across_devices:
                loss = loss * self.accelerator.num_processes  # which DDP divides it by
        return (loss, outputs) if return_outputs else loss

    def _losses(
        self, logits: Tensor, labels: Tensor, effect: Tensor | None, weights: Tensor | None
    ) -> dict[str, Tensor]:
        """Terms and total of every row, `[B]`."""
        args = self.args
        if args.causald_kind == "bce":
            labels = nn.functional.one_hot(labels, logits.shape[1])
        alpha, tau = args.causald_alpha, args.causald_temperature
        losses = causald_loss(
            logits,
            labels,
            logits if effect is None else effect,
            alpha=alpha,
            temperature=tau,
            kind=args.causald_kind,
            reduction="none",
        )
        if effect is None:
            del losses["distillation"]
        if weights is not None and alpha < 1:
            difference = (weights - 1) * losses["recommendation"]
            losses["recommendation"] = losses["recommendation"] + difference
            losses["total"] = losses["total"] + (1 - alpha) * difference
        return losses

    # ---------------------------------------------------------------------------------------------- evaluation
    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate; `NextItems` by ranks over the whole catalogue, if Trainer was given no other metrics."""
        rows: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        rows = self.eval_dataset[rows] if isinstance(rows, str) else rows
        drops_last = self.args.dataloader_drop_last
        if self._ranks_by_default and isinstance(rows, NextItems):
            self.preprocess_logits_for_metrics = ranks_of_logits
            self.compute_metrics = RankingMetrics(rows, head_fraction=self.args.causald_head_fraction)
            self.args.dataloader_drop_last = False  # which leaves out users here, the more of them the more processes
        try:
            metrics: dict[str, float] = super().evaluate(eval_dataset, *args, **kwargs)
        finally:
            self.args.dataloader_drop_last = drops_last
        return metrics

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log; the card shows what an evaluation says of head and tail users apart."""
        found = {name: match for name in logs if (match := _GROUP.fullmatch(name))}
        if self.card is not None and found:
            self.card.add_groups({name: (match["group"], match["metric"]) for name, match in found.items()})
            by_metric: dict[str, dict[str, float]] = {}
            for name, match in found.items():
                by_metric.setdefault(match["metric"], {})[match["group"]] = float(logs[name])
            self.card.add_fact("user_groups", by_metric)
        super().log(logs, *args, **kwargs)

    def card_facts(self) -> dict[str, Any]:
        args, about = self.args, dict[str, Any](teachers=", ".join(self._about_teachers) or "none")
        if self._distils:
            about |= {"front door": args.causald_front_door, "average": args.causald_average}
            about |= {"histories in the bank": args.causald_bank_size} if args.causald_front_door == "bank" else {}
        return with_hyper_parameters(super().card_facts(), about)


def _listed(teachers: Iterable[Any]) -> list[Any]:
    """One alone is a list of one."""
    alone = isinstance(teachers, str | os.PathLike | nn.Module) and not isinstance(teachers, nn.ModuleList)
    return [teachers] if alone else list(teachers)


class CausalDTrainer(CausalDMixin, Trainer):
    """`Trainer` with CausalD; see `CausalDMixin`. Takes `CausalDConfig` as `args`."""
