"""A graph as rows: whole, or a neighbourhood for each node of the loss."""

import pickle

import pytest
import torch
from torch.utils.data import DataLoader
from torch_geometric.data import Data

from hf_ext.data.graphs import GraphCollator, GraphRows, SampledRows


def graph() -> Data:
    return Data(
        x=torch.arange(12.0).view(6, 2),
        edge_index=torch.tensor([[0, 1, 2, 5], [1, 2, 0, 4]]),
        edge_weight=torch.tensor([1.0, 0.5, 0.0, 2.0]),
        positive_mask=torch.tensor([True, True, False, False, False, False]),
    )


def test_the_whole_graph_is_one_row() -> None:
    data = graph()
    rows = GraphRows(data)
    assert len(rows) == 1 and len(list(rows)) == 1
    (batch,) = DataLoader(rows, batch_size=8, collate_fn=GraphCollator())
    assert set(batch) == {"x", "edge_index", "edge_weight", "labels"}
    assert batch["x"] is data.x and batch["edge_index"] is data.edge_index
    assert batch["labels"].tolist() == [1, 1, 0, 0, 0, 0]
    del data.edge_weight
    assert set(GraphRows(data)[-1]) == {"x", "edge_index", "labels"}
    assert GraphRows(data, torch.arange(6))[0]["labels"].tolist() == list(range(6))


def test_one_graph_a_batch() -> None:
    row, other = GraphRows(graph())[0], GraphRows(graph())[0]
    assert GraphCollator()([row, row])["x"] is row["x"]
    with pytest.raises(ValueError, match="rows: found 2 graphs"):
        GraphCollator()([row, other])


def ring(nodes: int = 12) -> Data:
    """Node i hears of i + 1, i + 2 and i + 3; 0 to 2 are known, 11 is in neither set."""
    places = torch.arange(nodes)
    positive = places < 3
    return Data(
        x=places.float()[:, None],
        edge_index=torch.stack([(places + step) % nodes for step in (1, 2, 3)] + [places] * 3).view(2, -1),
        positive_mask=positive,
        unlabeled_mask=(places >= 3) & (places < nodes - 1),
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_a_row_for_each_node_of_the_loss(workers: int) -> None:
    data = ring()
    rows = SampledRows(data, [2, 2], seed=1)
    assert len(rows) == 11 and rows.nodes.tolist() == list(range(11))
    loader = DataLoader(rows, 4, collate_fn=GraphCollator(rows), num_workers=workers, persistent_workers=workers > 0)
    drawn = []
    for epoch in (0, 5):
        rows.set_epoch(epoch)
        batches = list(loader)
        seen = torch.cat([batch["node_ids"][batch["labels"] != -100] for batch in batches])
        assert seen.tolist() == list(range(11))
        for batch in batches:
            assert set(batch) == {"x", "edge_index", "labels", "node_ids", "edge_ids", "edge_scale"}
            assert torch.equal(batch["x"], data.x[batch["node_ids"]])
            assert torch.equal(batch["node_ids"][batch["edge_index"]], data.edge_index[:, batch["edge_ids"]])
            counted = batch["labels"] != -100
            assert torch.equal(batch["labels"][counted], (batch["node_ids"][counted] < 3).long())
            assert batch["labels"].dtype == torch.int64
        drawn.append(torch.cat([batch["edge_ids"] for batch in batches]).tolist())
    assert drawn[0] != drawn[1]
    again = pickle.loads(pickle.dumps(SampledRows(data, [2, 2], seed=1, epoch=5)))
    batches = list(DataLoader(again, 4, collate_fn=GraphCollator(again)))
    assert torch.cat([batch["edge_ids"] for batch in batches]).tolist() == drawn[1]


def test_a_repeated_node_counts_once_and_graphs_pass() -> None:
    rows = SampledRows(ring(), [2])
    batch = GraphCollator(rows)([rows[4], rows[1], rows[4]])
    assert batch["node_ids"][batch["labels"] != -100].tolist() == [4, 1]
    whole = GraphRows(ring())[0]
    assert GraphCollator(rows)([whole])["x"] is whole["x"]
    with pytest.raises(ValueError, match="rows: found None and a batch of nodes"):
        GraphCollator()([rows[0]])
