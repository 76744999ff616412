"""GPL's study: its graphs, what it measures; every system runs."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hf_ext.data.graphs import PUSplit, digits_graph, load_graph
from hf_ext.studies import reproduce
from hf_ext.studies.gpl import scores, study
from hf_ext.studies.gpl.data import EMBEDDED, WIDEST, between_equals, commonest, describe, open_graph, true_prior
from hf_ext.studies.gpl.study import STUDY
from hf_ext.studies.study import Run

MakeFile = Callable[..., str]


@pytest.fixture(scope="module")
def make_file(tmp_path_factory: pytest.TempPathFactory) -> MakeFile:
    """Writes a graph of 80 nodes: two rings of a class each, some edges between. Changes by name; None: without."""

    def make(**changes: Any) -> str:
        random = np.random.default_rng(0)
        nodes = np.arange(80)
        ring = np.stack([nodes, (nodes // 40) * 40 + (nodes + 1) % 40])
        edges = np.concatenate([ring, ring[::-1], np.stack([nodes[:20], nodes[40:60]])], axis=1)
        classes = nodes // 40
        arrays = {"x": random.random((80, 6)) + classes[:, None], "edge_index": edges, "y": classes} | changes
        file = tmp_path_factory.mktemp("graph") / "graph.npz"
        np.savez(file, **{name: values for name, values in arrays.items() if values is not None})
        return str(file)

    return make


def _run(system: str, case: str = "texas", data: str = EMBEDDED, seed: int = 0) -> Run:
    found = next(one for one in STUDY.systems if one.name == system)
    where = next(one for one in STUDY.cases if one.name == case)
    return Run(where, found, found.points(where)[0], seed, data, Path(), quick=True)


# ------------------------------------------------------------------------------------------------ data
def test_a_graph_is_known_by_what_is_in_it(make_file: MakeFile) -> None:
    found, again = describe(make_file()), describe(make_file(unused=np.zeros(3)))
    assert found["rows"] == {"nodes": 80, "edges": 200, "features": 6}  # the reverse of 20 edges is added
    assert found["sha256"] == again["sha256"]
    assert found["file_sha256"] != again["file_sha256"]
    for changes in ({"x": np.zeros((80, 6))}, {"y": np.roll(np.arange(80) // 40, 1)}):
        assert describe(make_file(**changes))["sha256"] != found["sha256"]
    assert describe(EMBEDDED)["rows"]["nodes"] == 1797 and "file_sha256" not in describe(EMBEDDED)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y": None}, r"found no classes \(y\)"),
        ({"y": np.arange(80)}, "label_share"),  # no class has enough nodes
        ({"edge_index": None}, "found"),
    ],
)
def test_graphs_that_cannot_be_used(make_file: MakeFile, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        describe(make_file(**changes))


def test_a_seed_makes_the_same_positives_known_again(make_file: MakeFile) -> None:
    file = make_file()
    first, again, other = (open_graph(_run(study.RANK, data=file, seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(first.positive_mask, again.positive_mask)
    assert not torch.equal(first.positive_mask, other.positive_mask)
    assert (int(first.positive_mask.sum()), int(first.held_out_mask.sum())) == (16, 4)
    torch.testing.assert_close(first.x.sum(1), torch.ones(80))
    assert true_prior(first) == 20 / 60  # of 80 nodes 20 are known


def test_digits_have_other_edges_with_another_seed_and_share() -> None:
    one, other = (open_graph(_run(study.RANK, "digits, 30 % cross edges", seed=seed)) for seed in (0, 1))
    assert not torch.equal(one.edge_index, other.edge_index)
    source, target = open_graph(_run(study.RANK, "digits, 60 % cross edges")).edge_index
    assert float((one.y[source] != one.y[target]).double().mean()) == pytest.approx(0.6, abs=1e-3)


def test_mines_are_positive(make_file: MakeFile) -> None:
    file = make_file(y=(np.arange(80) < 30).astype(int))
    of_mines, of_pages = (open_graph(_run(study.RANK, case, data=file)) for case in ("minesweeper", "texas"))
    assert [int((data.pu_y == 1).sum()) for data in (of_mines, of_pages)] == [30, 50]


def test_nothing_takes_the_digits_place(make_file: MakeFile) -> None:
    with pytest.raises(ValueError, match="in place of digits-graph"):
        open_graph(_run(study.RANK, "digits, 30 % cross edges", data=make_file()))


def test_many_nodes_keep_the_features_that_most_of_them_have() -> None:
    x = torch.zeros(2 * WIDEST + 1, WIDEST + 2)
    x[:3] = 1.0
    x[0, [1, 4]] = 0.0
    kept = commonest(x)
    assert torch.equal(kept, x[:, [place for place in range(WIDEST + 2) if place not in (1, 4)]])
    assert commonest(x[1:]) is not x and commonest(x[1:]).shape == (2 * WIDEST, WIDEST + 2)


def test_edges_between_equals_are_those_of_the_true_labels(make_file: MakeFile) -> None:
    data = PUSplit()(load_graph(make_file()))
    kept = between_equals(data)
    assert (data.edge_index.shape[1], kept.edge_index.shape[1]) == (200, 160)
    assert (data.pu_y[kept.edge_index[0]] == data.pu_y[kept.edge_index[1]]).all()


# ------------------------------------------------------------------------------------------------ scores
class _Trained:
    """A trainer that scores nodes as it is told."""

    def __init__(self, data: Any, logits: torch.Tensor, weights: torch.Tensor | None, prior: float) -> None:
        from hf_ext.trainers.gpl.graph import PUGraph

        self.epochs: Any = self
        self.training_graph = PUGraph.of(data)
        self.guide, self.aucs = None, {"guide_auc": 0.75, "gnn_auc": 0.5}
        self.args = type("Args", (), {"gpl_guide": "auto"})()
        self.model = type("Model", (), {})()
        self.model.config = type("Config", (), {"class_prior": prior, "score_offset": -0.5})()
        self.model.config.prior_interval = [0.9 * prior, 1.1 * prior]
        self.logits = lambda: logits
        self.edge_weight = lambda: weights


def test_what_is_measured_is_of_unlabelled_nodes_and_true_labels(make_file: MakeFile) -> None:
    data = PUSplit()(load_graph(make_file()))
    source, target = data.edge_index
    weights = torch.where(data.pu_y[source] == data.pu_y[target], 1.0, 0.5)
    truth = true_prior(data)
    logits = torch.where(data.pu_y == 1, 1.0, 0.25)
    logits[data.positive_mask] = -9.0  # known ones do not count
    found = scores.measure(_Trained(data, logits, weights, truth + 0.25), data)
    assert found.details[scores.AUC] == found.details[scores.AT_TRUTH] == found.details[scores.CALIBRATED] == 1
    assert found.details[scores.AT_ZERO] == pytest.approx(0.5)  # all 60 called, 20 right
    chosen = int((truth + 0.25) * 60 + 0.5)
    assert found.test == pytest.approx(2 * 20 / (20 + chosen))
    assert found.details[scores.ERROR] == pytest.approx(0.25)
    assert found.details[scores.COVERED] == 0  # the interval begins above
    assert found.details[scores.BEFORE] == pytest.approx(160 / 200)
    assert found.details[scores.AFTER] == pytest.approx(160 / 180)
    assert found.details[scores.WEIGHT] == pytest.approx(0.9)
    assert found.details[scores.WARM_UP_AUC] == 0.25 and found.details[scores.GUIDED] == 0
    assert found.validation == found.details[scores.SEEN] > 0.5


def test_without_learnt_weights_there_is_none_between_equals(make_file: MakeFile) -> None:
    data = PUSplit()(load_graph(make_file()))
    found = scores.measure(_Trained(data, torch.zeros(80), None, 0.3), data)
    assert found.details[scores.AFTER] is None and found.details[scores.BEFORE] == pytest.approx(0.8)


# ------------------------------------------------------------------------------------------------ runs
@pytest.mark.parametrize("name", [study.NAIVE, study.NNPU, study.AUTO, study.DESCRIBED, study.TRUE_RANK])
def test_a_run_of_a_seed_is_the_same_again(name: str, make_file: MakeFile) -> None:
    once = _run(name, data=make_file())
    first, again = study.run(once), study.run(once)
    assert first == again
    assert 0 <= first.test <= 1
    assert (first.details[scores.AFTER] is None) == (name in (study.NAIVE, study.NNPU, study.TRUE_RANK)) or (
        name == study.AUTO
    )
    if name == study.TRUE_RANK:
        assert first.details[scores.ERROR] == 0


def test_the_best_epoch_is_the_one_that_ranks_held_out_positives_best(
    make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    own = scores.measure

    def measure(trainer: Any, data: Any) -> Any:
        seen.append([line["eval_held_out_auc"] for line in trainer.state.log_history if "eval_held_out_auc" in line])
        return own(trainer, data)

    monkeypatch.setattr(scores, "measure", measure)
    monkeypatch.setattr(study, "QUICK_EPOCHS", 30)
    found = study.run(_run(study.BEST_RANK, data=make_file()))
    (aucs,) = seen
    assert len(aucs) == 30 / study.EVERY and max(aucs) > aucs[-1]  # or the last epoch would do, too
    assert found.validation == pytest.approx(max(aucs))


def test_a_control_without_edges_between_classes_has_none(make_file: MakeFile) -> None:
    assert study.run(_run(study.EQUALS, data=make_file())).details[scores.BEFORE] == 1


def test_a_new_network_takes_up_the_edges_that_guided_gpl_learnt(make_file: MakeFile) -> None:
    guided, again, naive = (
        study.run(_run(name, data=make_file())) for name in (study.GUIDED, study.AGAIN, study.NAIVE)
    )
    assert again.details[scores.WEIGHT] == guided.details[scores.WEIGHT] < 1
    assert again.details[scores.AFTER] == guided.details[scores.AFTER]
    assert again.details[scores.AUC] != naive.details[scores.AUC]


def test_longer_propagation_is_another_system(make_file: MakeFile) -> None:
    near, far = (study.run(_run(name, data=make_file())) for name in (study.DESCRIBED, study.FAR))
    assert near.details[scores.AFTER] != far.details[scores.AFTER]


def test_graphs_are_brought_as_files_and_named_in_the_results(make_file: MakeFile, tmp_path: Path) -> None:
    names = (study.RANK, study.DESCRIBED)
    some = replace(
        STUDY,
        systems=tuple(system for system in STUDY.systems if system.name in names),
        comparisons=tuple(one for one in STUDY.comparisons if {one.method, one.baseline} == set(names)),
        cases=tuple(case for case in STUDY.cases if case.data == "texas"),
    )
    file = make_file()
    result = reproduce(some, out=tmp_path, data={"texas": file}, seeds=2, quick=True)
    assert result.data["texas"]["given"] == "graph.npz" and result.data["texas"]["rows"]["nodes"] == 80
    assert not math.isnan(result.judged[0].difference.mean)


@pytest.mark.slow
def test_every_system_runs(make_file: MakeFile, tmp_path: Path) -> None:
    result = reproduce(STUDY, out=tmp_path, data={"minesweeper": make_file()}, seeds=1, quick=True)
    cases = [case for case in STUDY.cases if case.data in (EMBEDDED, "minesweeper")]
    assert set(result.cases) == {case.name for case in cases} and len(result.skipped) == 5
    assert all(len(result.cases[case.name]) == len(STUDY.systems_of(case)) for case in cases)


def test_the_digits_need_no_download() -> None:
    assert torch.equal(open_graph(_run(study.RANK, "digits, 30 % cross edges")).y, digits_graph().y)
