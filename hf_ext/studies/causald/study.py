"""CausalD against its student alone, one teacher, plain ensembles and its own mediators; where the truth is known, too."""

from typing import Any

from hf_ext.studies.causald import scores
from hf_ext.studies.causald.data import SHOPS, check, open_world
from hf_ext.studies.causald.systems import (
    BEST,
    MEDIATORS,
    NEIGHBOURS,
    POPULARITY,
    SHORT_MEDIATORS,
    TRUTH,
    ranker,
)
from hf_ext.studies.causald.teachers import SHORT, THIRDS, WHOLE, prepare
from hf_ext.studies.study import Case, Comparison, Detail, Outcome, Run, Source, Study, System

PLAIN, IPS, SINGLE = "student alone", "student alone, IPS", "KD, best teacher"
ENSEMBLE, ENSEMBLE_LOGIT = "KD, ensemble", "KD, ensemble of logits"
MEDIATOR, SPLITS = "KD, mediators only", "CausalD, teachers of other users"
CAUSAL, CAUSAL_LOGIT = "CausalD, bank", "CausalD, bank of logits"
SHORT_ENSEMBLE, SHORT_MEDIATOR = "KD, ensemble, short mediators", "KD, short mediators only"
SHORT_CAUSAL, KNOWN = "CausalD, bank, short mediators", "KD from the true effect"


def run(run: Run) -> Outcome:
    """Train one system; the score is NDCG@10 over the whole catalogue."""
    world = open_world(run.case.data, run.data, run.seed, quick=run.quick)
    return scores.measure(ranker(run, world), world)


def _is_shop(case: Case) -> bool:
    return case.data in SHOPS


def _grid(case: Case) -> dict[str, tuple[Any, ...]]:
    return {"learning_rate": (5e-3, 1e-2, 2e-2)}


def _distilled(case: Case) -> dict[str, tuple[Any, ...]]:
    return {"learning_rate": (1e-2, 2e-2), "causald_alpha": (0.9,) if _is_shop(case) else (0.5, 0.9)}


def _system(name: str, teachers: str, *, front_door: str = "ensemble", average: str = "probability", **options: Any) -> System:
    settings = {"teachers": teachers, "causald_front_door": front_door, "causald_average": average}
    return System(name, settings, _distilled, **options)


STUDY = Study(
    name="causald",
    title="CausalD: one student of many teachers, averaged by the front door",
    question="Does averaging teachers by the front door teach a recommender more than a plain ensemble does?",
    metric="NDCG@10",
    data={
        **{
            name: Source(f"a simulated shop, {options}", embedded="shop", origin="comes with the package")
            for name, options in SHOPS.items()
        },
        **{
            name: Source(
                f"ratings of films, {words}",
                needs="user_id, item_id, rating, timestamp",
                origin="https://grouplens.org/datasets/movielens",
            )
            for name, words in (
                ("movielens", "MovieLens latest-small"),
                ("ml100k", "MovieLens-100k"),
                ("movielens-time", "MovieLens latest-small, split at a moment"),
            )
        },
    },
    cases=tuple(Case(name, name) for name in (*SHOPS, "movielens", "ml100k", "movielens-time")),
    systems=(
        System(POPULARITY),
        System(NEIGHBOURS),
        System(PLAIN, {}, _grid),
        System(IPS, {"causald_debias": "ips"}, _grid),
        _system(SINGLE, BEST),
        _system(ENSEMBLE, WHOLE),
        _system(ENSEMBLE_LOGIT, WHOLE, average="logit"),
        _system(MEDIATOR, MEDIATORS),
        _system(CAUSAL, WHOLE, front_door="bank", is_method=True),
        _system(CAUSAL_LOGIT, WHOLE, front_door="bank", average="logit", is_method=True),
        _system(SPLITS, THIRDS, is_method=True),
        _system(SHORT_ENSEMBLE, SHORT),
        _system(SHORT_MEDIATOR, SHORT_MEDIATORS),
        _system(SHORT_CAUSAL, SHORT, front_door="bank", is_method=True),
        _system(KNOWN, TRUTH, runs_in=_is_shop),
    ),
    comparisons=(
        *(Comparison(CAUSAL, baseline) for baseline in (PLAIN, SINGLE, ENSEMBLE, MEDIATOR)),
        *(Comparison(CAUSAL_LOGIT, baseline) for baseline in (PLAIN, SINGLE, ENSEMBLE_LOGIT, MEDIATOR)),
        *(Comparison(SPLITS, baseline) for baseline in (PLAIN, SINGLE, ENSEMBLE, MEDIATOR)),
        *(Comparison(SHORT_CAUSAL, baseline) for baseline in (PLAIN, SINGLE, ENSEMBLE, SHORT_ENSEMBLE, SHORT_MEDIATOR)),
        *(Comparison(baseline, PLAIN) for baseline in (SINGLE, ENSEMBLE, IPS, KNOWN)),
    ),
    details=(
        Detail(scores.TAIL),
        Detail(scores.SIZE, greater_is_better=False),
        Detail(scores.GAUC),
        Detail(scores.EFFECT_NDCG),
        Detail(scores.EFFECT_KL, greater_is_better=False),
    ),
    check=check,
    prepare=prepare,
    run=run,
    seeds=5,
)

STUDIES = (STUDY,)
