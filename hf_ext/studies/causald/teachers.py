"""Teachers of CausalD's study: three architectures, each trained in several ways, once per data set and seed."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Trainer, TrainingArguments, set_seed

from hf_ext._runs import arguments, quiet
from hf_ext.data.interactions import NextItemsCollator, SetEpoch
from hf_ext.metrics.rankings import rank_targets
from hf_ext.metrics.recommendation import RankingMetrics
from hf_ext.models import SequentialRecommenderConfig, SequentialRecommenderForNextItem
from hf_ext.studies.causald.data import LENGTH, World, open_world
from hf_ext.studies.study import Preparation

ARCHITECTURES = ("din", "deepfm", "sasrec")
#: kinds of teachers: of all users; each of another third of them; with mediators of the newest items; of these alone
WHOLE, THIRDS, SHORT, NEWEST = "whole", "thirds", "short", "newest"
WIDTH, INNER, RANK, FEW = 32, 16, 8, 5
STEPS = {WHOLE: 600, THIRDS: 300, SHORT: 1000, NEWEST: 400}
RATE, BATCH, WINDOWS, NEGATIVES = 1e-2, 128, 32, 15
_SCORES = "scores.json"


def prepare(ready: Preparation) -> None:
    """Leave the teachers of a data set and seed in the folder."""
    world = open_world(ready.name, ready.data, ready.seed, quick=ready.quick)
    scores = {}
    for kind in STEPS:
        for number, architecture in enumerate(ARCHITECTURES):
            seed = 10 * ready.seed + number
            model = train(world, architecture, kind, seed, steps=5 if ready.quick else STEPS[kind])
            torch.save(model.state_dict(), ready.folder / _file(kind, architecture))
            scores[f"{kind} {architecture}"] = validate(world, model)
    (ready.folder / _SCORES).write_text(json.dumps(scores))


def open_teachers(
    folder: Path, world: World, kind: str, *, direct: bool = True
) -> list[SequentialRecommenderForNextItem]:
    """What `prepare` has left: one teacher of each architecture; on demand without their direct paths."""
    teachers = []
    for architecture in ARCHITECTURES:
        model = build(world, architecture, kind)
        model.load_state_dict(torch.load(folder / _file(kind, architecture), weights_only=True))
        if not direct:
            model.direct, model.config.direct_rank = None, 0
        teachers.append(model.eval())
    return teachers


def best(folder: Path) -> int:
    """The place of the teacher that ranks validation items best, of those that have seen all users."""
    scores = json.loads((folder / _SCORES).read_text())
    return int(np.argmax([scores[f"{WHOLE} {architecture}"] for architecture in ARCHITECTURES]))


def validate(world: World, model: Any) -> float:
    """NDCG@10 of the validation items."""
    rows = world.rows("validation")
    return RankingMetrics(rows).of(rank_targets(model, rows))["ndcg@10"]


def build(world: World, architecture: str, kind: str, **options: Any) -> SequentialRecommenderForNextItem:
    """An untrained teacher."""
    config = SequentialRecommenderConfig(
        **{
            "architecture": architecture,
            "num_items": world.split.num_items,
            "hidden_size": WIDTH,
            "intermediate_size": None if architecture == "sasrec" else INNER,
            "max_length": LENGTH,
            "direct_rank": 0 if kind in (THIRDS, NEWEST) else RANK,
            "direct_loss_weight": 0.0 if kind == SHORT else 0.5,
            "mediator_length": FEW if kind in (SHORT, NEWEST) else None,
            **options,
        }
    )
    return SequentialRecommenderForNextItem(config)


def train(
    world: World, architecture: str, kind: str, seed: int, *, steps: int, rate: float = RATE, **options: Any
) -> Any:
    """A teacher, trained by transformers' Trainer: on items against others that are drawn anew in every epoch.

    Causal models of whole histories are trained on windows of many items against all others, in half the steps.
    """
    set_seed(seed)
    model = build(world, architecture, kind, **options)
    if kind == THIRDS:
        world = replace(world, split=third(world, ARCHITECTURES.index(architecture), seed // 10))
    everywhere = architecture == "sasrec" and kind in (WHOLE, THIRDS)
    rows: dict[str, Any] = {"targets": "every"} if everywhere else {"num_negatives": NEGATIVES, "seed": seed}
    args = arguments(
        TrainingArguments,
        steps=-(-steps // 2) if everywhere else steps,
        learning_rate=rate,
        seed=seed,
        per_device_train_batch_size=WINDOWS if everywhere else BATCH,
        remove_unused_columns=False,
    )
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=world.rows("train", **rows),
        data_collator=NextItemsCollator(),
        callbacks=[SetEpoch()],
    )
    quiet(trainer).train()
    return model.eval()


def third(world: World, number: int, seed: int) -> Any:
    """The split with the training events of every third user alone, in an order of the seed."""
    places = np.random.default_rng([seed, 2]).permutation(world.split.num_users)
    return replace(world.split, train_ends=np.where(places % 3 == number, world.split.train_ends, 0))


def _file(kind: str, architecture: str) -> str:
    return f"{kind}-{architecture}.pt"
