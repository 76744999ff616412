"""MoLA's benchmarks: everything runs, and those that are to do the same work do it."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from peft import PeftConfig

from hf_ext.benchmarks import Benchmark, measure
from hf_ext.benchmarks.engine import operations_of
from hf_ext.benchmarks.mola import BENCHMARKS, EXPERTS, RANK, ExpertLoop
from hf_ext.benchmarks.mola_layers import BY_EXPERTS, Block, adapter, lora, mola, stepping
from hf_ext.functional import lora_mixture_linear, task_routing

#: which run what others run, but at sizes that a test does not have
LIKE_OTHERS = {"mola-experts-vit-b", "mola-experts-wide-compiled"}


@pytest.mark.parametrize(
    "benchmark",
    [benchmark for benchmark in BENCHMARKS if benchmark.name not in LIKE_OTHERS],
    ids=lambda benchmark: benchmark.name,
)
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


@pytest.mark.parametrize("benchmark", BY_EXPERTS, ids=lambda benchmark: benchmark.name)
def test_every_number_of_experts_is_measured_beside_one_lora(benchmark: Benchmark) -> None:
    assert len(benchmark.bars) >= 2
    assert {bar.peer for bar in benchmark.bars} == {"LoRA, rank r"}
    assert {bar.subject for bar in benchmark.bars} == {each.name for each in benchmark.contenders if each.is_method}
    assert ("cpu" in benchmark.devices) == ("bfloat16" not in benchmark.setting and "compile" not in benchmark.setting)


def test_layers_take_the_operations_of_one_lora() -> None:
    targets = ["qkv", "proj", "fc1", "fc2"]

    def operations(adapt: Callable[[], PeftConfig], experts: int | None) -> int:
        step = stepping(lambda _: (Block(8), torch.randn(4, 40, 8)), adapter(adapt), experts=experts)
        return operations_of(step(torch.device("cpu"), True))

    one = operations(partial(lora, 2, targets), None)
    assert [operations(partial(mola, experts, 2, targets), experts) for experts in (4, 64)] == [one, one]
