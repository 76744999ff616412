"""What an ascent on the data to forget carries along: losses of all remaining rows before it and after it."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from hf_ext.functional import (
    gravity_by_label,
    gravity_threshold,
    loss_gravity,
    num_in_top,
    per_sample_losses,
    relative_gravity,
    retain_mask,
    retain_mask_by_label,
)
from hf_ext.trainers.finite import NonFiniteError
from hf_ext.trainers.losses import logits_of, shifts_labels
from hf_ext.trainers.passes import evaluation_mode, same_randomness
from hf_ext.trainers.processes import model_of
from hf_ext.trainers.tarf.paired import ROW, load, numbered
from hf_ext.trainers.tarf.plan import Plan


def row_batches(trainer: Any, data: Any) -> Iterator[tuple[bool, dict[str, Any]]]:
    """Batches of numbered rows, on the device, that the processes share; the model is in evaluation mode meanwhile.

    Modes of its parts and random states are afterwards what they were.

    Args:
        trainer: a Trainer with a `MethodMixin` that has `ROW` among its own columns.
        data: with a length.

    Yields:
        Whether the batch counts, and the batch. Every process gets as many, since sharded models work together; those
        that do not count are repetitions.
    """
    args = trainer.args
    size, step = args.eval_batch_size, args.world_size
    batches = [list(range(first, min(first + size, len(data)))) for first in range(0, len(data), size)]
    places = range(args.process_index, math.ceil(len(batches) / step) * step, step)
    collate = trainer._get_collator_with_removed_columns(trainer.data_collator, description="identification")
    loader = load(numbered(data), [batches[place % len(batches)] for place in places], collate)
    with evaluation_mode(model_of(trainer)), same_randomness(args.device):  # augmentation draws numbers, too
        for place, batch in zip(places, loader, strict=True):
            yield place < len(batches), trainer._prepare_inputs(batch)


def all_losses(trainer: Any, data: Any, group_column: str | None = None) -> tuple[Tensor, Tensor | None]:
    """Loss of every row, `[N]`, and its group, `[N]`: by row number, the same in all processes, which share the work.

    No random state moves on.

    Args:
        trainer: as for `row_batches`, with `group_column` among its own columns, if given.
        data: with a length.
        group_column: by default the labels are the groups; None is returned where these are not one class a sample.

    Raises:
        NonFiniteError: in all processes, for rows whose losses are NaN or infinite.
    """
    device, model = trainer.args.device, model_of(trainer)
    losses = torch.zeros(len(data), device=device)
    groups = torch.zeros(len(data), dtype=torch.int64, device=device)
    grouped = True
    for counts, inputs in row_batches(trainer, data):
        rows, labels = trainer.batch_columns[ROW], inputs["labels"]
        with torch.no_grad(), trainer.compute_loss_context_manager():
            batch_losses = per_sample_losses(logits_of(model(**inputs)), labels, shift_labels=shifts_labels(trainer))
        ids = trainer.batch_columns.get(group_column) if group_column else labels
        grouped = grouped and ids is not None and ids.ndim == 1 and not ids.is_floating_point()
        if counts:
            losses[rows] = batch_losses.to(losses.dtype)
            if grouped:
                groups[rows] = ids
    losses = trainer.accelerator.reduce(losses)
    if not bool(losses.isfinite().all()):
        broken = ", ".join(map(str, (~losses.isfinite()).nonzero().flatten().tolist()[:5]))
        raise NonFiniteError(
            f"the losses of rows {broken} of {len(losses)} are not finite before {trainer.step_in_words()}, so that "
            "what an ascent moves cannot be told; mend or leave out these rows, or lower tarf_k if there was one"
        )
    return losses, trainer.accelerator.reduce(groups) if grouped else None


def identify(
    gravity: Tensor,
    groups: Tensor | None,
    *,
    selection: str,
    beta: float | None,
    top_fraction: float,
    num_groups: int | None,
) -> tuple[Tensor, dict[str, Any]]:
    """tau of every remaining sample, and which groups were dropped, or from which threshold on.

    `"samples"`: dropped are those with gravity >= beta, by default the lowest of the top fraction. `"groups"`: the
    `num_groups` groups with the largest mean gravity are dropped whole; without that number the rule for samples is
    applied to the groups' means.

    Raises:
        ValueError: everything would be dropped.
    """
    identified: dict[str, Any] = {}
    if selection == "samples" or groups is None:
        beta = float(gravity_threshold(gravity, top_fraction=top_fraction)) if beta is None else beta
        mask = retain_mask(gravity, beta=beta)
        identified["beta"] = beta
    else:
        ids, scores = gravity_by_label(gravity, groups)
        if num_groups is None:
            beta = float(gravity_threshold(scores, top_fraction=top_fraction)) if beta is None else beta
            num_groups = int((scores >= beta).sum())
        mask = retain_mask_by_label(gravity, groups, num_groups=num_groups)
        dropped = groups[mask == 0].unique().tolist()
        identified |= {"groups": ids.tolist(), "gravity": scores.tolist(), "dropped": dropped}
    if not mask.any():
        low, high = float(gravity.min()), float(gravity.max())
        raise ValueError(
            f"tarf_beta: found {beta}, at which all {len(mask)} remaining samples are dropped (beta too small): their "
            f"gravity is {low:.3g} to {high:.3g} after the ascent, which has changed the weights already; allowed are "
            "values that leave some"
        )
    return mask, identified


class Identification:
    """Which remaining rows are left out: their losses before the first step, those at t1, and what follows from both.

    Args:
        args: with TARF's arguments.
    """

    def __init__(self, args: Any) -> None:
        self.args = args
        #: losses of the original model, of the data named `remaining` and `forget`, as far as needed
        self.original: dict[str, Tensor] = {}
        #: tau of every remaining row, once it is known
        self.retained: Tensor | None = None
        #: `groups`, their `gravity` and which were `dropped`, by name; or the threshold `beta`
        self.identified: dict[str, Any] = {}

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        retained = {} if self.retained is None else {"tarf_retained": self.retained}
        return (
            {f"tarf_original_{name}": losses for name, losses in self.original.items()}
            | retained
            | {"tarf_found": self.identified}  # the key of older checkpoints
        )

    def facts(self) -> dict[str, Any]:
        """For a card."""
        facts: dict[str, Any] = {}
        if self.retained is not None:
            facts["remaining rows left out"] = int((self.retained == 0).sum())
        if "dropped" in self.identified:
            facts["identified"] = ", ".join(self.identified["dropped"]) or "nothing"
        return facts

    def load(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""
        prefix = "tarf_original_"
        self.original = {name.removeprefix(prefix): state[name] for name in state if name.startswith(prefix)}
        self.retained, self.identified = state.get("tarf_retained"), state.get("tarf_found", {})

    def mask_of(self, rows: Tensor | None) -> Tensor | None:
        """tau of these remaining rows, `[B]`; None while all are retained."""
        if self.retained is None or rows is None:
            return None
        self.retained = self.retained.to(rows.device)  # a device would be waited for at every copy
        return self.retained[rows]

    def measure(self, trainer: Trainer, plan: Plan, t: float, *, remaining: Any, forget: Any = None) -> bool:
        """Measure what has to be known at time t: the original model's losses, then what is to be left out.

        Args:
            plan: of the run.
            remaining: the remaining rows, as they should be looked at.
            forget: the rows to forget, if their losses are needed.

        Returns:
            Whether it was decided just now which groups are left out.
        """
        selects = plan.selection != "none"
        wanted = ({"remaining": remaining} if selects else {}) | ({} if forget is None else {"forget": forget})
        grouped = plan.selection == "groups" or self.args.tarf_gravity == "relative"
        self._measure_original(trainer, wanted, grouped=grouped)
        decides = selects and plan.retains(t) and self.retained is None
        if decides:
            self._decide(trainer, remaining, selection=plan.selection)
        return decides and "groups" in self.identified

    def _measure_original(self, trainer: Trainer, data: Mapping[str, Any], *, grouped: bool) -> None:
        """Before the first step: losses of the original model on these data; nothing if they are known.

        Raises:
            ValueError: a resumed run that does not have them, or groups that cannot be left out.
        """
        for name, rows in data.items():
            known = self.original.get(name)
            if (known is None and trainer.state.global_step > 0) or (known is not None and len(known) != len(rows)):
                count = "none" if known is None else len(known)
                raise ValueError(
                    f"resume_from_checkpoint: found {count} of the original model's losses of the {name} data, "
                    f"allowed is a checkpoint with all {len(rows)}"
                )
            if known is None:
                self.original[name], groups = all_losses(trainer, rows, self.args.tarf_group_column)
                if name == "remaining":
                    self._check(len(rows), groups, grouped=grouped)

    def _check(self, num_rows: int, groups: Tensor | None, *, grouped: bool) -> None:
        """Refuse what cannot be left out, as far as it can be known before the ascent."""
        if grouped and groups is None:
            raise ValueError(
                "tarf_selection, tarf_gravity: found 'groups' or 'relative' without tarf_group_column and without one "
                "class label per sample, allowed are 'samples' or 'none' with 'absolute', or such a column"
            )
        by_group = groups is not None and self.args.tarf_selection == "groups"
        present = len(groups.unique()) if groups is not None and by_group else num_rows
        asked = self.args.tarf_n_hidden_groups
        if asked is not None and asked >= present:
            raise ValueError(
                f"tarf_n_hidden_groups: found {asked} of {present} groups in the remaining data, allowed are 0 to "
                f"{present - 1}"
            )
        share = self.args.tarf_top_fraction
        if asked is None and self.args.tarf_beta is None and num_in_top(present, top_fraction=share) >= present:
            raise ValueError(
                f"tarf_top_fraction: found {share} with {present} {'groups' if by_group else 'samples'} in the "
                "remaining data, allowed are shares that leave some"
            )

    def _decide(self, trainer: Trainer, rows: Any, *, selection: str) -> None:
        """At t1: what has moved most is left out from now on."""
        losses, groups = all_losses(trainer, rows, self.args.tarf_group_column)
        original, losses = self.original["remaining"].cpu(), losses.cpu()
        groups = None if groups is None else groups.cpu()
        gravity = loss_gravity(original, losses)
        if groups is not None and self.args.tarf_gravity == "relative":
            gravity = relative_gravity(gravity, original, groups)
        mask, self.identified = identify(
            gravity,
            groups,
            selection=selection,
            beta=self.args.tarf_beta,
            top_fraction=self.args.tarf_top_fraction,
            num_groups=self.args.tarf_n_hidden_groups,
        )
        self.retained = mask.to(losses.device)
        features: Any = getattr(trainer.train_dataset, "features", None) or {}
        feature = features.get(self.args.tarf_group_column or "labels")
        named = hasattr(feature, "int2str")
        for key in self.identified.keys() & {"groups", "dropped"}:
            groups = self.identified[key]
            self.identified[key] = [feature.int2str(group) if named else str(group) for group in groups]
