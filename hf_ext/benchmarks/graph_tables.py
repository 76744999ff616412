"""Large graphs: what an epoch of GPL takes and holds by the number of edges; updates on sampled neighbourhoods."""

import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch_geometric.data import Data

from hf_ext.benchmarks.engine import Step, one_thread
from hf_ext.benchmarks.memory import Run, in_own_process, peak_memory
from hf_ext.benchmarks.tables import Table
from hf_ext.benchmarks.training import update
from hf_ext.models import GraphPUConfig, GraphPUModel
from hf_ext.trainers import GPLConfig, GPLTrainer

DEGREE, FEATURES, WIDTH, PRIOR = 10, 64, 16, 0.3
EDGES, QUICK_EDGES = (10**4, 10**5, 10**6), (1000, 2000)
SAMPLED, QUICK_SAMPLED = (10**5, 10**6), (300, 600)
NEIGHBORS, SEEDS, UPDATES, EPOCHS = [10, 10], 1024, 10, 4
CPU = torch.device("cpu")


def random_graph(nodes: int, degree: int = DEGREE, features: int = FEATURES) -> Data:
    """Edges to random nodes in both directions, `nodes * degree` together; of a fifth of the nodes it is known that
    they are positive, and some of these are held out. The same at every call.
    """
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randint(nodes, (2, nodes * degree // 2), generator=generator)
    pairs[1] = torch.where(pairs[0] == pairs[1], (pairs[1] + 1) % nodes, pairs[1])
    known = torch.arange(nodes) % 5 == 0
    held_out = torch.arange(nodes) % 25 == 0
    return Data(
        x=torch.randn(nodes, features, generator=generator),
        edge_index=torch.cat([pairs, pairs.flip(0)], dim=1),
        positive_mask=known & ~held_out,
        held_out_mask=held_out,
    )


class EpochTrainer(GPLTrainer):
    """Begins an epoch before each update, as training does where an epoch is one update.

    With sampled neighbourhoods an epoch has many; then only the first update begins one.
    """

    _begun = 0

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        if self.epochs is None:
            self.begin_run()
        if self.args.gpl_neighbors is None or not self._begun:
            self.begin_epoch(self._begun)
            self._begun += 1
        return super().get_batch_samples(*args, **kwargs)


class _SampledBatches(Sequence[dict[str, Any]]):
    """One batch, with other seeds every time that it is asked for: drawing neighbours is timed."""

    def __init__(self, trainer: GPLTrainer, seeds: int) -> None:
        rows: Any = trainer.train_dataset
        self._rows, self._size, self._collate = rows, seeds, trainer.data_collator
        self._order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: Any) -> Any:
        self._order = self._order.roll(self._size)
        return self._collate([self._rows[int(row)] for row in self._order[: self._size]])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield self[0]


def epoch(data: Data, device: torch.device, *, width: int = WIDTH, **options: Any) -> Step:
    """An epoch of a GPLTrainer on a whole graph, after the warm-up."""
    torch.manual_seed(0)
    model = GraphPUModel(GraphPUConfig(num_features=data.x.shape[1], hidden_size=width))
    rows = [{"labels": torch.where(data.positive_mask, 1, 0).to(device)}]
    settings = {"gpl_warmup_epochs": 0, "gpl_prior": PRIOR, "learning_rate": 0.01, **options}
    return update(EpochTrainer, GPLConfig, model, rows, device, trainer_options={"train_dataset": data}, **settings)


def sampled_update(data: Data, seeds: int, **options: Any) -> Step:
    """An update on sampled neighbourhoods; the first begins the epoch."""
    torch.manual_seed(0)
    model = GraphPUModel(GraphPUConfig(num_features=data.x.shape[1], hidden_size=WIDTH))
    settings: dict[str, Any] = {
        "gpl_warmup_epochs": 0,
        "gpl_prior": PRIOR,
        "gpl_neighbors": NEIGHBORS,
        "per_device_train_batch_size": seeds,
        **options,
    }
    plain = GPLConfig(output_dir=tempfile.gettempdir(), use_cpu=True, report_to="none", **settings)
    batches = _SampledBatches(GPLTrainer(model=model, args=plain, train_dataset=data), seeds)
    return update(EpochTrainer, GPLConfig, model, batches, CPU, trainer_options={"train_dataset": data}, **settings)


# ------------------------------------------------------------------------------------------------ measuring
class Taken(NamedTuple):
    """Seconds of the first step and of later ones in the median, and bytes held at most beyond what was before."""

    first: float
    seconds: float
    bytes: int


def measure_epochs(edges: int, steps: int) -> Taken:
    """Epochs of GPL with a guide on a graph with so many edges."""
    data = random_graph(edges // DEGREE)
    return _measured(epoch(data, CPU, gpl_guide="mlp"), steps)


def measure_updates(nodes: int, seeds: int, steps: int) -> Taken:
    """Updates on sampled neighbourhoods in a graph with so many nodes; the first begins an epoch of GPL."""
    data = random_graph(nodes)
    return _measured(sampled_update(data, seeds, gpl_guide="self"), steps)


def _measured(step: Step, steps: int) -> Taken:
    seconds = []
    with one_thread(), peak_memory(every=0.01) as peak:
        for _ in range(steps):
            start = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - start)
    return Taken(seconds[0], statistics.median(seconds[1:]), peak.most - peak.before)


# ------------------------------------------------------------------------------------------------ tables
def edges_table(rounds: int, quick: bool, run: Run = in_own_process) -> Table:
    """Seconds and bytes by the number of edges, of graphs that are trained on whole."""
    sizes, steps = (QUICK_EDGES, 2) if quick else (EDGES, EPOCHS)
    found = [run(measure_epochs, edges, steps) for edges in sizes]
    rows = [
        [
            f"{edges:,}",
            f"{edges // DEGREE:,}",
            f"{taken.seconds:.3f}",
            f"{1e6 * taken.seconds / edges:.2f}",
            f"{taken.bytes / 2**20:,.0f}",
            f"{taken.bytes / edges:,.0f}",
        ]
        for edges, taken in zip(sizes, found, strict=True)
    ]
    return Table(
        name="gpl-edges",
        title="An epoch of GPL by the number of edges",
        setting=(
            f"Random graphs, {DEGREE} edges a node, {FEATURES} features, a GCN {WIDTH} wide, a guide and a number for "
            f"every edge: five steps of the edges, scores, selection, the guide's step, the update; median of "
            f"{steps - 1} epochs after the first, in a process of its own. *Peak MB*: what the process held at most "
            "beyond data and model, looked at every 10 ms"
        ),
        header=["edges", "nodes", "seconds an epoch", "microseconds an edge", "peak MB", "bytes an edge"],
        rows=rows,
        values={"edges": list(sizes), "taken": [taken._asdict() for taken in found]},
        quick=quick,
    )


def sampling_table(rounds: int, quick: bool, run: Run = in_own_process) -> Table:
    """Seconds and memory of updates on sampled neighbourhoods."""
    sizes, seeds, steps = (QUICK_SAMPLED, 16, 2) if quick else (SAMPLED, SEEDS, UPDATES)
    found = [run(measure_updates, nodes, seeds, steps) for nodes in sizes]
    rows = [
        [
            f"{nodes:,}",
            f"{nodes * DEGREE:,}",
            f"{1e3 * taken.seconds:.0f}",
            f"{max(0.0, taken.first - taken.seconds):.2f}",
            f"{taken.bytes / 2**20:,.0f}",
            f"{nodes * (4 * FEATURES + 16 * DEGREE) / 2**20:,.0f}",
        ]
        for nodes, taken in zip(sizes, found, strict=True)
    ]
    return Table(
        name="gpl-sampling",
        title="GPL on sampled neighbourhoods",
        setting=(
            f"The same graphs and network; {seeds} seeds an update, fan-outs {NEIGHBORS}; neighbours are drawn within "
            f"the update, median of {steps - 1}. *Seconds to begin an epoch*: steps of all edges, scores of all "
            "nodes, the selection. Each in a process of its own"
        ),
        header=["nodes", "edges", "ms an update", "seconds to begin an epoch", "peak MB", "MB of the graph itself"],
        rows=rows,
        values={"nodes": list(sizes), "taken": [taken._asdict() for taken in found]},
        quick=quick,
    )
