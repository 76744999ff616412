import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

from .configuration_toy import ToyConfig


class ToyModel(PreTrainedModel):
    """Imports an Auto class, as models around a backbone do."""

    config_class = ToyConfig
    backbone_class = AutoModel

    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        self.shift = nn.Parameter(torch.zeros(1))
        self.post_init()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.shift
