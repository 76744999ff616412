"""`hf-ext bench`: methods next to their peers, timed in turns."""

import argparse
import importlib
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType

from rich.console import Console
from rich.markdown import Markdown

from hf_ext.benchmarks import Benchmark, measure
from hf_ext.benchmarks.engine import available_devices, check_measurable
from hf_ext.benchmarks.results import BenchmarkResult, bars_table, times_table, write_report
from hf_ext.benchmarks.tables import FOLDER, MakeTable, Skipped
from hf_ext.commands.evidence import importable, named_methods, results_folder
from hf_ext.commands.readme import BENCH_FOLDER, update_readme
from hf_ext.hub_cards.methods import METHODS


def run(arguments: argparse.Namespace) -> None:
    """Measure, and leave `OUT/bench/BENCHMARK-DEVICE.json` and `OUT/bench/report.md` over all that are there.

    What a method measures in a way of its own, on the CPU, is in `OUT/bench/tables/NAME.json`, if it can be measured.

    Those of quick runs are in `OUT/quick/bench`, where they replace nothing else.

    Raises:
        ValueError: an unknown method, a device that is not there, or fewer than one round.
    """
    console, folder = Console(), results_folder(arguments)
    methods = named_methods(arguments.methods, arguments.all, "benchmarks")
    methods = importable(methods, "benchmarks", arguments.all, console)
    devices = (arguments.device,) if arguments.device else available_devices()
    for device in devices:
        check_measurable(device, arguments.rounds)
    out = folder / BENCH_FOLDER
    words = ["hf-ext", "bench", *methods]
    words += ["--quick"] if arguments.quick else ["--rounds", str(arguments.rounds)] if arguments.rounds != 15 else []
    measured: list[BenchmarkResult] = []
    for device in devices:
        for benchmark in benchmarks_of(methods):
            if device not in benchmark.devices:
                continue
            result = measure(
                benchmark,
                device=device,
                rounds=arguments.rounds,
                quick=arguments.quick,
                console=console,
                command=shlex.join([*words, "--device", device]),
            )
            result.save(out / f"{benchmark.name}-{result.device}.json")
            console.print(f"[bold]{benchmark.title}[/]: {benchmark.setting}", Markdown(times_table(result)))
            measured.append(result)
    if "cpu" in devices:
        for make in tables_of(methods):
            _measure_table(make, arguments, out, shlex.join([*words, "--device", "cpu"]), console)
    console.print(Markdown(bars_table(measured)))
    console.print(f"report: {write_report(out)}")
    if arguments.readme:
        update_readme(arguments.readme, folder)


def _measure_table(make: MakeTable, arguments: argparse.Namespace, out: Path, command: str, console: Console) -> None:
    try:
        table = make(arguments.rounds, arguments.quick)
    except Skipped as reason:
        console.print(f"left out: {reason}")
        return
    table.command = command
    table.save(out / FOLDER / f"{table.name}.json")
    console.print(f"[bold]{table.title}[/]: {table.setting}", Markdown(table.markdown()))


def benchmarks_of(methods: Iterable[str]) -> list[Benchmark]:
    """The benchmarks in these methods' modules."""
    return [benchmark for module in _modules(methods) for benchmark in module.BENCHMARKS]


def tables_of(methods: Iterable[str]) -> list[MakeTable]:
    """What measures the tables in these methods' modules, on the CPU."""
    return [make for module in _modules(methods) for make in getattr(module, "TABLES", ())]


def _modules(methods: Iterable[str]) -> Iterator[ModuleType]:
    names = [METHODS[name].module("benchmarks") for name in methods]
    return (importlib.import_module(name) for name in names if name)
