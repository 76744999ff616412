"""FedGELA's study: heads, views and angles are what they are called, every system runs."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from hf_ext.functional import etf_class_weights
from hf_ext.studies import Preparation, reproduce
from hf_ext.studies.fedgela import STUDIES
from hf_ext.studies.fedgela.angles import GLOBAL, LOCAL, measured, plot_angles
from hf_ext.studies.fedgela.heads import LEARNT, RANDOM, SIMPLEX, angles, class_means, head_of
from hf_ext.studies.fedgela.long_tail import LONG_TAIL
from hf_ext.studies.fedgela.study import (
    COMPARISON,
    ETF,
    FEDBABU,
    FEDRS,
    GELA,
    KNOWN,
    RANDOM_GELA,
    _of_own_classes,
    _personal_view,
)
from hf_ext.studies.fedgela.systems import client_of, model_of
from hf_ext.studies.fedlesam.data import Part, Problem, federation, open_problem, prepare
from hf_ext.studies.fedlesam.federating import Setting


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> Problem:
    folder = tmp_path_factory.mktemp("digits")
    prepare(Preparation("digits", 0, "digits", folder))
    return open_problem(folder)


def test_models_differ_in_their_heads_alone(problem: Problem) -> None:
    heads = {
        "learnt": {"head": LEARNT},
        "frozen": {"head": LEARNT, "frozen": True},
        "random": {"head": RANDOM, "temperature": 0.1},
        "simplex": {"head": SIMPLEX, "temperature": 0.1},
    }
    models = {name: model_of(problem, settings, 0) for name, settings in heads.items()}
    bodies = [dict(getattr(model, "model", model).resnet.named_parameters()) for model in models.values()]
    assert all(torch.equal(value, body[name]) for body in bodies for name, value in bodies[0].items())
    trained = {
        name: sum(param.requires_grad for param in head_of(model).parameters()) for name, model in models.items()
    }
    assert trained == {"learnt": 2, "frozen": 0, "random": 0, "simplex": 0}
    columns = {name: angles(head_of(models[name]).weight.T) for name in ("random", "simplex")}
    assert torch.allclose(columns["simplex"], torch.tensor(math.degrees(math.acos(-1 / 9))).double(), atol=1e-2)
    assert columns["random"].max() - columns["random"].min() > 10


def test_clients() -> None:
    rows = Part(torch.zeros(3, 1, 8, 8), torch.tensor([0, 2, 2]), torch.zeros(3, dtype=torch.int64))
    systems = {system.name: client_of(system.options, 4) for system in COMPARISON.systems}
    assert [systems[name].options["fedgela_class_weights"] for name in (GELA, ETF, RANDOM_GELA)] == [True, False, True]
    for name in (GELA, FEDRS):
        further = systems[name].further
        assert further is not None and further(rows)["class_counts"].tolist() == [1, 0, 2, 0]
    assert systems[FEDBABU].further is None


def test_views_of_a_client() -> None:
    """FedGELA weighs classes, own classes are a choice among them, and without weights nothing is known."""
    counts, logits = torch.tensor([[3, 1, 0], [0, 0, 2]]), torch.tensor([[1.0, 2.0, 9.0]])
    assert _personal_view({}, counts)(0, logits) is logits
    weighed = _personal_view({"weights": True}, counts)(0, logits)
    assert torch.equal(weighed, logits * etf_class_weights(counts[0]).float())
    assert [int(_of_own_classes(counts)(client, logits).argmax()) for client in (0, 1)] == [1, 2]


def test_angles() -> None:
    found = angles(torch.tensor([[2.0, 0], [0, 1], [-3, 0]]))
    assert found.tolist() == pytest.approx([90, 90, 180])


def test_class_means_are_those_of_what_the_head_sees() -> None:
    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.classifier = nn.Linear(2, 3)

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            return self.classifier(pixel_values * 2)

    rows, labels = torch.tensor([[1.0, 0], [3, 0], [0, 1], [1, 1]]), torch.tensor([0, 0, 1, 2])
    means = class_means(Body(), rows, labels, 3)
    expected = torch.tensor([[4.0, 0], [0, 2], [2, 2]])
    torch.testing.assert_close(means, expected - expected.mean(0))


@pytest.mark.slow
def test_every_system_runs(tmp_path: Path) -> None:
    study = replace(COMPARISON, cases=COMPARISON.cases[:1])
    result = reproduce(study, out=tmp_path, quick=True, seeds=1)
    (systems,) = result.cases.values()
    assert len(systems) == 7
    assert all(0 < system.test[0] < 1 and 0 < (system.details[KNOWN][0] or 0) <= 1 for system in systems.values())
    assert STUDIES == (COMPARISON, LONG_TAIL)


def test_the_picture_of_angles(problem: Problem, tmp_path: Path) -> None:
    """After a round at a client, angles are others than those of the global model; the picture is written."""
    clients = federation(problem, "classes", 0, clients=5)
    options = {"client": "gela", "head": SIMPLEX, "weights": True, "temperature": 0.1}
    found = measured(problem, clients, options, Setting(1, 1, 0.05), 0)
    assert [len(values) for values in found.values()] == [45, 45] and found[GLOBAL] != found[LOCAL]
    plot_angles({"one": found, "other": found}, 10, str(tmp_path / "angles.png"))
    assert (tmp_path / "angles.png").read_bytes().startswith(b"\x89PNG")
