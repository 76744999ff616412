"""TARF's study: what belongs to the concept, what is measured, every system in every task."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from transformers import ResNetConfig, ResNetForImageClassification

from hf_ext.data import load
from hf_ext.data.digits import LOOKS
from hf_ext.studies import Preparation, Study, reproduce
from hf_ext.studies.tarf.data import build, check, split_of
from hf_ext.studies.tarf.facts import FACTS, ONE, Facts, at_the_answer
from hf_ext.studies.tarf.scores import Cost
from hf_ext.studies.tarf.study import STUDY


@pytest.fixture
def fashion(tmp_path: Path) -> str:
    """600 pictures of ten classes in five coarse ones, each of another grey; the last 300 are for the test."""
    fine = ["tshirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"]
    coarse = [0, 1, 0, 2, 0, 3, 0, 3, 4, 3]
    rows = {
        "image": [np.full((8, 8), row % 256, dtype=np.uint8) for row in range(600)],
        "label": [row % 10 for row in range(600)],
        "coarse_label": [coarse[row % 10] for row in range(600)],
        "split": ["test" if row >= 300 else "train" for row in range(600)],
    }
    names = {
        "label": ClassLabel(names=fine),
        "coarse_label": ClassLabel(names=["up", "trouser", "dress", "foot", "bag"]),
    }
    features = Features(image=Image(), split=Value("string"), **names)
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "fashion.parquet")
    return str(tmp_path / "fashion.parquet")


def _images(data: Dataset) -> list[bytes]:
    return [np.ascontiguousarray(row).tobytes() for row in data.with_format("numpy")["pixel_values"][:]]


def test_no_digit_is_on_two_sides_and_test_digits_are_those_of_all_seeds(tmp_path: Path) -> None:
    one, other = (build(Preparation("digits", seed, "digits", tmp_path)) for seed in (3, 4))
    seen = [set(_images(rows)) for rows in one.values()]
    assert len(set.union(*seen)) == sum(map(len, seen)) == sum(map(len, one.values()))
    assert _images(one["test"]) == _images(other["test"])
    assert set(_images(one["train"])) != set(_images(other["train"]))


def test_the_concept_is_what_looks_alike(tmp_path: Path) -> None:
    data = build(Preparation("digits", 3, "digits", tmp_path))
    digits = np.asarray(data["train"]["label"][:])
    target, coarse = (split_of(data, "digits", f"{task}_mismatch") for task in ("target", "data"))
    assert set(np.asarray(target.forget["labels"][:])) == {8}
    assert target.hidden.sum() == np.isin(digits, (1, 2)).sum() and target.num_hidden_groups == 2
    assert set(np.asarray(coarse.forget["labels"][:])) == {LOOKS.index("1 2 8")} and coarse.num_hidden_groups == 1
    assert set(np.asarray(coarse.retain["label"][:])) == {0, 3, 4, 5, 6, 7, 9}


def test_pictures_become_pixels(fashion: str, tmp_path: Path) -> None:
    check("fashion", load(fashion))
    data = build(Preparation("fashion", 3, fashion, tmp_path))
    assert {name: len(rows) for name, rows in data.items()} == {"train": 250, "validation": 50, "test": 300}
    first = data["test"][0]  # row 300 of the table
    assert first["pixel_values"].shape == (1, 16, 16) and int(first["label"]) == 0
    torch.testing.assert_close(first["pixel_values"], torch.full((1, 16, 16), (300 % 256) / 127.5 - 1))


def test_tables_that_cannot_work_are_refused(fashion: str) -> None:
    data, pictures = load("digits"), load(fashion)
    for name, given, message in (
        ("fashion", data, "found the columns .*pixel_values.* in fashion, allowed is a table with image, label"),
        ("cifar", pictures, "found the classes .*sneaker.* in cifar, allowed are classes with automobile"),
        ("digits", pictures, "found the splits train in digits, allowed are pretrain, train, test"),
    ):
        with pytest.raises(ValueError, match=f"--data: {message}"):
            check(name, given)


def test_cost_counts_rows_with_and_without_gradients() -> None:
    sizes = {"embedding_size": 4, "hidden_sizes": [4], "depths": [1], "num_channels": 1, "layer_type": "basic"}
    model = ResNetForImageClassification(ResNetConfig(**sizes))
    cost = Cost(model)
    model(pixel_values=torch.zeros(6, 1, 8, 8))
    with torch.no_grad():
        model(pixel_values=torch.zeros(9, 1, 8, 8))
    cost.stop()
    model(pixel_values=torch.zeros(5, 1, 8, 8))
    assert cost.rows == 6 + 3


@pytest.mark.parametrize("study", [STUDY, FACTS], ids=lambda study: study.name)
def test_every_system_has_as_many_settings_to_choose_from(study: Study) -> None:
    for case in study.cases:
        assert {len(system.points(case)) for system in study.systems} == {4}


def test_every_system_runs(tmp_path: Path) -> None:
    cases = tuple(case for case in STUDY.cases if case.name in ("digits, target mismatch", "digits, model mismatch"))
    result = reproduce(replace(STUDY, cases=cases), out=tmp_path, quick=True, seeds=1)
    for name, systems in result.cases.items():
        assert len(systems) == len(STUDY.systems) - ("target" not in name)  # where nothing is hidden there is one TARF
        for system, found in systems.items():
            details = {name: values[0] for name, values in found.details.items()}
            four = [abs(details[one] - details[f"{one}, retrained"]) for one in ("UA", "RA", "TA", "MIA")]
            assert found.test[0] == pytest.approx(np.mean(four))
            identifies = system.startswith("TARF") and "target" in name
            assert (details["hidden rows left out"] is not None) == identifies
            assert (details["UA_hidden"] is not None) == ("target" in name)
        cost = {system: found.details["cost"][0] for system, found in systems.items()}
        assert cost["gradient ascent"] < cost["fine-tuning"] < cost["constant ascent + descent"]


def test_facts_of_six_persons_are_handed_in_all_or_in_part() -> None:
    facts = Facts(load("facts", seed=3), 3)
    train = facts.parts["train"]
    concept = facts.concept(train)
    person, attribute = (np.asarray(train.with_format("numpy")[name][:]) for name in ("person", "attribute"))
    assert len(np.unique(person[concept])) == 6 and concept.sum() == 6 * 6 * 2
    one, two = facts.handed_in(train, ONE), facts.handed_in(train, ["town", "craft"])
    assert np.array_equal(facts.handed_in(train, "all"), concept)
    assert len(set(zip(person[one], attribute[one], strict=True))) == one.sum() == 36
    assert (concept >= one).all() and (concept >= two).all() and set(attribute[two]) == {0, 1}
    unseen = [set(facts.parts[name]["text"][:]) for name in ("validation", "test")]
    assert not unseen[0] & unseen[1] and sum(map(len, unseen)) == 360


def test_only_answers_are_learned_and_predicted() -> None:
    facts = Facts(load("facts", seed=3), 3)
    data = facts.parts["test"].select(range(5))
    rows = facts.rows(data).columns
    words = {number: word for word, number in facts.ids.items()}
    for row, text in enumerate(data["text"][:]):
        tokens, labels = rows["input_ids"][row], rows["labels"][row]
        assert [words[int(token)] for token in tokens[rows["attention_mask"][row] > 0]] == text.split()
        assert [words[int(label)] for label in labels[labels != -100]] == text.split()[-1:]
    logits = torch.arange(rows["labels"].numel() * 2.0).reshape(5, -1, 2)
    before = [len(text.split()) - 2 for text in data["text"][:]]  # where the answer comes next
    assert torch.equal(at_the_answer(logits, rows["labels"]), logits[torch.arange(5), before])


def test_every_system_forgets_facts(tmp_path: Path) -> None:
    result = reproduce(replace(FACTS, cases=FACTS.cases[1:2]), out=tmp_path, quick=True, seeds=1)
    (systems,) = result.cases.values()
    assert len(systems) == len(FACTS.systems)
    for name, found in systems.items():
        details = {detail: values[0] for detail, values in found.details.items()}
        four = [abs(details[one] - details[f"{one}, retrained"]) for one in ("UA", "RA", "TA", "MIA")]
        assert found.test[0] == pytest.approx(np.mean(four))
        assert (details["hidden rows left out"] is not None) == name.startswith("TARF")
