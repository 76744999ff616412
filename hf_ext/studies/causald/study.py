"""CausalD against its student alone, one teacher, plain ensembles and its own mediators."""

from typing import Any

from hf_ext.studies.causald import scores, teachers
from hf_ext.studies.causald.data import LIKED, RARE, SHOPS, SIZE, USERS, check, open_world
from hf_ext.studies.causald.scores import EFFECT_KL, EFFECT_NDCG
from hf_ext.studies.causald.systems import (
    ARCHITECTURE,
    BANK,
    BATCH,
    BEST,
    CANDIDATES,
    MEDIATORS,
    NEIGHBOURS,
    POPULARITY,
    STEPS,
    TEMPERATURE,
    TRUTH,
    WIDTH,
    ranker,
)
from hf_ext.studies.causald.teachers import NEWEST, SHORT, THIRDS, WHOLE, prepare
from hf_ext.studies.study import Case, Comparison, Detail, Outcome, Run, Source, Study, System

PLAIN, IPS, SINGLE = "student alone", "student alone, IPS", "KD, best teacher"
ENSEMBLE, ENSEMBLE_LOGIT = "KD, ensemble", "KD, ensemble of logits"
MEDIATOR, SPLITS = "KD, mediators only", "CausalD, teachers of other users"
CAUSAL, CAUSAL_LOGIT = "CausalD, bank", "CausalD, bank of logits"
SHORT_ENSEMBLE, NEWEST_ONLY = "KD, ensemble, short mediators", "KD, five newest items"
SHORT_CAUSAL, KNOWN = "CausalD, bank, short mediators", "KD from the true effect"


def run(run: Run) -> Outcome:
    """Train one system; the score is NDCG@10 over the whole catalogue."""
    world = open_world(run.case.data, run.data, run.seed, quick=run.quick)
    return scores.measure(ranker(run, world), world)


SHOP_ALPHA = 0.9
PROTOCOL = f"""
- **Readings.** Neither the paper's full text nor its code was available. Which reading of the front door its authors
  used is not known, and its numbers are not reproduced. Three are compared here. *Ensemble*: a mean over teachers,
  which is what *{ENSEMBLE}* is, by whichever name. *Bank*: a mean over teachers and over {BANK} training histories,
  of as many users, which take the place of the own one in the teachers' direct paths. *{SPLITS}*: an ensemble, each
  teacher trained on another third of the users.
- **Identification.** The front door gives an effect only if the mediator carries all that the history does, nothing
  hidden touches it, and every mediator occurs after every history (overlap). A mediator that is computed from the
  history has no overlap, and one that is computed from all of it may carry what the hidden cause has left there.
- **Shops.** {SIZE["num_users"]} users, {SIZE["num_items"]} items, about {SIZE["mean_events"]} events a user. Users
  belong to hidden groups, which push some items, in what they took as in what they take next: not at all (*none*),
  with strength 2 (*medium*) or 4 (*strong*). The mediator is one of eight interests, drawn by the last five items,
  with overlap, and P(Y | do(x)) is known. *Sparse*: medium, about 12 events a user. *Skewed*: medium, but four of
  five users keep only their first 6 to 12 events, the others about 80. A seed draws another shop.
- **Logs.** Ratings of {LIKED:g} and more, of items and users that have {RARE} or more of these, and of {USERS} users
  that a seed draws.
- **Splits.** The last two events of every user are for the test, the one before for validation. All other
  events are for training. The whole catalogue is ranked, without what the user has had; all users count alike. Head
  are the most active users by training events, a fifth at most.
- **{EFFECT_NDCG}**: the expectation for an item that is drawn from P(Y | do(x)), where x are the histories before
  the test, and all items are ranked. **{EFFECT_KL}**: the mean of KL(P(Y | do(x)) || softmax of the student's logits
  of all items). NDCG@10 itself is of what was taken next, which a hidden group helps to foretell: the better an
  adjustment, the more it loses there, as *{KNOWN}* shows, whose teacher is P(Y | do(x)).
- **Teachers.** {", ".join(teachers.ARCHITECTURES)} of width {teachers.WIDTH}, with direct paths of rank
  {teachers.RANK} (those of thirds or five items: without), trained for {teachers.STEPS[WHOLE]},
  {teachers.STEPS[THIRDS]} (of thirds), {teachers.STEPS[SHORT]} (short mediators) and {teachers.STEPS[NEWEST]} (five
  items) updates of {teachers.BATCH} rows with {teachers.NEGATIVES} other items each (sasrec, where it sees all: half
  as many, of {teachers.WINDOWS} windows, against all items). The loss is that of both paths together and half that
  of the mediator alone. *{ENSEMBLE}* has the same teachers with their own direct paths, *{MEDIATOR}* without: the
  adjustment alone tells them from *{CAUSAL}*. *{SINGLE}*: the one that ranks validation items best. *Short
  mediators*: the mediator is of the last {teachers.FEW} items, the direct path of all, and the loss that of both
  together alone. In the shops this is what the front door asks for, but for the overlap. These mediators, and how
  long their teachers are trained, were chosen by looking at other seeds. *{NEWEST_ONLY}*:
  an ensemble of teachers without direct paths that see no more than these.
- **Student.** {ARCHITECTURE} of width {WIDTH}, {STEPS} updates of {BATCH} rows with {CANDIDATES} candidates, AdamW,
  cosine schedule, temperature {TEMPERATURE:g}. *{PLAIN}*: alpha = 0. *{IPS}*: rows weighted by their item's count to
  the power -0.5. *{KNOWN}* is a control that nobody can have outside of a simulation.
- **Hyper-parameters**: the learning rate, and for logs alpha, by NDCG@10 of validation items with another seed. In
  the shops alpha is {SHOP_ALPHA}: what foretells the next item best is not what is nearest to the effect.
""".strip()


def _is_shop(case: Case) -> bool:
    return case.data in SHOPS


def _distilled(case: Case) -> dict[str, tuple[Any, ...]]:
    return {"learning_rate": (2e-2, 4e-2), "causald_alpha": (SHOP_ALPHA,) if _is_shop(case) else (0.5, 0.9)}


def _system(
    name: str, teachers_of: str, *, front_door: str = "ensemble", average: str = "probability", **options: Any
) -> System:
    settings = {"teachers": teachers_of, "causald_front_door": front_door, "causald_average": average}
    return System(name, settings, _distilled, **options)


_RATES = {"learning_rate": (1e-2, 2e-2, 4e-2)}

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
        "movielens": Source(
            "ratings of films, MovieLens latest-small",
            needs="user_id, item_id, rating, timestamp",
            origin="https://grouplens.org/datasets/movielens",
        ),
    },
    cases=tuple(Case(name, name) for name in (*SHOPS, "movielens")),
    systems=(
        System(POPULARITY),
        System(NEIGHBOURS),
        System(PLAIN, {}, _RATES),
        System(IPS, {"causald_debias": "ips"}, _RATES),
        _system(SINGLE, BEST),
        _system(ENSEMBLE, WHOLE),
        _system(ENSEMBLE_LOGIT, WHOLE, average="logit"),
        _system(MEDIATOR, MEDIATORS),
        _system(CAUSAL, WHOLE, front_door="bank", is_method=True),
        _system(CAUSAL_LOGIT, WHOLE, front_door="bank", average="logit", is_method=True),
        _system(SPLITS, THIRDS, is_method=True),
        _system(SHORT_ENSEMBLE, SHORT),
        _system(NEWEST_ONLY, NEWEST),
        _system(SHORT_CAUSAL, SHORT, front_door="bank", is_method=True),
        _system(KNOWN, TRUTH, runs_in=_is_shop),
    ),
    comparisons=(
        *(Comparison(CAUSAL, baseline) for baseline in (PLAIN, SINGLE, ENSEMBLE, MEDIATOR)),
        *(Comparison(CAUSAL_LOGIT, baseline) for baseline in (PLAIN, SINGLE, ENSEMBLE_LOGIT, MEDIATOR)),
        *(Comparison(SPLITS, baseline) for baseline in (PLAIN, SINGLE, ENSEMBLE, MEDIATOR)),
        *(Comparison(SHORT_CAUSAL, baseline) for baseline in (PLAIN, SINGLE, ENSEMBLE, SHORT_ENSEMBLE, NEWEST_ONLY)),
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
    protocol=PROTOCOL,
    seeds=5,
)

STUDIES = (STUDY,)
