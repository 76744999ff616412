"""A base model without a head for the data: what is new is trained and saved, so that every load gives the same."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification, ViTModel

from hf_ext.adapters import MoLAConfig
from hf_ext.commands.cli import main
from hf_ext.commands.lora import LoraArguments
from hf_ext.commands.mola import AdapterArguments

SIZES = {"image_size": 8, "patch_size": 4, "num_channels": 1, "hidden_size": 16, "intermediate_size": 16}
LAYERS = {"num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(params=["no head", "a head of another size"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    config = ViTConfig(**SIZES, **LAYERS, num_labels=3)
    kind: Any = ViTModel if request.param == "no head" else ViTForImageClassification
    kind(config).save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


def _load(folder: str, seed: int) -> Any:
    torch.manual_seed(seed)
    return AutoModelForImageClassification.from_pretrained(folder, num_labels=10, ignore_mismatched_sizes=True)


def _parameters(**settings: Any) -> dict[str, Any]:
    return {"target_modules": ["q_proj", "classifier"], "num_experts": 4, "r": 2, **settings}


def _logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval().get_base_model()(torch.ones(2, 1, 8, 8), mola_task_ids=0).logits


def test_the_command_line_trains_and_saves_it(folder: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = {"model_name_or_path": folder, "num_experts": 4, "r": 2, "output_dir": out, "max_steps": 1}
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    assert main(["train", "mola", *arguments, "--use_cpu", "true", "--save_strategy", "no"]) == 0
    first, second = (PeftModel.from_pretrained(_load(folder, seed), out) for seed in (0, 1))
    assert torch.equal(_logits(first), _logits(second))


@pytest.mark.parametrize("settings", [{"task_heads": ["classifier"]}, {"train_backbone": True}])
def test_options_that_save_it_already_are_left_alone(settings: dict[str, Any], folder: str) -> None:
    model: Any = AdapterArguments(num_experts=2, **settings).adapted(_load(folder, 0))
    assert not [name for name in model.peft_config["default"].modules_to_save or () if "classifier" in name]


@pytest.mark.parametrize("saved", [None, ["none"], ["layernorm"]])
def test_a_lora_from_the_command_line(saved: list[str] | None, folder: str) -> None:
    model: Any = LoraArguments(lora_r=2, lora_modules_to_save=saved).adapted(_load(folder, 0))
    assert "classifier" in model.peft_config["default"].modules_to_save


@pytest.mark.parametrize(
    "settings",
    [{}, {"routing": "router"}, {"modules_to_save": ["layernorm"]}, {"bias": "all"}, {"inference_mode": True}],
)
def test_in_python_it_is_refused(settings: dict[str, Any], folder: str) -> None:
    base = _load(folder, 0)
    message = r"modules_to_save: found .*, while \[.*'classifier.weight'.*\] .* allowed is \[.*'classifier'.*\]"
    with pytest.raises(ValueError, match=message):
        get_peft_model(base, MoLAConfig(**_parameters(**settings)))
    get_peft_model(base, MoLAConfig(**_parameters(**settings | {"modules_to_save": ["classifier", "layernorm"]})))


@pytest.mark.parametrize(
    "settings",
    [{"task_type": "SEQ_CLS"}, {"train_backbone": True}, {"task_heads": ["classifier"], "target_modules": ["q_proj"]}],
)
def test_in_python_what_saves_it_is_fine(settings: dict[str, Any], folder: str, tmp_path: Path) -> None:
    get_peft_model(_load(folder, 0), MoLAConfig(**_parameters(**settings))).save_pretrained(tmp_path / "x")
    first, second = (PeftModel.from_pretrained(_load(folder, seed), tmp_path / "x") for seed in (1, 2))
    assert torch.equal(_logits(first), _logits(second))


def test_a_further_adapter_needs_its_own(folder: str) -> None:
    model = get_peft_model(_load(folder, 0), MoLAConfig(**_parameters(modules_to_save=["classifier"])))
    with pytest.raises(ValueError, match="modules_to_save: found None, while"):
        model.add_adapter("other", MoLAConfig(**_parameters(target_modules=["q_proj"])))


def test_an_adapter_without_it_is_not_loaded(tmp_path: Path) -> None:
    """Trained on a base model with a head, put on one whose head is random."""
    whole = ViTForImageClassification(ViTConfig(**SIZES, **LAYERS, num_labels=10))
    whole.vit.save_pretrained(tmp_path / "headless")
    get_peft_model(whole, MoLAConfig(**_parameters(target_modules=["q_proj"]))).save_pretrained(tmp_path / "x")
    with pytest.raises(ValueError, match=r"have new, random values that its checkpoint does not hold"):
        PeftModel.from_pretrained(_load(str(tmp_path / "headless"), 0), tmp_path / "x")


def test_a_checkpoint_of_which_nothing_is_read_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All of the base model would be random, and in nobody's file."""
    ViTModel(ViTConfig(**SIZES, **LAYERS)).save_pretrained(tmp_path / "base")
    weights = load_file(tmp_path / "base" / "model.safetensors")
    save_file({f"other.{name}": one for name, one in weights.items()}, tmp_path / "base" / "model.safetensors")
    options = [
        "--model_name_or_path",
        str(tmp_path / "base"),
        "--num_experts",
        "4",
        "--output_dir",
        str(tmp_path / "x"),
    ]
    assert main(["train", "mola", *options, "--output_dir", str(tmp_path / "x"), "--use_cpu", "true"]) != 0
    assert "with weights for another model than a ViTForImageClassification" in capsys.readouterr().err
