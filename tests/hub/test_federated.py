"""`server_app(push_to_hub=True)`: what arrives of a federation, and that its card's own code loads it again."""

from collections.abc import Callable
from typing import Any

import pytest
from huggingface_hub import ModelCard
from server import Hub

pytest.importorskip("flwr")
pytestmark = pytest.mark.slow

TRAIN = """
import hf_ext, torch
from transformers import ViTConfig, ViTForImageClassification
from hf_ext.trainers.federated import FedGELA, FedGELAConfig, FedGELATrainer, client_app, server_app, simulate

data = hf_ext.data.load("digits")
clients = hf_ext.data.iid_partition(len(data["train"]), 3)
sizes = {"image_size": 8, "patch_size": 4, "num_channels": 1, "hidden_size": 16, "intermediate_size": 16}

def make(context):
    number = context.node_config.get("partition-id")
    torch.manual_seed(0)
    vit = ViTForImageClassification(ViTConfig(**sizes, num_hidden_layers=1, num_attention_heads=2, num_labels=10))
    args = FedGELAConfig("out", max_steps=2, report_to="none", use_cpu=True, disable_tqdm=True)
    rows = None if number is None else clients.client(data["train"], number)
    test = data["test"] if number is None else None
    return FedGELATrainer(hf_ext.replace_classifier(vit), args, train_dataset=rows, eval_dataset=test)

server = server_app(
    lambda _: FedGELA(fraction_evaluate=0.0), make, num_rounds=2, output_dir="me_global", push_to_hub=True
)
simulate(server, client_app(make, state_dir="me_global/.clients"), num_clients=3, in_process=True)
result = server.trainer.model.eval()(pixel_values=data["test"][:4]["pixel_values"]).logits.tolist()
"""
LOAD = """
data = hf_ext.data.load("digits")
result = model(pixel_values=data["test"][:4]["pixel_values"]).logits.tolist()
"""


def test_the_server_pushes_the_global_model_with_its_card(hub: Hub, in_process: Callable[..., Any]) -> None:
    trained = in_process(TRAIN)
    (name,) = hub.repos
    files = hub.repos[name].files()
    assert name.endswith("me_global") and {"model.safetensors", "config.json", "README.md"} <= set(files)
    assert not [file for file in files if file.startswith(("round-", ".clients")) or file.endswith(".bin")]
    text = ModelCard(files["README.md"].decode()).text
    assert "| strategy | FedGELA |" in text and "| clients known | 3 |" in text and "| **FedGELA** | loss |" in text
    snippet = text.split("```python\n")[1].split("```")[0]
    assert in_process(snippet + LOAD) == trained
