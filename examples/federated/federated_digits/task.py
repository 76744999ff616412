"""What all nodes agree on: who has which digits, the model, and how it is trained."""

from functools import cache

import numpy as np
import torch
from datasets import DatasetDict
from flwr.app import Context
from transformers import Trainer, ViTConfig, ViTForImageClassification

from hf_ext.data import Partition, dirichlet_partition, load
from hf_ext.trainers.federated import FedLESAMConfig, FedLESAMTrainer


@cache
def digits() -> DatasetDict:
    return load("digits")


@cache
def partition(clients: int, alpha: float) -> Partition:
    return dirichlet_partition(digits()["train"], clients, alpha=alpha, column="labels", seed=0, min_size=8)


def make_model() -> ViTForImageClassification:
    torch.manual_seed(0)
    return ViTForImageClassification(
        ViTConfig(
            image_size=8,
            patch_size=2,
            num_channels=1,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            num_labels=10,
        )
    )


def accuracy(prediction) -> dict[str, float]:
    return {"accuracy": float(np.mean(prediction.predictions.argmax(-1) == prediction.label_ids))}


def make_trainer(context: Context) -> Trainer:
    """The Trainer of a client; without a partition-id that of the server, which evaluates the global model."""
    settings, client = context.run_config, context.node_config.get("partition-id")
    train = digits()["train"]
    if client is not None:
        clients = partition(int(settings["num-clients"]), float(settings["alpha"]))
        train = clients.client(train, int(client))
    return FedLESAMTrainer(
        model=make_model(),
        args=FedLESAMConfig(
            output_dir="federated_digits_out",
            per_device_train_batch_size=16,
            num_train_epochs=2,
            learning_rate=0.05,
            optim="sgd",
            lr_scheduler_type="constant",
            fedlesam_rho=float(settings["rho"]) if settings["strategy"] == "fedlesam" else 0.0,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=train,
        eval_dataset=digits()["test"],
        compute_metrics=accuracy,
    )
