"""Sampled neighbourhoods: fair, the same wherever they are drawn, and exact on the sparsified graph."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch_geometric.sampler
import torch_geometric.typing
from torch import Tensor

from hf_ext.data.graphs import NeighborSampler, Sampled


def random_graph(nodes: int = 40, edges: int = 400) -> Tensor:
    return torch.randint(nodes, (2, edges), generator=torch.Generator().manual_seed(0))


def output(sampled: Sampled, x: Tensor, layers: int) -> Tensor:
    """Sums over edges with loops, as a convolution makes them, for all nodes of a neighbourhood."""
    hidden = x[sampled.node_ids]
    for _ in range(layers):
        messages = hidden[sampled.edge_index[0]] * sampled.edge_scale[:, None]
        hidden = hidden + torch.zeros_like(hidden).index_add_(0, sampled.edge_index[1], messages)
    return hidden


@pytest.mark.parametrize("neighbors", [[3, 3], [4, 2], [-1, 2, 3], [5]])
def test_edges_are_those_of_the_graph_and_as_many_as_allowed(neighbors: list[int]) -> None:
    edge_index = random_graph()
    seeds = torch.tensor([7, 3, 39, 0])
    sampled = NeighborSampler(edge_index, 40, neighbors).sample(seeds, epoch=2)
    assert torch.equal(sampled.node_ids[:4], seeds)
    assert torch.equal(sampled.node_ids[sampled.edge_index], edge_index[:, sampled.edge_ids])
    degrees = torch.bincount(edge_index[1], minlength=40)
    drawn = torch.bincount(sampled.edge_index[1], minlength=len(sampled.node_ids))
    of_target = sampled.edge_index[1]
    expected = degrees[sampled.node_ids[of_target]] / drawn[of_target]
    assert torch.equal(sampled.edge_scale, expected)
    most = torch.tensor(neighbors[0] if neighbors[0] > 0 else 400)
    assert torch.equal(drawn[:4], degrees[seeds].minimum(most))
    for place in range(4):
        of_seed = sampled.edge_ids[of_target == place]
        assert len(set(of_seed.tolist())) == len(of_seed)


def test_all_neighbours_give_the_output_of_the_whole_graph() -> None:
    edge_index, x = random_graph(), torch.randn(40, 3, dtype=torch.float64)
    whole = Sampled(torch.arange(40), edge_index, torch.arange(400), torch.ones(400))
    for neighbors in ([-1, -1], [400, 400], [-1, 400]):
        sampled = NeighborSampler(edge_index, 40, neighbors).sample(torch.tensor([5, 6, 20]))
        assert torch.allclose(output(sampled, x, 2)[:3], output(whole, x, 2)[[5, 6, 20]])
        assert (sampled.edge_scale == 1).all()


@pytest.mark.parametrize("neighbors", [[3, 3], [4, 2], [2, 5, 1]])
def test_a_seed_s_output_does_not_depend_on_its_batch(neighbors: list[int]) -> None:
    edge_index, x = random_graph(), torch.randn(40, 3, dtype=torch.float64)
    sampler = NeighborSampler(edge_index, 40, neighbors, seed=1)
    together = output(sampler.sample(torch.arange(40), epoch=3), x, len(neighbors))[:40]
    for seeds in torch.arange(40).split(7):
        apart = output(sampler.sample(seeds, epoch=3), x, len(neighbors))[: len(seeds)]
        assert torch.allclose(apart, together[seeds])
    other = output(sampler.sample(torch.arange(40), epoch=4), x, len(neighbors))[:40]
    assert not torch.allclose(other, together)


def test_equal_fan_outs_take_each_node_once() -> None:
    edge_index = random_graph()
    once = NeighborSampler(edge_index, 40, [3, 3]).sample(torch.arange(20))
    assert len(once.node_ids.unique()) == len(once.node_ids)
    per_layer = NeighborSampler(edge_index, 40, [3, 2]).sample(torch.arange(20))
    assert len(per_layer.node_ids.unique()) < len(per_layer.node_ids)


@pytest.mark.parametrize(("degree", "fan_out"), [(7, 3), (10, 5), (5, 4), (9, 1)])
def test_every_edge_is_as_likely_as_any_other(degree: int, fan_out: int) -> None:
    edge_index = torch.stack([torch.arange(1, degree + 1), torch.zeros(degree, dtype=torch.int64)])
    sampler, epochs = NeighborSampler(edge_index, degree + 1, [fan_out]), 6000
    counts, sets = torch.zeros(degree), set()
    for epoch in range(epochs):
        drawn = sampler.sample(torch.tensor([0]), epoch).edge_ids
        counts[drawn] += 1
        sets.add(frozenset(drawn.tolist()))
    assert fan_out == 1 or fan_out == degree - 1 or len(sets) > degree  # not the turns of one pattern
    assert counts.sum() == epochs * fan_out
    assert (counts / epochs - fan_out / degree).abs().max() < 0.025


def test_sums_over_edges_are_right_in_the_mean() -> None:
    edge_index, x = random_graph(10, 80), torch.randn(10, 1, dtype=torch.float64)
    sampler = NeighborSampler(edge_index, 10, [3])
    drawn = torch.stack([output(sampler.sample(torch.arange(10), epoch), x, 1)[:10] for epoch in range(3000)])
    whole = Sampled(torch.arange(10), edge_index, torch.arange(80), torch.ones(80))
    error = (drawn.mean(0) - output(whole, x, 1)).abs() / drawn.std(0).clamp(min=1e-9) * 3000**0.5
    assert error.max() < 5


def test_duplicates_loops_and_isolated_nodes() -> None:
    edge_index = torch.tensor([[1, 1, 1, 0], [0, 0, 0, 0]])
    sampled = NeighborSampler(edge_index, 5, [-1, -1]).sample(torch.tensor([4, 0]))
    assert sampled.node_ids.tolist() == [4, 0, 1]
    assert sorted(sampled.edge_ids.tolist()) == [0, 1, 2, 3]
    empty = NeighborSampler(torch.zeros(2, 0, dtype=torch.int64), 5, [2, 1]).sample(torch.tensor([4, 0]))
    assert empty.node_ids.tolist() == [4, 0] and empty.edge_index.shape == (2, 0)
    none = NeighborSampler(edge_index, 5, [2]).sample(torch.zeros(0, dtype=torch.int64))
    assert len(none.node_ids) == len(none.edge_ids) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"neighbors": []}, r"neighbors: found \[\]"),
        ({"neighbors": 5}, "neighbors: found 5"),
        ({"neighbors": "5"}, "neighbors: found '5'"),
        ({"neighbors": [5, 0]}, r"neighbors: found \[5, 0\]"),
        ({"neighbors": [5, -2]}, "neighbors: found -2"),
        ({"neighbors": [2.5]}, "neighbors: found 2.5"),
        ({"seed": -1}, "seed: found -1"),
        ({"backend": "dgl"}, "backend: found 'dgl', allowed are 'own', 'pyg', 'auto'"),
    ],
)
def test_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NeighborSampler(**{"edge_index": random_graph(), "num_nodes": 40, "neighbors": [2], **options})


def test_repeated_seeds_are_refused() -> None:
    with pytest.raises(ValueError, match="seeds: found 1 repeated"):
        NeighborSampler(random_graph(), 40, [2]).sample(torch.tensor([1, 2, 1]))


def test_pyg_s_own_sampler_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_geometric.typing, "WITH_PYG_LIB", False)
    monkeypatch.setattr(torch_geometric.typing, "WITH_TORCH_SPARSE", False)
    edge_index = random_graph()
    with pytest.raises(ValueError, match="backend: found 'pyg' without pyg-lib or torch-sparse"):
        NeighborSampler(edge_index, 40, [2], backend="pyg")
    chosen, own = (NeighborSampler(edge_index, 40, [2], backend=name) for name in ("auto", "own"))  # type: ignore[arg-type]
    assert torch.equal(chosen.sample(torch.arange(5)).edge_ids, own.sample(torch.arange(5)).edge_ids)


def test_pyg_s_own_sampler_draws_by_seed_epoch_and_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in that draws one edge for each seed from torch's own generator, as PyG's does."""
    edge_index = torch.stack([torch.arange(8).repeat(4) % 4, torch.arange(4).repeat_interleave(8)])

    class StandIn:
        edge_permutation = torch.arange(32).flip(0)

        def __init__(self, data: Any, neighbors: list[int]) -> None:
            assert torch.equal(data.edge_index, edge_index) and data.num_nodes == 4 and neighbors == [1]

        def sample_from_nodes(self, inputs: Any) -> Any:
            edge = 31 - (inputs.node * 8 + torch.randint(8, inputs.node.shape))
            places = torch.arange(len(edge))
            return SimpleNamespace(node=inputs.node, row=places, col=places, edge=edge)

    monkeypatch.setattr(torch_geometric.typing, "WITH_PYG_LIB", True)
    monkeypatch.setattr(torch_geometric.sampler, "NeighborSampler", StandIn)
    sampler = NeighborSampler(edge_index, 4, [1], backend="auto")
    state, seeds = torch.random.get_rng_state(), torch.arange(4)
    first, again, other = (sampler.sample(seeds, epoch) for epoch in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first.edge_ids, again.edge_ids) and not torch.equal(first.edge_ids, other.edge_ids)
    assert torch.equal(edge_index[1][first.edge_ids], seeds) and (first.edge_scale == 8).all()
