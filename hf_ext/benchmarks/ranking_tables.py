"""Large catalogues: how long a ranking of all items for all users takes and what it holds, and one recommendation."""

import statistics
import time
from typing import NamedTuple

import torch

from hf_ext.benchmarks.engine import one_thread
from hf_ext.benchmarks.memory import Run, in_own_process, peak_memory
from hf_ext.benchmarks.recommenders import events, recommender
from hf_ext.benchmarks.tables import Table
from hf_ext.data.interactions import NextItems
from hf_ext.metrics import rank_targets

LENGTH, WIDTH, BATCH = 50, 64, 256
_NAMES = {"sasrec": "SASRec", "din": "DIN"}


class Size(NamedTuple):
    """Whose target is ranked among how many items by what."""

    architecture: str
    users: int
    items: int


#: with ten times the users, and a model that looks at every item and history together
RANKINGS = (Size("sasrec", 1000, 100_000), Size("sasrec", 10_000, 100_000), Size("din", 20, 10_000))
QUICK_RANKINGS = (Size("sasrec", 30, 200), Size("din", 20, 100))
CATALOGUES = (("sasrec", 100_000), ("din", 10_000))
QUICK_CATALOGUES = (("sasrec", 200), ("din", 100))


class Ranked(NamedTuple):
    """What a ranking took: seconds, and the bytes held at most beyond what was held before."""

    seconds: float
    bytes: int
    targets: int


def measure_ranking(size: Size) -> Ranked:
    """Rank the test target of every user among all items that are not in their history."""
    split = events(size.users, size.items, LENGTH)
    model = recommender(size.architecture, split, hidden_size=WIDTH, max_length=LENGTH)
    rows = NextItems(split, "test", max_length=LENGTH)
    with one_thread(), peak_memory(every=0.02) as peak:
        start = time.perf_counter()
        ranked = rank_targets(model, rows, batch_size=BATCH)
        seconds = time.perf_counter() - start
    return Ranked(seconds, peak.most - peak.before, len(ranked.ranks))


def measure_recommendations(architecture: str, items: int, calls: int) -> list[float]:
    """Seconds of every call of `recommend` for one user, from raw ids to titles."""
    split = events(4, items, LENGTH)
    model = recommender(architecture, split, hidden_size=WIDTH, max_length=LENGTH)
    generator = torch.Generator().manual_seed(0)
    seconds = []
    with one_thread():
        for call in range(calls + 2):
            history = torch.randint(1, items + 1, (LENGTH,), generator=generator).tolist()
            start = time.perf_counter()
            model.recommend(history, k=10)
            seconds += [time.perf_counter() - start] if call >= 2 else []  # the first two warm up
    return seconds


def ranking_table(rounds: int, quick: bool, run: Run = in_own_process) -> Table:
    """Full rankings, once each."""
    sizes = QUICK_RANKINGS if quick else RANKINGS
    found = [run(measure_ranking, size) for size in sizes]
    rows = [
        [
            _NAMES[size.architecture],
            f"{size.users:,}",
            f"{size.items:,}",
            f"{ranked.seconds:.1f}",
            f"{ranked.bytes / 2**20:,.0f}",
            f"{4 * size.users * size.items / 2**20:,.0f}",
        ]
        for size, ranked in zip(sizes, found, strict=True)
    ]
    return Table(
        name="causald-ranking",
        title="Full ranking",
        setting=(
            f"Every user's target among all items without the user's history of {LENGTH}, models {WIDTH} wide, "
            f"batches of at most {BATCH}; each once, in a process of its own. *Peak MB*: what the process held at "
            "most beyond what it held before (data and model), looked at every 20 ms; of DIN mostly what it computes "
            "of a chunk of items with every history"
        ),
        header=["model", "users", "items", "seconds", "peak MB", "MB of a matrix of all scores, float32"],
        rows=rows,
        values={
            "rankings": [size._asdict() | ranked._asdict() for size, ranked in zip(sizes, found, strict=True)],
        },
        quick=quick,
    )


def recommend_table(rounds: int, quick: bool, run: Run = in_own_process) -> Table:
    """Latency of `recommend`, over four calls a round."""
    sizes, calls = (QUICK_CATALOGUES, 2) if quick else (CATALOGUES, 4 * rounds)
    found = [run(measure_recommendations, architecture, items, calls) for architecture, items in sizes]
    rows = [
        [
            _NAMES[architecture],
            f"{items:,}",
            f"{1e3 * statistics.median(seconds):.1f}",
            f"{1e3 * max(statistics.quantiles(seconds, n=20, method='inclusive')):.1f}",
        ]
        for (architecture, items), seconds in zip(sizes, found, strict=True)
    ]
    return Table(
        name="causald-recommend",
        title="One recommendation",
        setting=(
            f"`recommend` for one user, from {LENGTH} raw ids to 10 titles without those of the history, models "
            f"{WIDTH} wide; {calls} calls"
        ),
        header=["model", "items", "ms, median", "ms, 95 % of calls are faster"],
        rows=rows,
        values={"seconds": [list(seconds) for seconds in found]},
        quick=quick,
    )
