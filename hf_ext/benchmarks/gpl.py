"""GPL's epoch next to a loop written by hand for the same network; large graphs, as tables."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import GCNConv

from hf_ext.benchmarks.engine import Bar, Benchmark, Contender, Step
from hf_ext.benchmarks.graph_tables import PRIOR, edges_table, epoch, random_graph, sampling_table

NODES, DEGREE, FEATURES, WIDTH = 20_000, 10, 128, 64
LOOP, RANKING_LOOP = "loop by hand", "loop by hand that ranks"
NAIVE, NNPU, RANK, WHOLE, GUIDED = "naive", "nnPU", "rank", "GPL", "GPL, guided"
_TRAINS, _RANKS = "an update", "an update and scores without dropout"


class Network(nn.Module):
    """Two layers, as PyTorch Geometric's examples have them."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.first, self.second = GCNConv(features, width, cached=True), GCNConv(width, 1, cached=True)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Logits `[N]`."""
        hidden = self.first(F.dropout(x, 0.5, self.training), edge_index).relu()
        logits: Tensor = self.second(F.dropout(hidden, 0.5, self.training), edge_index)[:, 0]
        return logits


def _graph(quick: bool) -> Data:
    return random_graph(200, 4, 8) if quick else random_graph(NODES, DEGREE, FEATURES)


def _loop(ranks: bool) -> Callable[[torch.device, bool], Step]:
    def make(device: torch.device, quick: bool) -> Step:
        data = _graph(quick).to(device)
        model = Network(data.x.shape[1], 8 if quick else WIDTH).to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        positive = data.positive_mask
        number = int(PRIOR * int((~positive).sum()))

        def targets() -> Tensor:
            if not ranks:
                return positive
            with torch.no_grad():
                scores = model.eval()(data.x, data.edge_index).masked_fill(positive, -torch.inf)
            return positive.index_fill(0, scores.topk(number).indices, True)

        def step() -> None:
            labels = targets().float()
            logits = model.train()(data.x, data.edge_index)
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(logits, labels).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

        return step

    return make


def _objective(**options: Any) -> Callable[[torch.device, bool], Step]:
    def make(device: torch.device, quick: bool) -> Step:
        settings = {"gpl_guide": "self", "width": 8 if quick else WIDTH, **options}
        return epoch(_graph(quick), device, **settings)

    return make


EPOCH = Benchmark(
    name="gpl-epoch",
    title="An epoch on a whole graph",
    setting=(
        f"a GCN of two layers, {WIDTH} wide, {NODES} nodes with {FEATURES} features, {NODES * DEGREE} edges; an epoch "
        "is one update, with all that comes before it, after the warm-up; AdamW, gradients clipped, the prior given. "
        f"*{LOOP}*: PyTorch Geometric's layers, cached, cross-entropy of known against unlabelled; *{RANKING_LOOP}*: "
        "with scores without dropout before, whose highest become positive"
    ),
    contenders=(
        Contender(LOOP, _loop(ranks=False), work=_TRAINS),
        Contender(RANKING_LOOP, _loop(ranks=True), work=_RANKS),
        Contender(NAIVE, _objective(gpl_objective="naive"), work=_TRAINS),
        Contender(NNPU, _objective(gpl_objective="nnpu"), work=_TRAINS),
        Contender(RANK, _objective(gpl_objective="rank"), work=_RANKS),
        Contender(WHOLE, _objective(), is_method=True),
        Contender(GUIDED, _objective(gpl_guide="mlp"), is_method=True),
    ),
    reference=LOOP,
    bars=(Bar(NAIVE, LOOP, 1.3), Bar(NNPU, LOOP, 1.3), Bar(RANK, LOOP, 1.3), Bar(RANK, RANKING_LOOP, 1.3)),
)

BENCHMARKS = (EPOCH,)
TABLES = (edges_table, sampling_table)
