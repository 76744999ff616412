"""Models of graphs: what a layer sums, how edge weights and their gradients travel, losses, predictions, refusals."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.nn import FAConv, GATConv, GCN2Conv, GCNConv, SAGEConv

from hf_ext.models import GraphPUConfig, GraphPUModel

CONVOLUTIONS = ("gcn", "sage", "gat", "gcnii", "fagcn", "mlp")
GRAPHS = CONVOLUTIONS[:-1]
NODES, FEATURES = 9, 5
EDGES = torch.tensor(
    [
        [0, 1, 2, 3, 4, 5, 6, 7, 0, 2, 4, 1, 1, 3, 7, 5],
        [1, 0, 1, 2, 3, 4, 5, 6, 2, 0, 1, 4, 5, 6, 2, 7],  # nothing goes to node 8
    ]
)


def _model(conv: str = "gcn", **config: Any) -> Any:
    torch.manual_seed(0)
    settings = {"num_features": FEATURES, "hidden_size": 8, "heads": 2, **config}
    model = GraphPUModel(GraphPUConfig(conv=conv, **settings)).double().eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("bias") or name.startswith("edge_scorer.output"):
                value.add_(torch.randn_like(value), alpha=0.1)
    return model


def _features(nodes: int = NODES) -> Tensor:
    return torch.randn(nodes, FEATURES, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def _weights(edges: Tensor = EDGES) -> Tensor:
    return torch.rand(edges.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(2)) + 0.1


# ------------------------------------------------------------------------------------------------ layers
def _theirs(model: Any, ours: Any, /, **kwargs: Any) -> Any:
    """PyTorch Geometric's own layer as it is used by most, with the weights of one of the model's."""
    kind = {"gcn": GCNConv, "sage": SAGEConv, "gat": GATConv, "gcnii": GCN2Conv, "fagcn": FAConv}[model.config.conv]
    other = kind(*(getattr(ours, name) for name in kwargs.pop("of", ())), **kwargs).double()
    renamed = {"lin_rel.": "lin_l.", "lin_root.": "lin_r."}
    state = ours.state_dict()
    for old, new in renamed.items():
        state = {name.replace(old, new): value for name, value in state.items()}
    other.load_state_dict(state)
    return other


def _expected(model: Any, x: Tensor, edges: Tensor, *weights: Tensor) -> Tensor:
    """Logits by PyTorch Geometric's layers."""
    conv, layers = model.config.conv, model.convolutions.layers
    sizes = ("in_channels", "out_channels")
    if conv in ("gcn", "sage", "gat"):
        for number, layer in enumerate(layers):
            if number:
                x = F.elu(x) if conv == "gat" else x.relu()
            heads = {"heads": layer.heads, "concat": layer.concat} if conv == "gat" else {}
            x = _theirs(model, layer, of=sizes, **heads)(x, edges, *weights)
        return x[:, 0]
    first = x = model.convolutions.input(x).relu()
    for number, layer in enumerate(layers, 1):
        if conv == "gcnii":
            x = _theirs(model, layer, of=["channels", "alpha"], theta=0.5, layer=number)(x, first, edges, *weights)
            x = x.relu()
        else:
            x = _theirs(model, layer, of=["channels"], eps=0.3)(x, first, edges, *weights)
    return model.convolutions.output(x)[:, 0]


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("conv", GRAPHS)
def test_the_layers_are_those_of_pytorch_geometric(conv: str, layers: int) -> None:
    model, x = _model(conv, num_layers=layers), _features()
    torch.testing.assert_close(model(x, EDGES).logits, _expected(model, x, EDGES))
    loops = torch.cat([EDGES, torch.tensor([[3, 8], [3, 8]])], dim=1)
    torch.testing.assert_close(model(x, loops).logits, _expected(model, x, loops))


@pytest.mark.parametrize("conv", ["gcn", "gcnii"])
def test_so_they_are_with_weights(conv: str) -> None:
    model, x, weights = _model(conv), _features(), _weights()
    torch.testing.assert_close(model(x, EDGES, weights).logits, _expected(model, x, EDGES, weights))
    assert not torch.allclose(model(x, EDGES, weights).logits, model(x, EDGES).logits)


def test_weighted_means_and_attention() -> None:
    """By hand, of one layer: weights are the shares of a mean, and factors of attention."""
    x, weights = _features(), _weights()
    dense = torch.zeros(NODES, NODES, dtype=torch.float64).index_put((EDGES[1], EDGES[0]), weights, accumulate=True)
    model = _model("sage", num_layers=1)
    layer = model.convolutions.layers[0]
    means = dense / dense.sum(1, keepdim=True).clamp(min=1e-9)
    torch.testing.assert_close(model(x, EDGES, weights).logits, (layer.lin_rel(means @ x) + layer.lin_root(x))[:, 0])
    model = _model("gat", num_layers=1, heads=1)
    layer = model.convolutions.layers[0]
    states = layer.lin(x)
    scores = F.leaky_relu(states @ layer.att_src[0].T + (states @ layer.att_dst[0].T).T, 0.2).T
    attention = scores.exp() * (dense + torch.eye(NODES, dtype=torch.float64))
    attention = attention / attention.sum(1, keepdim=True)
    torch.testing.assert_close(model(x, EDGES, weights).logits, (attention @ states + layer.bias)[:, 0])


def test_features_alone() -> None:
    model, x = _model("mlp"), _features()
    first, last = model.convolutions.layers
    expected = last(first(x).relu())[:, 0]
    for given in ((), (EDGES,), (EDGES, _weights()), (EDGES, None, torch.ones(NODES, dtype=torch.int64))):
        torch.testing.assert_close(model(x, *given).logits, expected)


# ------------------------------------------------------------------------------------------------ edge weights
@pytest.mark.parametrize("conv", GRAPHS)
def test_without_weights_there_are_no_messages(conv: str) -> None:
    model, x = _model(conv), _features()
    nothing = model(x, EDGES, torch.zeros_like(_weights())).logits
    torch.testing.assert_close(nothing, model(x, EDGES[:, :0]).logits)
    assert not torch.allclose(nothing[:-1], model(x, EDGES).logits[:-1])
    torch.testing.assert_close(nothing[-1], model(x, EDGES).logits[-1])
    extra = torch.cat([EDGES, torch.tensor([[8], [0]])], dim=1)
    weights = torch.cat([_weights(), _weights().new_zeros(1)])
    torch.testing.assert_close(model(x, extra, weights).logits, model(x, EDGES, _weights()).logits)


@pytest.mark.parametrize("conv", GRAPHS)
def test_weights_reach_every_layer(conv: str) -> None:
    """Along a path of as many edges as layers each layer passes one of them: at 0 it is the end of the way."""
    model = _model(conv, num_layers=3, hidden_size=16)
    path = torch.tensor([[0, 1, 2], [1, 2, 3]])
    for cut in (None, 0, 1, 2):
        x, weights = _features(4).requires_grad_(), torch.ones(3, dtype=torch.float64)
        if cut is not None:
            weights[cut] = 0
        gradient = torch.autograd.grad(model(x, path, weights).logits[3], x)[0][0]
        assert (float(gradient.abs().max()) > 1e-12) == (cut is None), cut


@pytest.mark.parametrize("conv", GRAPHS)
def test_gradients_reach_weights(conv: str) -> None:
    model, x = _model(conv), _features()
    weights = _weights().requires_grad_()
    assert torch.autograd.gradcheck(lambda given: model(x, EDGES, given).logits, weights)
    model(x, EDGES, weights).logits.square().sum().backward()
    assert weights.grad is not None and int((weights.grad != 0).sum()) >= 14
    zeros = torch.zeros_like(_weights()).requires_grad_()
    model(x, EDGES, zeros).logits.sum().backward()
    assert zeros.grad is not None and bool(zeros.grad.isfinite().all())


@pytest.mark.parametrize("conv", CONVOLUTIONS)
def test_the_order_of_nodes_and_edges_is_nothing(conv: str) -> None:
    model, x, weights = _model(conv), _features(), _weights()
    expected = model(x, EDGES, weights).logits
    generator = torch.Generator().manual_seed(3)
    nodes, edges = (torch.randperm(number, generator=generator) for number in (NODES, len(weights)))
    found = model(x[nodes], nodes.argsort()[EDGES][:, edges], weights[edges]).logits
    torch.testing.assert_close(found, expected[nodes])


@pytest.mark.parametrize("conv", CONVOLUTIONS)
def test_edges_that_are_there_twice_add_up(conv: str) -> None:
    model, x, weights = _model(conv), _features(), _weights()
    twice = torch.cat([EDGES, EDGES], dim=1)
    shares = torch.cat([0.25 * weights, 0.75 * weights])
    torch.testing.assert_close(model(x, twice, shares).logits, model(x, EDGES, weights).logits)


@pytest.mark.parametrize("conv", CONVOLUTIONS)
def test_the_operator(conv: str) -> None:
    model, x, weights = _model(conv), _features(), _weights()
    edges, values = model.operator(EDGES, weights, NODES)
    assert torch.equal(edges[:, : EDGES.shape[1]], EDGES)
    loops = edges[:, EDGES.shape[1] :]
    assert torch.equal(loops, torch.arange(NODES).expand(2, -1)[:, : loops.shape[1]])
    assert loops.shape[1] == (0 if conv in ("sage", "mlp") else NODES)
    assert values.shape == edges.shape[1:] and values.dtype == torch.float64
    assert model.sums_edges == (conv != "gat")
    given = model(x, edges, values, is_operator=True).logits
    torch.testing.assert_close(given, model(x, EDGES, weights).logits)
    assert model.bfloat16().operator(EDGES, None, NODES)[1].dtype == torch.float32
    for wrong, message in ((edges + NODES, "edge_index: found"), (EDGES.T, "edge_index: found")):
        with pytest.raises(ValueError, match=rf"^{message}"):
            model.operator(wrong, None, NODES)
    for wrong_weights in (None, values[:-1], -values):
        with pytest.raises(ValueError, match=r"^edge_weight: found"):
            model(x, edges, wrong_weights, is_operator=True)


@pytest.mark.parametrize("conv", CONVOLUTIONS)
def test_a_part_of_the_operator_is_enough_for_a_node(conv: str) -> None:
    """All edges of two steps into it."""
    model, x, weights = _model(conv), _features(), _weights()
    expected = model(x, EDGES, weights).logits
    edges, values = model.operator(EDGES, weights, NODES)
    for node in range(NODES):
        reached = torch.tensor([node])
        for _ in range(2):
            kept = torch.isin(edges[1], reached).nonzero()[:, 0]
            others = edges[0, kept].unique()
            reached = torch.cat([reached, others[~torch.isin(others, reached)]])
        local = torch.full((NODES,), -1).index_put((reached,), torch.arange(len(reached)))
        logits = model(x[reached], local[edges[:, kept]], values[kept], is_operator=True).logits
        torch.testing.assert_close(logits[0], expected[node])


# ------------------------------------------------------------------------------------------------ small graphs, losses
@pytest.mark.parametrize("conv", CONVOLUTIONS)
def test_one_node_and_no_edges(conv: str) -> None:
    model = _model(conv, num_layers=3)
    alone = model(_features()[:1], EDGES[:, :0], labels=torch.tensor([1]))
    assert alone.logits.shape == (1,) and bool(alone.loss.isfinite())
    alone.loss.backward()
    loop = model(_features()[:1], torch.zeros(2, 1, dtype=torch.int64)).logits
    if conv != "sage":
        torch.testing.assert_close(loop, alone.logits)


def test_the_loss() -> None:
    model, x = _model(), _features()
    labels = torch.tensor([1, 0, 0, -100, 1, -100, 0, 0, 0])
    outputs = model(x, EDGES, labels=labels)
    used = labels != -100
    each = F.binary_cross_entropy_with_logits(outputs.logits[used], labels[used].double(), reduction="none")
    torch.testing.assert_close(outputs.loss, each.mean())
    torch.testing.assert_close(model(x, EDGES, labels=labels, num_items_in_batch=20).loss, each.sum() / 20)
    parts = [labels.where(torch.arange(NODES) % 2 == rest, -100) for rest in (0, 1)]
    losses = [model(x, EDGES, labels=part, num_items_in_batch=torch.tensor(7)).loss for part in parts]
    torch.testing.assert_close(torch.stack(losses).sum(), outputs.loss)
    nothing = model(x, EDGES, labels=torch.full((NODES,), -100))
    nothing.loss.backward()
    assert float(nothing.loss.detach()) == 0
    known = labels == 1
    torch.testing.assert_close(model(x, EDGES, labels=known).loss, model(x, EDGES, labels=known.long()).loss)
    loss, logits = model(x, EDGES, labels=labels, return_dict=False)
    assert torch.equal(loss, outputs.loss) and torch.equal(logits, outputs.logits)
    assert model(x, EDGES, return_dict=False)[0].shape == (NODES,)


def test_logits_may_be_huge() -> None:
    model = _model("mlp", num_layers=1)
    with torch.no_grad():
        model.convolutions.layers[0].weight.fill_(800)
    loss = model(torch.ones(2, FEATURES), EDGES[:, :0], labels=torch.tensor([1, 0])).loss
    assert float(loss.detach()) == pytest.approx(2000, rel=1e-3)


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("conv", CONVOLUTIONS)
def test_dropout_is_before_every_layer(conv: str, layers: int) -> None:
    x = _features()
    without = _model(conv, num_layers=layers, dropout=0.0)
    assert torch.equal(without.train()(x, EDGES).logits, without.eval()(x, EDGES).logits)
    model, seen = _model(conv, num_layers=layers, dropout=0.5), []
    model.convolutions.dropout.register_forward_hook(lambda *_: seen.append(None))
    assert not torch.allclose(model.train()(x, EDGES).logits, model.eval()(x, EDGES).logits)
    assert len(seen) == 2 * (layers + 2 * (conv in ("gcnii", "fagcn")))  # of these two more layers are linear


# ------------------------------------------------------------------------------------------------ predictions
def test_predictions() -> None:
    model, x, weights = _model(), _features(), _weights()
    expected = model(x, EDGES, weights).logits
    model.config.score_offset = offset = 0.01 - float(expected.detach().median())
    model.train()
    model.convolutions.dropout.eval()
    before = [module.training for module in model.modules()]
    found = model.predict(x, EDGES, weights)
    assert [module.training for module in model.modules()] == before
    torch.testing.assert_close(found.logits, expected.detach())
    assert not found.logits.requires_grad
    torch.testing.assert_close(found.probabilities, (expected + offset).sigmoid().detach())
    assert torch.equal(found.positive, expected >= -offset) and int(found.positive.sum()) == 5
    model.config.threshold = float(expected.detach().sort().values[6])
    assert int(model.predict(x, EDGES, weights).positive.sum()) == 3
    graph = Data(x=x, edge_index=EDGES, edge_weight=weights)
    torch.testing.assert_close(model.predict(graph).logits, found.logits)
    plain = model.predict(Data(x=x, edge_index=EDGES)).logits
    torch.testing.assert_close(plain, model.eval()(x, EDGES).logits.detach())


def test_the_mode_is_restored_after_an_error() -> None:
    model = _model().train()
    with pytest.raises(ValueError, match=r"^x: found"):
        model.predict(_features()[:, :2], EDGES)
    assert model.training and model.convolutions.training


def test_ranks() -> None:
    model = _model("mlp", num_layers=1, num_features=1)
    with torch.no_grad():
        model.convolutions.layers[0].weight.fill_(1)
    found = model.predict(torch.tensor([[0.5], [2.0], [-1.0], [2.0], [0.5]]))
    assert found.ranked().tolist() == [1, 3, 0, 4, 2]
    assert found.ranked(k=2).tolist() == [1, 3] and found.ranked(k=99).tolist() == [1, 3, 0, 4, 2]
    among = torch.tensor([True, False, True, True, True])
    assert found.ranked(among=among).tolist() == [3, 0, 4, 2]
    assert found.ranked(k=2, among=torch.tensor([4, 2, 0])).tolist() == [0, 4]
    assert found.ranked(among=among & False).tolist() == []
    with pytest.raises(ValueError, match=r"^k: found 0, allowed are integers >= 1"):
        found.ranked(k=0)
    for strange in (torch.tensor([True]), torch.tensor([0.5]), torch.tensor([5]), torch.tensor([-1, 2])):
        with pytest.raises(ValueError, match=r"^among: found"):
            found.ranked(among=strange)


# ------------------------------------------------------------------------------------------------ the scorer
def test_scores_of_edges(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = _model(edge_scorer=True), _features()
    untrained = GraphPUModel(GraphPUConfig(num_features=FEATURES, edge_scorer=True))
    assert untrained.edge_scores(x.float(), EDGES).tolist() == [2.0] * EDGES.shape[1]
    scores = model.edge_scores(x, EDGES)
    assert scores.shape == (EDGES.shape[1],) and float(scores.detach().std()) > 0.05
    torch.testing.assert_close(model.edge_scores(x, EDGES.flip(0)), scores)
    model.edge_scores(x, EDGES).square().sum().backward()
    expected = [value.grad for value in model.edge_scorer.parameters()]
    assert all(value is not None and bool(value.any()) for value in expected)
    again = copy.deepcopy(model)
    again.zero_grad()
    monkeypatch.setattr(again.edge_scorer, "chunk", 3)
    parts = again.edge_scores(x, EDGES)
    torch.testing.assert_close(parts, scores)
    parts.square().sum().backward()
    for value, other in zip(again.edge_scorer.parameters(), expected, strict=True):
        torch.testing.assert_close(value.grad, other)
    assert model.edge_scores(x, EDGES[:, :0]).shape == (0,)


@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
def test_learned_weights(kind: str) -> None:
    model, x, weights = _model(edge_scorer=True, edge_kind=kind), _features(), _weights()
    scores = model.edge_scores(x, EDGES)
    expected = scores.sigmoid()
    if kind == "softmax":
        total = torch.zeros(NODES, dtype=torch.float64).index_add(0, EDGES[1], scores.exp())
        expected = scores.exp() / total[EDGES[1]]
    torch.testing.assert_close(model.learned_weights(x, EDGES), expected)
    torch.testing.assert_close(model.learned_weights(x, EDGES, weights), expected * weights)
    for given in (None, weights):
        product = expected if given is None else expected * given
        torch.testing.assert_close(model.predict(x, EDGES, given).logits, model(x, EDGES, product).logits.detach())
    plain = _model()
    plain.convolutions.load_state_dict(model.convolutions.state_dict())
    torch.testing.assert_close(model(x, EDGES).logits, plain(x, EDGES).logits)  # forward takes what it is given


def test_no_scores_without_a_scorer() -> None:
    for method in (_model().edge_scores, _model().learned_weights):
        with pytest.raises(ValueError, match=r"^edge_scorer: found False, allowed for scores of edges is True"):
            method(_features(), EDGES)


# ------------------------------------------------------------------------------------------------ refusals
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"x": torch.ones(NODES, 4)}, r"x: found torch.float32 of shape \(9, 4\), allowed are floats \[N, 5\]"),
    ({"x": torch.ones(FEATURES)}, "x: found torch.float32 of shape"),
    ({"x": torch.ones(NODES, FEATURES, dtype=torch.int64)}, "x: found torch.int64"),
    ({"x": [[1.0] * FEATURES] * NODES}, "x: found list"),
    ({"edge_index": None}, "edge_index: found NoneType"),
    ({"edge_index": EDGES.T}, r"edge_index: found torch.int64 of shape \(16, 2\), allowed are edges"),
    ({"edge_index": EDGES[0]}, "edge_index: found torch.int64 of shape"),
    ({"edge_index": EDGES.int()}, "edge_index: found torch.int32"),
    ({"edge_index": EDGES.float()}, "edge_index: found torch.float32"),
    ({"edge_index": EDGES + 2}, "edge_index: found 9, allowed are nodes 0 to 8"),
    ({"edge_index": EDGES - 1}, "edge_index: found -1, allowed are nodes 0 to 8"),
    ({"edge_weight": torch.ones(3)}, r"edge_weight: found torch.float32 of shape \(3,\), allowed is a float for"),
    ({"edge_weight": torch.ones(16, 1)}, "edge_weight: found torch.float32 of shape"),
    ({"edge_weight": torch.ones(16, dtype=torch.int64)}, "edge_weight: found torch.int64"),
    ({"edge_weight": torch.ones(16).index_fill(0, torch.tensor([3]), -0.5)}, "edge_weight: found -0.5, allowed are"),
    ({"edge_weight": torch.full((16,), float("nan"))}, "edge_weight: found nan"),
    ({"edge_weight": torch.full((16,), float("inf"))}, "edge_weight: found inf"),
    ({"labels": torch.ones(3, dtype=torch.int64)}, "labels: found torch.int64 of shape"),
    ({"labels": torch.ones(NODES)}, "labels: found torch.float32"),
    ({"labels": torch.full((NODES,), -1)}, r"labels: found -1, allowed are 1 \(positive\), 0"),
    ({"labels": torch.full((NODES,), 2)}, "labels: found 2, allowed are"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG)
def test_inputs_that_are_none(wrong: dict[str, Any], message: str) -> None:
    model = _model(num_layers=1)
    with pytest.raises(ValueError, match=f"^{message}"):
        model(**{"x": _features(), "edge_index": EDGES, **wrong})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"conv": "gin"}, "conv: found 'gin', allowed are gcn, sage, gat, gcnii, fagcn, mlp"),
        ({"edge_kind": "relu"}, "edge_kind: found 'relu', allowed are sigmoid, softmax"),
        ({"conv": "gat", "heads": 3}, "heads: found 3 with hidden_size=16, allowed are its divisors"),
        ({"dropout": 1.0}, r"dropout: found 1.0, allowed are numbers in \[0, 1\)"),
        ({"class_prior": 1.0}, r"class_prior: found 1.0, allowed are numbers in \(0, 1\)"),
        ({"gcnii_alpha": 1.5}, r"gcnii_alpha: found 1.5, allowed are numbers in \[0, 1\]"),
        ({"prior_interval": 0.5}, "prior_interval: found 0.5, allowed are two numbers"),
        ({"prior_interval": [0.5]}, "prior_interval: found "),
        ({"prior_interval": [0.5, 0.4]}, "prior_interval: found "),
        ({"prior_interval": [0.5, 1.4]}, "prior_interval: found "),
        ({"prior_interval": [0.5, float("nan")]}, "prior_interval: found nan"),
    ],
)
def test_configurations_that_are_none(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        GraphPUConfig(**config)
