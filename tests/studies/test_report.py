"""Reports of studies: everything a reader needs, tables that nothing breaks."""

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from markdown_it import MarkdownIt

from hf_ext.studies import Case, Detail, Study, StudyResult, reproduce
from hf_ext.studies.report import report, score_table, verdict_table, write_report
from hf_ext.studies.statistics import Difference


@pytest.fixture
def study(toy: ModuleType) -> Study:
    made: Study = toy.make()
    return made


@pytest.fixture
def result(study: Study, table: str, tmp_path: Path) -> StudyResult:
    return reproduce(study, out=tmp_path / "out", data={"first": table}, command="hf-ext reproduce toy")


def _cells(markdown: str) -> list[list[str]]:
    """What a reader sees of the first table, row by row."""
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown)
    rows: list[list[str]] = []
    for token in tokens:
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline" and rows:
            rows[-1].append("".join(child.content for child in token.children or []))
        elif token.type == "table_close":
            break
    return rows


def test_verdicts_and_scores(study: Study, result: StudyResult) -> None:
    assert _cells(verdict_table(result)) == [
        ["toy", "one"],
        ["tuned vs plain", "+3.000 ± 0.000 shown"],
        ["tuned vs noisy", _cells(verdict_table(result))[2][1]],
    ]
    assert _cells(verdict_table(result))[2][1].endswith("not shown")
    assert _cells(score_table(study, result))[1:3] == [
        ["plain", "167.667 ± 208.167"],  # the levels of the seeds: 0, 100, 400
        ["tuned", "170.667 ± 208.167"],
    ]


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (1.0, 3.0, "+2.000 ± 1.000 shown"),
        (-1.0, 5.0, "+2.000 ± 3.000 not shown"),
        (-3.0, -1.0, "-2.000 ± 1.000 reversed"),
    ],
)
def test_the_words_of_verdicts(study: Study, result: StudyResult, low: float, high: float, words: str) -> None:
    result.judged[0].difference = Difference((low + high) / 2, low, high, 3)
    assert _cells(verdict_table(result))[1][1] == words


def test_the_report_has_all_that_is_needed_to_do_it_again(study: Study, result: StudyResult, tmp_path: Path) -> None:
    text = write_report(study, result, tmp_path).read_text()
    for part in (
        "Does it work?",
        "Scores are looked up.",
        "| one | tuned | x 1 | x 0: 1.000, x 1: 3.000, x 2: 2.000 |",  # the level of the tuning seed is 0
        result.data["first"]["sha256"],
        result.data["first"]["file_sha256"],
        "`table.csv`; rows: train 2",
        "two was not run, no data: --data second=PATH_OR_HUB_ID (the attic)",
        f"- torch: {result.environment['torch']}",
        "```bash\nhf-ext reproduce toy\n```",
        "3 seeds",
    ):
        assert part in text
    assert "quick run" not in text
    assert (tmp_path / "differences.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in tmp_path.iterdir()} >= {"report.md", "differences.png"}


def test_what_was_left_out_has_its_reason(study: Study, table: str, tmp_path: Path) -> None:
    needy = replace(study, data={**study.data, "second": replace(study.data["second"], needs="a, b")})
    result = reproduce(needy, out=tmp_path / "out", data={"first": table, "second": table})
    text = write_report(needy, result, tmp_path).read_text()
    assert "- noisy was not run on `second`: too noisy." in text
    assert "Columns: a, b. From: the attic" in text


def test_less_can_be_better(study: Study, table: str, tmp_path: Path) -> None:
    lower = replace(study, greater_is_better=False)
    result = reproduce(lower, out=tmp_path / "out", data={"first": table})
    text = write_report(lower, result, tmp_path).read_text()
    assert "Difference in points, baseline minus method (less is better), paired over 3 seeds" in text
    assert "method minus baseline" not in text


def test_a_quick_run_is_no_evidence(study: Study, result: StudyResult, tmp_path: Path) -> None:
    text = write_report(study, replace(result, quick=True), tmp_path).read_text()
    assert "A quick run: it shows that everything works, not how well anything works." in text


def test_what_was_not_chosen_is_not_called_chosen(
    study: Study, result: StudyResult, table: str, tmp_path: Path
) -> None:
    words = "Chosen on validation data"
    assert words in report(study, result)
    quick = report(study, reproduce(study, out=tmp_path / "quick", data={"first": table}, quick=True))
    assert words not in quick and "Not chosen: of several values the one in the middle was taken." in quick


def test_a_single_seed_has_no_interval(study: Study, table: str, tmp_path: Path) -> None:
    result = reproduce(study, out=tmp_path / "out", data={"first": table}, seeds=1)
    assert _cells(verdict_table(result))[1][1] == "+3.000, not shown"
    text = write_report(study, result, tmp_path).read_text()
    assert "1 seed" in text and "nan" not in text


def test_names_do_not_break_tables(study: Study, table: str, tmp_path: Path) -> None:
    odd = replace(study, cases=(Case("a | b $\\bad{$", "first"),))
    result = reproduce(odd, out=tmp_path / "out", data={"first": table})
    write_report(odd, result, tmp_path)
    assert _cells(verdict_table(result))[0] == ["toy", "a | b $\\bad{$"]


def test_details_are_judged_beside_the_metric(toy: ModuleType, table: str, tmp_path: Path) -> None:
    study = toy.make(details=(Detail("level", greater_is_better=False),))
    result = reproduce(study, out=tmp_path / "out", data={"first": table})
    assert _cells(verdict_table(result, "level"))[1] == ["tuned vs plain", "+0.000 ± 0.000 not shown"]
    assert _cells(verdict_table(result))[1] == ["tuned vs plain", "+3.000 ± 0.000 shown"]
    text = report(study, result)
    assert "**Level**, baseline minus method (less is better):" in text
    assert "| tuned | 166.667 ± 208.167 |" in text  # the details' own table, with their spread
    assert StudyResult.load(tmp_path / "out" / "results.json").judged == result.judged


def test_a_detail_where_less_is_better_favours_the_smaller(toy: ModuleType, table: str, tmp_path: Path) -> None:
    study = toy.make(details=(Detail("level", greater_is_better=False),))
    result = reproduce(study, out=tmp_path / "out", data={"first": table})
    result.cases["one"]["tuned"].details["level"] = [-1.0, 98.0, 397.0]  # 1, 2, 3 below the seeds' levels
    result.judge(study)
    assert _cells(verdict_table(result, "level"))[1][1].startswith("+2.000")


def test_a_detail_that_a_run_lacks_is_not_judged(toy: ModuleType, table: str, tmp_path: Path) -> None:
    study = toy.make(details=(Detail("level"),))
    result = reproduce(study, out=tmp_path / "out", data={"first": table})
    result.cases["one"]["noisy"].details["level"][1] = None
    result.judge(study)
    judged = {row.baseline for row in result.judged if row.detail == "level"}
    assert judged == {"plain"}
    assert len([row for row in result.judged if row.detail is None]) == 2
