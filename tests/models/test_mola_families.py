"""MoLA in the vision backbone of FER matchers and in RD's student: what is trained, saved, merged and exported."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from toy_models import BACKBONES, backbone, embed

from hf_ext.adapters import MoLAConfig
from hf_ext.models import FERForImageClassification, RDForImageClassification

TARGETS: dict[str, Any] = {
    "resnet": ["convolution"],
    "vit": ["q_proj", "v_proj"],
    "convnext": ["patch_embeddings"],
    "timm": ["layer4.0.conv2", "layer4.0.conv1"],
}
CASES = [("fer", kind) for kind in BACKBONES] + [("rd", kind) for kind in ("resnet", "vit", "timm")]
TASKS = torch.tensor([0, 1, 2, 0, 1, 2])
LABELS = torch.tensor([0, 1, 2, 2, 1, 0])
Make = Callable[[], Any]


@pytest.fixture(params=CASES, ids="-".join)
def case(request: pytest.FixtureRequest, make_student: Callable[..., Any]) -> tuple[str, str, Make]:
    """Family, kind of the backbone, and what makes such a model, the same at every call."""
    family, kind = request.param

    def make() -> Any:
        torch.manual_seed(0)
        if family == "fer":
            return FERForImageClassification.from_backbones(backbone(kind), embed, ["happy", "sad", "neutral"])
        teacher = nn.Sequential(nn.AvgPool2d(8), nn.Flatten())
        return RDForImageClassification.from_student(make_student(kind), teacher, teacher_width=12)

    return family, kind, make


def _saved(case: tuple[str, str, Make]) -> list[str]:
    """What is trained in full beside the adapter; every student calls its classifier something else."""
    family, _, make = case
    return ["projection", "transformation"] if family == "fer" else [make().config.student_classifier, "phi"]


def _adapted(case: tuple[str, str, Make], **config: Any) -> PeftModel:
    _, kind, make = case
    shared = {"target_modules": TARGETS[kind], "modules_to_save": _saved(case), "num_experts": 3, "r": 2}
    return get_peft_model(make(), MoLAConfig(**shared, **config))


def _images() -> Tensor:
    return torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(4))


def _train(model: PeftModel) -> None:
    optimizer = torch.optim.SGD([value for value in model.parameters() if value.requires_grad], lr=0.01)
    model.train()
    for _ in range(3):
        optimizer.zero_grad()
        model(pixel_values=_images(), labels=LABELS, mola_task_ids=TASKS).loss.backward()
        optimizer.step()
    model.eval()


@pytest.mark.parametrize("routing", ["task", "router"])
def test_training_moves_the_adapter_alone_and_it_loads_again(
    case: tuple[str, str, Make], routing: str, tmp_path: Path
) -> None:
    *_, make = case
    model = _adapted(case, routing=routing)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    _train(model)
    assert all(value.grad is not None for value in model.parameters() if value.requires_grad)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert all("mola_" in name or "modules_to_save" in name for name in changed)
    for part in ("mola_B", *(f"{name}.modules_to_save" for name in _saved(case))):
        assert any(part in name for name in changed), part
    assert any("mola_router" in name for name in changed) == (routing == "router")

    model.save_pretrained(tmp_path)
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {path.name for path in tmp_path.iterdir()}
    loaded = PeftModel.from_pretrained(make(), str(tmp_path)).eval()
    logits = model(pixel_values=_images(), mola_task_ids=TASKS).logits
    assert torch.equal(loaded(pixel_values=_images(), mola_task_ids=TASKS).logits, logits)
    with model.disable_adapter():
        assert not torch.equal(model(pixel_values=_images()).logits, logits)


def test_one_task_becomes_a_plain_model_or_a_lora(case: tuple[str, str, Make], tmp_path: Path) -> None:
    *_, make = case
    model = _adapted(case)
    _train(model)
    expected = model(pixel_values=_images(), mola_task_ids=1).logits
    assert not torch.equal(expected, model(pixel_values=_images(), mola_task_ids=2).logits)
    merged = model.merge_task(1).eval()
    assert type(merged) is type(make()) and merged.state_dict().keys() == make().state_dict().keys()
    torch.testing.assert_close(merged(_images()).logits, expected, rtol=1e-4, atol=1e-5)
    merged.save_pretrained(tmp_path / "merged")
    again = type(merged).from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(again(_images()).logits, expected, rtol=1e-4, atol=1e-5)
    model.export_lora(1, str(tmp_path / "lora"))
    lora = PeftModel.from_pretrained(make(), str(tmp_path / "lora")).eval()
    torch.testing.assert_close(lora(_images()).logits, expected, rtol=1e-4, atol=1e-5)


def test_statistics_of_norms_stay(case: tuple[str, str, Make]) -> None:
    model = _adapted(case)
    before = {name: value.clone() for name, value in model.named_buffers() if "running" in name}
    _train(model)
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers() if "running" in name)


def test_task_ids_are_asked_for(case: tuple[str, str, Make]) -> None:
    model = _adapted(case)
    with pytest.raises(ValueError, match=r"mola_task_ids: found None, allowed is one task id in \[0, 3\) per sample"):
        model(pixel_values=_images())
    with model.set_task(1):
        alone = model(pixel_values=_images()).logits
    assert torch.equal(alone, model(pixel_values=_images(), mola_task_ids=[1] * 6).logits)
