"""Systems of CausalD's study: each is settings of one trainer, or no training at all."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import set_seed

from hf_ext._runs import arguments, quiet
from hf_ext.data.interactions import NextItems, NextItemsCollator, ShopData
from hf_ext.metrics.ranking_baselines import item_knn_ranks, popularity_ranks
from hf_ext.metrics.rankings import RankedTargets, rank_targets
from hf_ext.models import SequentialRecommenderConfig, SequentialRecommenderForNextItem
from hf_ext.models.recsys.modeling_recsys import SequentialRecommenderOutput
from hf_ext.studies.causald.data import LENGTH, World
from hf_ext.studies.causald.teachers import WHOLE, best, open_teachers
from hf_ext.studies.study import Run
from hf_ext.trainers.causald import CausalDConfig, CausalDTrainer

ARCHITECTURE, WIDTH = "deepfm", 16
STEPS, BATCH, CANDIDATES, BANK, TEMPERATURE = 300, 256, 16, 32, 2.0
POPULARITY, NEIGHBOURS = "popularity", "item-kNN"
#: what a student may be taught by, beside what `prepare` has left: the best of the whole, their mediators, the truth
BEST, MEDIATORS, TRUTH = "best", "mediators", "truth"


@dataclass(frozen=True)
class Trained:
    """A student that ranks."""

    model: SequentialRecommenderForNextItem

    def ranks(self, rows: NextItems) -> RankedTargets:
        """Of the targets."""
        return rank_targets(self.model, rows)

    def scores(self, histories: NDArray[np.int64]) -> NDArray[np.float64]:
        """Logits of all items after histories."""
        with torch.no_grad():
            parts = [self.model(input_ids=part).logits for part in torch.from_numpy(histories[:, -LENGTH:]).split(256)]
        return torch.cat(parts).double().numpy()


@dataclass(frozen=True)
class Popular:
    """The most popular items, for all."""

    world: World

    def ranks(self, rows: NextItems) -> RankedTargets:
        """Of the targets."""
        return popularity_ranks(rows)

    def scores(self, histories: NDArray[np.int64]) -> NDArray[np.float64]:
        """Log counts of all items after histories, of those that nobody took as if one half had."""
        counts = np.maximum(self.world.split.item_counts[1:], 0.5)
        return np.log(counts)[None].repeat(len(histories), axis=0)


@dataclass(frozen=True)
class Neighbours:
    """Items that are like those of a history; its scores are no logits."""

    def ranks(self, rows: NextItems) -> RankedTargets:
        """Of the targets."""
        return item_knn_ranks(rows)

    def scores(self, histories: NDArray[np.int64]) -> None:
        """Of no distribution."""


class Truth(nn.Module):
    """A teacher that knows a shop's true effect: what there is to gain from a perfect adjustment."""

    def __init__(self, shop: ShopData) -> None:
        super().__init__()
        self.shop = shop
        self.config = SimpleNamespace(architecture=TRUTH, num_items=shop.interactions.num_items, direct_rank=0)

    def forward(
        self, input_ids: Tensor, candidate_ids: Tensor, attention_mask: Tensor | None = None
    ) -> SequentialRecommenderOutput:
        """Log probabilities of candidates, `[B, C]`."""
        effect = torch.from_numpy(self.shop.true_effect(input_ids.numpy())).log().float()
        return SequentialRecommenderOutput(logits=effect.gather(1, candidate_ids - 1))


def ranker(run: Run, world: World) -> Trained | Popular | Neighbours:
    """The system of a run, trained."""
    if run.system.name == POPULARITY:
        return Popular(world)
    return Neighbours() if run.system.name == NEIGHBOURS else Trained(_student(run, world))


def _student(run: Run, world: World) -> SequentialRecommenderForNextItem:
    set_seed(run.seed)
    config = SequentialRecommenderConfig(
        architecture=run.case.options.get("architecture", ARCHITECTURE),
        num_items=world.split.num_items,
        hidden_size=WIDTH,
        max_length=LENGTH,
    )
    student = SequentialRecommenderForNextItem(config)
    options = dict(run.system.options)
    teachers = taught_by(run.folder, world, options.pop("teachers", None))
    with tempfile.TemporaryDirectory() as cache:
        args = arguments(
            CausalDConfig,
            steps=5 if run.quick else STEPS,
            seed=run.seed,
            per_device_train_batch_size=BATCH,
            causald_num_candidates=CANDIDATES,
            causald_candidate_seed=run.seed,
            causald_bank_size=BANK,
            causald_bank_seed=run.seed,
            causald_temperature=TEMPERATURE,
            causald_cache_dir=cache,
            **{"causald_alpha": 0.0 if not teachers else 0.9, **options, **run.hyper_parameters},
        )
        trainer = CausalDTrainer(
            model=student,
            args=args,
            teachers=teachers,
            train_dataset=world.rows("train"),
            data_collator=NextItemsCollator(),
        )
        quiet(trainer).train()
    return student.eval()


def taught_by(folder: Path, world: World, kind: str | None) -> list[Any]:
    if kind is None:
        return []
    if kind == TRUTH:
        assert world.shop is not None
        return [Truth(world.shop)]
    if kind == BEST:
        return [open_teachers(folder, world, WHOLE)[best(folder)]]
    if kind == MEDIATORS:
        return open_teachers(folder, world, WHOLE, direct=False)
    return open_teachers(folder, world, kind)
