"""Federations of the studies: who holds which rows, and what a user's data must have."""

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from torch import Tensor

from hf_ext.data import load
from hf_ext.studies import Preparation
from hf_ext.studies.fedlesam.data import CLASSES_EACH, FEWEST, KINDS, Problem, check, federation, open_problem, prepare
from hf_ext.studies.fedlesam.models import small_model

ORIGINS = ("pen", "brush", "print")


def pictures(rows: int = 600) -> Dataset:
    """Pictures of two classes and three origins; a picture's number is in its pixels, in three digits of base 16."""
    numbers = np.arange(rows)
    tones = np.stack([numbers % 16, numbers // 16 % 16, numbers // 256], axis=-1).astype(np.uint8) * 16
    features = Features(
        image=Image(), label=ClassLabel(2), domain=ClassLabel(names=list(ORIGINS)), split=Value("string")
    )
    values = {
        "image": list(np.broadcast_to(tones[:, None, None], (rows, 4, 4, 3))),
        "label": numbers % 2,
        "domain": numbers % 3,
        "split": ["test" if number % 5 == 0 else "train" for number in numbers],
    }
    return Dataset.from_dict(values, features=features)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    table = tmp_path_factory.mktemp("data") / "pictures.parquet"
    pictures().to_parquet(table)
    return {"digits": "digits", "domains": "digits-domains", "origins": str(table), "images": str(table)}


@pytest.fixture(scope="module")
def problems(data: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Problem]:
    made = {}
    for name, place in data.items():
        folder = tmp_path_factory.mktemp(name)
        check(name, load(place))
        prepare(Preparation(name, 0, place, folder))
        made[name] = open_problem(folder)
    return made


def numbers_of(pixel_values: Tensor) -> list[int]:
    """The numbers of coloured pictures, as `pictures` has written them."""
    tones = ((pixel_values[:, :, 0, 0] + 1) * 127.5 / 16).round().long()
    return (tones @ torch.tensor([1, 16, 256])).tolist()


def test_what_is_there(problems: dict[str, Problem]) -> None:
    sizes = {name: [len(problem.parts[part]) for part in problem.parts] for name, problem in problems.items()}
    assert sizes == {
        "digits": [998, 199, 600],
        "domains": [2000, 400, 2400],
        "origins": [400, 80, 120],
        "images": [400, 80, 120],
    }
    assert [problem.classes for problem in problems.values()] == [10, 10, 2, 2]
    assert problems["origins"].origins == ORIGINS and len(problems["domains"].origins) == 4
    shapes = {name: tuple(problem.parts["test"].pixel_values.shape[1:]) for name, problem in problems.items()}
    assert shapes == {"digits": (1, 8, 8), "domains": (1, 8, 8), "origins": (1, 14, 14), "images": (3, 32, 32)}
    for problem in problems.values():
        for part in problem.parts.values():
            assert part.pixel_values.dtype == torch.float32 and part.labels.dtype == part.origins.dtype == torch.int64
            assert -1 <= part.pixel_values.min() < part.pixel_values.max() <= 1


def test_no_picture_is_in_two_parts(problems: dict[str, Problem]) -> None:
    table, parts = pictures(), problems["images"].parts
    numbers = {name: numbers_of(part.pixel_values) for name, part in parts.items()}
    assert sorted(number for part in numbers.values() for number in part) == list(range(600))
    assert set(numbers["test"]) == set(range(0, 600, 5))
    for name, part in parts.items():
        assert part.labels.tolist() == [table["label"][number] for number in numbers[name]]


def test_an_image_is_held_out_in_all_domains(problems: dict[str, Problem]) -> None:
    plain = {
        name: problems["domains"].parts[name].pixel_values[problems["domains"].parts[name].origins == 0]
        for name in ("train", "validation")
    }
    back = {
        name: torch.rot90(part.pixel_values[part.origins == 1], -1, dims=(2, 3))
        for name, part in problems["domains"].parts.items()
        if name != "test"
    }
    for name in plain:
        assert len(plain[name]) and torch.equal(plain[name], back[name])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["digits", "domains", "origins", "images"])
def test_federations(name: str, kind: str, problems: dict[str, Problem]) -> None:
    problem, clients = problems[name], 20 if name in ("digits", "domains") else 6
    if kind == "natural" and len(problem.origins) == 1:
        with pytest.raises(ValueError, match="kind: found 'natural' for pictures of one origin"):
            federation(problem, kind, 0, clients)
        return
    made, again, other = (federation(problem, kind, seed, clients) for seed in (0, 0, 1))
    assert len(made) == clients
    assert made.training.digest == again.training.digest != other.training.digest
    held = np.concatenate([*made.training.indices, *made.testing.indices])
    assert sorted(held.tolist()) == list(range(len(problem.parts["train"])))
    for client in range(clients):
        train, test = made.train_of(client), made.test_of(client)
        assert len(train) + len(test) >= FEWEST and len(test) >= 1
        assert 0.15 < len(test) / (len(train) + len(test)) < 0.25
        assert torch.bincount(train.labels, minlength=made.classes).tolist() == made.counts[client].tolist()
        labels, origins = (torch.cat([getattr(part, key) for part in (train, test)]) for key in ("labels", "origins"))
        if kind == "classes":
            assert len(labels.unique()) == CLASSES_EACH
        if kind == "natural":
            assert len(origins.unique()) == 1 and set(train.labels.tolist()) >= set(test.labels.tolist())
        rows = train.rows()
        assert len(rows) == len(train) and rows[0].keys() == {"pixel_values", "labels"}
        assert torch.equal(rows[0]["pixel_values"], train.pixel_values[0]) and rows[0]["labels"] == train.labels[0]


def test_clients_that_cannot_be_as_many_for_each_origin(problems: dict[str, Problem]) -> None:
    assert len(federation(problems["origins"], "natural", 0, 20)) == 18
    assert len(federation(problems["origins"], "natural", 0, 2)) == 3


def test_unknown_kind(problems: dict[str, Problem]) -> None:
    with pytest.raises(ValueError, match="kind: found 'iid', allowed are dirichlet, milder, classes, natural"):
        federation(problems["digits"], "iid", 0)


def test_data_that_cannot_be_used() -> None:
    table, digits, domains = pictures(30), load("digits"), load("digits-domains")
    with pytest.raises(ValueError, match=r"--data: found the columns .* in origins, allowed is a table"):
        check("origins", DatasetDict(train=table.remove_columns("domain")))
    check("images", DatasetDict(train=table.remove_columns("domain")))
    for name in ("origins", "images"):
        with pytest.raises(ValueError, match="as the column label of"):
            check(name, DatasetDict(train=table.cast_column("label", Value("int64"))))
    with pytest.raises(ValueError, match="in the split pretrain of digits, allowed are"):
        check("digits", DatasetDict(train=digits["train"], test=digits["test"]))
    with pytest.raises(ValueError, match="in the split train of domains, allowed are"):
        check("domains", DatasetDict(train=domains["train"].remove_columns("domain_ids"), test=domains["test"]))
    with pytest.raises(ValueError, match="found other domain_ids in the split train of domains"):
        check("domains", DatasetDict(train=domains["train"].shuffle(seed=0), test=domains["test"]))


@pytest.mark.parametrize("name", ["digits", "domains", "origins", "images"])
def test_networks(name: str, problems: dict[str, Problem]) -> None:
    """One for each sort of pictures; what it says of a row depends on no other row, and nothing of it is averaged but
    what is trained."""
    model, again, other = (small_model(problems[name], seed) for seed in (0, 0, 1))
    assert all(map(torch.equal, model.parameters(), again.parameters()))
    assert not all(map(torch.equal, model.parameters(), other.parameters()))
    assert not list(model.buffers())
    rows = problems[name].parts["validation"].pixel_values[:8]
    logits = model.train()(pixel_values=rows).logits
    assert logits.shape == (8, problems[name].classes)
    assert torch.allclose(logits[:1], model(pixel_values=rows[:1]).logits, atol=1e-5)
