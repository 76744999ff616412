"""Benchmarks: turns, medians of ratios, operations and memory; with a clock of the test's own."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_ext._environment import hardware, usable_cores
from hf_ext.benchmarks import Bar, Benchmark, BenchmarkResult, Contender, measure
from hf_ext.benchmarks.engine import Step, kernels_of, operations_of
from hf_ext.benchmarks.results import bars_table, load_results, times_table, write_report


class Clock:
    """Time that passes only in the steps of the contenders."""

    def __init__(self) -> None:
        self.now = 0.0
        self.steps: list[str] = []

    def contender(self, name: str, seconds: Callable[[int], float]) -> Contender:
        def make(device: torch.device, quick: bool) -> Step:
            def step() -> None:
                self.now += seconds(self.steps.count(name))
                self.steps.append(name)

            return step

        return Contender(name, make)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("hf_ext.benchmarks.engine.time.perf_counter", lambda: made.now)
    return made


def _benchmark(*contenders: Contender, **changes: Any) -> Benchmark:
    names = [contender.name for contender in contenders]
    return Benchmark(
        **{
            "name": "toy",
            "title": "Toy",
            "setting": "nothing",
            "contenders": contenders,
            "reference": names[-1],
            "bars": (Bar(names[0], names[-1], 1.05),),
            **changes,
        }
    )


def test_contenders_take_turns(clock: Clock) -> None:
    names = ["a", "b", "c"]
    measure(_benchmark(*(clock.contender(name, lambda _: 1.0) for name in names)), device="cpu", rounds=20)
    rounds = [clock.steps[start : start + 3] for start in range(0, 66, 3)]
    assert all(sorted(round_) == names for round_ in rounds)
    assert len({tuple(round_) for round_ in rounds}) > 3  # not always the same one first


def test_ratios_are_medians_of_the_ratios_within_a_round(clock: Clock) -> None:
    # both get slower with the rounds, a twice as slow as b but for one round; the first two are warm-up
    a = clock.contender("a", lambda count: 1000.0 if count < 2 else 100.0 if count == 5 else 2.0 * count)
    b = clock.contender("b", lambda count: 1.0 * max(1, count))
    result = measure(_benchmark(a, b), device="cpu", rounds=5)
    assert [row.ratio for row in result.rows] == pytest.approx([2.0, 1.0])
    assert [row.milliseconds for row in result.rows] == pytest.approx([8000.0, 4000.0])
    (bar,) = result.bars
    assert (bar.ratio, bar.verdict) == (pytest.approx(2.0), "not met")


def _product(name: str, rows: int) -> Contender:
    def make(device: torch.device, quick: bool) -> Step:
        left, right = torch.ones(rows, 256), torch.ones(256, 256)
        return lambda: left @ right

    return Contender(name, make, is_method=name == "half")


def test_operations_and_memory_are_counted() -> None:
    result = measure(_benchmark(_product("half", 512), _product("whole", 1024)), device="cpu", rounds=1)
    half, whole = result.rows
    assert (half.operations_ratio, whole.operations_ratio, result.bars[0].floor) == (0.5, 1.0, 0.5)
    assert half.megabytes == pytest.approx(0.5, rel=0.1)  # 512 x 256 float32
    assert whole.megabytes == pytest.approx(1.0, rel=0.1)
    assert half.is_method and not whole.is_method


def test_grouped_convolutions_are_counted_as_their_groups() -> None:
    def operations(groups: int) -> int:
        convolution = torch.nn.Conv2d(8, 16, 3, groups=groups, bias=False)
        x = torch.randn(2, 8, 5, 7, requires_grad=True)
        return operations_of(lambda: convolution(x).sum().backward())

    one = 2 * (2 * 16 * 3 * 5) * (8 * 3 * 3)  # a multiplication and an addition for each output and factor
    assert [operations(groups) for groups in (1, 2, 8)] == [3 * one, 3 * one // 2, 3 * one // 8]


def test_kernels_are_counted_and_shown_where_there_are_any(clock: Clock) -> None:
    x = torch.ones(3)
    assert [kernels_of(lambda: x + x), kernels_of(lambda: (x + x) * x)] == [1, 2]
    result = measure(_benchmark(clock.contender("a", lambda _: 1.0)), device="cpu", rounds=1)
    assert "kernels" not in times_table(result)
    result.rows[0].kernels = 7
    assert times_table(result).splitlines()[0].endswith("| kernels |")
    assert times_table(result).splitlines()[-1].endswith("| 7 |")


def test_a_floor_is_that_of_the_work_and_not_of_its_implementation() -> None:
    contenders = [replace(_product(name, rows), work=work) for name, rows, work in _WORKS]
    result = measure(_benchmark(*contenders, bars=(Bar("wasteful", "peer", 9e9),)), device="cpu", rounds=1)
    assert [row.floor for row in result.rows] == [0.25, 0.25, 2.0, 1.0]
    assert [row.operations_ratio for row in result.rows] == [0.5, 0.25, 2.0, 1.0]
    (bar,) = result.bars
    assert bar.floor == 0.25
    assert bars_table([result]).endswith(f"| met | 0.25 | {bar.ratio / 0.25:.2f} |")
    assert f"| {result.rows[0].ratio / 0.25:.2f} |" in times_table(result)


_WORKS = (("wasteful", 512, "sum"), ("frugal", 256, "sum"), ("other", 2048, None), ("peer", 1024, None))


@pytest.mark.parametrize(
    ("at_most", "verdict"), [(1.0, "not met"), (1.19, "not met"), (1.25, "unclear"), (1.3, "unclear"), (1.41, "met")]
)
def test_an_aim_within_the_spread_is_neither_met_nor_missed(clock: Clock, at_most: float, verdict: str) -> None:
    a = clock.contender("a", lambda count: 1 + count / 10 - 0.1)  # after the warm-up 1.1, 1.2, 1.3, 1.4, 1.5
    b = clock.contender("b", lambda _: 1.0)
    result = measure(_benchmark(a, b, bars=(Bar("a", "b", at_most),)), device="cpu", rounds=5)
    (bar,) = result.bars
    assert (bar.low, bar.ratio, bar.high) == (pytest.approx(1.2), pytest.approx(1.3), pytest.approx(1.4))
    assert bar.verdict == verdict
    assert f"| 1.30 (1.20 to 1.40) | <= {at_most:g} | {verdict} |" in bars_table([result])
    assert result.rows[0].times == pytest.approx([1.1, 1.2, 1.3, 1.4, 1.5])


def test_results_of_before_quartiles_are_still_shown(clock: Clock, tmp_path: Path) -> None:
    benchmark = _benchmark(*(clock.contender(name, lambda _: 1.0) for name in ("a", "b")))
    result = measure(benchmark, device="cpu", rounds=1)
    values = asdict(result)
    for row in values["rows"]:
        del row["low"], row["high"], row["floor"], row["times"]
    for bar in values["bars"]:
        del bar["low"], bar["high"]
    (tmp_path / "old.json").write_text(json.dumps(values))
    old = BenchmarkResult.load(tmp_path / "old.json")
    assert bars_table([old]) == bars_table([result]) and times_table(old) == times_table(result)


def test_the_cpu_is_not_called_by_the_gpus_name(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Big GPU")
    assert hardware() == hardware("cuda") == "2 x Big GPU"
    result = measure(_benchmark(clock.contender("a", lambda _: 1.0)), device="cpu", rounds=1)
    assert result.environment["hardware"] == hardware("cpu") and hardware("cpu").endswith(f"{usable_cores()} cores")


def test_one_thread_and_back_again() -> None:
    seen = []

    def make(device: torch.device, quick: bool) -> Step:
        def fail() -> None:
            seen.append(torch.get_num_threads())
            raise ArithmeticError

        return fail

    torch.set_num_threads(2)
    try:
        with pytest.raises(ArithmeticError):
            measure(_benchmark(Contender("a", make)), device="cpu")
        assert (seen, torch.get_num_threads()) == ([1], 2)
    finally:
        torch.set_num_threads(1)


def test_quick_is_two_rounds_of_the_small_thing(clock: Clock) -> None:
    small = []
    contender = clock.contender("a", lambda _: 1.0)

    def make(device: torch.device, quick: bool) -> Step:
        small.append(quick)
        return contender.make(device, quick)

    result = measure(_benchmark(Contender("a", make)), device="cpu", quick=True, rounds=7)
    assert (small, result.quick, result.rounds) == ([True], True, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"rounds": 0}, "--rounds: found 0"), ({"device": "tpu"}, "--device: found 'tpu', allowed are cpu")],
)
def test_mistakes_are_found_before_anything_is_made(options: dict[str, Any], message: str) -> None:
    def make(device: torch.device, quick: bool) -> Step:
        raise AssertionError

    with pytest.raises(ValueError, match=message):
        measure(_benchmark(Contender("a", make)), **options)


def test_names_have_to_fit() -> None:
    for changes in ({"reference": "z"}, {"bars": (Bar("a", "z", 1.0),)}, {"bars": (Bar("z", "a", 1.0),)}):
        with pytest.raises(ValueError, match="contenders: found no 'z'"):
            _benchmark(_product("a", 1), **changes)
    with pytest.raises(ValueError, match=r"contenders: found the names \['a', 'a'\], allowed are different ones"):
        _benchmark(_product("a", 1), _product("a", 2))


def test_results_come_back_and_are_shown(clock: Clock, tmp_path: Path) -> None:
    benchmark = _benchmark(clock.contender("a | b", lambda _: 1.0), clock.contender("c", lambda _: 1.0))
    result = measure(benchmark, device="cpu", rounds=2, command="hf-ext bench toy")
    result.save(tmp_path / "toy-cpu.json")
    assert BenchmarkResult.load(tmp_path / "toy-cpu.json") == result
    assert load_results(tmp_path) == [result]
    assert "| a \\| b | 1000.0 | 1.00 | 0.00 | - |" in times_table(result)
    assert "| toy, cpu | a \\| b vs c | 1.00 | <= 1.05 | met | 0.00 | - |" in bars_table([result])
    text = write_report(tmp_path).read_text()
    for part in ("## Toy", "nothing. 2 rounds on cpu.", "`hf-ext bench toy`", times_table(result), "threads 1"):
        assert part in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.md", "toy-cpu.json"]
