"""CausalD's benchmarks: what its update costs beside the student's, what effects and large catalogues take."""

from typing import Any

import pytest
import torch

from hf_ext.benchmarks import Benchmark, measure
from hf_ext.benchmarks.causald import (
    BARE,
    BENCHMARKS,
    CAUSALD,
    EFFECTS,
    ENSEMBLE,
    FORWARD,
    INFERENCE,
    OVER_BANK,
    PLAIN,
    SERVED,
    TABLES,
    UPDATE,
    WITHOUT_CACHE,
    _Batches,
    _candidates,
)
from hf_ext.benchmarks.memory import peak_memory
from hf_ext.benchmarks.ranking_tables import (
    QUICK_CATALOGUES,
    QUICK_RANKINGS,
    Size,
    measure_ranking,
    ranking_table,
    recommend_table,
)
from hf_ext.benchmarks.recbole_table import recbole_table


def _operations(benchmark: Benchmark) -> dict[str, float]:
    return {row.name: row.operations_ratio for row in measure(benchmark, device="cpu", quick=True).rows}


def test_the_cache_saves_the_teachers_passes() -> None:
    found = _operations(UPDATE)
    assert found[PLAIN] == found[CAUSALD] == 1 < found[WITHOUT_CACHE]


def test_effects_take_the_teachers_passes_and_little_more() -> None:
    found = _operations(EFFECTS)
    assert found[FORWARD] == found[ENSEMBLE] == 1 < found[OVER_BANK] < 1.05


def test_the_student_that_is_served_computes_what_the_bare_one_does() -> None:
    found = _operations(INFERENCE)
    assert found[BARE] == found[SERVED] == 1


def test_updates_read_other_rows_every_time() -> None:
    rows = _candidates(quick=True)
    batches = _Batches(rows, 8, torch.device("cpu"))
    first, second = (next(iter(batches)) for _ in range(2))
    assert len(batches) == 1 and first["candidate_ids"].shape == second["candidate_ids"].shape == (8, 8)
    assert not torch.equal(first["candidate_ids"], second["candidate_ids"])


def test_all_are_found_by_the_command() -> None:
    assert [benchmark.name for benchmark in BENCHMARKS] == ["causald-inference", "causald-step", "causald-effects"]
    assert (ranking_table, recommend_table, recbole_table) == TABLES


def _here(function: Any, *arguments: Any) -> Any:
    return function(*arguments)


def test_rankings_stand_beside_the_matrix_that_they_do_not_make() -> None:
    table = ranking_table(1, True, run=_here)
    assert [row[:3] for row in table.rows] == [["SASRec", "30", "200"], ["DIN", "20", "100"]]
    assert {len(row) for row in table.rows} == {len(table.header)} and table.quick
    assert [one["targets"] for one in table.values["rankings"]] == [size.users for size in QUICK_RANKINGS]


def test_the_matrix_is_counted_in_float32() -> None:
    whole = ranking_table(1, False, run=lambda function, size: function(Size(size.architecture, 2, 12)))
    assert [row[-1] for row in whole.rows] == ["381", "3,815", "1"]  # 4 bytes x users x items / 2^20


def test_a_ranking_measures_time_and_memory() -> None:
    found = measure_ranking(Size("sasrec", 5, 40))
    assert found.targets == 5 and found.seconds > 0 and found.bytes >= 0


def test_recommendations_are_called_four_times_a_round() -> None:
    asked: list[int] = []

    def run(function: Any, architecture: str, items: int, calls: int) -> list[float]:
        asked.append(calls)
        return [float(call) for call in range(calls)]

    table = recommend_table(3, False, run=run)
    assert asked == [12, 12] and table.rows[0][2:] == ["5500.0", "10450.0"]
    quick = recommend_table(3, True, run=_here)
    assert [len(seconds) for seconds in quick.values["seconds"]] == [2] * len(QUICK_CATALOGUES)


def test_peak_memory_sees_what_was_held_in_between() -> None:
    size = 64 * 2**20
    with peak_memory(every=0.001) as peak:
        held = bytearray(b"1") * size
        for _ in range(10**8):
            if peak.most >= peak.before + size // 2:
                break
        del held
    assert peak.most >= peak.before + size // 2


@pytest.mark.parametrize("quick", [True, False])
def test_sizes_are_larger_than_quick_ones(quick: bool) -> None:
    rows = _candidates(quick)
    assert (len(rows) < 1000) == quick and rows.num_candidates == (8 if quick else 32)
