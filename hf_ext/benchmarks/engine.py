"""Measures contenders side by side: rounds in which each takes one step, in an order drawn anew for every round."""

import gc
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from torch.profiler import DeviceType, ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from hf_ext._environment import hardware, versions
from hf_ext._runs import progress_bars
from hf_ext.benchmarks.results import BarResult, BenchmarkResult, Row

Step = Callable[[], object]
os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or torch's profiler prints a line at every start and stop
_WARM_UP = 2  # rounds that are not counted


@dataclass(frozen=True)
class Contender:
    """Something to be timed.

    Args:
        name: as in the tables, unique in the benchmark.
        make: builds it on a device, small if `quick`, and returns one step of it (such as forward and backward).
        is_method: whether tables print it bold.
        work: what it computes, if others compute the same: the fewest operations among them are the floor of all.
    """

    name: str
    make: Callable[[torch.device, bool], Step]
    is_method: bool = False
    work: str | None = None


@dataclass(frozen=True)
class Bar:
    """What is aimed at: `subject` takes at most `at_most` times as long as `peer` (names of contenders)."""

    subject: str
    peer: str
    at_most: float


@dataclass(frozen=True)
class Benchmark:
    """Contenders for the same work.

    Args:
        name: the method's, then a word: "mola-layers".
        title: one line.
        setting: sizes, in words.
        contenders: what is timed.
        reference: name of the contender that all are compared with.
        bars: what is aimed at.
        devices: those that `hf-ext bench` measures it on.

    Raises:
        ValueError: a name that no contender has, or that two have.
    """

    name: str
    title: str
    setting: str
    contenders: tuple[Contender, ...]
    reference: str
    bars: tuple[Bar, ...] = ()
    devices: tuple[str, ...] = ("cpu", "cuda")

    def __post_init__(self) -> None:
        names = [contender.name for contender in self.contenders]
        if len(set(names)) < len(names):
            raise ValueError(f"contenders: found the names {names}, allowed are different ones")
        for name in (self.reference, *(name for bar in self.bars for name in (bar.subject, bar.peer))):
            if name not in names:
                raise ValueError(f"contenders: found no {name!r}, allowed are {names}")


def available_devices() -> tuple[str, ...]:
    """The CPU and, if there is one, the GPU."""
    return ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


def check_measurable(device: str, rounds: int) -> None:
    """Refuse a device that is not there, or fewer than one round.

    Raises:
        ValueError: for either.
    """
    if rounds < 1:
        raise ValueError(f"--rounds: found {rounds}, allowed are integers >= 1")
    if device not in available_devices():
        raise ValueError(f"--device: found {device!r}, allowed are {', '.join(available_devices())}")


def measure(
    benchmark: Benchmark,
    *,
    device: str | None = None,
    rounds: int = 15,
    quick: bool = False,
    console: Console | None = None,
    command: str = "",
) -> BenchmarkResult:
    """Time all contenders; ratios are medians, with quartiles, over rounds of the ratio within a round.

    On the CPU one thread is used. Operations are those torch's FLOP counter sees in one step; peak memory is what one
    step holds at most beyond what was held before it; on a GPU the kernels of one step are counted too.

    Args:
        benchmark: what to measure.
        device: "cpu" or "cuda"; by default the GPU if there is one.
        rounds: counted rounds.
        quick: small sizes and two rounds: shows that everything works.
        console: where progress is shown.
        command: noted in the results.

    Raises:
        ValueError: fewer than one round, or a device that is not there.
    """
    chosen = device or available_devices()[-1]
    check_measurable(chosen, rounds)
    place, rounds = torch.device(chosen), 2 if quick else rounds
    with one_thread():
        times, operations, memory, kernels = _measure(benchmark, place, rounds, quick, console)

    def ratios(name: str, peer: str) -> tuple[float, float, float]:
        """Lower quartile, median and upper quartile."""
        by_round = [a / b for a, b in zip(times[name], times[peer], strict=True)]
        if len(by_round) == 1:
            return by_round[0], by_round[0], by_round[0]
        low, middle, high = statistics.quantiles(by_round, n=4, method="inclusive")
        return low, middle, high

    def least(name: str) -> int:
        """The fewest operations that the same work was done with."""
        work = {contender.name: contender.work for contender in benchmark.contenders}
        same = [other for other in work if other == name or work[other] == work[name] is not None]
        return min(operations[other] for other in same)

    def row(contender: Contender) -> Row:
        low, ratio, high = ratios(contender.name, benchmark.reference)
        whole = max(1, operations[benchmark.reference])
        return Row(
            contender.name,
            milliseconds=1e3 * statistics.median(times[contender.name]),
            ratio=ratio,
            low=low,
            high=high,
            operations_ratio=operations[contender.name] / whole,
            floor=least(contender.name) / whole,
            megabytes=memory[contender.name] / 2**20,
            kernels=kernels[contender.name],
            is_method=contender.is_method,
            times=times[contender.name],
        )

    def judged(bar: Bar) -> BarResult:
        low, ratio, high = ratios(bar.subject, bar.peer)
        floor = least(bar.subject) / max(1, operations[bar.peer])
        return BarResult(bar.subject, bar.peer, bar.at_most, ratio, low, high, floor)

    return BenchmarkResult(
        name=benchmark.name,
        title=benchmark.title,
        setting=benchmark.setting,
        reference=benchmark.reference,
        device=chosen,
        rounds=rounds,
        rows=[row(contender) for contender in benchmark.contenders],
        bars=[judged(bar) for bar in benchmark.bars],
        environment={**versions(), "hardware": hardware(chosen), "threads": "1"},
        command=command,
        quick=quick,
    )


@contextmanager
def one_thread() -> Iterator[None]:
    """While this lasts torch computes on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _measure(
    benchmark: Benchmark, device: torch.device, rounds: int, quick: bool, console: Console | None
) -> tuple[dict[str, list[float]], dict[str, int], dict[str, int], dict[str, int]]:
    torch.manual_seed(0)
    steps = {contender.name: contender.make(device, quick) for contender in benchmark.contenders}
    times: dict[str, list[float]] = {name: [] for name in steps}
    operations, memory, kernels = {}, {}, {}
    with progress_bars(console) as progress:
        bar = progress.add_task(f"{benchmark.name} on {device.type}", total=_WARM_UP + rounds)
        for round_ in range(_WARM_UP + rounds):
            for name in random.Random(round_).sample(list(steps), len(steps)):
                seconds = _timed(steps[name], device)
                if round_ >= _WARM_UP:
                    times[name].append(seconds)
            progress.advance(bar)
    for name, step in steps.items():
        operations[name] = operations_of(step)
        memory[name] = _peak_memory(step, device)
        kernels[name] = kernels_of(step) if device.type == "cuda" else 0
    return times, operations, memory, kernels


def operations_of(step: Step) -> int:
    """Floating point operations of a step, as torch counts them, and grouped convolutions as what they are."""
    counted = {torch.ops.aten.convolution_backward: _convolution_backward}
    with FlopCounterMode(display=False, custom_mapping=counted) as counter:
        step()
    return counter.get_total_flops()


def _convolution_backward(grad: list[int], x: list[int], weight: list[int], *options: Any, **_: Any) -> int:
    """Each gradient takes what the forward pass takes (torch counts that of a grouped kernel `groups` times)."""
    transposed, mask = options[4], options[7]
    return conv_flop_count(x, weight, grad, transposed) * sum(mask[:2])


def kernels_of(step: Step) -> int:
    """What a step launches: kernels and copies on the GPU; without one, operators that call no others."""
    activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * torch.cuda.is_available()]
    with profile(activities=activities) as profiler:
        step()
    events = profiler.events() or []
    if torch.cuda.is_available():
        return sum(event.device_type == DeviceType.CUDA for event in events)
    return sum(not event.cpu_children for event in events)


def _timed(step: Step, device: torch.device) -> float:
    gc.collect()  # not in the middle of a step
    _wait(device)
    start = time.perf_counter()
    step()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _peak_memory(step: Step, device: torch.device) -> int:
    """Bytes that one step holds at most, beyond what was held before."""
    if device.type == "cuda":
        _wait(device)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        _wait(device)
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    results = profiler.profiler.kineto_results if profiler.profiler is not None else None
    changes = [event for event in results.events() if event.name() == "[memory]"] if results is not None else []
    held = most = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most
