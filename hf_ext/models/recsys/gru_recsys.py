"""GRU4Rec: a recurrent network over a history (Hidasi et al., ICLR 2016, https://arxiv.org/abs/1511.06939)."""

from torch import Tensor, nn

from .configuration_recsys import SequentialRecommenderConfig


class GRUEncoder(nn.Module):
    """Item embeddings through a GRU, whose states are mapped to the embeddings' width."""

    def __init__(self, config: SequentialRecommenderConfig) -> None:
        super().__init__()
        layers = config.num_hidden_layers
        self.dropout = nn.Dropout(config.dropout)
        self.gru = nn.GRU(
            config.hidden_size,
            config.inner_size,
            num_layers=layers,
            batch_first=True,
            dropout=config.dropout if layers > 1 else 0.0,
        )
        self.dense = nn.Linear(config.inner_size, config.hidden_size)

    def forward(self, embedded: Tensor) -> Tensor:
        """`[B, L, D]`, items in front, to states `[B, L, D]`, each of an item and those before it."""
        states, _ = self.gru(self.dropout(embedded))
        return self.dense(states)
