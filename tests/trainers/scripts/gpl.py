"""GPL: a small graph of two classes, and a network of two layers."""

from typing import Any

import torch
from torch_geometric.data import Data

from hf_ext.models import GraphPUConfig, GraphPUModel
from hf_ext.trainers import GPLConfig, GPLTrainer

_NODES, _FEATURES = 48, 5


def graph() -> Data:
    """48 nodes of which a third are positive, and 12 of these known; edges both ways."""
    generator = torch.Generator().manual_seed(0)
    truth = (torch.arange(_NODES) % 3 == 0).long()
    x = torch.randn(_NODES, _FEATURES, generator=generator) + truth[:, None]
    pairs = torch.randint(_NODES, (2, 160), generator=generator)
    pairs = pairs[:, pairs[0] < pairs[1]]
    positive = torch.zeros(_NODES, dtype=torch.bool)
    positive[truth.nonzero()[:12, 0]] = True
    both = torch.cat([pairs, pairs.flip(0)], dim=1)
    return Data(x=x, edge_index=both, positive_mask=positive, pu_y=truth)


def build(options: dict[str, Any]) -> tuple[type[GPLTrainer], type[GPLConfig], dict[str, Any]]:
    """Classes of the trainer and its arguments, and the trainer's keywords."""
    torch.manual_seed(3)
    scorer = bool(options.get("scorer"))
    config = GraphPUConfig(
        num_features=_FEATURES, hidden_size=8, dropout=options.get("dropout", 0.0), edge_scorer=scorer
    )
    data = graph()
    return GPLTrainer, GPLConfig, {"model": GraphPUModel(config), "train_dataset": data, "eval_dataset": data}
