"""Train a tiny ViT with MoLA as the options file says and write what came out, in processes started by tests."""

import json
import os
import signal
import sys
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import get_peft_model
from safetensors.torch import save_file
from transformers import TrainerCallback, ViTConfig, ViTForImageClassification

from hf_ext.adapters import MoLAConfig
from hf_ext.trainers import MoLATrainer, MoLATrainingConfig


class LinearRouter(torch.nn.Module):
    """A router without BatchNorm, whose statistics would differ between one process and two."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(64, 3)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.linear(pixel_values.flatten(1))


def dataset() -> Dataset:
    rng = np.random.default_rng(0)
    columns = {
        "pixel_values": rng.normal(size=(48, 1, 8, 8)).astype("float32"),
        "labels": rng.integers(0, 10, 48),
        "task_ids": rng.integers(0, 3, 48),
    }
    return Dataset.from_dict(columns).with_format("torch")


class KillAtStep(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


class KilledWhileSaving(MoLATrainer):
    """Dies in the middle of the second checkpoint: weights written, random state and trainer_state.json not yet."""

    def _save_rng_state(self, output_dir: str) -> None:
        if output_dir.endswith("checkpoint-4"):
            os.kill(os.getpid(), signal.SIGKILL)
        super()._save_rng_state(output_dir)


def train(options: dict[str, Any]) -> dict[str, Any]:
    torch.manual_seed(0)
    dropout = options.get("dropout", 0.0)
    vit = ViTForImageClassification(
        ViTConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            image_size=8,
            patch_size=2,
            num_channels=1,
            num_labels=10,
            hidden_dropout_prob=dropout,
        )
    )
    adapter = {"target_modules": ["q_proj", "fc1"], "num_experts": 3, "r": 4, "modules_to_save": ["classifier"]}
    adapter |= options.get("adapter", {})
    if adapter.get("routing") == "router" and options.get("linear_router"):
        adapter["router"] = LinearRouter()
    model = get_peft_model(vit, MoLAConfig(**adapter))
    trainer_class = KilledWhileSaving if options.get("kill_while_saving") else MoLATrainer
    args = MoLATrainingConfig(
        **{
            "output_dir": options["output_dir"],
            "max_steps": 6,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            "dataloader_drop_last": True,
            "seed": 1,
            **options["training"],
        }
    )
    data = dataset()
    trainer = trainer_class(model=model, args=args, train_dataset=data, eval_dataset=data.select(range(20)))
    if step := options.get("kill_at"):
        trainer.add_callback(KillAtStep(step))
    trainer.train(resume_from_checkpoint=options.get("resume", False))
    metrics = trainer.evaluate()
    if trainer.is_world_process_zero():
        model = trainer.accelerator.unwrap_model(trainer.model)
        save_file({name: value.clone() for name, value in model.state_dict().items()}, options["weights"])
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {"num_processes": trainer.accelerator.num_processes, "history": history, "metrics": metrics}


def main() -> None:
    with open(sys.argv[1]) as file:
        options = json.load(file)
    torch.set_num_threads(1)
    results = [train(run) for run in options["runs"]]
    if int(os.environ.get("RANK", "0")) == 0:
        with open(options["result"], "w") as file:
            json.dump({"num_processes": results[0]["num_processes"], "runs": results}, file)


if __name__ == "__main__":
    main()
