"""The launch scripts run as their README says."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import ViTConfig, ViTForImageClassification, ViTModel

from hf_ext.models import FERForImageClassification

EXAMPLES = Path(__file__).parents[1] / "examples"


def _run(command: list[str], cwd: Path, **environment: str) -> str:
    everything = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment}
    done = subprocess.run(command, cwd=cwd, env=everything, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("configuration", "processes"), [("cpu", 1), ("cpu_2_processes", 2)])
def test_launch(configuration: str, processes: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    vit = ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, num_channels=1, num_labels=10, **sizes))
    vit.save_pretrained(tmp_path / "hf_ext_demo_mola" / "base_model")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", port]
    command += ["--config_file", str(EXAMPLES / "accelerate" / f"{configuration}.yaml")]
    command += [str(EXAMPLES / "mola.py"), "--config", str(EXAMPLES / "mola_digits.yaml"), "--max_steps", "2"]
    command += ["--eval_steps", "2", "--save_steps", "2", "--per_device_train_batch_size", "8", "--use_cpu", "true"]
    _run(command, tmp_path, **({"ACCELERATE_USE_CPU": "true"} if processes > 1 else {}))
    state = json.loads((tmp_path / "mola_digits" / "checkpoint-2" / "trainer_state.json").read_text())
    assert state["epoch"] == pytest.approx(2 / (2400 / 8 / processes))  # each process took its own share of the data
    assert (tmp_path / "mola_digits" / "README.md").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "folder", "updates", "shown"),
    [
        ("divbs", "hf_ext_demo_divbs", 2400 / 160, "divbs_ratio | 0.1"),  # an epoch is one pass over the candidates
        ("disam", "hf_ext_demo_disam", 2400 / 32, "disam_rho | 0.05"),
        ("tarf", "hf_ext_demo_divbs", 17, "tarf_k | 0.05"),  # of 32 of 533 rows
    ],
)
def test_launch_of_trainers(method: str, folder: str, updates: float, shown: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    vit = ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, num_channels=1, num_labels=10, **sizes))
    vit.save_pretrained(tmp_path / folder)
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", str(EXAMPLES / "accelerate" / "cpu.yaml"), str(EXAMPLES / f"{method}.py")]
    command += ["--config", str(EXAMPLES / f"{method}_digits.yaml"), "--max_steps", "2", "--use_cpu", "true"]
    _run(
        [*command, "--eval_strategy", "steps", "--eval_steps", "2", "--save_strategy", "steps", "--save_steps", "2"],
        tmp_path,
    )
    state = json.loads((tmp_path / f"{method}_digits" / "checkpoint-2" / "trainer_state.json").read_text())
    assert state["epoch"] == pytest.approx(2 / updates)
    card = (tmp_path / f"{method}_digits" / "README.md").read_text()
    assert "library_name: transformers" in card and f"| {shown} |" in card


@pytest.mark.slow
@pytest.mark.parametrize(("method", "options"), [("mola", ["--routing", "router"]), ("fer", [])])
def test_launch_with_sharded_weights(method: str, options: list[str], tmp_path: Path) -> None:
    """In two CPU processes that shard as GPUs would; with what accelerate cannot load in parts, buffers."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = ViTConfig(image_size=8, patch_size=4, num_channels=1, num_labels=10, **sizes)
    if method == "mola":
        ViTForImageClassification(config).save_pretrained(tmp_path / "hf_ext_demo_mola" / "base_model")
    else:
        names, texts = [str(digit) for digit in range(10)], torch.randn(10, 12)
        model = FERForImageClassification.from_backbones(ViTModel(config), lambda _: texts, names, neutral="0")
        model.save_pretrained(tmp_path / "hf_ext_demo_fer")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", port]
    command += ["--config_file", str(EXAMPLES / "accelerate" / "fsdp.yaml"), "--num_processes", "2"]
    command += [str(Path(__file__).parent / "trainers" / "scripts" / "sharded_example.py")]
    command += [
        str(EXAMPLES / f"{method}.py"),
        "--config",
        str(EXAMPLES / f"{method}_digits.yaml"),
        "--use_cpu",
        "true",
    ]
    command += ["--max_steps", "2", "--eval_steps", "2", "--save_steps", "2", "--per_device_train_batch_size", "8"]
    _run([*command, *options], tmp_path, ACCELERATE_USE_CPU="true")
    checkpoint = tmp_path / f"{method}_digits" / "checkpoint-2"
    assert (checkpoint / "pytorch_model_fsdp.bin").is_file()  # weights were sharded
    written = {"mola": "adapter_model.safetensors", "fer": "model.safetensors"}[method]
    for folder in (checkpoint, checkpoint.parent):
        assert all(bool(value.isfinite().all()) for value in load_file(folder / written).values())


def test_configurations_are_listed_and_readable() -> None:
    readme = (EXAMPLES / "README.md").read_text()
    for file in (EXAMPLES / "accelerate").iterdir():
        assert f"examples/accelerate/{file.name}" in readme
        assert yaml.safe_load(file.read_text())["num_processes"] >= 1
