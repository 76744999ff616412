"""SASRec: causal self-attention over a history (Kang and McAuley, ICDM 2018, https://arxiv.org/abs/1808.09781)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_recsys import SequentialRecommenderConfig


class SASRecLayer(GradientCheckpointingLayer):
    """Causal self-attention and a feed-forward layer, each followed by a layer norm of its sum with the input."""

    def __init__(self, config: SequentialRecommenderConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.inner_size
        self.heads = config.num_attention_heads
        self.attention_dropout = config.dropout if config.attention_dropout is None else config.attention_dropout
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_output = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.intermediate = nn.Linear(width, inner)
        self.activation = ACT2FN[config.activation]
        self.output = nn.Linear(inner, width)
        self.output_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, states: Tensor) -> Tensor:
        """`[B, L, D]` to `[B, L, D]`."""
        rows, length, width = states.shape
        projected = self.query_key_value(states).view(rows, length, 3, self.heads, width // self.heads)
        query, key, value = projected.permute(2, 0, 3, 1, 4).unbind(0)
        dropout = self.attention_dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        attended = self.attention_output(attended.transpose(1, 2).reshape(rows, length, width))
        states = self.attention_norm(states + self.dropout(attended))
        changed = self.output(self.activation(self.intermediate(states)))
        return self.output_norm(states + self.dropout(changed))


class SASRecEncoder(nn.Module):
    """Item embeddings with learnt positions through layers of causal attention."""

    def __init__(self, config: SequentialRecommenderConfig) -> None:
        super().__init__()
        self.positions = nn.Embedding(config.max_length, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(SASRecLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, embedded: Tensor) -> Tensor:
        """`[B, L, D]`, items in front, to states `[B, L, D]`, each of an item and those before it."""
        places = torch.arange(embedded.shape[1], device=embedded.device)
        states = self.dropout(self.norm(embedded + self.positions(places)))
        for layer in self.layers:
            states = layer(states)
        return states
