"""DivBS's benchmarks: everything runs, all ways to select pick the same, and others are refused."""

import pytest
import torch

from hf_ext.benchmarks import Benchmark, measure
from hf_ext.benchmarks import divbs as module
from hf_ext.benchmarks.divbs import BENCHMARKS, SELECTIONS, candidates, gradients_of, select_on_gradients
from hf_ext.functional import divbs_select


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=lambda benchmark: benchmark.name)
def test_all_contenders_run(benchmark: Benchmark) -> None:
    result = measure(benchmark, device="cpu", quick=True)
    assert all(row.operations_ratio > 0 and row.megabytes > 0 for row in result.rows)
    assert [row.name for row in result.rows if row.is_method]
    rows = {row.name: row for row in result.rows}
    if benchmark.name == "divbs-step":  # the passes are the same; the selection adds products of its own
        method, passes = rows[module.STEP].operations_ratio, rows[module.PASSES].operations_ratio
        assert passes < method < 1.1 * passes
        assert rows[module.SELECTED].operations_ratio < passes < 1
    if benchmark.name == "divbs-texts-step":
        names = (module.CHEAP_PASSES, module.CHEAP, module.STEP)  # of one operation half precision changes the time
        passes, cheap, method = (rows[name].operations_ratio for name in names)
        assert rows[module.SELECTED].operations_ratio < passes < cheap < 1.1 * passes
        assert cheap == pytest.approx(method)


def test_gradients_are_those_of_the_last_layer() -> None:
    torch.manual_seed(0)
    layer, features = torch.nn.Linear(6, 4, bias=False), torch.randn(5, 6)
    labels = torch.tensor([0, 3, 1, 1, 2])
    logits = layer(features)
    residuals = logits.softmax(1) - torch.nn.functional.one_hot(labels, 4)
    gradients = gradients_of(residuals, features)
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    for row in range(5):
        (expected,) = torch.autograd.grad(losses[row], layer.weight, retain_graph=True)
        torch.testing.assert_close(gradients[row].view(4, 6), expected)


def test_the_peer_picks_by_what_is_left() -> None:
    gradients = torch.tensor([[3.0, 0.0, 0.0], [3.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 1.0]])
    assert select_on_gradients(gradients, 3).tolist() == [0, 2, 3]  # the copy adds nothing


def test_other_picks_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    residuals, features, k = candidates(True)
    picks = divbs_select(residuals, features, k)
    assert len(set(picks.tolist())) == k == 4
    monkeypatch.setitem(SELECTIONS, module.GRADIENTS, lambda *_: picks.flip(0))
    with pytest.raises(RuntimeError, match="gradient matrix: found other picks"):
        measure(module.SELECTION, device="cpu", quick=True)
