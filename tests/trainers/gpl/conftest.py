"""A small graph of two classes, a model, and a trainer of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch_geometric.data import Data

from hf_ext.models import GraphPUConfig, GraphPUModel
from hf_ext.trainers import GPLConfig, GPLTrainer

NODES, FEATURES = 60, 5


@pytest.fixture
def graph() -> Callable[..., Data]:
    """Nodes of which a third are positive; edges join the same class with a probability, both ways."""

    def make(*, same: float = 0.8, separation: float = 1.0, known: int = 14, **values: Any) -> Data:
        generator = torch.Generator().manual_seed(0)
        truth = (torch.arange(NODES) % 3 == 0).long()
        x = torch.randn(NODES, FEATURES, generator=generator) + separation * truth[:, None]
        one, other = torch.randint(NODES, (2, 600), generator=generator)
        kept = torch.rand(600, generator=generator) < torch.where(truth[one] == truth[other], same, 1 - same)
        kept &= one < other
        pairs = torch.stack([one[kept], other[kept]]).unique(dim=1)[:, :150]
        positive = torch.zeros(NODES, dtype=torch.bool)
        positive[truth.nonzero()[:known, 0]] = True
        return Data(
            **{
                "x": x,
                "edge_index": torch.cat([pairs, pairs.flip(0)], dim=1),
                "positive_mask": positive,
                "pu_y": truth,
                **values,
            }
        )

    return make


@pytest.fixture
def model() -> Callable[..., GraphPUModel]:
    """A tiny model, the same at every call."""

    def make(**config: Any) -> GraphPUModel:
        torch.manual_seed(0)
        return GraphPUModel(GraphPUConfig(**{"num_features": FEATURES, "hidden_size": 8, "dropout": 0.5, **config}))

    return make


@pytest.fixture
def trainer(graph: Any, model: Any, tmp_path: Path) -> Callable[..., GPLTrainer]:
    """A trainer of the small graph, five epochs of warm-up in ten; keywords are its arguments."""

    def make(
        *,
        network: GraphPUModel | None = None,
        data: Any = None,
        kind: type = GPLTrainer,
        parts: Any = None,
        **args: Any,
    ) -> Any:
        values: dict[str, Any] = {
            "output_dir": str(tmp_path / "out"),
            "num_train_epochs": 10,
            "gpl_warmup_epochs": 5,
            "gpl_held_out": 0.3,
            "learning_rate": 0.02,
            "lr_scheduler_type": "constant",
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            **args,
        }
        return kind(
            model=model() if network is None else network,
            args=GPLConfig(**values),
            train_dataset=graph() if data is None else data,
            **(parts or {}),
        )

    return make
