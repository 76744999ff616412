"""FedGELA's benchmark: an update is one pass with the client's view, and no more work than the plain one."""

import pytest
import torch

from hf_ext.benchmarks import measure
from hf_ext.benchmarks.fedgela import ETF, GELA, PLAIN, STEP
from hf_ext.models import ETFClassifier


def test_an_update_is_timed_with_the_local_view(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    forward = ETFClassifier.forward
    monkeypatch.setattr(
        ETFClassifier,
        "forward",
        lambda head, *rest: seen.append(head.class_weights is not None) or forward(head, *rest),
    )
    work = {row.name: row.operations_ratio for row in measure(STEP, device="cpu", rounds=1, quick=True).rows}
    assert work[PLAIN] == 1.0 and work[GELA] <= 1.0 and work[ETF] == pytest.approx(work[GELA], rel=0.01)
    for name, weighed in ((ETF, [False]), (GELA, [True])):
        (make,) = (one.make for one in STEP.contenders if one.name == name)
        step = make(torch.device("cpu"), True)
        seen.clear()
        step()
        assert seen == weighed
