"""MoLA's benchmarks: everything runs, and those that are to do the same work do it."""

import pytest
import torch

from hf_ext.benchmarks import Benchmark, measure
from hf_ext.benchmarks.mola import BENCHMARKS, EXPERTS, RANK, Block, ExpertLoop
from hf_ext.functional import lora_mixture_linear, task_routing


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=lambda benchmark: benchmark.name)
def test_all_contenders_run(benchmark: Benchmark) -> None:
    result = measure(benchmark, device="cpu", quick=True)
    assert all(row.operations_ratio > 0 and row.megabytes > 0 for row in result.rows)
    assert any(row.is_method for row in result.rows)
    rows = {row.name: row for row in result.rows}
    if "index-select loop" in rows:  # nothing does the work with less
        assert rows["MoLA-Grad"].floor == rows["index-select loop"].operations_ratio < 1


@pytest.mark.parametrize("select", [False, True])
def test_loops_over_experts_compute_the_mixture(select: bool) -> None:
    torch.manual_seed(0)
    base, ids, x = torch.nn.Linear(6, 5), torch.tensor([0, 3, 1, 1, 2, 0]), torch.randn(6, 2, 6)
    loop = ExpertLoop(base, ids, select=select)
    weights = task_routing(ids, num_experts=EXPERTS)
    delta = lora_mixture_linear(x, torch.stack(list(loop.A)), torch.stack(list(loop.B)), weights, scaling=2.0)
    torch.testing.assert_close(loop(x), base(x) + delta)
    assert loop.A[0].shape == (RANK, 6)


def test_the_block_is_that_of_a_transformer() -> None:
    block = Block(8)
    assert sum(parameter.numel() for name, parameter in block.named_parameters() if "weight" in name) == 12 * 8 * 8
