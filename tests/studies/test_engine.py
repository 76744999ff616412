"""The engine of studies: choice on validation data, pairs, resumption, errors before any run."""

import importlib
import json
import math
import pickle
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from datasets import are_progress_bars_disabled
from PIL import Image
from transformers.utils import logging

from hf_ext.studies import Case, Comparison, Outcome, Source, Study, StudyResult, System, reproduce
from hf_ext.studies.identity import _definitions, code_of, describe, shown
from hf_ext.studies.report import write_report


@pytest.fixture
def given(table: str, tmp_path: Path) -> dict[str, str]:
    (tmp_path / "other.csv").write_text("a,b\n5,6\n")
    return {"first": table, "second": str(tmp_path / "other.csv")}


def _runs(out: Path) -> set[str]:
    return {path.name for path in (out / "runs").iterdir()}


def test_hyper_parameters_are_chosen_on_validation_data_of_other_seeds(
    toy: ModuleType, given: dict[str, str], tmp_path: Path
) -> None:
    result = reproduce(toy.make(tuning_seeds=2), out=tmp_path, data=given)
    tuned = result.cases["one"]["tuned"]
    assert tuned.hyper_parameters == {"x": 1}  # by its test score x = 2 would be
    assert [row["hyper_parameters"]["x"] for row in tuned.tuning] == [0, 1, 2]
    assert result.cases["one"]["plain"].tuning == []
    tuning = {run.seed for run in toy.RUNS if run.system.name == "tuned" and run.hyper_parameters["x"] != 1}
    assert len(tuning) == 2 and not tuning & set(result.seeds)
    assert result.seeds == [0, 1, 2]


def test_a_system_runs_where_it_says(toy: ModuleType, given: dict[str, str], tmp_path: Path) -> None:
    study = toy.make()
    only = [replace(one, runs_in=lambda case: case.name == "one", grid={}) for one in study.systems[:2]]
    result = reproduce(replace(study, systems=(only[0], only[1], study.systems[2])), out=tmp_path, data=given)
    assert set(result.cases["one"]) == {"plain", "tuned", "noisy"}
    assert not result.cases.get("two")


def test_scores_are_paired_by_seed(toy: ModuleType, given: dict[str, str], tmp_path: Path) -> None:
    result = reproduce(toy.make(), out=tmp_path, data=given)
    found = {(row.case, row.baseline): row.difference for row in result.judged}
    assert set(found) == {("one", "plain"), ("one", "noisy"), ("two", "plain")}  # noisy is excluded from the second
    # levels of the seeds are hundreds apart, the difference is 3 in each
    assert (found["one", "plain"].mean, found["one", "plain"].verdict) == (3.0, "shown")
    assert found["one", "noisy"].low < 3.0 < found["one", "noisy"].high
    assert result.cases["one"]["tuned"].test == [4.0, 104.0, 404.0]
    assert result.cases["one"]["tuned"].details == {"level": [0.0, 100.0, 400.0]}


def test_a_smaller_metric_can_be_better(toy: ModuleType, given: dict[str, str], tmp_path: Path) -> None:
    result = reproduce(toy.make(greater_is_better=False), out=tmp_path, data=given)
    assert result.cases["one"]["tuned"].hyper_parameters == {"x": 0}
    assert result.judged[0].difference.verdict == "reversed"


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_interrupted_study_goes_on_where_it_stopped(
    toy: ModuleType, given: dict[str, str], tmp_path: Path, jobs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_FAILING_SEED", "1")
    with pytest.raises(ArithmeticError, match="seed 1 diverged"):
        reproduce(toy.make(), out=tmp_path, data=given, jobs=jobs)
    monkeypatch.delenv("TOY_FAILING_SEED")
    kept = _runs(tmp_path)
    assert kept
    assert not (tmp_path / "results.json").exists()
    prepared = {path: (path / "done").stat().st_mtime_ns for path in (tmp_path / "prepared").iterdir()}
    toy.RUNS.clear()
    whole = reproduce(toy.make(), out=tmp_path, data=given)
    assert len(toy.RUNS) == len(_runs(tmp_path)) - len(kept)
    assert prepared == {path: (path / "done").stat().st_mtime_ns for path in (tmp_path / "prepared").iterdir()}
    fresh = reproduce(toy.make(), out=tmp_path / "fresh", data=given)
    assert fresh.judged == whole.judged


def test_processes_find_the_same(toy: ModuleType, given: dict[str, str], tmp_path: Path) -> None:
    one = reproduce(toy.make(), out=tmp_path / "1", data=given)
    toy.RUNS.clear()
    two = reproduce(toy.make(), out=tmp_path / "2", data=given, jobs=2)
    assert not toy.RUNS  # they were elsewhere
    assert two.judged == one.judged and _runs(tmp_path / "1") == _runs(tmp_path / "2")


def test_another_question_is_not_answered_from_old_runs(
    toy: ModuleType, given: dict[str, str], tmp_path: Path
) -> None:
    study = toy.make()
    reproduce(study, out=tmp_path, data=given)
    plain = study.systems[0]

    def count(changed: Any, **options: Any) -> int:
        toy.RUNS.clear()
        reproduce(changed, out=tmp_path, **({"data": given} | options))
        return len(toy.RUNS)

    assert count(study) == 0
    assert count(study, seeds=4) == 5  # one more seed of three and two systems
    other = replace(plain, options={"scores": [(7.0, 7.0)]})
    assert count(replace(study, systems=(other, *study.systems[1:]))) == 6
    assert count(replace(study, cases=(Case("one", "first", {"new": 1}), study.cases[1]))) == 12
    assert count(study, quick=True) == 10
    Path(given["first"]).write_text("a,b\n1,2\n3,5\n")
    assert count(study) == 12


def test_half_written_runs_and_preparations_do_not_count(
    toy: ModuleType, given: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    class Deadly(list[Any]):
        def append(self, ready: Any) -> None:
            (ready.folder / "level").write_text("half")
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(toy, "PREPARED", Deadly())
        reproduce(toy.make(), out=tmp_path, data=given)
    reproduce(toy.make(), out=tmp_path, data=given)
    assert all(path.suffix == ".json" for path in (tmp_path / "runs").iterdir())
    (tmp_path / "runs" / f".{min(_runs(tmp_path))}.part").write_text("{")
    reproduce(toy.make(), out=tmp_path, data=given)


def test_preparations_are_made_once_per_data_and_seed(toy: ModuleType, given: dict[str, str], tmp_path: Path) -> None:
    reproduce(toy.make(), out=tmp_path, data=given)
    made = [(ready.name, ready.seed) for ready in toy.PREPARED]
    assert sorted(made) == [(name, seed) for name in ("first", "second") for seed in (0, 1, 2, 1000)]


def test_a_case_without_data_is_left_out_and_said(toy: ModuleType, table: str, tmp_path: Path) -> None:
    result = reproduce(toy.make(), out=tmp_path, data={"first": table})
    assert list(result.cases) == ["one"]
    assert result.skipped == {"two": "no data: --data second=PATH_OR_HUB_ID (the attic)"}


def test_data_are_named_without_the_folders_of_this_machine(toy: ModuleType, table: str, tmp_path: Path) -> None:
    result = reproduce(toy.make(), out=tmp_path, data={"first": table})
    facts = result.data["first"]
    assert (facts["given"], facts["rows"]) == ("table.csv", {"train": 2})
    assert len(facts["sha256"]) == len(facts["file_sha256"]) == 64
    assert "private folder" not in (tmp_path / "results.json").read_text()


def test_the_hash_is_that_of_the_rows(table: str, tmp_path: Path) -> None:
    same, other = tmp_path / "same.csv", tmp_path / "changed.csv"
    same.write_text(Path(table).read_text())
    other.write_text(Path(table).read_text().replace("4", "5"))
    assert describe(str(same))["sha256"] == describe(table)["sha256"] != describe(str(other))["sha256"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": {"third": "x"}}, "--data: found 'third', allowed for toy are"),
        ({}, "--data: found no data for toy"),
        ({"seeds": 0}, "--seeds: found 0"),
        ({"jobs": 0}, "--jobs: found 0"),
    ],
)
def test_mistakes_are_found_before_any_run(
    toy: ModuleType, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        reproduce(toy.make(), out=tmp_path, **options)
    assert not toy.RUNS and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"systems": (System("a"), System("a"))}, "systems: found the names"),
        ({"cases": (Case("c", "nowhere"),)}, "cases: data of 'c': found 'nowhere'"),
        ({"cases": (Case("c", "first"), Case("c", "second"))}, "cases: found the names"),
        ({"comparisons": (Comparison("tuned", "nobody"),)}, "comparisons: found 'nobody'"),
        ({"comparisons": (Comparison("tuned", "plain", ("typo",)),)}, "comparisons: cases: found 'typo', allowed are"),
        ({"systems": (System("a", excluded={"typo": "why"}),)}, "systems: excluded of 'a': found 'typo', allowed are"),
        ({"systems": (System("a", {"f": print}),)}, "systems: options of 'a': found .*, allowed are JSON values"),
        ({"systems": (System("a", grid={"f": (print,)}),)}, "systems: grid of 'a': found .*, allowed are JSON values"),
        ({"systems": (System("a", grid={"x": ()}),)}, "systems: found an empty grid of 'a'"),
        ({"cases": (Case("c", "first", {"f": print}),)}, "cases: options of 'c': found .*, allowed are JSON values"),
        ({"name": "bench"}, "name: found 'bench', allowed are"),
        ({"name": "../up"}, "name: found '../up', allowed are"),
        ({"run": print}, "run: found .*, allowed is a function of a module"),
        ({"data": {"first": Source("x", embedded="nowhere"), "second": Source("y")}}, "embedded: found 'nowhere'"),
        ({"describe": describe, "check": print}, "check: found one beside describe, allowed is None"),
    ],
)
def test_names_have_to_fit(toy: ModuleType, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        toy.make(**({"comparisons": ()} | changes))


def test_a_study_may_read_its_data_itself(toy: ModuleType, tmp_path: Path) -> None:
    files = {name: tmp_path / f"{name}.npz" for name in ("first", "second")}
    for name, file in files.items():
        np.savez(file, values=np.zeros(len(name)))

    def of(place: str) -> dict[str, Any]:
        values = np.load(place)["values"]
        if len(values) > 6:
            raise ValueError(f"--data: found {len(values)} values, allowed are at most 6")
        return {"sha256": f"of {len(values)}", "rows": {"values": len(values)}}

    given = {name: str(file) for name, file in files.items()}
    found = reproduce(toy.make(describe=of), out=tmp_path / "out", data=given, seeds=1).data
    assert found["second"] == {"given": "second.npz", "sha256": "of 6", "rows": {"values": 6}}
    toy.RUNS.clear()
    reproduce(toy.make(describe=of), out=tmp_path / "out", data=given, seeds=1)
    assert not toy.RUNS
    np.savez(files["first"], values=np.zeros(7))
    with pytest.raises(ValueError, match="found 7 values"):
        reproduce(toy.make(describe=of), out=tmp_path / "out", data=given, seeds=1)
    np.savez(files["first"], values=np.zeros(4))  # other data: the runs on these alone are made anew
    reproduce(toy.make(describe=of), out=tmp_path / "out", data=given, seeds=1)
    assert {run.case.name for run in toy.RUNS} == {"one"}


def test_results_come_back_from_their_file(toy: ModuleType, given: dict[str, str], tmp_path: Path) -> None:
    result = reproduce(toy.make(), out=tmp_path, data=given, seeds=1, command="again")
    assert math.isnan(result.judged[0].difference.low)  # one pair has no interval
    read = StudyResult.load(tmp_path / "results.json")
    assert json.dumps(vars(read), default=vars) == json.dumps(vars(result), default=vars)
    assert read.command == "again" and {"python", "torch", "hardware"} <= set(read.environment)


def test_runs_that_diverge_are_reported_as_such(toy: ModuleType, given: dict[str, str], tmp_path: Path) -> None:
    nan = math.nan
    systems = (
        System("plain", {"scores": [(nan, nan)]}),
        System("tuned", {"scores": [(nan, 9.0), (3.0, 4.0), (math.inf, 9.0)]}, {"x": (0, 1, 2)}, is_method=True),
        System("lost", {"scores": [(nan, nan)] * 3}, {"x": (0, 1, 2)}),
    )
    compared = (Comparison("tuned", "plain"), Comparison("tuned", "lost"))
    study = toy.make(systems=systems, comparisons=compared)
    for _ in range(2):  # run, and read from what was kept
        result = reproduce(study, out=tmp_path, data=given)
        assert result.cases["one"]["tuned"].hyper_parameters == {"x": 1}
        assert result.cases["one"]["lost"].hyper_parameters == {"x": 1}  # as if it were not tuned
        assert all(map(math.isnan, result.cases["one"]["plain"].test))
        assert {row.difference.verdict for row in result.judged} == {"not shown"}
        read = StudyResult.load(tmp_path / "results.json")
        assert json.dumps(vars(read), default=vars) == json.dumps(vars(result), default=vars)
        text = write_report(study, read, tmp_path / "report").read_text()
        assert "| plain | 3 of 3 diverged | 3 of 3 diverged |" in text
        assert "| tuned vs plain | diverged | diverged |" in text


def test_points_of_the_grid_reach_the_runs_unchanged(toy: ModuleType, given: dict[str, str], tmp_path: Path) -> None:
    grid = {"x": (0, 1), "betas": ((0.9, 0.99), (0.9, 0.999))}
    tuned = System("tuned", {"scores": [(1.0, 2.0), (3.0, 4.0)]}, grid, is_method=True)
    reproduce(toy.make(systems=(tuned,), comparisons=()), out=tmp_path, data=given)
    assert {type(run.hyper_parameters["betas"]) for run in toy.RUNS} == {tuple}


def test_the_hash_of_a_folder_of_pictures_is_that_of_the_pictures(tmp_path: Path) -> None:
    def folder(name: str, colour: str) -> str:
        place = tmp_path / name / "train" / "a"
        place.mkdir(parents=True)
        Image.new("RGB", (4, 4), colour).save(place / "1.png")
        return str(tmp_path / name)

    red, again, blue = folder("red", "red"), folder("again", "red"), folder("blue", "blue")
    assert describe(red)["sha256"] == describe(again)["sha256"] != describe(blue)["sha256"]


def test_the_callers_settings_are_left_alone(toy: ModuleType, given: dict[str, str], tmp_path: Path) -> None:
    def settings() -> tuple[Any, ...]:
        bars = logging.is_progress_bar_enabled(), are_progress_bars_disabled()
        return torch.get_num_threads(), logging.get_verbosity(), *bars

    def look(run: Any) -> Any:
        seen.append(settings())
        return toy.run(run)

    seen: list[tuple[Any, ...]] = []
    torch.set_num_threads(2)
    before = settings()
    reproduce(toy.make(run=look), out=tmp_path, data=given)
    assert settings() == before
    assert set(seen) == {(1, logging.ERROR, False, True)}


def test_a_quick_run_is_short_and_says_so(toy: ModuleType, given: dict[str, str], tmp_path: Path) -> None:
    result = reproduce(toy.make(), out=tmp_path, data=given, quick=True)
    assert result.quick and result.seeds == [0, 1]
    assert all(run.quick for run in toy.RUNS)
    assert {run.hyper_parameters.get("x") for run in toy.RUNS} == {None, 1}  # the middle of the grid, nothing tuned


_STUDY = """
from hf_ext.studies import Case, Outcome, Run, Source, Study, System

def run(run: Run) -> Outcome:
    return Outcome(0.5, 0.5 {change})

STUDY = Study("changing", "t", "q?", "m", {{"first": Source("x")}}, (Case("c", "first"),), (System("s"),), (), run)
"""


def _changing(folder: Path, change: str) -> Study:
    """The study as it is after an edit of its file."""
    (folder / "changing_study.py").write_text(_STUDY.format(change=change))
    sys.modules.pop("changing_study", None)
    study: Study = importlib.import_module("changing_study").STUDY
    return study


def test_runs_of_other_code_are_not_reused(table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    out, data = tmp_path / "out", {"first": table}
    before = reproduce(_changing(tmp_path, "+ 0.25"), out=out, data=data, seeds=1)
    again = reproduce(_changing(tmp_path, "+ 0.25"), out=out, data=data, seeds=1)
    after = reproduce(_changing(tmp_path, "- 0.25"), out=out, data=data, seeds=1)
    assert [result.cases["c"]["s"].test for result in (before, after)] == [[0.75], [0.25]]
    assert before.environment["code"] == again.environment["code"] != after.environment["code"]
    assert len(_runs(out)) == 2


def test_the_code_is_that_of_hf_ext_too(toy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    study, read = toy.make(), set()
    before, whole, addition = code_of(study), Path.read_bytes, b""
    trainers = str(Path("trainers", "base.py"))

    def changed(path: Path) -> bytes:
        read.add("/".join(path.parts[-2:]))
        return whole(path) + addition * str(path).endswith(trainers)

    monkeypatch.setattr(Path, "read_bytes", changed)
    assert code_of(study) == before
    addition = b"# a comment"
    assert code_of(study) == before
    addition = b"ANOTHER = 1"
    assert code_of(study) != before
    trained_with = {"mola/model.py", "mola/trainer.py", "disam/data.py", "hf_ext/_runs.py", "hf_ext/_small_models.py"}
    assert {"studies/toy.py", "studies/engine.py"} | trained_with <= read
    assert not {"studies/report.py", "hf_ext/_reports.py", "benchmarks/toy.py"} & read


_WORDS = '"""Words."""\n'
_FILES = {
    "together": {"one.py": f"{_WORDS}from two import B\nA = B  # and\ndef f():\n    return A\n", "two.py": "B = 1\n"},
    "moved": {"one.py": f"def f():\n    {_WORDS}    return A\n", "two.py": "A = B\n", "three.py": "import os\nB = 1"},
    "changed": {"one.py": "def f():\n    return A + 1\n", "two.py": "A = B\n", "three.py": "B = 1"},
}


def test_what_moves_from_file_to_file_is_the_same_code(tmp_path: Path) -> None:
    found = {}
    for name, files in _FILES.items():
        (tmp_path / name).mkdir()
        for file, source in files.items():
            (tmp_path / name / file).write_text(source)
        found[name] = sorted(text for path in (tmp_path / name).iterdir() for text in _definitions(path.read_bytes()))
    assert found["together"] == found["moved"] != found["changed"]


def test_functions_of_one_file_are_told_apart(toy: ModuleType) -> None:
    assert code_of(toy.make()) != code_of(toy.make(run=lambda run: toy.run(run)))


def test_runs_do_not_carry_the_grid(toy: ModuleType, given: dict[str, str], tmp_path: Path) -> None:
    """Which may be what no process can be sent, such as a lambda."""
    tuned = System("tuned", {"scores": [(1.0, 2.0), (3.0, 4.0)]}, lambda case: {"x": (0, 1)})
    reproduce(toy.make(systems=(tuned,), comparisons=()), out=tmp_path, data=given)
    assert {run.hyper_parameters["x"] for run in toy.RUNS} == {0, 1}
    for run in toy.RUNS:
        pickle.dumps(run)


def test_numbers_of_numpy_and_torch_are_numbers(toy: ModuleType, table: str, tmp_path: Path) -> None:
    def run(run: Any) -> Outcome:
        return Outcome(np.float32(0.5), torch.tensor(0.25), {"a": np.float32(0.5), "b": None})

    result = reproduce(toy.make(run=run), out=tmp_path, data={"first": table}, seeds=1)
    plain = result.cases["one"]["plain"]
    assert (plain.validation, plain.test, plain.details) == ([0.5], [0.25], {"a": [0.5], "b": [None]})


def test_reported_seeds_are_never_tuned_on(
    toy: ModuleType, table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_ext.studies.engine._FIRST_TUNING_SEED", 2)
    reproduce(toy.make(tuning_seeds=2), out=tmp_path, data={"first": table}, seeds=4)
    assert {run.seed for run in toy.RUNS if run.hyper_parameters.get("x") == 2} == {4, 5}


def test_the_home_folder_may_be_a_tilde(table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(Path(table).parent))
    assert describe("~/table.csv") == describe(table)
    assert (shown("~/table.csv"), shown("owner/name")) == ("table.csv", "owner/name")


def test_workers_do_not_outlive_a_killed_run() -> None:
    """They hold this process's end of the pipe: while one lives, the call below does not return."""
    code = """
import multiprocessing, os, signal
from concurrent.futures import ProcessPoolExecutor
from hf_ext.studies.engine import _quiet_worker

if __name__ == "__main__":
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(1, mp_context=spawn, initializer=_quiet_worker)
    print(pool.submit(os.getpid).result(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL and int(done.stdout) > 0, done.stderr
