"""Our models as ONNX files: what they predict stays the same, for batches of any size."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from toy_models import backbone, embed
from transformers import PreTrainedModel

from hf_ext.models import FERForImageClassification, RDForImageClassification, replace_classifier


class _Logits(nn.Module):
    """The one output that is wanted."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values).logits


def _matcher() -> PreTrainedModel:
    return FERForImageClassification.from_backbones(backbone("vit"), embed, ["happy", "sad", "neutral"])


def _student() -> PreTrainedModel:
    from transformers import ResNetConfig, ResNetForImageClassification

    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    student = ResNetForImageClassification(ResNetConfig(**sizes, num_labels=4))
    return RDForImageClassification.from_student(student, lambda pixels: pixels.mean((2, 3)), teacher_width=3)


def _simplex() -> PreTrainedModel:
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"image_size": 16, "patch_size": 8, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    return replace_classifier(ViTForImageClassification(ViTConfig(**sizes, num_attention_heads=2, num_labels=4)))


@pytest.mark.slow
@pytest.mark.parametrize("make", [_matcher, _student, _simplex], ids=["fer", "rd", "etf"])
def test_onnx(make: object, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = _Logits(make()).eval()  # type: ignore[operator]
    pixels = torch.randn(2, 3, 16, 16)
    file = tmp_path / "model.onnx"
    batch = torch.export.Dim("batch", min=1, max=64)
    torch.onnx.export(model, (pixels,), file, dynamo=True, dynamic_shapes={"pixel_values": {0: batch}})
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (name,) = (value.name for value in session.get_inputs())
    for rows in (pixels, torch.randn(5, 3, 16, 16)):
        (found,) = session.run(None, {name: rows.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(found, model(rows).numpy(), rtol=1e-4, atol=1e-4)
