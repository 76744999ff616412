"""FedLESAM's benchmarks: an update is one pass, at weights that have been moved, with what its variant adds."""

import pytest
import torch

from hf_ext.benchmarks import Benchmark, measure
from hf_ext.benchmarks.fedlesam import ACCUMULATION, LESAM, LESAM_D, LESAM_S, PLAIN, PROXIMAL, STEP
from hf_ext.trainers.updates import UpdateMixin


@pytest.mark.parametrize("benchmark", [STEP, ACCUMULATION], ids=lambda benchmark: benchmark.name)
def test_updates_are_timed(benchmark: Benchmark, monkeypatch: pytest.MonkeyPatch) -> None:
    moves: list[int] = []
    move = UpdateMixin.move_weights
    monkeypatch.setattr(UpdateMixin, "move_weights", lambda *parts: moves.append(1) or move(*parts))
    work = {row.name: row.operations_ratio for row in measure(benchmark, device="cpu", rounds=1, quick=True).rows}
    assert work == pytest.approx(dict.fromkeys((PLAIN, LESAM, LESAM_S, LESAM_D, PROXIMAL), 1.0), rel=0.01)
    assert len(moves) >= 9  # three contenders, once in every round
    moves.clear()
    for contender, count in ((PLAIN, 0), (PROXIMAL, 0), (LESAM, 1)):
        (made,) = (one.make(torch.device("cpu"), True) for one in benchmark.contenders if one.name == contender)
        made()
        assert len(moves) == count
