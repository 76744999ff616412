"""Trainers of all kinds in a federation."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trl
from datasets import Dataset
from federation import CLASSES, factory, run_federation, tiny_vit, weights
from flwr.app import Context
from flwr.serverapp.strategy import FedAvg
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForImageClassification, GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from hf_ext.adapters import MoLAConfig
from hf_ext.models import replace_classifier
from hf_ext.trainers import MoLATrainer, MoLATrainingConfig
from hf_ext.trainers.federated import (
    FedGELA,
    FedGELAArguments,
    FedGELAConfig,
    FedGELAMixin,
    FedGELATrainer,
    FedLESAM,
    FedLESAMArguments,
    FedLESAMMixin,
    client_app,
    server_app,
)


def run(strategy: Any, make: Any, rounds: int = 2, **kwargs: Any) -> Any:
    server = server_app(strategy, make, num_rounds=rounds, **kwargs)
    server.grid = run_federation(server, client_app(make), 4)
    assert server.ledger.left_out == []
    return server


def averaging(context: Context) -> FedAvg:
    return FedAvg(fraction_evaluate=0.0)


def accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float(np.mean(prediction.predictions.argmax(-1) == prediction.label_ids))}


# ---------------------------------------------------------------------------------------------- FedGELA
def simplex() -> Any:
    return replace_classifier(tiny_vit())


def test_fedgela_reports_both_views_and_sends_no_head(tmp_path: Path) -> None:
    make = factory(
        FedGELATrainer,
        FedGELAConfig,
        output_dir=tmp_path / "clients",
        make_model=simplex,
        trainer_kwargs={"compute_metrics": accuracy},
        learning_rate=0.5,
        num_train_epochs=3,
    )
    server = run(lambda _: FedGELA(), make, rounds=3, output_dir=tmp_path / "out")
    assert {"eval_accuracy", "eval_personal_accuracy"} <= set(server.ledger.history["evaluate"][3])
    sent = next(message for message in server.grid.sent if message.metadata.message_type == "train")
    assert all("classifier" not in name for name in sent.content["arrays"])
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()
    pixels = torch.randn(2, 1, 4, 4)
    assert torch.equal(loaded(pixels).logits, server.trainer.model.eval()(pixels).logits)


def test_less_travels_than_with_a_learnt_head(tmp_path: Path) -> None:
    plain = run(averaging, factory(output_dir=tmp_path), rounds=1)
    make = factory(FedGELATrainer, FedGELAConfig, output_dir=tmp_path, make_model=simplex)
    ours = run(lambda _: FedGELA(fraction_evaluate=0.0), make, rounds=1)
    head = (8 + 1) * CLASSES * 4  # bytes, and numpy's headers
    assert plain.grid.bytes_sent[-1] - ours.grid.bytes_sent[-1] >= head


def test_fedlesam_and_fedgela_are_one_trainer(tmp_path: Path) -> None:
    class Both(FedLESAMMixin, FedGELAMixin, Trainer):
        pass

    @dataclass
    class BothConfig(FedLESAMArguments, FedGELAArguments, TrainingArguments):
        pass

    def strategy(context: Context) -> FedLESAM:
        return FedLESAM(fraction_evaluate=0.0)

    of = [
        run(strategy, factory(Both, BothConfig, output_dir=tmp_path, make_model=simplex, fedlesam_rho=rho))
        for rho in (0.0, 0.5)
    ]
    first, second = (weights(one.trainer) for one in of)
    assert any(not torch.equal(first[name], second[name]) for name in first)
    assert all(torch.equal(first[name], second[name]) for name in first if "classifier" in name)


# ---------------------------------------------------------------------------------------------- adapters
def test_mola_by_task_travels_as_an_adapter(tmp_path: Path) -> None:
    def mixture() -> Any:
        torch.manual_seed(1)
        return get_peft_model(
            tiny_vit(), MoLAConfig(target_modules=["q_proj"], num_experts=2, r=2, modules_to_save=["classifier"])
        )

    def with_tasks(data: Dataset) -> Dataset:
        return data.add_column("task_ids", [row % 2 for row in range(len(data))])

    make = factory(
        MoLATrainer, MoLATrainingConfig, output_dir=tmp_path / "clients", make_model=mixture, prepare=with_tasks
    )
    server = run(averaging, make, output_dir=tmp_path / "out")
    sent = next(message for message in server.grid.sent if message.metadata.message_type == "train")
    assert all("mola_" in name or "modules_to_save" in name for name in sent.content["arrays"])
    loaded = PeftModel.from_pretrained(tiny_vit(), tmp_path / "out").eval()
    pixels, tasks = torch.randn(2, 1, 4, 4), torch.tensor([0, 1])
    expected = server.trainer.model.eval()(pixel_values=pixels, mola_task_ids=tasks).logits
    assert torch.equal(loaded(pixel_values=pixels, mola_task_ids=tasks).logits, expected)


@pytest.mark.parametrize("lora", [False, True])
def test_trls_sft_trainer(tmp_path: Path, lora: bool) -> None:
    def make(context: Context) -> Any:
        torch.manual_seed(0)
        model: Any = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=16, n_positions=16))
        if lora:
            model = get_peft_model(model, LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True))
        client = context.node_config.get("partition-id", 0)
        generator = np.random.default_rng(client)
        rows = Dataset.from_dict({"input_ids": generator.integers(1, 16, size=(6, 8)).tolist()})
        return trl.SFTTrainer(
            model=model,
            args=trl.SFTConfig(
                output_dir=str(tmp_path / "clients"),
                per_device_train_batch_size=3,
                max_steps=2,
                learning_rate=0.1,
                optim="sgd",
                save_strategy="no",
                report_to="none",
                use_cpu=True,
                bf16=False,
                disable_tqdm=True,
                gradient_checkpointing=False,
            ),
            train_dataset=rows,
            processing_class=tokenizer(),
        )

    server = run(averaging, make)
    names = set(next(m for m in server.grid.sent if m.metadata.message_type == "train").content["arrays"])
    assert all(("lora_" in name) == lora for name in names)
    assert "lm_head.weight" not in names  # tied to the embeddings


def tokenizer() -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = {f"w{number}": number for number in range(16)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="w0")), unk_token="w0", pad_token="w0", eos_token="w1"
    )
