"""GPL's benchmarks: what an epoch costs beside a loop by hand, and large graphs."""

from typing import Any

import pytest
import torch

from hf_ext.benchmarks import measure
from hf_ext.benchmarks.gpl import (
    BENCHMARKS,
    EPOCH,
    GUIDED,
    LOOP,
    NAIVE,
    NNPU,
    RANK,
    RANKING_LOOP,
    TABLES,
    WHOLE,
    Network,
    _graph,
)
from hf_ext.benchmarks.graph_tables import (
    CPU,
    DEGREE,
    QUICK_EDGES,
    QUICK_SAMPLED,
    EpochTrainer,
    Taken,
    _SampledBatches,
    edges_table,
    epoch,
    measure_epochs,
    measure_updates,
    random_graph,
    sampled_update,
    sampling_table,
)
from hf_ext.data.graphs import check_graph
from hf_ext.models import GraphPUConfig, GraphPUModel
from hf_ext.trainers import GPLConfig, GPLTrainer


def _here(function: Any, *arguments: Any) -> Any:
    return function(*arguments)


def test_objectives_without_edges_compute_what_a_loop_does() -> None:
    found = {row.name: row.operations_ratio for row in measure(EPOCH, device="cpu", quick=True).rows}
    assert found[LOOP] == found[NAIVE] == found[NNPU] == 1
    assert found[RANKING_LOOP] == found[RANK] == found[WHOLE]  # weights of edges are no matrix products
    assert 1.4 < found[RANK] < 1.6 < found[GUIDED]


def test_all_are_found_by_the_command() -> None:
    assert [benchmark.name for benchmark in BENCHMARKS] == ["gpl-epoch"]
    assert (edges_table, sampling_table) == TABLES


def test_the_network_by_hand_is_the_models() -> None:
    data = _graph(quick=True)
    model = GraphPUModel(GraphPUConfig(num_features=8, hidden_size=8)).eval()
    own = Network(8, 8).eval()
    parameters = dict(model.named_parameters())
    for (_, mine), theirs in zip(sorted(own.named_parameters()), sorted(parameters), strict=True):
        mine.data.copy_(parameters[theirs])
    torch.testing.assert_close(own(data.x, data.edge_index), model(data.x, data.edge_index).logits)


@pytest.mark.parametrize("nodes", [40, 41])
def test_a_random_graph_can_be_trained_on(nodes: int) -> None:
    data = random_graph(nodes)
    check_graph(data)
    assert data.edge_index.shape[1] == nodes * DEGREE
    assert (data.edge_index[0] != data.edge_index[1]).all()
    assert torch.equal(random_graph(nodes).edge_index, data.edge_index)


def test_every_step_is_an_epoch_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    own = EpochTrainer.begin_epoch

    def begin(self: EpochTrainer, number: int) -> None:
        begun.append(number)
        own(self, number)

    monkeypatch.setattr(EpochTrainer, "begin_epoch", begin)
    step = epoch(random_graph(50), CPU, gpl_guide="self")
    for _ in range(3):
        step()
    assert begun == [0, 1, 2]
    begun.clear()
    step = sampled_update(random_graph(50), 8, gpl_guide="self", gpl_neighbors=[2, 2])
    for _ in range(3):
        step()
    assert begun == [0]


def test_updates_draw_other_neighbourhoods_every_time() -> None:
    settings: Any = {"output_dir": "unused", "use_cpu": True, "report_to": "none", "gpl_neighbors": [2, 2]}
    model = GraphPUModel(GraphPUConfig(num_features=64))
    batches = _SampledBatches(GPLTrainer(model=model, args=GPLConfig(**settings), train_dataset=random_graph(50)), 8)
    first, second = (next(iter(batches)) for _ in range(2))
    assert len(batches) == 1 and int((first["labels"] != -100).sum()) == 8
    assert not torch.equal(first["node_ids"][:8], second["node_ids"][:8])


def test_bytes_and_seconds_are_given_by_edge() -> None:
    sizes = list(QUICK_EDGES)

    def run(function: Any, edges: int, steps: int) -> Taken:
        assert function is measure_epochs
        return Taken(1.0, edges / 1e5, 300 * edges)

    table = edges_table(1, True, run=run)
    assert [row[3] for row in table.rows] == ["10.00"] * len(sizes)
    assert [row[-1] for row in table.rows] == ["300"] * len(sizes)
    assert {len(row) for row in table.rows} == {len(table.header)} and table.values["edges"] == sizes and table.quick


def test_beginning_an_epoch_is_told_from_updates() -> None:
    table = sampling_table(1, True, run=lambda function, nodes, seeds, steps: Taken(2.5, 0.5, 2**20))
    assert [row[2:5] for row in table.rows] == [["500", "2.00", "1"]] * len(QUICK_SAMPLED)
    assert {len(row) for row in table.rows} == {len(table.header)}


def test_large_graphs_are_measured() -> None:
    for found in (measure_epochs(400, 3), measure_updates(60, 8, 3)):
        assert found.first > 0 and found.seconds > 0 and found.bytes >= 0
