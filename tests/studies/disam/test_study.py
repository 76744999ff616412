"""DISAM's studies: what is left out stays out, regimes are what they say, every system runs on every kind of data."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value

from hf_ext.data import load
from hf_ext.studies import Preparation, reproduce
from hf_ext.studies.disam.curves import steps_to, variance
from hf_ext.studies.disam.data import BUILDERS, HARD, Problem, check, open_problem
from hf_ext.studies.disam.study import COMPARISON, EVERY, LAMBDA, SPEED, STUDIES, VARIANCE, WORST
from hf_ext.studies.training import Rows

DOMAINS = ("mnist", "usps", "semeion", HARD)
ROWS, CLASSES = 480, 3


def _rows(**inputs: list[object]) -> dict[str, list[object]]:
    return {
        **inputs,
        "label": [row % CLASSES for row in range(ROWS)],
        "domain": [row // CLASSES % len(DOMAINS) for row in range(ROWS)],
        "split": ["test" if row >= 360 else "train" for row in range(ROWS)],
    }


NAMES = {
    "label": ClassLabel(names=["a", "b", "c"]),
    "domain": ClassLabel(names=list(DOMAINS)),
    "split": Value("string"),
}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Every data set's place: tables of 480 different rows of three classes in four domains, one of them hard."""
    folder = tmp_path_factory.mktemp("tables")
    pixels = np.random.default_rng(0).integers(0, 256, (ROWS, 14, 14), dtype=np.uint8)
    digits = Dataset.from_dict(_rows(image=list(pixels)), features=Features(image=Image(), **NAMES))
    digits.to_parquet(folder / "digits.parquet")
    digits.to_parquet(folder / "pictures.parquet")
    vectors = np.random.default_rng(1).normal(size=(ROWS, 6)).tolist()
    features = Features(features=List(Value("float32")), **NAMES)
    Dataset.from_dict(_rows(features=vectors), features=features).to_parquet(folder / "features.parquet")
    tables = {name: str(folder / f"{name}.parquet") for name in ("digits", "features", "pictures")}
    return {"domains": "digits-domains", **tables}


@pytest.fixture
def prepare(given: dict[str, str], tmp_path: Path) -> Callable[[str], Problem]:
    def make(name: str) -> Problem:
        BUILDERS[name](Preparation(name, 3, given[name], tmp_path, quick=True)).save(tmp_path)
        return open_problem(tmp_path)

    return make


def _inputs(problem: Problem, part: str) -> set[bytes]:
    return {row.tobytes() for row in problem.parts[part].inputs}


@pytest.mark.parametrize("name", BUILDERS)
def test_no_row_is_on_two_sides_and_the_domain_left_out_on_none(name: str, prepare: Callable[[str], Problem]) -> None:
    problem = prepare(name)
    for held in problem.left_out:
        found = problem.without(held, "even", 3)
        sides = [_inputs(found, part) for part in ("train", "validation", "test", "unseen")]
        assert all(sides) and len(set.union(*sides)) == sum(map(len, sides))
        assert set(found.parts["unseen"].domains) == {held}
        for part in ("train", "validation", "test"):
            assert set(found.parts[part].domains) == set(problem.left_out) - {held}


def test_an_embedded_image_is_on_one_side_in_all_its_domains(prepare: Callable[[str], Problem]) -> None:
    problem = prepare("domains")
    plain = {  # domain 0 is plain, 1 turned, 2 inverted
        part: [
            {
                (-row if domain == 2 else np.rot90(row[0], -domain)).tobytes()
                for row in rows.select(rows.domains == domain).inputs
            }
            for domain in range(3)
        ]
        for part, rows in problem.parts.items()
    }
    for part in ("train", "validation", "unseen"):
        assert plain[part][0] == plain[part][1] == plain[part][2]
    assert not plain["train"][0] & plain["validation"][0] and not plain["train"][0] & plain["unseen"][0]


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_regimes(part: str, prepare: Callable[[str], Problem]) -> None:
    problem = prepare("digits")
    hard = DOMAINS.index(HARD)
    assert problem.left_out == [0, 1, 2]
    for held, odd in ((0, 1), (1, 2), (2, 0)):
        even, rare, noisy, more = (
            problem.without(held, name, 3).parts[part] for name in ("even", "rare", "noisy", "hard")
        )
        left = [(rows.domains == odd).sum() for rows in (even, rare)]
        assert left[1] == (left[0] if part == "test" else max(1, round(left[0] / 20)))
        assert (rare.domains != odd).sum() == (even.domains != odd).sum()
        wrong = even.labels != noisy.labels
        assert np.array_equal(even.inputs, noisy.inputs)
        assert wrong.sum() == (0 if part == "test" else round(left[0] / 5)) and set(even.domains[wrong]) <= {odd}
        assert set(noisy.labels) == set(range(CLASSES))
        assert set(more.domains) == set(even.domains) | {hard} and hard not in even.domains


def test_a_seed_draws_what_is_rare_and_wrong(prepare: Callable[[str], Problem]) -> None:
    problem = prepare("features")
    for regime in ("rare", "noisy"):
        one, again, other = (problem.without(0, regime, seed).parts["train"] for seed in (3, 3, 4))
        assert np.array_equal(one.inputs, again.inputs) and np.array_equal(one.labels, again.labels)
        assert not (np.array_equal(one.inputs, other.inputs) and np.array_equal(one.labels, other.labels))


def test_data_are_checked_before_anything_is_trained(given: dict[str, str], tmp_path: Path) -> None:
    for name, place in given.items():
        check(name, load(place))
    digits, embedded = load(given["digits"]), load("digits-domains")
    easy = digits.cast_column("domain", ClassLabel(names=["a", "b", "c", "d"]))
    mixed = DatasetDict({**embedded, "train": embedded["train"].shuffle(seed=0)})
    for name, data, message in (
        ("digits", easy, f"found the domains .* in digits, allowed are any with {HARD} among them"),
        ("digits", load(given["features"]), "found the columns features, label, domain, split in digits, allowed is"),
        ("digits", digits.filter(lambda row: row["split"] == "train"), r"found the splits \['train'\] in digits"),
        ("features", load(given["features"]).cast_column("label", Value("int64")), "as the column label of features"),
        ("domains", digits, "found image, label, domain, split in the split train of domains, allowed are pixel_val"),
        ("domains", mixed, "found other domain_ids in the split train of domains"),
    ):
        with pytest.raises(ValueError, match=message):
            check(name, data)
    two = Dataset.from_dict(
        {"features": [[0.0]] * 4, "label": [0, 1, 0, 1], "domain": [0, 0, 1, 1], "split": ["train", "test"] * 2},
        features=Features(features=List(Value("float32")), **{**NAMES, "domain": ClassLabel(names=["a", "b"])}),
    )
    with pytest.raises(ValueError, match=r"found the domains \['a', 'b'\] in features, allowed are three or more"):
        check("features", DatasetDict({"train": two}))
    with pytest.raises(ValueError, match="found the columns features"):
        reproduce(COMPARISON, out=tmp_path / "out", data={"digits": given["features"]})
    assert not (tmp_path / "out").exists()


def test_every_system_runs_on_all_data(given: dict[str, str], tmp_path: Path) -> None:
    cases = tuple(
        case for case in COMPARISON.cases if case.name in ("domains, even", "digits, hard", "features, noisy")
    )
    assert {case.data for case in cases} == set(COMPARISON.data)
    data = {name: given[name] for name in COMPARISON.data}
    result = reproduce(replace(COMPARISON, cases=cases), out=tmp_path, data=data, quick=True, seeds=1)
    for case in cases:
        systems = result.cases[case.name]
        assert len(systems) == len(COMPARISON.systems)
        for system in systems.values():
            unseen = [values[0] for name, values in system.details.items() if name.startswith("unseen")]
            assert system.test[0] == pytest.approx(np.mean(np.array(unseen, dtype=float)))
            assert len(unseen) == (4 if case.data == "domains" else 3)
            assert 0 <= system.details[WORST][0] <= 1 and system.details[SPEED][0] <= 10
        # the seed is shared: nothing but rho and lambda tells them apart
        assert len({system.details[VARIANCE][0] for system in systems.values()}) == len(systems)
    judged = {(row.method, row.baseline, row.detail) for row in result.judged}
    assert ("DISAM", "SAM", WORST) in judged and ("DISAM", "SAM", SPEED) in judged


def test_without_a_perturbation_disam_is_plain_training(given: dict[str, str], tmp_path: Path) -> None:
    still = tuple(replace(system, options={**system.options, "rho": 0.0}) for system in LAMBDA.systems)
    study = replace(LAMBDA, systems=still, cases=LAMBDA.cases[:1])
    systems = list(reproduce(study, out=tmp_path, quick=True, seeds=1).cases["domains, even"].values())
    assert all(system.details == systems[0].details for system in systems)
    moved = reproduce(replace(LAMBDA, cases=LAMBDA.cases[:1]), out=tmp_path / "moved", quick=True, seeds=1)
    assert all(system.details != systems[0].details for system in moved.cases["domains, even"].values())


def test_a_perturbation_for_several_updates_is_another_training(given: dict[str, str], tmp_path: Path) -> None:
    study = replace(EVERY, cases=EVERY.cases[:1])
    systems = list(reproduce(study, out=tmp_path, quick=True, seeds=1).cases["domains, even"].values())
    assert len({system.details[VARIANCE][0] for system in systems}) == len(systems)  # of the losses in training


def test_updates_to_a_loss() -> None:
    losses = torch.linspace(2.0, 0.0, 101)  # falls by 0.02 an update
    assert steps_to(losses, 1.0) == 61  # the mean of the updates 42 to 61 is that of 51 and 52, 0.99
    assert steps_to(losses, -1.0) == 101  # never: all of them
    assert steps_to(torch.tensor([3.0, 1.0]), 2.5) == 2


def test_variance_of_domain_losses() -> None:
    counts = torch.tensor([[2.0, 1.0, 0.0]] * 40)
    means = torch.tensor([1.0, 3.0, 0.0])
    assert variance(counts * means, counts) == pytest.approx(1.0)  # a domain without samples does not count
    noise = torch.tensor([1.0, -1.0]).repeat(20)[:, None]  # evens out within a stretch
    assert variance(counts * (means + noise), counts) == pytest.approx(1.0)
    rare = torch.tensor([[1.0, 1.0, 0.0]] * 20 + [[1.0, 0.0, 0.0]] * 20)
    assert variance(rare * means, rare) == pytest.approx(0.5)  # 1 in the first stretch, one domain in the second


def test_rows_of_a_batch_are_the_rows_one_by_one() -> None:
    rows = Rows.of(inputs=torch.arange(12.0).reshape(4, 3), labels=torch.arange(4))
    batch = rows.__getitems__([2, 0])
    assert [row["labels"].item() for row in batch] == [2, 0]
    assert all(
        torch.equal(row[name], rows[index][name]) for row, index in zip(batch, (2, 0), strict=True) for name in row
    )


def test_studies_are_told_apart() -> None:
    assert len({study.name for study in STUDIES}) == len(STUDIES)
    for study in STUDIES:
        assert study.protocol and study.seeds >= 5 and "{" not in study.protocol
        assert any(study.data[case.data].embedded for case in study.cases)
    points = {len(system.points(case)) for case in COMPARISON.cases for system in COMPARISON.systems}
    assert len(points) == 1  # tuned alike
