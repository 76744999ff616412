"""The embedded graph: the same everywhere, with the homophily that was asked for."""

from typing import Any

import numpy as np
import pytest
import torch
from torch_geometric.data import Data

import hf_ext.data.graphs.digits
from hf_ext.data.graphs import check_structure, digits_graph


def homophily(data: Data) -> float:
    source, target = data.edge_index
    return (data.y[source] == data.y[target]).float().mean().item()


def test_a_simple_graph_in_both_directions() -> None:
    data = digits_graph()
    check_structure(data)
    assert data.x.shape == (1797, 64) and data.x.dtype == torch.float32 and data.x.max() == 1
    source, target = data.edge_index
    keys = source * 1797 + target
    assert (keys.diff() > 0).all() and (source != target).all()
    assert torch.equal(keys, (target * 1797 + source).sort().values)
    again = digits_graph()
    assert all(torch.equal(data[name], again[name]) for name in ("x", "edge_index", "y"))


def test_homophily_is_as_said() -> None:
    plain = digits_graph(cross_edges=None)
    assert 0.96 < homophily(plain) < 0.99
    for share in (0.05, 0.3, 0.8):
        data = digits_graph(cross_edges=share)
        assert homophily(data) == pytest.approx(1 - share, abs=1e-4)
        assert data.edge_index.shape == plain.edge_index.shape
    assert not torch.equal(digits_graph(seed=1).edge_index, digits_graph().edge_index)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cross_edges": 0.0}, r"cross_edges: found 0.0, allowed are at least 0.0\d\d"),
        ({"cross_edges": 1.0}, "cross_edges: found 1.0"),
        ({"neighbors": 0}, "neighbors: found 0"),
        ({"neighbors": 1797}, "neighbors: found 1797, allowed are at most 1796"),
        ({"seed": -1}, "seed: found -1"),
    ],
)
def test_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        digits_graph(**options)


def test_a_graph_without_room_for_other_edges(monkeypatch: pytest.MonkeyPatch) -> None:
    few = np.arange(12, dtype=np.float32)[:, None], np.arange(12) % 2
    monkeypatch.setattr(hf_ext.data.graphs.digits, "_digits", lambda: few)
    assert homophily(digits_graph(neighbors=2, cross_edges=0.9)) == pytest.approx(0.1, abs=0.03)
    with pytest.raises(ValueError, match=r"cross_edges: found 0.9, allowed is a lower one, or fewer neighbors"):
        digits_graph(neighbors=11, cross_edges=0.9)
