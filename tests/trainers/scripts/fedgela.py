"""FedGELA's client around a tiny ViT."""

from typing import Any

from train import vit
from transformers import EvalPrediction

from hf_ext.models import replace_classifier
from hf_ext.trainers.federated import FedGELAConfig, FedGELATrainer


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    logits: Any = prediction.predictions
    return {"accuracy": float((logits.argmax(-1) == prediction.label_ids).mean())}


def build(options: dict[str, Any]) -> tuple[type[FedGELATrainer], type[FedGELAConfig], dict[str, Any]]:
    """Classes of the trainer and its arguments, and the trainer's keywords."""
    model = replace_classifier(vit(options), temperature=0.5)
    return FedGELATrainer, FedGELAConfig, {"model": model, "compute_metrics": accuracy}
