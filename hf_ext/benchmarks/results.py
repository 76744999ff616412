"""What a benchmark measured, as JSON and as markdown."""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hf_ext.studies.report import table
from hf_ext.studies.results import write_json


@dataclass
class Row:
    """One contender.

    Args:
        name: of the contender.
        milliseconds: median time of a step.
        ratio: median of its time over the reference's in the same round.
        operations_ratio: floating point operations over the reference's.
        megabytes: peak memory of a step.
        is_method: whether it is the method.
    """

    name: str
    milliseconds: float
    ratio: float
    operations_ratio: float
    megabytes: float
    is_method: bool = False


@dataclass
class BarResult:
    """An aim, the measured ratio of times, and the ratio of operations (no implementation of equal efficiency can be
    faster than that)."""

    subject: str
    peer: str
    at_most: float
    ratio: float
    floor: float

    @property
    def verdict(self) -> str:
        return "met" if self.ratio <= self.at_most else "not met"


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
        """Read what `save` wrote."""
        values: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
        rows = [Row(**row) for row in values["rows"]]
        bars = [BarResult(**bar) for bar in values["bars"]]
        return cls(**{**values, "rows": rows, "bars": bars})


def load_results(folder: Path) -> list[BenchmarkResult]:
    """All results that were saved in a folder, by the order in which reports show them."""
    found = [BenchmarkResult.load(path) for path in sorted(folder.glob("*.json"))]
    return sorted(found, key=lambda result: (result.device, result.name))


def write_report(folder: Path) -> Path:
    """Write `report.md` over all results in a folder, complete or not at all."""
    results = load_results(folder)
    quick = any(result.quick for result in results)
    parts = ["# Benchmarks", "**Quick runs: they show that everything works, not how fast.**"][: 1 + quick]
    parts += [
        "Steps are taken in turns, every contender once per round in an order drawn anew; times are medians over "
        "rounds, ratios medians of the ratios within a round. *Operations*: floating point operations over the "
        "reference's, as torch counts them. *Peak MB*: what one step holds at most beyond what was held before it.",
        bars_table(results),
    ]
    for result in results:
        rounds = f"{result.setting}. {result.rounds} rounds on {result.device}."
        parts += [f"## {result.title}", rounds, times_table(result)]
        parts += [", ".join(f"{name} {value}" for name, value in result.environment.items()), f"`{result.command}`"]
    path, part = folder / "report.md", folder / ".report.md.part"
    part.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    os.replace(part, path)
    return path


def times_table(result: BenchmarkResult) -> str:
    """Contenders with time, ratio, operations and memory, as a markdown table."""
    rows = [
        [
            f"**{row.name}**" if row.is_method else row.name,
            f"{row.milliseconds:.1f}",
            f"{row.ratio:.2f}",
            f"{row.operations_ratio:.2f}",
            f"{row.megabytes:.0f}",
        ]
        for row in result.rows
    ]
    return table([result.name, "ms per step", f"time / {result.reference}", "operations", "peak MB"], rows)


def bars_table(results: Iterable[BenchmarkResult]) -> str:
    """The aims of several benchmarks, as a markdown table."""
    rows = [
        [
            f"{result.name}, {result.device}",
            f"{bar.subject} vs {bar.peer}",
            f"{bar.ratio:.2f}",
            f"<= {bar.at_most:g}",
            f"{bar.floor:.2f}",
            bar.verdict,
        ]
        for result in results
        for bar in result.bars
    ]
    return table(["benchmark", "time of", "ratio", "aim", "ratio of operations", "verdict"], rows)
