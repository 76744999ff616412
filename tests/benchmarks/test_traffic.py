"""What two processes send each other in an update is what the methods' pages say, and not more."""

import pytest

from hf_ext.benchmarks import divbs, mola
from hf_ext.benchmarks.traffic import measure_traffic, traffic_table

_SMALL = 600  # bytes of what tells sizes and kinds of columns


@pytest.mark.slow
def test_divbs_sends_scores_to_one_process_and_rows_to_their_own() -> None:
    received = measure_traffic(divbs.selecting_together, 2, True)
    row, scores, choice = 3 * 64 * 64 * 4 + 8, 80 * (divbs.CLASSES + 16 + 2) * 4, 16 * 8
    main, other = received[0].bytes - scores, received[1].bytes - choice
    for found in (main, other):
        kept, rest = divmod(found, row)
        assert 0 <= kept <= 8 and rest < _SMALL
    assert main + other > 0
    assert max(one.calls for one in received) <= 8


@pytest.mark.slow
def test_twd_sends_projections_and_no_pairs() -> None:
    table = traffic_table("mola-messages", "", "", mola.decorrelating, 32, True)
    assert table.rows[0][:2] == ["2", "64"]
    projections, ids, sums = 32 * 32 * 4, 32 * 8, 32 * 3 * 4
    for received in table.values["received"][0]:
        assert 0 <= received["bytes"] - projections - ids - sums < 50
        assert received["calls"] <= 6
