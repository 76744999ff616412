"""RD's benchmarks: what an update costs beside the student's, and that inference costs nothing more."""

from hf_ext.benchmarks import measure
from hf_ext.benchmarks.rd import BARE, BOTH, CACHED, INFERENCE, RD, STUDENT, UPDATE, WHOLE


def test_updates_and_inference_are_timed() -> None:
    work = {row.name: row.operations_ratio for row in measure(UPDATE, device="cpu", quick=True).rows}
    assert work[STUDENT] == 1 < work[CACHED] < work[BOTH] < work[RD]
    found = {row.name: row.operations_ratio for row in measure(INFERENCE, device="cpu", quick=True).rows}
    assert found[BARE] == found[WHOLE] == 1
