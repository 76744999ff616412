"""What happens once an epoch: who ranks, what edges learn, what is selected, and the numbers that follow."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from hf_ext.functional import edge_homophily, edge_weights, label_propagation_loss
from hf_ext.trainers.gpl.edges import FreeEdges
from hf_ext.trainers.gpl.epochs import Epochs
from hf_ext.trainers.gpl.graph import PUGraph, prepared
from hf_ext.trainers.gpl.guide import Guide, compared, held_out_ranks
from hf_ext.trainers.gpl.prior import calibration, estimated_prior, prior_of_loss
from hf_ext.trainers.gpl.results import graph_helps
from hf_ext.trainers.gpl.targets import Targets

pytestmark = pytest.mark.filterwarnings("ignore:gpl_held_out. found")


@pytest.fixture
def pu(graph: Any) -> PUGraph:
    return PUGraph.of(prepared(graph(), held_out=0.3, seed=0))


def _args(trainer: Any, **options: Any) -> Any:
    return trainer(**options).args


def _by_truth(pu: PUGraph) -> Targets:
    """As if the selection were right."""
    assert pu.truth is not None
    return Targets(pu.labels, pu.unlabeled & (pu.truth == 1), "balanced")


# ------------------------------------------------------------------------------------------------ who ranks
def test_auc_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    scores = torch.from_numpy(rng.integers(0, 8, 50).astype("float32"))  # with ties
    held_out, hidden = torch.arange(50) < 9, torch.arange(50) >= 20
    known = held_out | hidden
    expected = roc_auc_score(held_out[known].numpy(), scores[known].numpy())
    assert held_out_ranks(scores, held_out, hidden).mean().item() == pytest.approx(expected)


def test_what_few_positives_tell() -> None:
    gnn, guide = torch.tensor([0.9, 0.8, 0.7, 0.8]), torch.tensor([0.5, 0.6, 0.3, 0.4])
    assert compared(gnn, guide)["auc_error"] == pytest.approx((gnn - guide).std().item() / 2)
    assert compared(gnn[:1], guide[:1])["auc_error"] == 1
    for aucs, helps, words in (
        (compared(gnn, guide), True, "the graph helps: 0.800 with edges, 0.450"),
        (compared(guide, gnn), False, "the graph does not help: "),
        (compared(gnn, gnn.flip(0)), None, "whether the graph helps is not known: "),
    ):
        found = graph_helps(SimpleNamespace(aucs=aucs))  # type: ignore[arg-type]
        assert found["helps"] is helps and found["verdict"].startswith(words)


def test_a_guide_that_does_better_stays(trainer: Any, graph: Any) -> None:
    """Features tell the classes apart, and edges join them at random."""
    run = trainer(data=graph(same=0.1, separation=3.0), gpl_warmup_epochs=40, num_train_epochs=45)
    run.train()
    found = run.graph_helps
    assert found["features_auc"] > found["gnn_auc"]
    assert found["helps"] is False and found["verdict"].startswith("the graph does not help: ")
    assert run.epochs.guide is not None and run.epochs.edges is not None
    assert len([entry for entry in run.state.log_history if "lpl" in entry]) == 5


def test_a_guide_that_does_worse_is_dropped_with_the_edges(trainer: Any, graph: Any, model: Any) -> None:
    """Edges tell the classes apart, and features only which node it is."""
    data = graph(same=1.0, x=torch.eye(60))
    run = trainer(network=model(num_features=60), data=data, gpl_warmup_epochs=40, num_train_epochs=45)
    run.train()
    found = run.graph_helps
    assert found["gnn_auc"] > found["features_auc"]
    assert found["helps"] is True and found["verdict"].startswith("the graph helps: ")
    assert run.epochs.guide is run.epochs.edges is run.epochs.edge_weight() is None
    assert not [entry for entry in run.state.log_history if "lpl" in entry]


@pytest.mark.parametrize(("guide_rank", "stays"), [(0.9, True), (0.56, False), (0.5, False)])
def test_a_guide_stays_if_it_is_better_by_more_than_a_standard_error(
    trainer: Any, pu: PUGraph, model: Any, monkeypatch: pytest.MonkeyPatch, guide_rank: float, stays: bool
) -> None:
    """Held-out positives that are 0.4 apart from each other, in the network's ranks: a standard error of 0.1."""
    from hf_ext.trainers.gpl import epochs as module

    number = int(pu.held_out.sum())
    spread = torch.linspace(-1.0, 1.0, number).double()
    spread *= 0.1 * number**0.5 / spread.std()
    ranks = iter([0.5 + spread, torch.full((number,), guide_rank).double()])
    monkeypatch.setattr(module, "held_out_ranks", lambda *_: next(ranks))
    run = Epochs(model(), pu, _args(trainer, gpl_prior=0.3, gpl_warmup_epochs=0), None)
    found = run.begin(0)
    assert found["auc_error"] == pytest.approx(0.1)
    assert (run.guide is not None) == (run.edges is not None) == stays


def test_a_dropped_guide_leaves_a_scorer_as_it_was(trainer: Any, graph: Any, model: Any) -> None:
    network = model(num_features=60, edge_scorer=True)
    before = [value.clone() for value in network.edge_scorer.state_dict().values()]
    options = {"gpl_edges": "scorer", "gpl_warmup_epochs": 40, "num_train_epochs": 45}
    run = trainer(network=network, data=graph(same=1.0, x=torch.eye(60)), **options)
    run.train()
    assert run.epochs.guide is None
    assert all(map(torch.equal, before, network.edge_scorer.state_dict().values()))


def test_without_a_guide_nothing_is_compared(trainer: Any) -> None:
    run = trainer(gpl_guide="self")
    assert run.graph_helps["helps"] is None
    run.train()
    assert run.graph_helps["gnn_auc"] is None and run.graph_helps["verdict"].startswith("not compared")


def test_a_guide_draws_nothing_of_the_training_and_its_own_again(trainer: Any, pu: PUGraph, model: Any) -> None:
    args, config = _args(trainer), model().config
    torch.manual_seed(5)
    expected = torch.rand(3)
    scores = []
    for seed in (5, 6):
        torch.manual_seed(seed)
        guide = Guide(pu, config, args, batch_size=16)
        for epoch in range(3):
            guide.learn(_by_truth(pu), epoch)
        scores.append(guide.scores())
        if seed == 5:
            assert torch.equal(torch.rand(3), expected)
    assert torch.equal(*scores)
    guide = Guide(pu, config, args, batch_size=16)
    for _ in range(3):
        guide.learn(_by_truth(pu), 0)
    assert not torch.equal(guide.scores(), scores[0])  # epochs differ
    other = Guide(pu, config, _args(trainer, gpl_seed=1), batch_size=16)
    assert not torch.equal(other.scores(), Guide(pu, config, args, batch_size=16).scores())


# ------------------------------------------------------------------------------------------------ edges
def test_a_step_of_the_edges_is_adam_on_the_loss(trainer: Any, pu: PUGraph) -> None:
    args, targets = _args(trainer, gpl_tie_directions=False, gpl_edge_steps=3), _by_truth(pu)
    edges = FreeEdges(pu, args)
    reported = edges.learn(targets, unknown=0.5)
    number, nodes = pu.edge_index.shape[1], torch.arange(pu.num_nodes)
    logits = torch.full((number,), 2.0, requires_grad=True)
    adam = torch.optim.Adam([logits], lr=0.1)
    looped = torch.cat([pu.edge_index, nodes.expand(2, -1)], dim=1)
    for _ in range(3):
        weights = edge_weights(logits, pu.edge_index, num_nodes=pu.num_nodes)
        loss = label_propagation_loss(
            looped,
            torch.cat([weights, torch.ones(pu.num_nodes)]),
            targets.positive.float(),
            targets.positive,
            targets.negative,
            steps=1,
            alpha=0.0,
        )["total"]
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert torch.equal(edges.scores(), logits.detach())
    assert reported is not None and float(reported) == loss.item()


def test_edges_learn_which_of_them_join_the_classes(trainer: Any, graph: Any) -> None:
    """By right labels the homophily of the weights rises; those given count too."""
    data = graph(same=0.5)
    for given in (None, torch.rand(data.edge_index.shape[1])):
        pu = replace(PUGraph.of(prepared(data, held_out=0.3, seed=0)), edge_weight=given)
        assert pu.truth is not None
        edges = FreeEdges(pu, _args(trainer, gpl_edge_steps=40))
        before = edge_homophily(pu.edge_index, pu.truth, edge_weight=edges.weights())
        edges.learn(_by_truth(pu), unknown=0.5)
        after = edge_homophily(pu.edge_index, pu.truth, edge_weight=edges.weights())
        assert after > before + 0.15
    assert (edges.weights() <= pu.edge_weight).all()


@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
def test_weights_at_the_beginning(trainer: Any, pu: PUGraph, kind: str) -> None:
    weights = FreeEdges(pu, _args(trainer, gpl_edge_kind=kind, gpl_edge_start=1.0)).weights()
    if kind == "sigmoid":
        torch.testing.assert_close(weights, torch.full_like(weights, 1.0).sigmoid())
    else:
        sums = torch.zeros(60).index_add(0, pu.edge_index[1], weights)
        torch.testing.assert_close(sums[pu.edge_index[1].unique()], torch.ones(len(pu.edge_index[1].unique())))


# ------------------------------------------------------------------------------------------------ prior and selection
def test_held_out_positives_count_as_unlabelled(trainer: Any, pu: PUGraph) -> None:
    assert int(pu.held_out.sum()) == 4 and int(pu.positive.sum()) == 10
    assert (pu.labels[pu.held_out] == 0).all()
    hidden = int(pu.hidden.sum())
    assert prior_of_loss(0.25, pu) == pytest.approx((0.25 * hidden + 4) / (hidden + 4))


@pytest.mark.parametrize("method", ["bbe", "en"])
def test_an_estimate_is_within_its_interval(trainer: Any, pu: PUGraph, method: str) -> None:
    assert pu.truth is not None
    scores = 4 * pu.truth.float() - 2 + 0.1 * torch.randn(60, generator=torch.Generator().manual_seed(0))
    prior, interval = estimated_prior(scores, pu, _args(trainer, gpl_prior=method))
    assert interval is not None and interval[0] <= prior <= interval[1]
    if method == "bbe":
        assert prior == pytest.approx(float(pu.truth[pu.hidden].float().mean()), abs=0.05)


def test_an_estimate_is_never_none_or_all(trainer: Any, pu: PUGraph) -> None:
    """No logit has a mean probability of 0 or 1."""
    prior, _ = estimated_prior(pu.held_out.float(), pu, _args(trainer))  # nothing else looks like them
    assert prior == 0.5 / int(pu.hidden.sum())


def test_calibration_of_a_prior_of_less_than_one_node(pu: PUGraph) -> None:
    logits = torch.arange(60.0)
    found = calibration(logits, pu, 0.2 / int(pu.hidden.sum()))
    assert not (logits[pu.hidden] >= found["threshold"]).any()


def test_selection_is_of_the_unlabelled(trainer: Any, pu: PUGraph, model: Any) -> None:
    args = _args(trainer, gpl_prior=0.3, gpl_warmup_epochs=0, gpl_guide="self")
    epochs = Epochs(model(), pu, args, None)
    found = epochs.begin(0)
    selected = epochs.targets.selected
    assert not (selected & pu.positive).any()
    assert int(selected.sum()) == round(prior_of_loss(0.3, pu) * int(pu.unlabeled.sum()))
    assert found["prior"] == 0.3
    assert epochs.begin(0) == {}  # a resumed run has done it
    assert epochs.curves["epoch"] == [0]


@pytest.mark.parametrize(("update", "times"), [("once", 1), ("each_epoch", 3)])
def test_how_often_the_prior_is_estimated(
    trainer: Any, pu: PUGraph, model: Any, monkeypatch: pytest.MonkeyPatch, update: str, times: int
) -> None:
    from hf_ext.trainers.gpl import epochs as module

    asked: list[Any] = []

    def counted(*args: Any) -> Any:
        asked.append(args)
        return estimated_prior(*args)

    monkeypatch.setattr(module, "estimated_prior", counted)
    args = _args(trainer, gpl_objective="rank", gpl_guide="self", gpl_prior_update=update, gpl_warmup_epochs=1)
    run = Epochs(model(), pu, args, None)
    for epoch in range(4):
        run.begin(epoch)
    assert len(asked) == times


@pytest.mark.parametrize("guide", ["auto", "mlp"])
@pytest.mark.parametrize("network_knows", [True, False])
def test_the_prior_is_that_of_who_tells_the_classes_apart(
    trainer: Any, pu: PUGraph, model: Any, monkeypatch: pytest.MonkeyPatch, guide: str, network_knows: bool
) -> None:
    """Of two networks one knows the truth and one nothing, so that the other's best bin is near 1."""
    assert pu.truth is not None
    knows, noise = pu.truth.float() + torch.rand(pu.num_nodes) / 9, torch.rand(pu.num_nodes)
    args = _args(trainer, gpl_guide=guide, gpl_warmup_epochs=1, gpl_objective="rank")
    run = Epochs(model(), pu, args, None)
    monkeypatch.setattr(run, "logits", lambda: knows if network_knows else noise)
    assert run.guide is not None
    monkeypatch.setattr(run.guide, "scores", lambda: noise if network_knows else knows)
    run.begin(0)
    run.begin(1)
    expected = [estimated_prior(scores, pu, args) for scores in (knows, noise)]
    assert expected[0][0] < expected[1][0]
    assert (run.prior, run.interval) == expected[0]


def test_a_pass_leaves_the_model_as_it_was(trainer: Any, pu: PUGraph, model: Any) -> None:
    network, args = model(), _args(trainer)
    network.train()
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    first = Epochs(network, pu, args, None).logits()
    assert network.training and torch.equal(torch.rand(2), expected)
    network.eval()
    assert torch.equal(
        first, network(pu.x, pu.edge_index, torch.full((pu.edge_index.shape[1],), 2.0).sigmoid()).logits
    )
