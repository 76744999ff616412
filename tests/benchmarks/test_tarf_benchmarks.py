"""TARF's benchmark: whole runs, of the lengths that the study gives them."""

from hf_ext.benchmarks import measure
from hf_ext.benchmarks.tarf import FINE_TUNING, RETRAINING, RUN, TARF
from hf_ext.studies.tarf.data import RETRAINING_EPOCHS
from hf_ext.studies.tarf.study import EPOCHS


def test_whole_runs_are_timed() -> None:
    result = measure(RUN, device="cpu", quick=True)
    work = {row.name: row.operations_ratio for row in result.rows}
    assert work[FINE_TUNING] == 1 < RETRAINING_EPOCHS / EPOCHS / 2 < work[RETRAINING]
    assert 1 / 2 < work[TARF] < work[RETRAINING]
    assert {(bar.subject, bar.at_most) for bar in result.bars} == {(TARF, 0.15), (TARF, 1.15)}
