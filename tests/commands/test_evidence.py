"""`hf-ext reproduce` and `hf-ext bench` of a method that only its entry in the registry makes known."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hf_ext.benchmarks import BenchmarkResult
from hf_ext.benchmarks.tables import load_tables
from hf_ext.commands import readme
from hf_ext.commands.cli import main
from hf_ext.commands.evidence import named_methods
from hf_ext.hub_cards import METHODS, Method, register_method
from hf_ext.studies import StudyResult
from hf_ext.studies.results import Judged
from hf_ext.studies.statistics import Difference

pytestmark = pytest.mark.usefixtures("toy")
README = """# Words

<!-- results: toy -->
old
<!-- end of results -->
between
<!-- results: bench -->
<!-- end of results -->
<!-- results: mola -->
not run
<!-- end of results -->
"""


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return _table(tmp_path)


def _table(folder: Path) -> Path:
    path = folder / "private folder" / "table.csv"
    path.parent.mkdir()
    path.write_text("a,b\n1,2\n3,4\n")
    return path


def test_reproduce(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, text = tmp_path / "out", tmp_path / "README.md"
    text.write_text(README)
    words = ["reproduce", "toy", "--data", f"first={table}", "--seeds", "2", "--jobs", "1"]
    assert main([*words, "--out", str(out), "--readme", str(text)]) == 0
    result = StudyResult.load(out / "toy" / "results.json")
    assert result.seeds == [0, 1]
    assert result.command == "hf-ext reproduce toy --data first=table.csv --seeds 2"
    assert result.command in (out / "toy" / "report.md").read_text()
    printed = capsys.readouterr().out
    assert "+3.000 ± 0.000 shown" in printed and "± 70.711" in printed  # differences and scores
    assert "two was not run, no data: --data second=PATH_OR_HUB_ID" in " ".join(printed.split())
    head, _, rest = text.read_text().partition("<!-- results: toy -->\n")
    block, _, rest = rest.partition("\n<!-- end of results -->\nbetween\n")
    assert head == "# Words\n\n" and "old" not in text.read_text()
    assert block.startswith("| toy | one |\n| --- | --- |\n| tuned vs plain | **+3.000 ± 0.000 shown** |")
    assert f"`{result.command}`" in block and "(out/toy/report.md)" in block
    assert rest == README.partition("between\n")[2]  # of the others nothing is known here


def test_bench(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "README.md"
    text.write_text(README)
    words = ["bench", "toy", "--rounds", "3", "--device", "cpu", "--out", str(tmp_path), "--readme", str(text)]
    assert main(words) == 0
    result = BenchmarkResult.load(tmp_path / "bench" / "toy-products-cpu.json")
    assert (result.rounds, result.device) == (3, "cpu")
    assert result.command == "hf-ext bench toy --rounds 3 --device cpu"
    assert [bar.verdict for bar in result.bars] == ["met", "not met"]
    assert result.bars[0].floor == 0.5
    for where in (text.read_text(), (tmp_path / "bench" / "report.md").read_text()):
        assert "toy-products, cpu" in where and "| <= 1e+09 | met | 0.50 |" in where
    assert "64 rows" in capsys.readouterr().out


def test_bench_measures_tables_and_says_what_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "toy", "--device", "cpu", "--rounds", "3", "--out", str(tmp_path)]) == 0
    (table,) = load_tables(tmp_path / "bench")
    assert table.rows == [["rounds", "3"]] and table.values == {"rounds": 3} and not table.quick
    assert table.command == "hf-ext bench toy --rounds 3 --device cpu"
    report = (tmp_path / "bench" / "report.md").read_text()
    assert "## Counting\n\nby hand\n\n| a | b |\n| --- | --- |\n| rounds | 3 |" in report
    printed = capsys.readouterr().out
    assert "left out: toy-nothing, since there is nothing" in printed and "Counting: by hand" in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["reproduce"], "METHOD: found none, allowed are mola, "),
        (["reproduce", "nope"], "METHOD: found 'nope', allowed are mola, "),
        (["reproduce", "--all", "toy"], "METHOD: found --all and names, allowed are"),
        (["reproduce", "toy", "--study", "nope"], "--study: found 'nope', allowed are toy"),
        (["reproduce", "toy", "--data", "first"], "--data: found 'first', allowed is NAME=PATH_OR_HUB_ID"),
        (["reproduce", "toy", "--data", "third=x"], "--data: found 'third', allowed are first, second"),
        (["reproduce", "toy", "--data", "first=/no/such.csv"], "/no/such.csv"),
        (["reproduce", "toy"], "--data: found no data for toy"),
        (["reproduce", "toy", "--data", "first=/no/such.csv", "--jobs", "0"], "--jobs: found 0"),
        (["bench"], "METHOD: found none, allowed are mola, "),
        (["bench", "toy", "--rounds", "0"], "--rounds: found 0"),
        (["bench", "toy", "--device", "tpu"], "--device: found 'tpu', allowed are cpu"),
    ],
)
def test_mistakes_get_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_an_interruption_says_how_to_go_on(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_ext.commands.reproduce.reproduce", interrupted)
    assert main(["reproduce", "toy", "--data", f"first={table}", "--out", str(tmp_path)]) == 130
    assert "the same command goes on from there" in " ".join(capsys.readouterr().out.split())


def test_a_file_without_blocks_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("words")
    with pytest.raises(ValueError, match="--readme: found no"):
        readme.update_readme(tmp_path / "README.md", tmp_path)
    assert (tmp_path / "README.md").read_text() == "words"


def test_a_quick_run_is_named_in_the_file(table: Path, tmp_path: Path) -> None:
    text = tmp_path / "README.md"
    text.write_text(README)
    common = ["toy", "--quick", "--out", str(tmp_path), "--readme", str(text)]
    assert main(["reproduce", *common, "--data", f"first={table}", "--jobs", "1"]) == 0
    assert main(["bench", *common, "--device", "cpu"]) == 0
    assert text.read_text().count("(a quick run: it shows nothing but that everything works)") == 2


def test_tables_need_nothing_but_the_results(table: Path, tmp_path: Path) -> None:
    text = tmp_path / "README.md"
    text.write_text(README)
    words = ["reproduce", "toy", "--data", f"first={table}", "--jobs", "1", "--out", str(tmp_path)]
    assert main(words) == 0
    METHODS["toy"] = replace(METHODS["toy"], package="no_such_package")
    readme.update_readme(text, tmp_path)
    assert "| tuned vs plain | **+3.000 ± 0.000 shown** |" in text.read_text()


_DIFFERENCES = {
    "shown": Difference(2.0, 1.0, 3.0, 5),
    "not shown": Difference(0.0, -1.0, 1.0, 5),
    "reversed": Difference(-2.0, -3.0, -1.0, 5),
}


def _judged(method: str, baseline: str, detail: str | None = None, **verdicts: str) -> list[Judged]:
    """One comparison with a verdict for every case."""
    return [
        Judged(case.replace("_", ", "), method, baseline, _DIFFERENCES[verdict], detail)
        for case, verdict in verdicts.items()
    ]


def test_summary_has_every_claim_of_the_method(tmp_path: Path) -> None:
    judged = [
        *_judged("Cool-A", "SAM", faces_all="shown", faces_few="reversed", texts="shown"),
        *_judged("Cool-A", "SAM", "worst source", faces_all="reversed"),  # not the study's metric
        *_judged("SAM", "ERM", faces_all="shown"),  # of a baseline
        *_judged("Cool-B", "Cool-A", texts="not shown"),
    ]
    data = {"faces": {"given": "f.parquet"}, "texts": {"given": "me/words"}}
    result = StudyResult("cool", [0, 1, 2, 3, 4], {}, data, {}, {}, "hf-ext reproduce cool", judged=judged)
    result.save(tmp_path / "results" / "cool")
    page = tmp_path / "results" / "README.md"
    page.write_text("<!-- results: summary -->\n<!-- end of results -->\n")
    readme.update_readme(page, tmp_path / "results")
    assert page.read_text().splitlines()[1:-1] == [
        "| method | claim | verdict | n | data |",
        "| --- | --- | --- | --- | --- |",
        "| [Cool](cool/report.md) | Cool-A beats SAM | shown in 2 of 3, reversed in 1 (faces, few) | 5 | f, words |",
        "| [Cool](cool/report.md) | Cool-B beats Cool-A | not shown (texts) | 5 | words |",
    ]


@pytest.mark.parametrize(
    ("verdicts", "words"),
    [
        ({"a": "shown", "b": "shown"}, "shown in all 2"),
        ({"a": "reversed", "b": "reversed"}, "reversed in all 2 (a; b)"),
        ({"a": "reversed", "b": "reversed", "c": "not shown"}, "not shown in 1 of 3 (c), reversed in 2 (a; b)"),
        ({"a": "not shown", "b": "not shown", "c": "shown"}, "shown in 1 of 3 (c), not shown in 2"),
        ({"a": "reversed"}, "reversed (a)"),
    ],
)
def test_verdicts_in_words(verdicts: dict[str, str], words: str) -> None:
    assert readme.condensed(_judged("Cool", "SAM", **verdicts)) == words


def test_summary_counts_the_aims_for_speed(table: Path, tmp_path: Path) -> None:
    text = tmp_path / "README.md"
    text.write_text("<!-- results: summary -->\nold\n<!-- end of results -->\n")
    common = ["--out", str(tmp_path / "out"), "--readme", str(text)]
    assert main(["bench", "toy", "--rounds", "3", "--device", "cpu", *common]) == 0
    assert "old" in text.read_text()  # there is no study yet
    assert main(["reproduce", "toy", "--data", f"first={table}", "--jobs", "1", *common]) == 0
    assert "| [tuned](out/toy/report.md) | tuned beats plain | shown (one) | 3 | table |" in text.read_text()
    assert "Of 2 aims for speed: 1 met, 0 unclear, 1 not met ([report](out/bench/report.md))." in text.read_text()


def test_what_another_method_lacks_is_no_obstacle(table: Path, tmp_path: Path, toy: Method) -> None:
    register_method(replace(toy, name="another"))
    try:
        words = ["--data", f"first={table}", "--jobs", "1", "--seeds", "1", "--out", str(tmp_path / "out")]
        assert main(["reproduce", "toy", *words]) == 0
        assert main(["reproduce", "another", *words]) == 2
    finally:
        del METHODS["another"]


def test_studies_of_one_name_are_refused(toy: Method, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    register_method(replace(toy, name="twin"))
    try:
        assert main(["reproduce", "toy", "twin", "--out", str(tmp_path / "out")]) == 2
    finally:
        del METHODS["twin"]
    assert "STUDIES: found the names ['toy', 'toy'], allowed are different ones" in capsys.readouterr().err


def test_quick_runs_replace_nothing(table: Path, tmp_path: Path) -> None:
    study = ["reproduce", "toy", "--data", f"first={table}", "--jobs", "1", "--out", str(tmp_path)]
    bench = ["bench", "toy", "--rounds", "3", "--device", "cpu", "--out", str(tmp_path)]
    files = ["toy/results.json", "bench/toy-products-cpu.json"]
    for words in (study, bench):
        assert main(words) == 0
    before = [(tmp_path / file).read_bytes() for file in files]
    for words in (study, bench):
        assert main([*words, "--quick"]) == 0
    assert [(tmp_path / file).read_bytes() for file in files] == before
    assert all(json.loads((tmp_path / "quick" / file).read_text())["quick"] for file in files)


def test_as_many_processes_as_cores(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []

    def noted(*_: object, jobs: int, **__: object) -> None:
        given.append(jobs)
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_ext.commands.reproduce.reproduce", noted)
    monkeypatch.setattr("hf_ext.commands.reproduce.usable_cores", lambda: 7)
    for words in ([], ["--jobs", "3"]):
        main(["reproduce", "toy", "--data", f"first={table}", "--out", str(tmp_path), *words])
    assert given == [7, 3]


def test_all_means_all() -> None:
    assert {"mola", "toy"} <= set(named_methods([], True, "studies"))
    assert {"mola", "disam", "toy"} <= set(named_methods([], True, "benchmarks"))
    assert named_methods(["toy", "toy"], False, "studies") == ["toy"]


@pytest.mark.parametrize(("words", "kind"), [(["reproduce"], "studies"), (["bench"], "benchmarks")])
def test_all_leaves_out_what_lacks_a_requirement(
    words: list[str], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = tmp_path / "needy_package" / kind / "needy.py"
    module.parent.mkdir(parents=True)
    module.write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    others = replace(METHODS["toy"], package="no_such_package")  # in place, for METHODS has an order
    for name in METHODS.keys() - {"toy"}:
        monkeypatch.setitem(METHODS, name, others)
    monkeypatch.setitem(METHODS, "needy", replace(METHODS["toy"], name="needy", package="needy_package"))
    assert main([*words, "needy", "--quick", "--out", str(tmp_path)]) == 2
    assert "no_such_package" in capsys.readouterr().err
    data = ["--data", f"first={_table(tmp_path)}"] if kind == "studies" else ["--device", "cpu"]
    assert main([*words, "--all", "--quick", "--out", str(tmp_path), *data]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "needy is left out: No module named 'no_such_package'" in printed


def test_results_are_json(tmp_path: Path) -> None:
    assert main(["bench", "toy", "--quick", "--device", "cpu", "--out", str(tmp_path)]) == 0
    values = json.loads((tmp_path / "quick" / "bench" / "toy-products-cpu.json").read_text())
    assert values["quick"] and values["rounds"] == 2
    assert "Quick runs" in (tmp_path / "quick" / "bench" / "report.md").read_text()
