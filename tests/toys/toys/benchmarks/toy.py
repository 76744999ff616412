"""A benchmark of sums of tensors, and tables."""

import torch

from hf_ext.benchmarks import Bar, Benchmark, Contender
from hf_ext.benchmarks.engine import Step
from hf_ext.benchmarks.tables import Skipped, Table


def _product(rows: int) -> Contender:
    def make(device: torch.device, quick: bool) -> Step:
        left, right = torch.ones(rows, 64, device=device), torch.ones(64, 64, device=device)
        return lambda: left @ right

    return Contender(f"{rows} rows", make, is_method=rows == 64)


BENCHMARKS = (
    Benchmark(
        name="toy-products",
        title="Products",
        setting="64 columns",
        contenders=(_product(64), _product(128)),
        reference="128 rows",
        bars=(Bar("64 rows", "128 rows", 1e9), Bar("64 rows", "128 rows", 0.0)),
    ),
)


def _count(rounds: int, quick: bool) -> Table:
    values = {"rounds": rounds}
    return Table("toy-count", "Counting", "by hand", ["a", "b"], [["rounds", str(rounds)]], values, quick=quick)


def _nothing(rounds: int, quick: bool) -> Table:
    raise Skipped("toy-nothing, since there is nothing")


TABLES = (_nothing, _count)
