"""Our SASRec next to RecBole's: programs that take turns, and what is made of what they say."""

import importlib.util
import io
import json
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf_ext.benchmarks import recbole_ours, recbole_table
from hf_ext.benchmarks.recbole_table import EVERY, LAST, PEER, QUICK, SETTINGS, write_events
from hf_ext.benchmarks.tables import Skipped
from hf_ext.benchmarks.turns import Measured, take_turns
from hf_ext.data.interactions import Interactions, ItemTable, load_interactions

#: says that it is ready, answers lines, and says goodbye; prints other things, too
PROGRAM = """
import json, sys
print("a banner")
print(json.dumps({"ready": sys.argv[1]}), flush=True)
for number in range(int(sys.argv[2])):
    sys.stdin.readline()
    print("[1, 2]", json.dumps(3), sep="\\n")
    with open(sys.argv[3], "a") as file:
        file.write(sys.argv[1])
    print(json.dumps({"number": number, "who": sys.argv[1]}), flush=True)
print(json.dumps({"last": True}), flush=True)
"""


@pytest.fixture
def interactions() -> Interactions:
    """40 users with 14 events each, at times that are the same as 32-bit floats."""
    rng = np.random.default_rng(0)
    offsets = np.arange(41, dtype=np.int64) * 14
    times = np.tile(881_250_900 + np.arange(14), 40)
    return Interactions(
        [f"user {user}" for user in range(40)],
        ItemTable([10 * row for row in range(1, 16)], None),
        offsets,
        rng.integers(1, 16, 40 * 14),
        times,
    )


# ------------------------------------------------------------------------------------------------ turns
def test_programs_take_one_turn_a_round(tmp_path: Path) -> None:
    script, log = tmp_path / "program.py", tmp_path / "log"
    script.write_text(PROGRAM)
    found = take_turns({name: [str(script), name, "8", str(log)] for name in "ab"}, 8)
    for name in "ab":
        assert found[name].turns == [{"number": number, "who": name} for number in range(8)]
        assert found[name].last == {"last": True}
    order = log.read_text()
    rounds = [order[place : place + 2] for place in range(0, 16, 2)]
    assert set(rounds) == {"ab", "ba"}  # each once, and neither always first


def test_a_program_that_ends_early_is_named_with_what_it_said(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM + "\nraise SystemExit('no more')")
    with pytest.raises(RuntimeError, match="a: found an end with status 1: no more"):
        take_turns({"a": [str(script), "a", "0", "none"]}, 2)
    with pytest.raises(RuntimeError, match=r"a: found an end with status 2: .*No such file"):
        take_turns({"a": [str(tmp_path / "none.py")]}, 1)


def test_files_beside_a_program_are_not_what_it_imports(tmp_path: Path) -> None:
    (tmp_path / "statistics.py").write_text("raise SystemExit('the wrong one')")
    script = tmp_path / "program.py"
    script.write_text("import json, statistics; print(json.dumps({'ready': 1})); print(json.dumps({'end': 1}))")
    assert take_turns({"a": [str(script)]}, 0)["a"].last == {"end": 1}


# ------------------------------------------------------------------------------------------------ data
def test_times_of_the_peers_events_are_places(interactions: Interactions, tmp_path: Path) -> None:
    write_events(interactions, tmp_path / "events")
    lines = (tmp_path / "events" / "events.inter").read_text().splitlines()
    assert lines[0] == "user_id:token\titem_id:token\ttimestamp:float" and len(lines) == 1 + 40 * 14
    assert lines[15] == f"user 1\t{10 * interactions.item_rows[14]}\t0"
    read = load_interactions(tmp_path / "events" / "events.inter")
    assert read.user_ids == sorted(interactions.user_ids)
    first = interactions.items.ids[interactions.item_rows[13] - 1]
    assert read.items.ids[read.item_rows[13] - 1] == first and read.tied_share == 0
    write_events(interactions, tmp_path / "quick", quick=True)
    assert len((tmp_path / "quick" / "quick.inter").read_text().splitlines()) == 1 + 30 * 12


# ------------------------------------------------------------------------------------------------ table
@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, interactions: Interactions) -> Callable[..., Any]:
    """The table of what programs say who were not started."""
    monkeypatch.setattr(recbole_table, "_movielens", lambda: interactions)

    def make(
        *, peer: Sequence[float] = (0.10, 0.10, 0.11), ours: Sequence[float] = (0.10, 0.10, 0.11), rows: int = 440
    ) -> Any:
        def turns(programs: Mapping[str, Sequence[str]], rounds: int) -> dict[str, Measured]:
            assert rounds == 3 and list(programs) == [PEER, LAST, EVERY]
            given = {name: json.loads(arguments[-1]) for name, arguments in programs.items()}
            assert (Path(given[PEER]["folder"]) / "events.inter").is_file()
            assert {name: one.get("targets") for name, one in given.items()} == {
                PEER: None,
                LAST: "last",
                EVERY: "every",
            }
            same = {**given[LAST], "targets": None, "batch_size": None}
            assert {**given[EVERY], "targets": None, "batch_size": None} == same
            assert {**given[PEER], "targets": None, "batch_size": None} == same
            last = {"training_rows": 440, "test_rows": 40, "items": 15, "parameters": 99}
            said = {}
            for name, seconds, quality in ((PEER, 4.0, peer), (LAST, 2.0, ours), (EVERY, 1.0, ours)):
                turns = [{"cpu_seconds": seconds, "new_items_ndcg@10": value} for value in quality]
                own = {"versions": {"recbole": "1.2.1"}} if name == PEER else {"training_targets": rows}
                said[name] = Measured(turns, {**last, **own})
            return said

        return recbole_table.recbole_table(3, False, turns)

    return make


def test_ratios_of_cpu_time_and_means_of_late_epochs(measured: Callable[..., Any]) -> None:
    table = measured(ours=(0.0, 0.0, 0.103))
    assert table.name == "causald-recbole" and "RecBole 1.2.1" in table.setting and "440 targets" in table.setting
    assert [row[:5] for row in table.rows] == [
        [PEER, "4.00", "1", "0.1100", ""],
        [LAST, "2.00", "0.50 (0.50 to 0.50)", "0.1030", "yes"],  # within the tolerance
        [EVERY, "1.00", "0.25 (0.25 to 0.25)", "0.1030", "yes"],
    ]
    assert [row[4] for row in measured(ours=(0.2, 0.2, 0.101)).rows] == ["", "no", "no"]


def test_programs_of_other_rows_are_not_compared(measured: Callable[..., Any]) -> None:
    with pytest.raises(RuntimeError, match=r"found \(439, 40, 15\) targets, .* allowed are \(440, 40, 15\)"):
        measured(rows=439)


def test_without_recbole_a_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Skipped, match=r"not installed \(pip install --no-deps --target recbole-peer recbole==1.2.1"):
        recbole_table.recbole_table(1, True)


# ------------------------------------------------------------------------------------------------ ours
@pytest.mark.parametrize("targets", ["last", "every"])
def test_ours_trains_and_says_what_the_peer_does(
    targets: str,
    interactions: Interactions,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_events(interactions, tmp_path / "events", quick=True)
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n\n"))
    given = SETTINGS | QUICK | {"folder": str(tmp_path / "events"), "epochs": 2, "targets": targets}
    last = recbole_ours.measure(given)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert lines[0] == {"ready": True} and [line["epoch"] for line in lines[1:]] == [1, 2]
    assert all(0 <= line["new_items_ndcg@10"] <= 1 and line["cpu_seconds"] > 0 for line in lines[1:])
    assert (last["training_targets"], last["test_rows"], last["items"]) == (30 * 9, 30, 15)
    assert (last["training_rows"] == 270) == (targets == "last")


@pytest.mark.slow
def test_side_by_side_with_recbole_itself() -> None:
    pytest.importorskip("recbole", reason=recbole_table.INSTALL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = recbole_table.recbole_table(1, True)
    assert [row[0] for row in table.rows] == [PEER, LAST, EVERY] and table.quick
    assert {row[5] for row in table.rows[:2]} == {"270"}
