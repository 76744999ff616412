"""FER's benchmarks: nothing but the texts' head and the small network is added to the backbone's work."""

from hf_ext.benchmarks import measure
from hf_ext.benchmarks.fer import BARE, HEAD, INFERENCE, MATCHER, PLAIN, TRAINER, UPDATE


def test_updates_and_inference_are_timed() -> None:
    work = {row.name: row.operations_ratio for row in measure(UPDATE, device="cpu", quick=True).rows}
    assert work[HEAD] == 1 < work[PLAIN] <= work[TRAINER]
    found = measure(INFERENCE, device="cpu", quick=True)
    work = {row.name: row.operations_ratio for row in found.rows}
    assert work[BARE] == 1 <= work[MATCHER] < 1.2
    assert {(bar.subject, bar.at_most) for bar in found.bars} == {(MATCHER, 1.01)}
