"""What a benchmark measured, as JSON and as markdown."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hf_ext._files import read_json, write_atomically
from hf_ext._reports import markdown_table, write_json
from hf_ext.benchmarks.tables import load_tables


@dataclass
class Row:
    """One contender.

    Args:
        name: of the contender.
        milliseconds: median time of a step.
        ratio: median of its time over the reference's in the same round.
        low, high: quartiles of these ratios.
        operations_ratio: floating point operations over the reference's.
        floor: the fewest operations of all contenders that do the same work, over the reference's.
        megabytes: peak memory of a step.
        kernels: how many a step launches on a GPU; 0 on the CPU.
        is_method: whether it is the method.
        times: seconds of every round.
    """

    name: str
    milliseconds: float
    ratio: float
    low: float
    high: float
    operations_ratio: float
    floor: float
    megabytes: float
    kernels: int = 0
    is_method: bool = False
    times: list[float] = field(default_factory=list)


@dataclass
class BarResult:
    """An aim and what was measured.

    Args:
        subject, peer, at_most: as in `Bar`.
        ratio: median of the subject's time over the peer's in the same round.
        low, high: quartiles of these ratios.
        floor: the fewest operations of all contenders that do the subject's work, over the peer's (no implementation
            as efficient as the peer's can have a smaller ratio).
    """

    subject: str
    peer: str
    at_most: float
    ratio: float
    low: float
    high: float
    floor: float

    @property
    def verdict(self) -> str:
        """Whether the aim is met, "unclear" where it lies between the quartiles."""
        return "met" if self.high <= self.at_most else "not met" if self.low > self.at_most else "unclear"


@dataclass
class BenchmarkResult:
    """All of a benchmark that ran: what `Benchmark` says, where it ran, what was measured."""

    name: str
    title: str
    setting: str
    reference: str
    device: str
    rounds: int
    rows: list[Row]
    bars: list[BarResult]
    environment: dict[str, str]
    command: str = ""
    quick: bool = False

    def save(self, path: Path) -> Path:
        """Write JSON, complete or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, asdict(self))
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "BenchmarkResult":
        """Read what `save` wrote, or an earlier version of it: without quartiles, and floors of rows their own."""
        values = read_json(path)
        rows = [Row(**{**_range(row), "floor": row["operations_ratio"], **row}) for row in values["rows"]]
        bars = [BarResult(**{**_range(bar), **bar}) for bar in values["bars"]]
        return cls(**{**values, "rows": rows, "bars": bars})


def _range(measured: Mapping[str, Any]) -> dict[str, float]:
    return {"low": measured["ratio"], "high": measured["ratio"]}


def load_results(folder: Path) -> list[BenchmarkResult]:
    """All results that were saved in a folder, by the order in which reports show them."""
    results = [BenchmarkResult.load(path) for path in sorted(folder.glob("*.json"))]
    return sorted(results, key=lambda result: (result.device, result.name))


def write_report(folder: Path) -> Path:
    """Write `report.md` over all results and tables in a folder, complete or not at all."""
    results, tables = load_results(folder), load_tables(folder)
    quick = any(result.quick for result in results) or any(table.quick for table in tables)
    parts = ["# Benchmarks", "**Quick runs: they show that everything works, not how fast.**"][: 1 + quick]
    parts += [
        "Steps are taken in turns, every contender once per round in an order drawn anew; times are medians over "
        "rounds, ratios medians of the ratios within a round, with their quartiles. *Met*: the upper quartile is "
        "within the aim; *unclear*: the aim is between the quartiles. *Operations*: floating point operations over "
        "the reference's, as torch counts them. *Floor*: the fewest operations of all contenders that do the same "
        "work, over the peer's; no implementation as efficient as the peer's is faster. *Peak MB*: what one step "
        "holds at most beyond what was held before it.",
        bars_table(results),
    ]
    for result in results:
        rounds = f"{result.setting}. {result.rounds} rounds on {result.device}."
        parts += [f"## {result.title}", rounds, times_table(result)]
        parts += [", ".join(f"{name} {value}" for name, value in result.environment.items()), f"`{result.command}`"]
    for table in tables:
        parts += [f"## {table.title}", table.setting, table.markdown()]
        parts += [", ".join(f"{name} {value}" for name, value in table.environment.items()), f"`{table.command}`"]
    path = folder / "report.md"
    write_atomically(path, "\n\n".join(parts) + "\n")
    return path


def times_table(result: BenchmarkResult) -> str:
    """Contenders with time, ratios, operations and memory, as a markdown table."""
    counted = any(row.kernels for row in result.rows)
    rows = [
        [
            f"**{row.name}**" if row.is_method else row.name,
            f"{row.milliseconds:.1f}",
            _ratio(row),
            f"{row.operations_ratio:.2f}",
            _over_floor(row),
            f"{row.megabytes:.0f}",
            *[str(row.kernels)] * counted,
        ]
        for row in result.rows
    ]
    header = ["ms per step", f"time / {result.reference}", "operations", "time / floor", "peak MB"]
    header += ["kernels"] * counted
    return markdown_table([result.name, *header], rows)


def bars_table(results: Iterable[BenchmarkResult]) -> str:
    """The aims of several benchmarks, as a markdown table."""
    rows = [
        [
            f"{result.name}, {result.device}",
            f"{bar.subject} vs {bar.peer}",
            _ratio(bar),
            f"<= {bar.at_most:g}",
            bar.verdict,
            f"{bar.floor:.2f}",
            _over_floor(bar),
        ]
        for result in results
        for bar in result.bars
    ]
    return markdown_table(["benchmark", "time of", "ratio", "aim", "verdict", "floor", "ratio / floor"], rows)


def _ratio(measured: Row | BarResult) -> str:
    """With quartiles, where there are any."""
    known = measured.low < measured.high
    return f"{measured.ratio:.2f}" + f" ({measured.low:.2f} to {measured.high:.2f})" * known


def _over_floor(measured: Row | BarResult) -> str:
    return f"{measured.ratio / measured.floor:.2f}" if measured.floor else "-"
