"""DivBS's studies: what is noise and what are copies, what is counted, every system runs on all data."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, Image, Value
from datasets.features import Features

from hf_ext.data import load
from hf_ext.studies import Preparation, reproduce
from hf_ext.studies.divbs.data import CLEAN, COPIES, NOISE, Part, check, open_parts, prepare, training_rows
from hf_ext.studies.divbs.norm import NORM
from hf_ext.studies.divbs.study import COMPARISON, FULL, STUDIES, named
from hf_ext.studies.divbs.systems import small_model
from hf_ext.studies.divbs.time import TIME, Stopwatch
from hf_ext.studies.training import with_group_norm


@pytest.fixture
def images(tmp_path: Path) -> str:
    """320 pictures of two classes, each of another grey or green."""
    pixels = np.zeros((320, 8, 8, 3), dtype=np.uint8)
    pixels[:, :, :, 0], pixels[:, :, :, 1] = (
        (np.arange(320) % 160)[:, None, None],
        200 * (np.arange(320) // 160)[:, None, None],
    )
    rows = {
        "image": list(pixels),
        "label": [row % 2 for row in range(320)],
        "split": ["test" if row >= 300 else "train" for row in range(320)],
    }
    features = Features(image=Image(), label=Value("int64"), split=Value("string"))
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "images.parquet")
    return str(tmp_path / "images.parquet")


@pytest.mark.parametrize("name", ["digits", "images"])
def test_no_row_is_in_two_parts(name: str, images: str, tmp_path: Path) -> None:
    given = {"digits": "digits", "images": images}[name]
    folders = [tmp_path / "0", tmp_path / "1"]
    for seed, folder in enumerate(folders):
        folder.mkdir()
        prepare(Preparation(name, seed, given, folder))
    parts, others = (open_parts(folder) for folder in folders)
    sizes = {part: len(rows.labels) for part, rows in parts.items()}
    assert sizes == (
        {"train": 998, "validation": 199, "test": 600}
        if name == "digits"
        else {"train": 250, "validation": 50, "test": 20}
    )
    assert torch.equal(parts["test"].pixel_values, others["test"].pixel_values)
    assert not torch.equal(parts["validation"].pixel_values, others["validation"].pixel_values)
    if name == "images":  # two digits may look alike
        everything = torch.cat([rows.pixel_values for rows in parts.values()]).flatten(1)
        assert len(everything.unique(dim=0)) == 320
        assert all(rows.pixel_values.shape[1:] == (3, 32, 32) for rows in parts.values())


def test_conditions() -> None:
    part = Part(torch.arange(200.0).view(200, 1, 1, 1), torch.arange(200) % 10)

    def rows(condition: str, seed: int = 0) -> dict[str, torch.Tensor]:
        data = training_rows(part, condition, seed)
        found = [data[index] for index in range(len(data))]  # type: ignore[arg-type]
        return {name: torch.stack([row[name] for row in found]).flatten() for name in found[0]}

    clean, noise, copies = rows(CLEAN), rows(NOISE), rows(COPIES)
    assert torch.equal(clean["labels"], part.labels) and not clean["marked"].any()
    assert torch.equal(noise["pixel_values"], clean["pixel_values"])
    assert torch.equal(noise["labels"] != part.labels, noise["marked"].bool()) and noise["marked"].sum() == 40
    assert len(noise["labels"][noise["marked"].bool()].unique()) == 10
    counts = copies["pixel_values"].long().bincount(minlength=200)
    assert sorted(counts.unique().tolist()) == [1, 21] and (counts == 21).sum() == 20
    assert torch.equal(copies["labels"], copies["pixel_values"].long() % 10)
    assert torch.equal(copies["marked"].bool(), counts[copies["pixel_values"].long()] == 21)
    assert not torch.equal(rows(NOISE, seed=1)["marked"], noise["marked"])
    assert torch.equal(part.labels, torch.arange(200) % 10)


def test_data_are_checked_before_anything_is_trained(images: str, tmp_path: Path) -> None:
    digits, pictures = load("digits"), load(images)
    check("digits", digits)
    check("images", pictures)
    train = DatasetDict({"train": pictures["train"].filter(lambda row: row["split"] == "train")})
    for name, data, message in (
        ("digits", pictures, "found no rows in the split pretrain of digits, allowed are pixel_values"),
        ("images", digits, "found pixel_values, .* in the split train of images, allowed are image, label, split"),
        ("images", train, r"found the splits \['train'\] in images"),
    ):
        with pytest.raises(ValueError, match=message):
            check(name, data)
    with pytest.raises(ValueError, match="in the split pretrain of digits"):
        reproduce(COMPARISON, out=tmp_path / "out", data={"digits": images})


@pytest.mark.slow
def test_every_system_runs_and_is_charged_what_it_does(images: str, tmp_path: Path) -> None:
    cases = tuple(case for case in COMPARISON.cases if case.name in ("digits, label noise", "images, copies"))
    study = replace(
        COMPARISON,
        cases=cases,
        comparisons=tuple(row for row in COMPARISON.comparisons if "10 %" in row.method),
        systems=tuple(
            system for system in COMPARISON.systems if system.options["share"] in (0.1, 1.0) or "30 %" in system.name
        ),
    )
    result = reproduce(study, out=tmp_path, data={"images": images}, quick=True, seeds=1)
    digits, pictures = (result.cases[case.name] for case in cases)
    assert len(digits) == 11 and len(pictures) == 6
    for name, forward, backward, work in (
        (FULL, 0.5, 0.5, 1.0),
        (named("uniform", 0.1), 0.05, 0.05, 0.1),
        (named("loss", 0.1), 0.55, 0.05, 1.3 / 3),
        (named("DivBS", 0.3), 0.65, 0.15, 1.9 / 3),
        (named("DivBS, drawn", 0.1), 0.55, 0.05, 1.3 / 3),
    ):
        details = {key: values[0] for key, values in digits[name].details.items()}
        assert details["rows forward, thousands"] == pytest.approx(forward)
        assert details["rows backward, thousands"] == pytest.approx(backward)
        assert details["work (full batch: 1)"] == pytest.approx(work)
    assert digits[FULL].details["share of marked rows"] == pytest.approx([0.2], abs=0.05)
    assert pictures[FULL].details["share of marked rows"] == pytest.approx([0.7], abs=0.1)
    scores = [system.test[0] for system in digits.values()]
    assert len(set(scores)) > 5  # the systems are told apart


def test_group_norm_in_place_of_batch_norm(images: str, tmp_path: Path) -> None:
    part = Part(torch.rand(6, 3, 32, 32), torch.arange(6))
    usual, other = small_model(part, 0), with_group_norm(small_model(part, 0))
    counts = [sum(isinstance(module, torch.nn.BatchNorm2d) for module in one.modules()) for one in (usual, other)]
    assert counts[0] > 0 == counts[1]
    alone = other(pixel_values=part.pixel_values[:1]).logits
    torch.testing.assert_close(other(pixel_values=part.pixel_values).logits[:1], alone)  # knows nothing of other rows
    result = reproduce(NORM, out=tmp_path, data={"images": images}, quick=True, seeds=1)
    assert [len(systems) for systems in result.cases.values()] == [5, 5]


def test_time_to_an_accuracy(tmp_path: Path) -> None:
    result = reproduce(replace(TIME, cases=TIME.cases[:1]), out=tmp_path, quick=True, seeds=1)
    (systems,) = result.cases.values()
    for system in systems.values():
        assert np.isnan(system.test[0]) and system.details["updates"] == [None]  # four updates are too few


def test_the_stopwatch_ends_the_training_when_all_have_got_there() -> None:
    from transformers import TrainerControl, TrainerState, TrainingArguments

    found = {"validation": 0.0, "test": 0.0}
    watch = Stopwatch(lambda model: dict(found), target=0.9, every=2)
    args, state, control = TrainingArguments("unused"), TrainerState(), TrainerControl()
    watch.on_train_begin(args, state, control)
    for step, (validation, test) in enumerate([(1, 1), (0.8, 0.9), (1, 1), (0.8, 0.5), (1, 1), (0.9, 0.95)], start=1):
        found |= {"validation": validation, "test": test}
        state.global_step = step
        assert not control.should_training_stop
        watch.on_step_end(args, state, control, model=torch.nn.Linear(1, 1))
    assert control.should_training_stop
    assert {name: updates for name, (_, updates) in watch.reached.items()} == {"test": 2, "validation": 6}
    assert 0 < watch.reached["test"][0] < watch.reached["validation"][0]


def test_studies_are_told_apart() -> None:
    assert len({study.name for study in STUDIES}) == len(STUDIES)
    assert all(study.protocol and study.seeds >= 5 for study in STUDIES)
