"""Training on the part of every batch that represents it best, with any Trainer.

DivBS, diversified batch selection (Hong et al., ICML 2024, arXiv:2406.04872).
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor
from transformers import Trainer, TrainingArguments

from hf_ext._models import unwrapped
from hf_ext.functional import divbs_select_with_info, gradient_norms
from hf_ext.functional.divbs import all_finite
from hf_ext.functional.losses import IGNORED_LABEL
from hf_ext.trainers.base import MethodMixin
from hf_ext.trainers.divbs.arguments import (
    DivBSArguments,
    check_candidates,
    check_data,
    check_processes,
    check_scoring,
)
from hf_ext.trainers.divbs.exchange import chosen_by_main, exchange_rows, gathered_by_main
from hf_ext.trainers.divbs.rows import batch_size, take_rows, without_padding
from hf_ext.trainers.divbs.scoring import Scorer, Scores, computed_in, find_head, state_preserved
from hf_ext.trainers.losses import shifts_labels
from hf_ext.trainers.processes import model_of, rows_of_processes


@dataclass
class DivBSConfig(DivBSArguments, TrainingArguments):
    """`TrainingArguments` with the arguments of DivBS."""


class DivBSMixin(MethodMixin):
    """Draws batches of candidates, scores them in a forward pass without gradients and trains on a part of each.

    The selection happens where Trainer collects the batches of an update, so that everything after it (the count of
    items that scales the loss, other methods, clipping) sees the selected rows alone. The loss is the plain one of
    those rows. Label smoothing and `compute_loss_func` act on the training loss as ever; the scores are those of
    the model's ordinary loss (cross-entropy, or squared error, or binary cross-entropy per label).

    Logged next to "loss": `selected_fraction`; with a scoring pass `candidate_loss` and `kept_loss`, the mean losses
    there; with DivBS `captured_fraction`, the share of the mean gradient within the span of the selected ones, and
    `greedy_fraction`, the share of picks made before nothing was left to add (the others are drawn at random).
    The metrics at the end count rows of both kinds: `train_candidates` and `train_kept`, each `_per_second` too;
    Trainer's `train_samples_per_second` is of the kept ones.

    A BatchNorm takes its statistics from the selected rows, which are not like those of a test: that can cost more
    than the selection gains (study `divbs-norm`).

    With `divbs_scoring_dtype` the scoring pass alone is in half precision. That changes its logged losses, and what is
    selected where scores are close, not how the selected rows are trained on.

    Token columns that are padding in all selected rows are left out (rounded to 8, not under `torch_compile`).

    Random draws depend on `seed` and the step alone: a resumed run goes on bit for bit. A `get_train_dataloader` of
    your own has to make the larger batches itself.

    Raises:
        ValueError: at construction, for a model whose last linear layer is not found, packed sequences, models
            sharded by other means than FSDP2; in training, for batches whose rows are not samples.
        NonFiniteError: the scores, the loss or the gradient are not finite; the weights are those before that step.
    """

    args: Any  # TrainingArguments with DivBSArguments mixed in
    model: Any
    method = "divbs"
    arguments = DivBSArguments

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._scorer = Scorer(
            shift_labels=shifts_labels(self),
            features=self.args.divbs_features,
            sketch_dim=self.args.divbs_sketch_dim,
            seed=self.args.seed,
        )
        self._rows = {"candidates": 0, "kept": 0}  # of this call of `train`, in this process
        self._rows_before = dict(self._rows)  # of the run before it was resumed, in all of its processes

    # ---------------------------------------------------------------------------------------------- arguments
    @property
    def _selects(self) -> bool:
        return self.args.divbs_ratio < 1 or self.args.divbs_final_ratio is not None

    def check_arguments(self) -> None:
        super().check_arguments()
        if not self._selects:
            return
        check_data(self.args, self.data_collator)
        check_candidates(self.args)
        check_processes(self.args, self.accelerator)
        if self.args.divbs_strategy != "uniform":
            self._head()
            check_scoring(self.args)

    def _head(self) -> torch.nn.Module:
        return find_head(unwrapped(self.model), self.args.divbs_head_module, "divbs_head_module")

    # ---------------------------------------------------------------------------------------------- candidates
    def _get_dataloader(
        self,
        dataset: Any,
        description: str,
        batch_size: int,
        sampler_fn: Any = None,
        is_training: bool = False,
        dataloader_key: str | None = None,
    ) -> Any:
        if is_training:
            batch_size = math.ceil(batch_size / self.args.divbs_ratio - 1e-9)
        return super()._get_dataloader(dataset, description, batch_size, sampler_fn, is_training, dataloader_key)

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        if self._selects:
            if self.state.global_step == getattr(self, "_initial_global_step", 0):  # (re)started
                self._rows = dict.fromkeys(self._rows, 0)
            epoch_iterator = self._selecting(epoch_iterator)
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def _selecting(self, candidates: Iterator[Any]) -> Iterator[Any]:
        # not `yield from`: closing this generator, which is done with after one update, would close the epoch's
        for micro_step in itertools.count():
            batch = next(candidates, None)
            sizes = self._sizes(batch)
            if batch is None:
                return
            yield self._selected(batch, sizes, micro_step)

    def _sizes(self, batch: Any) -> list[int]:
        """Candidates of each process that selects together with this one, or goes through sharded weights with it.

        Raises:
            ValueError: in all processes, where one has none.
        """
        size = 0 if batch is None else batch_size(batch)
        if self.accelerator.num_processes == 1 or not (self._selects_together or self.is_fsdp_enabled):
            return [size]
        sizes = [rows for (rows,) in rows_of_processes([size], self.accelerator.device)]
        if any(sizes) and not all(sizes):
            why = "divbs_selection_scope='global'" if self._selects_together else "FSDP2"
            raise ValueError(
                f"train_dataloader: found {', '.join(map(str, sizes))} candidates in processes 0 to {len(sizes) - 1} "
                f"with {why}, allowed are some in each"
            )
        return sizes

    @property
    def _selects_together(self) -> bool:
        return self.accelerator.num_processes > 1 and self.args.divbs_selection_scope == "global"

    def _number_selected(self, sizes: list[int]) -> int:
        """Of the candidates of processes that select together, which have so many each."""
        ratio = self.args.divbs_ratio_at(self.state.global_step, self.state.max_steps)
        if len(set(sizes)) == 1:
            return len(sizes) * max(1, math.floor(ratio * sizes[0] + 1e-9))
        return max(len(sizes), math.floor(ratio * sum(sizes) + 1e-9))

    def _shared_passes(self, sizes: list[int]) -> int:
        """Forward passes of the scoring that every process takes, since all gather sharded weights for each of them.

        As many as the process takes that has the most, in whose candidates there is something to select.
        """
        if not self.is_fsdp_enabled or self.args.divbs_strategy == "uniform":
            return 0
        groups = [sizes] if self._selects_together else [[size] for size in sizes]
        scored = [size for group in groups if self._number_selected(group) < sum(group) for size in group]
        return max((math.ceil(size / (self.args.divbs_scoring_batch_size or size)) for size in scored), default=0)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log; the metrics at the end of the training say how many rows were candidates, and how many were kept."""
        if self._selects and "train_runtime" in logs:
            for name, rows in self._rows_of_all_processes().items():
                logs[f"train_{name}"] = rows + self._rows_before[name]  # as `total_flos` is of the whole run
                logs[f"train_{name}_per_second"] = round(rows / logs["train_runtime"], 3)
            # Trainer's number takes all of the data set for trained on
            logs["train_samples_per_second"] = logs["train_kept_per_second"]
        super().log(logs, *args, **kwargs)

    def _rows_of_all_processes(self) -> dict[str, int]:
        gathered = gather_object([self._rows]) if self.accelerator.num_processes > 1 else [self._rows]
        return {name: sum(counts[name] for counts in gathered) for name in self._rows}

    # ---------------------------------------------------------------------------------------------- checkpoints
    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; a new run counts its rows from the start, a resumed one goes on."""
        self._rows = dict.fromkeys(self._rows, 0)
        self._rows_before = dict(self._rows)
        return super().train(*args, **kwargs)

    def checkpoint_state(self) -> dict[str, Any]:
        rows = self._rows_of_all_processes()
        total = {name: count + self._rows_before[name] for name, count in rows.items()}
        return super().checkpoint_state() | ({"divbs_rows": total} if self._selects else {})

    def load_checkpoint_state(self, state: dict[str, Any]) -> None:
        super().load_checkpoint_state(state)
        self._rows_before |= state.get("divbs_rows", {})

    # ---------------------------------------------------------------------------------------------- selection
    def _selected(self, batch: Any, of_all: list[int], micro_step: int) -> Any:
        """The selected rows of a batch of candidates, or this process's share of those of all processes."""
        own = of_all[self.accelerator.process_index] if len(of_all) > 1 else of_all[0]
        together, passes = self._selects_together, self._shared_passes(of_all)
        sizes = of_all if together else [own]
        selected, candidates = self._number_selected(sizes), sum(sizes)
        self.record(diagnostics={"selected_fraction": selected / candidates})
        kept = len(range(self.accelerator.process_index, selected, len(sizes))) if together else selected
        kept = own if selected >= candidates else kept
        self._rows = {"candidates": self._rows["candidates"] + own, "kept": self._rows["kept"] + kept}
        rank = 0 if together else self.accelerator.process_index
        seeds = np.random.SeedSequence((self.args.seed, self.state.global_step, micro_step, rank))
        scoring_seed, selection_seed = (int(seed) for seed in seeds.generate_state(2))
        if selected >= candidates:
            if passes:  # of others, which wait for this one's part of the weights
                self._score(batch, own, scoring_seed, passes)
            return batch
        generator = torch.Generator(self.accelerator.device).manual_seed(selection_seed)
        if self.args.divbs_strategy == "uniform":
            rows = torch.randperm(candidates, generator=generator, device=generator.device)[:selected]
        else:
            rows = self._best(self._score(batch, own, scoring_seed, passes), sizes, selected, generator)
        if not together:
            return self._trimmed(take_rows(batch, rows, own))
        tokenizer = getattr(self.processing_class, "tokenizer", self.processing_class)
        padding = dict.fromkeys(("labels", "shift_labels"), IGNORED_LABEL)
        padding["input_ids"] = getattr(tokenizer, "pad_token_id", None) or 0
        pad_first = getattr(tokenizer, "padding_side", "right") == "left"
        return self._trimmed(exchange_rows(batch, rows, sizes, padding=padding, pad_first=pad_first))

    def _best(self, own: Scores, sizes: list[int], selected: int, generator: torch.Generator) -> Tensor:
        """The rows with the best scores, of several processes those that the main one finds."""
        scores: Scores | None = own
        if len(sizes) > 1:
            gathered = gathered_by_main(own, sizes)
            scores = None if gathered is None else Scores(*gathered)
        rows = None
        if scores is not None:
            rows = self._choose(scores, selected, generator)
            self.record(diagnostics={"candidate_loss": scores.mean_loss(), "kept_loss": scores.mean_loss(rows)})
        if rows is None or len(sizes) > 1:
            rows = chosen_by_main(rows, selected, own.losses.device)
        return rows

    def _trimmed(self, batch: dict[str, Any]) -> dict[str, Any]:
        return batch if self.args.torch_compile else without_padding(batch)  # every length would be compiled anew

    def _choose(self, scores: Scores, count: int, generator: torch.Generator) -> Tensor:
        if self.args.divbs_strategy == "divbs":
            rule, draw = self.args.divbs_rule, self.args.divbs_draw
            finite = all_finite(scores.residuals) & all_finite(scores.features)
            self.expect("scores of candidates", finite)
            if finite.device.type == "cpu" and not finite:  # else the selection would end this process alone
                broken = ~torch.cat([scores.residuals, scores.features], dim=1).isfinite().all(dim=1)
                return broken.int().argsort(descending=True, stable=True)[:count]
            rows, info = divbs_select_with_info(*scores[:2], count, rule=rule, draw=draw, generator=generator)
            fractions = {"captured_fraction": info.captured_fraction, "greedy_fraction": info.num_greedy / count}
            self.record(diagnostics=fractions)
            return rows
        by_loss = self.args.divbs_strategy == "loss"
        values = scores.losses if by_loss else gradient_norms(scores.residuals, scores.features)
        return values.argsort(descending=True, stable=True)[:count]

    def _score(self, batch: Any, size: int, seed: int, passes: int = 0) -> Scores:
        """Scores of all candidates; the model, its buffers and the random state stay as they are.

        Where these take fewer forward passes than `passes`, the first is repeated, for nothing.
        """
        model, parts = model_of(self) if self.is_fsdp_enabled else unwrapped(self.model), []
        head = self._head()
        parts_of_batch = torch.arange(size).split(self.args.divbs_scoring_batch_size or size)
        with state_preserved(model, seed):
            for rows in (*parts_of_batch, *parts_of_batch[:1] * (passes - len(parts_of_batch))):
                # as in a training step: mixins may treat its batches in ways of their own
                self.model.train()
                inputs = self._prepare_inputs(batch if len(rows) == size else take_rows(batch, rows, size))
                model.train(not self.args.divbs_score_in_eval_mode)
                with (
                    self.compute_loss_context_manager(),
                    computed_in(self.args.divbs_scoring_dtype, self.accelerator.device),
                ):
                    parts.append(self._scorer(model, head, inputs))
        del parts[len(parts_of_batch) :]
        return parts[0] if len(parts) == 1 else Scores(*map(torch.cat, zip(*parts, strict=True)))


class DivBSTrainer(DivBSMixin, Trainer):
    """`Trainer` with DivBS; see `DivBSMixin`. Takes `DivBSConfig` as `args`."""
