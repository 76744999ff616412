"""CausalD's study: its worlds, its teachers, what it measures; every system runs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict

from hf_ext.studies import Preparation, reproduce
from hf_ext.studies.causald import scores, study, systems, teachers
from hf_ext.studies.causald.data import LENGTH, SHOPS, World, check, open_world
from hf_ext.studies.causald.study import STUDY
from hf_ext.studies.study import Run


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Ratings of 60 users, 4 and above of three quarters; an item and a user too rare to stay."""
    random = np.random.default_rng(0)
    rows = [
        {"user_id": user, "item_id": int(item), "rating": float(random.choice([2, 4, 4.5, 5])), "timestamp": moment}
        for user in range(1, 61)
        for moment, item in enumerate(random.permutation(25)[:20], start=user // 2)
    ]
    rows += [{"user_id": 1, "item_id": 99, "rating": 5.0, "timestamp": 0}]
    rows += [{"user_id": 77, "item_id": 3, "rating": 5.0, "timestamp": 0}]
    file = tmp_path_factory.mktemp("log") / "ratings.parquet"
    Dataset.from_list(rows).to_parquet(file)
    return str(file)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a quick study of a shop has prepared."""
    folder = tmp_path_factory.mktemp("shop")
    teachers.prepare(Preparation("shop-medium", 0, "shop", folder, quick=True))
    return folder


@pytest.fixture(scope="module")
def world() -> World:
    return open_world("shop-medium", "shop", 0, quick=True)


# ------------------------------------------------------------------------------------------------ data
def test_a_seed_draws_a_shop_and_the_same_again(world: World) -> None:
    again, other = (open_world("shop-medium", "shop", seed, quick=True) for seed in (0, 1))
    assert again.split.digest == world.split.digest != other.split.digest


def test_the_skewed_shop_has_few_events_of_most_users() -> None:
    split = open_world("shop-skewed", "shop", 0, quick=True).split
    counts = np.diff(split.interactions.offsets)
    assert np.mean(counts <= 12) >= 0.7
    assert counts.max() > 100
    assert counts.sum() == len(split.interactions) == len(split.interactions.times)
    assert (np.diff(split.interactions.times)[np.diff(split.interactions.users) == 0] > 0).all()


def test_histories_are_all_that_came_before_the_first_test_item(world: World) -> None:
    histories, rows = world.histories(), world.rows("test")
    first = np.unique(rows.users, return_index=True)[1]
    assert len(histories) == len(first)
    for history, row in zip(histories, rows.__getitems__(first.tolist()), strict=True):
        assert history[history > 0].tolist() == row["exclude_ids"].tolist()
        assert history[-LENGTH:].tolist() == row["input_ids"].tolist()


def test_a_log_keeps_what_was_liked_by_users_and_of_items_that_are_no_rarity(log: str) -> None:
    found = open_world("movielens", log, 0).split.interactions
    assert 99 not in found.items.ids
    assert 77 not in found.user_ids
    assert found.num_users == 60
    assert len(found) < 60 * 20


def test_data_that_cannot_be_used(log: str) -> None:
    check("movielens", DatasetDict(train=Dataset.from_parquet(log)))
    with pytest.raises(ValueError, match="found no column rating in movielens"):
        check("movielens", DatasetDict(train=Dataset.from_parquet(log).remove_columns("rating")))
    with pytest.raises(ValueError, match="in place of shop-none"):
        open_world("shop-none", log, 0)


# ------------------------------------------------------------------------------------------------ scores
class Knowing:
    """A system that says what a function of histories says."""

    def __init__(self, function: object) -> None:
        self.function = function

    def scores(self, histories: np.ndarray) -> np.ndarray:
        return np.log(self.function(histories))  # type: ignore[operator]


def test_nobody_is_nearer_the_truth_than_the_truth(world: World, log: str) -> None:
    assert world.shop is not None
    known, observed = (
        scores.against_the_truth(Knowing(function), world)  # type: ignore[arg-type]
        for function in (world.shop.true_effect, world.shop.observed)
    )
    assert known[scores.EFFECT_KL] == pytest.approx(0, abs=1e-9)
    assert observed[scores.EFFECT_KL] > 0.05
    assert known[scores.EFFECT_NDCG] > observed[scores.EFFECT_NDCG] + 0.005
    elsewhere = scores.against_the_truth(Knowing(np.exp), open_world("movielens", log, 0))  # type: ignore[arg-type]
    assert set(elsewhere.values()) == {None}


def test_without_a_confounder_the_effect_is_what_is_observed() -> None:
    shop = open_world("shop-none", "shop", 0, quick=True).shop
    assert shop is not None
    histories = shop.interactions.item_rows[:30].reshape(5, 6)
    np.testing.assert_allclose(shop.true_effect(histories), shop.observed(histories))


# ------------------------------------------------------------------------------------------------ teachers
def test_a_short_mediator_sees_the_newest_items_and_the_direct_path_all(world: World) -> None:
    torch.manual_seed(0)
    histories = torch.randint(1, world.split.num_items, (3, LENGTH))
    other = histories.clone()
    other[:, : -teachers.FEW] = other[:, : -teachers.FEW].flip(0)
    for architecture in teachers.ARCHITECTURES:
        model = teachers.build(world, architecture, teachers.SHORT).eval()
        with torch.no_grad():
            one, two, newest = (model(ids) for ids in (histories, other, histories[:, -teachers.FEW :]))
        indirect, same, alone = (found.logits - found.direct_logits for found in (one, two, newest))
        torch.testing.assert_close(indirect, same)
        torch.testing.assert_close(indirect, alone)
        torch.testing.assert_close(model.direct_logits(histories, torch.arange(1, 5)), one.direct_logits[:, :4])
        assert not torch.allclose(one.direct_logits, two.direct_logits)
        model = teachers.build(world, architecture, teachers.NEWEST).eval()
        with torch.no_grad():
            torch.testing.assert_close(model(histories).logits, model(other).logits)


def test_thirds_have_all_training_events_between_them(world: World) -> None:
    parts = [teachers.third(world, number, seed=3) for number in range(3)]
    assert sum(part.train_ends for part in parts).tolist() == world.split.train_ends.tolist()
    assert all(0.3 < np.mean(part.train_ends > 0) < 0.4 for part in parts)
    assert all((part.validation_ends == world.split.validation_ends).all() for part in parts)


def test_mediators_are_teachers_without_their_direct_paths(world: World, prepared: Path) -> None:
    histories = torch.from_numpy(world.histories()[:4, -LENGTH:])
    whole, without = (systems.taught_by(prepared, world, name) for name in (teachers.WHOLE, systems.MEDIATORS))
    assert len(whole) == len(without) == 3
    for teacher, mediator in zip(whole, without, strict=True):
        with torch.no_grad():
            outputs = teacher(histories)
            torch.testing.assert_close(mediator(histories).logits, outputs.logits - outputs.direct_logits)
        assert (teacher.config.direct_rank, mediator.config.direct_rank) == (teachers.RANK, 0)


def test_the_best_teacher_is_the_one_of_the_best_validation_score(world: World, prepared: Path) -> None:
    (chosen,) = systems.taught_by(prepared, world, systems.BEST)
    every = teachers.open_teachers(prepared, world, teachers.WHOLE)
    found = [teachers.validate(world, teacher) for teacher in every]
    assert chosen.config.architecture == every[int(np.argmax(found))].config.architecture


def test_the_teacher_that_knows_gives_log_probabilities_of_the_effect(world: World) -> None:
    (teacher,) = systems.taught_by(Path(), world, systems.TRUTH)
    histories, candidates = torch.from_numpy(world.histories()[:2, -LENGTH:]), torch.tensor([[1, 5], [2, 2]])
    assert world.shop is not None
    effect = world.shop.true_effect(histories.numpy())
    expected = np.log(np.take_along_axis(effect, candidates.numpy() - 1, axis=1))
    np.testing.assert_allclose(teacher(histories, candidates).logits.numpy(), expected, rtol=1e-5)


# ------------------------------------------------------------------------------------------------ runs
@pytest.mark.parametrize("name", [systems.POPULARITY, study.PLAIN, study.CAUSAL, study.SHORT_CAUSAL, study.KNOWN])
def test_a_run_of_a_seed_is_the_same_again(name: str, prepared: Path) -> None:
    system = next(system for system in STUDY.systems if system.name == name)
    case = next(case for case in STUDY.cases if case.data == "shop-medium")
    once = Run(case, system, system.points(case)[0], 0, "shop", prepared, quick=True)
    found = [study.run(once) for _ in range(2)]
    assert found[0] == found[1]
    assert 0 <= found[0].test <= 1
    assert found[0].details[scores.EFFECT_KL] > 0
    assert found[0].details[scores.SIZE] == abs(found[0].details[scores.GAP])


def test_only_a_shop_has_a_truth_to_be_taught() -> None:
    for case in STUDY.cases:
        assert (study.KNOWN in {system.name for system in STUDY.systems_of(case)}) == (case.data in SHOPS)


@pytest.mark.slow
def test_every_system_runs(log: str, tmp_path: Path) -> None:
    cases = tuple(case for case in STUDY.cases if case.data in ("shop-none", "movielens"))
    data = {"movielens": log}
    result = reproduce(replace(STUDY, cases=cases), out=tmp_path, data=data, seeds=1, quick=True)
    assert all(len(result.cases[case.name]) == len(STUDY.systems_of(case)) for case in cases)
