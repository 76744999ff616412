"""Sequential recommenders: what comes next in a history of items.

A history becomes a mediator, a vector (of DIN: one for each candidate), which scores candidates; a direct path of low
rank from the history to the scores may stand beside it.
"""

import math
import os
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import initialization as init

from .carrying_recsys import ItemsMixin
from .checks_recsys import check_labels, check_rows
from .configuration_recsys import SequentialRecommenderConfig
from .deepfm_recsys import DeepFMScorer, history_fields
from .din_recsys import DINScorer, TargetAttention
from .direct_recsys import DirectPath
from .dot_recsys import DotScorer, dot_scores
from .gru_recsys import GRUEncoder
from .histories_recsys import Compacted, newest_of, running_mean
from .losses_recsys import IGNORED, mask_candidates, next_item_loss
from .outputs_recsys import EncodedHistory, SequentialRecommenderModelOutput, SequentialRecommenderOutput
from .portable import carrying_code
from .portable_loading import LoadedWhole
from .recommending_recsys import BUDGET, RecommendingMixin, excluded
from .sasrec_recsys import SASRecEncoder
from .tables_recsys import BiasTable, ProductTable, Rows, rows_of, spans

_ENCODERS: dict[str, type[nn.Module]] = {"sasrec": SASRecEncoder, "gru": GRUEncoder}
_SCORERS: dict[str, Any] = {"din": DINScorer, "deepfm": DeepFMScorer}


class SequentialRecommenderPreTrainedModel(LoadedWhole):
    """A recommender with tables of items, saved with its code."""

    config: SequentialRecommenderConfig
    config_class = SequentialRecommenderConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    accepts_loss_kwargs = True
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: SequentialRecommenderConfig) -> None:
        super().__init__(config)
        self.supports_gradient_checkpointing = config.architecture == "sasrec"
        # those it has: FSDP shards each of them apart, and looks for all that are named
        self._no_split_modules = ["SASRecLayer"] if config.architecture == "sasrec" else []

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            if self.config.architecture == "sasrec":
                init.normal_(module.weight, std=self.config.initializer_range)
            else:
                init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, BiasTable):
            init.zeros_(module.weight)
        elif isinstance(module, ProductTable):
            self._init_table(module, module.embedding_dim**-0.5)
        elif isinstance(module, nn.Embedding):
            self._init_table(module, self.config.initializer_range)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.GRU):
            for name, parameter in module.named_parameters():
                (init.xavier_uniform_ if "weight" in name else init.zeros_)(parameter)

    @staticmethod
    def _init_table(table: nn.Embedding, deviation: float) -> None:
        init.normal_(table.weight, std=deviation)
        if table.padding_idx is not None and not getattr(table.weight, "_is_hf_initialized", False):
            init.zeros_(table.weight[table.padding_idx])

    def get_input_embeddings(self) -> nn.Module:
        """The item embeddings."""
        model: Any = getattr(self, "model", self)
        table: nn.Module = model.item_embeddings
        return table

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Other item embeddings."""
        model: Any = getattr(self, "model", self)
        model.item_embeddings = value

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Save; with the files that define the model, so that it loads with `trust_remote_code=True` anywhere."""
        with carrying_code(self, {"AutoModel": SequentialRecommenderForNextItem}):
            super().save_pretrained(save_directory, *args, **kwargs)


class SequentialRecommenderModel(SequentialRecommenderPreTrainedModel):
    """Histories to mediators."""

    of_larger_models = ("scorer.", "direct.")

    def __init__(self, config: SequentialRecommenderConfig) -> None:
        super().__init__(config)
        self.item_embeddings = nn.Embedding(config.num_items + 1, config.hidden_size, padding_idx=0)
        self.encoder = _ENCODERS[config.architecture](config) if config.architecture in _ENCODERS else None
        self.attention = TargetAttention(config) if config.architecture == "din" else None
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        candidate_ids: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> SequentialRecommenderModelOutput | tuple[Any, ...]:
        """What histories become.

        Args:
            input_ids: rows of items, int64 `[B, L]`, newest last, 0 for padding; of more than `max_length` the newest.
            attention_mask: `[B, L]`; by default where there is a row other than 0, which is never an item.
            candidate_ids: rows `[B, C]`, or `[C]` for all, of which `"din"` needs some.
            return_dict: False gives a tuple.

        Raises:
            ValueError: rows that the model does not have (on the CPU, where values are looked at), or another shape.
        """
        history = self.encode(input_ids, attention_mask)
        mediator = history.mediator
        if candidate_ids is not None:
            candidate_ids = check_rows("candidate_ids", candidate_ids, self.config.num_items, (1, 2))
            mediator = self.mediate(history, self.item_embeddings(candidate_ids))
        outputs = SequentialRecommenderModelOutput(mediator=mediator, hidden_states_all=history.states)
        return outputs.to_tuple() if return_dict is False else outputs

    def encode(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, *, everywhere: bool = True
    ) -> EncodedHistory:
        """Histories, as candidates can be scored for them; with the states of all places, or the newest alone."""
        input_ids = check_rows("input_ids", input_ids, self.config.num_items, (2,))
        mask = input_ids != 0
        if attention_mask is not None:
            if attention_mask.shape != input_ids.shape:
                found, allowed = tuple(attention_mask.shape), tuple(input_ids.shape)
                raise ValueError(f"attention_mask: found the shape {found}, allowed is that of input_ids, {allowed}")
            mask = mask & attention_mask.bool()
        input_ids, mask = input_ids[:, -self.config.max_length :], mask[:, -self.config.max_length :]
        seen = newest_of(mask, self.config.mediator_length)
        if self.attention is not None:
            return EncodedHistory(input_ids, mask, seen, embedded=self.item_embeddings(input_ids))
        compacted = Compacted(seen)
        embedded = self.item_embeddings(compacted.compact(input_ids))
        if self.encoder is None:
            return EncodedHistory(input_ids, mask, seen, mediator=history_fields(embedded, compacted))
        states = self.encoder(embedded, None if everywhere else compacted.places)
        history = EncodedHistory(input_ids, mask, seen, mediator=compacted.newest(states))
        return history._replace(states=compacted.restore(states)) if everywhere else history

    def mediate(self, history: EncodedHistory, candidates: Tensor) -> Tensor:
        """The mediators of histories, of `"din"` for each of the candidates `[B, C, D]` or `[C, D]`."""
        if self.attention is not None:
            interests: Tensor = self.attention(history.embedded, history.seen, candidates)
            return interests
        assert history.mediator is not None
        return history.mediator


class SequentialRecommenderForNextItem(RecommendingMixin, ItemsMixin, SequentialRecommenderPreTrainedModel):
    """Scores of the next item, losses to learn them by, and recommendations."""

    #: what the first column of the logits is called by labels, where no candidates are given: item rows start at 1
    first_label = 1

    def __init__(self, config: SequentialRecommenderConfig) -> None:
        super().__init__(config)
        self.model = SequentialRecommenderModel(config)
        self.scorer = _SCORERS[config.architecture](config) if config.architecture in _SCORERS else DotScorer()
        self.direct = DirectPath(config) if config.direct_rank else None
        self.post_init()

    # ---------------------------------------------------------------------------------------------- computing
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        candidate_ids: Tensor | None = None,
        labels: Tensor | None = None,
        candidate_log_q: Tensor | None = None,
        exclude_ids: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        return_dict: bool | None = None,
    ) -> SequentialRecommenderOutput | tuple[Any, ...]:
        """Logits of candidates, or of all items, and with labels a loss.

        Histories without items have logits, too, those of a mediator of zeros.

        Args:
            input_ids: rows of items, int64 `[B, L]`, newest last, 0 for padding; of more than `max_length` the newest.
            attention_mask: `[B, L]`; by default where there is a row other than 0, which is never an item.
            candidate_ids: rows `[B, C]`, or `[C]` that all histories share; all items by default. The logits of row 0
                are -inf, and with labels those of further copies of the target.
            labels: without candidates the target's row, int64 `[B]`, or of `"sasrec"` and `"gru"` without a
                `mediator_length` `[B, L]`, after every item the next; with candidates the target's place among them,
                int64 `[B]`, or with `loss="bce"` 0 and 1, floats `[B, C]`. -100 is in no loss.
            candidate_log_q: logarithm of the probability that a candidate was drawn, `[B, C]` or `[C]`, subtracted
                from the logits in training mode.
            exclude_ids: rows `[B, E]`, 0 for none, whose logits are -inf in evaluation mode, except the label's own;
                the loss is that of all.
            num_items_in_batch: what the sum of losses is divided by; by default the number of labels.
            return_dict: False gives a tuple.

        Raises:
            ValueError: rows, places or labels that the model or the candidates do not have (on the CPU, where values
                are looked at), or other shapes.
        """
        candidate_ids, labels = self._checked(candidate_ids, labels)
        everywhere = labels is not None and labels.ndim == 2 and candidate_ids is None
        history = self.encode(input_ids, attention_mask, everywhere=everywhere)
        loss = logits = direct = None
        mediator = history.mediator
        if labels is not None and everywhere:
            loss, labels = self._loss_everywhere(history, labels, num_items_in_batch), labels[:, -1]
        if loss is None or not self.training:
            if candidate_ids is None:
                indirect, direct = self._score_all(history)
                labels = None if labels is None else labels.where(labels == IGNORED, labels - 1)
            else:
                mediator, indirect, direct = self._score(history, candidate_ids)
                indirect = self._corrected(indirect, candidate_ids, labels, candidate_log_q)
            logits = indirect if direct is None else indirect + direct
            if labels is not None and loss is None:
                loss = self._loss(logits, indirect, labels, num_items_in_batch)
            if exclude_ids is not None and not self.training:
                logits = self._without(logits, exclude_ids, candidate_ids, labels)
        outputs = SequentialRecommenderOutput(loss=loss, logits=logits, mediator=mediator, direct_logits=direct)
        return outputs.to_tuple() if return_dict is False else outputs

    def _checked(self, candidate_ids: Tensor | None, labels: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Candidates and labels, if they are some."""
        number, first = self.config.num_items, 1
        everywhere = self.model.encoder is not None and self.config.mediator_length is None
        shapes: tuple[int, ...] = (1, 2) if everywhere else (1,)
        if candidate_ids is not None:
            candidate_ids = check_rows("candidate_ids", candidate_ids, number, (1, 2))
            number, first, shapes = candidate_ids.shape[-1], 0, (1,)
        if labels is not None:
            floats = candidate_ids is not None and self.config.loss == "bce"
            labels = check_labels(labels, targets=number, first=first, shapes=shapes, floats=floats)
        return candidate_ids, labels

    def encode(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, *, everywhere: bool = False
    ) -> EncodedHistory:
        """Histories, as candidates can be scored for them; with the states of all places, or the newest alone."""
        history = self.model.encode(input_ids, attention_mask, everywhere=everywhere)
        if self.direct is None:
            return history
        return history._replace(direct=self.direct.means(history.input_ids, history.mask))

    def get_classifier(self) -> nn.Module | None:
        """The layer that makes the logits, if one alone does that and is linear in the mediator."""
        return self.scorer if isinstance(self.scorer, DotScorer) and self.direct is None else None

    def score_mediator(self, mediator: Tensor, candidate_ids: Tensor) -> Tensor:
        """Logits by way of the mediator alone, `[B, C]`.

        Args:
            mediator: of the output, `[B, D]`, `[B, 2 D]`, or of `"din"` `[B, C, D]` of the same candidates.
            candidate_ids: rows `[B, C]`, or `[C]` for all.
        """
        candidate_ids = check_rows("candidate_ids", candidate_ids, self.config.num_items, (1, 2))
        logits: Tensor = self.scorer(mediator, self.model.item_embeddings(candidate_ids), candidate_ids)
        return logits

    def direct_logits(self, input_ids: Tensor, candidate_ids: Tensor) -> Tensor:
        """Logits by the direct path alone, of every history with all candidates.

        Args:
            input_ids: rows `[K, L]`, 0 for padding.
            candidate_ids: rows `[B, C]`, or `[C]`.

        Returns:
            `[K, B, C]`, or `[K, C]`.

        Raises:
            ValueError: a model without a direct path, or rows that it does not have.
        """
        if self.direct is None:
            raise ValueError("direct_rank: found 0, allowed for a direct path is a rank of at least 1")
        number = self.config.num_items
        input_ids = check_rows("input_ids", input_ids, number, (2,))[:, -self.config.max_length :]
        candidate_ids = check_rows("candidate_ids", candidate_ids, number, (1, 2))
        logits: Tensor = self.direct(self.direct.means(input_ids, input_ids != 0), candidate_ids.flatten())
        return logits.unflatten(1, candidate_ids.shape)

    # ---------------------------------------------------------------------------------------------- scores
    def _score(self, history: EncodedHistory, rows: Rows) -> tuple[Tensor, Tensor, Tensor | None]:
        """Mediator, logits by way of it, and those by the direct path, of candidates."""
        candidates = rows_of(self.model.item_embeddings, rows)
        mediator = self.model.mediate(history, candidates)
        direct = None if self.direct is None else self.direct(history.direct, rows)
        return mediator, self.scorer(mediator, candidates, rows), direct

    def _score_all(self, history: EncodedHistory) -> tuple[Tensor, Tensor | None]:
        """Logits of all items by way of the mediator, and by the direct path, a span of items after the other."""
        parts = spans(self.config.num_items, self.chunk_size(history.mask.shape[0], whole=True))
        score: Any = self._score
        if len(parts) > 1 and torch.is_grad_enabled():  # what a span needs is computed again in the backward pass
            score = _checkpointed(self._score)
        scored = [score(history, span)[1:] for span in parts]
        indirect = torch.cat([part for part, _ in scored], dim=1)
        return indirect, None if self.direct is None else torch.cat([part for _, part in scored], dim=1)

    def score_span(self, history: EncodedHistory, span: slice) -> Tensor:
        """Logits `[B, span]` of a span of all rows."""
        _, logits, direct = self._score(history, span)
        return logits if direct is None else logits + direct

    def chunk_size(self, rows: int, *, whole: bool = False) -> int:
        """How many items are scored at once for so many histories, so that memory stays bounded.

        Args:
            rows: histories.
            whole: whether the logits of all items are kept anyway.
        """
        config = self.config
        if torch.compiler.is_compiling():  # of a graph, whose batch may be of any size, there is but one
            return config.num_items
        pair = {
            "din": 3 * config.max_length * config.hidden_size,
            "deepfm": 2 * config.inner_size,
        }.get(config.architecture, 0 if whole else 1)
        return max(1, BUDGET // (rows * pair)) if rows * pair else config.num_items

    # ---------------------------------------------------------------------------------------------- losses
    def _corrected(self, logits: Tensor, candidate_ids: Tensor, labels: Tensor | None, log_q: Tensor | None) -> Tensor:
        """Logits of candidates as the loss takes them."""
        if self.training and log_q is not None:
            logits = logits - log_q.to(logits.dtype)
        return mask_candidates(logits, candidate_ids, labels)

    def _loss(
        self, logits: Tensor, indirect: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None
    ) -> Tensor:
        """The loss of logits, and with a direct path a share of that of the logits without it."""
        loss = next_item_loss(logits, labels, self.config.loss, num_items_in_batch)
        if self.direct is None:
            return loss
        without = next_item_loss(indirect, labels, self.config.loss, num_items_in_batch)
        return loss + self.config.direct_loss_weight * without

    def _loss_everywhere(
        self, history: EncodedHistory, labels: Tensor, num_items_in_batch: Tensor | int | None
    ) -> Tensor:
        """The loss over all positions of causal encoders that have a label, in one pass; others cost nothing."""
        labels = labels[:, -self.config.max_length :]
        if history.states is None or labels.shape != history.mask.shape:
            found, allowed = tuple(labels.shape), tuple(history.mask.shape)
            raise ValueError(f"labels: found the shape {found}, allowed is that of input_ids, {allowed}")
        labelled = labels != IGNORED
        states, targets = history.states[labelled], labels[labelled] - 1
        means = None
        if self.direct is not None:
            means = running_mean(self.direct.history(history.input_ids), history.mask)[labelled]
        count = labelled.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        everything = slice(1, self.config.num_items + 1)

        def part_of_loss(part: Any) -> Tensor:
            logits = indirect = dot_scores(states[part], rows_of(self.model.item_embeddings, everything))
            if self.direct is not None and means is not None:
                logits = indirect + self.direct(means[part], everything)
            return self._loss(logits, indirect, targets[part], count)

        size = max(1, BUDGET // self.config.num_items)
        if len(targets) <= size:
            return part_of_loss(slice(None))
        compute = _checkpointed(part_of_loss) if torch.is_grad_enabled() else part_of_loss
        parts: Iterable[slice] = (slice(low, low + size) for low in range(0, len(targets), size))
        return torch.stack([compute(part) for part in parts]).sum()

    def _without(
        self, logits: Tensor, exclude_ids: Tensor, candidate_ids: Tensor | None, labels: Tensor | None
    ) -> Tensor:
        """Logits that are -inf at excluded rows, except at the labels' own places."""
        number = self.config.num_items
        exclude_ids = check_rows("exclude_ids", exclude_ids, number, (2,))
        unwanted = excluded(exclude_ids, slice(1, number + 1))
        if candidate_ids is not None:
            unwanted = nn.functional.pad(unwanted, (1, 0))
            unwanted = unwanted.gather(1, candidate_ids.expand(logits.shape))
        if labels is not None:
            if labels.is_floating_point():
                unwanted = unwanted & (labels != 1)
            else:
                places = torch.arange(logits.shape[1], device=logits.device)
                unwanted = unwanted & (places != labels[:, None])
        return logits.masked_fill(unwanted, -math.inf)


def _checkpointed(function: Any) -> Any:
    def run(*args: Any) -> Any:
        return checkpoint(function, *args, use_reentrant=False)

    return run


__all__ = [
    "SequentialRecommenderForNextItem",
    "SequentialRecommenderModel",
    "SequentialRecommenderModelOutput",
    "SequentialRecommenderOutput",
    "SequentialRecommenderPreTrainedModel",
]
