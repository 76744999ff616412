"""What is no graph with known positives is refused by name, and every node has its part."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch_geometric.data import Data, HeteroData

from hf_ext.data.graphs import check_graph, check_structure, loss_labels, node_roles, without_loops

NAN = float("nan")


def graph(**changes: Any) -> Data:
    """Six nodes: 0 and 1 known, 2 held out, 3 to 5 unlabelled."""
    values: dict[str, Any] = {
        "x": torch.arange(12.0).view(6, 2),
        "edge_index": torch.tensor([[0, 1, 2, 5], [1, 2, 0, 4]]),
        "edge_weight": torch.tensor([1.0, 0.5, 0.0, 2.0]),
        "y": torch.tensor([0, 0, 0, 0, 1, -1]),
        "pu_y": torch.tensor([1, 1, 1, 1, 0, -1]),
        "positive_mask": mask(0, 1),
        "held_out_mask": mask(2),
    }
    return Data(**{name: value for name, value in (values | changes).items() if value is not None})


def mask(*nodes: int) -> torch.Tensor:
    return torch.zeros(6, dtype=torch.bool).index_fill_(0, torch.tensor(nodes, dtype=torch.int64), True)


def with_nan(row: int) -> torch.Tensor:
    x = torch.zeros(6, 2)
    x[row, 1] = NAN
    return x


def test_a_graph_is_let_pass_as_it_is() -> None:
    for data in (
        graph(),
        graph(y=None, pu_y=None, held_out_mask=None, edge_weight=None),
        graph(unlabeled_mask=mask(3, 4)),
        graph(unlabeled_mask=mask(2, 3), node_ids=list("abcdef")),
        graph(edge_index=torch.zeros(2, 0, dtype=torch.int64), edge_weight=torch.zeros(0)),
        graph(x=torch.zeros(6, 1, dtype=torch.bfloat16)),
    ):
        before = {name: value.clone() for name, value in data.to_dict().items() if torch.is_tensor(value)}
        check_graph(data)
        assert all(torch.equal(data[name], value) for name, value in before.items())


REFUSED: list[tuple[Any, str]] = [
    (HeteroData(), "data: found HeteroData, allowed is a Data"),
    ({"x": 1}, "data: found dict, allowed is a Data"),
    (graph(x=None), "x: found NoneType, allowed is floating"),
    (graph(x=torch.zeros(6, 2, dtype=torch.int64)), "x: found torch.int64 of shape"),
    (graph(x=torch.zeros(6)), r"x: found torch.float32 of shape \(6,\), allowed is floating \[N, F\]"),
    (graph(x=torch.zeros(6, 2).to_sparse()), "x: found"),
    (graph(x=torch.zeros(6, 0)), r"x: found shape \(6, 0\)"),
    (graph(x=torch.zeros(0, 2), num_nodes=6), "x: found shape"),
    (graph(x=with_nan(4)), r"x: found nan at node 4, feature 1 \(1 such\), allowed are finite"),
    (graph(x=torch.full((6, 2), float("inf"))), r"x: found inf at node 0, feature 0 \(12 such\)"),
    (graph(num_nodes=7), "num_nodes: found 7, allowed is 6"),
    (graph(edge_index=None), "edge_index: found NoneType"),
    (graph(edge_index=torch.zeros(4, 2, dtype=torch.int64)), r"edge_index: found torch.int64 of shape \(4, 2\)"),
    (graph(edge_index=torch.zeros(2, 4)), "edge_index: found torch.float32"),
    (graph(edge_index=torch.tensor([[0, 1], [1, 6]]), edge_weight=None), "node 6 at edge 1 .1 such edges., .* 0 to 5"),
    (graph(edge_index=torch.tensor([[0, -1], [1, 0]]), edge_weight=None), "edge_index: found node -1 at edge 1"),
    (graph(edge_weight=torch.ones(3)), r"edge_weight: found torch.float32 of shape \(3,\), .* M = 4"),
    (graph(edge_weight=torch.ones(4, 1)), "edge_weight: found"),
    (graph(edge_weight=torch.ones(4, dtype=torch.int64)), "edge_weight: found torch.int64"),
    (graph(edge_weight=torch.tensor([1, 1, -0.5, 1])), "edge_weight: found -0.5 at edge 2"),
    (graph(edge_weight=torch.tensor([1, NAN, 1, 1])), "edge_weight: found nan at edge 1"),
    (graph(edge_weight=torch.tensor([1, 1, 1, float("inf")])), "edge_weight: found inf at edge 3"),
    (graph(y=torch.zeros(5, dtype=torch.int64)), "y: found torch.int64 of shape"),
    (graph(y=torch.zeros(6)), "y: found torch.float32"),
    (graph(y=torch.tensor([0, 0, 0, 0, 0, -2])), "y: found -2, allowed"),
    (graph(node_ids=["a"]), "node_ids: found 1 of them, allowed is one for each of 6"),
    (graph(positive_mask=None), "positive_mask: found None"),
    (graph(positive_mask=mask(0).long()), "positive_mask: found torch.int64"),
    (graph(positive_mask=mask(0)[:5]), "positive_mask: found torch.bool of shape"),
    (graph(held_out_mask=mask(2).long()), "held_out_mask: found torch.int64"),
    (graph(positive_mask=mask()), "positive_mask: found no positive"),
    (graph(positive_mask=mask(0, 1, 3, 4, 5)), "positive_mask: found no unlabelled node"),
    (graph(positive_mask=mask(*range(6)), held_out_mask=None), "positive_mask: found no unlabelled node"),
    (graph(unlabeled_mask=mask()), "positive_mask: found no unlabelled node"),
    (graph(unlabeled_mask=mask(2)), "positive_mask: found no unlabelled node"),
    (graph(held_out_mask=mask(1, 2)), "held_out_mask: found 1 nodes that are in positive_mask"),
    (graph(unlabeled_mask=mask(0, 1, 3)), "unlabeled_mask: found 2 nodes that are in positive_mask"),
    (graph(pu_y=torch.tensor([1, 1, 1, 1, 0, 2])), "pu_y: found 2, allowed"),
    (graph(pu_y=torch.ones(5, dtype=torch.int64)), "pu_y: found"),
    (graph(pu_y=torch.ones(6, dtype=torch.bool)), "pu_y: found torch.bool"),
    (graph(pu_y=torch.tensor([1, 0, 0, 1, 0, 1])), "pu_y: found 0 for 2 known positives"),
]


@pytest.mark.parametrize(("data", "message"), REFUSED, ids=range(len(REFUSED)))
def test_refused_by_name(data: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_graph(data)


def test_structure_asks_for_no_positives() -> None:
    check_structure(graph(positive_mask=None, held_out_mask=None))
    with pytest.raises(ValueError, match="x: found nan"):
        check_structure(graph(positive_mask=None, x=with_nan(0)))


@pytest.mark.parametrize("function", [node_roles, loss_labels])
def test_nodes_outside_of_both_sets_count_nowhere(function: Callable[[Data], torch.Tensor]) -> None:
    assert function(graph(unlabeled_mask=mask(3, 4)))[5] == -100
    assert function(graph())[5] != -100


def test_roles_and_labels() -> None:
    assert node_roles(graph()).tolist() == [-100, -100, 2, 1, 0, -1]
    assert node_roles(graph(unlabeled_mask=mask(4, 5))).tolist() == [-100, -100, 2, -100, 0, -1]
    assert node_roles(graph(pu_y=None, held_out_mask=None)).tolist() == [-100, -100, -1, -1, -1, -1]
    assert loss_labels(graph()).tolist() == [1, 1, 0, 0, 0, 0]
    assert loss_labels(graph(unlabeled_mask=mask(4))).tolist() == [1, 1, 0, -100, 0, -100]
    assert node_roles(graph()).dtype == loss_labels(graph()).dtype == torch.int64


def test_self_loops_are_left_out_with_what_belongs_to_them() -> None:
    data = graph()
    assert without_loops(data) is data
    loops = graph(edge_index=torch.tensor([[0, 1, 2, 5], [0, 2, 2, 4]]), edge_attr=torch.eye(4), names=list("abcd"))
    with pytest.warns(UserWarning, match="2 self-loops"):
        kept = without_loops(loops)
    assert kept.edge_index.tolist() == [[1, 5], [2, 4]] and kept.edge_weight.tolist() == [0.5, 2]
    assert kept.edge_attr.tolist() == [[0, 1, 0, 0], [0, 0, 0, 1]] and kept.names == list("abcd")
    assert kept.num_nodes == 6 and loops.edge_index.size(1) == len(loops.edge_weight) == 4
