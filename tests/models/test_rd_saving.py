"""RD models: saved and loaded in every way, with and without this package, and in the ecosystem."""

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    PreTrainedModel,
    TimmWrapperForImageClassification,
    ViTImageProcessor,
    pipeline,
)
from transformers.dynamic_module_utils import get_imports

from hf_ext.models import RDConfig, RDForImageClassification, RDModel

Make = Callable[..., PreTrainedModel]
Batch = dict[str, Tensor]


def _make(student: PreTrainedModel, teacher: Any = None, **settings: Any) -> RDForImageClassification:
    return RDForImageClassification.from_student(student, teacher, **{"teacher_width": 12, **settings})


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# ------------------------------------------------------------------------------------------------ saving
def test_saved_and_loaded(
    make_student: Make, names: list[str], kind: str, batch: Batch, teacher: nn.Module, tmp_path: Path
) -> None:
    model = _make(make_student(kind), teacher, alpha=0.5).eval()
    model.save_pretrained(tmp_path)
    loaded: Any = AutoModelForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    again, report = loaded
    assert type(again) is RDForImageClassification and not any(report.values())
    assert _same(_weights(again), _weights(model)) and again.teacher is None
    torch.testing.assert_close(again(**batch).logits, model(**batch).logits)
    assert again.config.id2label == again.student.config.id2label == dict(enumerate(names))
    assert again.config.alpha == 0.5 and type(AutoConfig.from_pretrained(tmp_path)) is RDConfig
    again.attach_teacher(teacher)
    torch.testing.assert_close(again.train()(**batch).loss, model.train()(**batch).loss)


def test_the_features_load_as_auto_model(make_student: Make, kind: str, batch: Batch, tmp_path: Path) -> None:
    model = _make(make_student(kind)).eval()
    model.save_pretrained(tmp_path)
    loaded: Any = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    features, report = loaded
    assert type(features) is RDModel and not any(report.values())
    given = features(batch["pixel_values"], teacher_features=torch.ones(8, 12))
    expected = model(batch["pixel_values"], output_details=True)
    torch.testing.assert_close(given.pooler_output, expected.student_features)
    torch.testing.assert_close(given.reprogrammed, model.phi(torch.ones(8, 12)))
    assert list(features(batch["pixel_values"])) == ["pooler_output"]


def test_loading_with_other_classes(make_student: Make, kind: str, batch: Batch, tmp_path: Path) -> None:
    model = _make(make_student(kind))
    model.save_pretrained(tmp_path)
    again = RDForImageClassification.from_pretrained(tmp_path, num_labels=7, ignore_mismatched_sizes=True)
    assert again(batch["pixel_values"]).logits.shape == (8, 7) and again.student.config.num_labels == 7
    assert all(value.isfinite().all() and value.abs().max() < 100 for value in again.state_dict().values())
    assert _same(_weights(again.phi), _weights(model.phi))


def test_a_new_phi_is_initialised(make_student: Make, tmp_path: Path) -> None:
    """One of another width than the one on disk; from memory as it comes, it would be anything."""
    _make(make_student()).save_pretrained(tmp_path)
    again = RDForImageClassification.from_pretrained(tmp_path, phi_width=400, ignore_mismatched_sizes=True)
    for layer in (again.phi[0], again.phi[2]):
        bound = layer.in_features**-0.5
        assert 0.9 * bound < layer.weight.abs().max() <= bound and 0.5 * bound < layer.weight.std() < 0.65 * bound
        assert not layer.bias.any()


def test_labels_of_both_configurations_are_one(make_student: Make, tmp_path: Path) -> None:
    made = _make(make_student())
    made.save_pretrained(tmp_path / "model")
    for number, model in enumerate((made, RDForImageClassification.from_pretrained(tmp_path / "model"))):
        model.config.id2label = {label: f"class {number}{label}" for label in range(5)}
        model.save_student(tmp_path / "student")
        assert AutoConfig.from_pretrained(tmp_path / "student").id2label[4] == f"class {number}4"
    assert RDConfig(num_labels=3).student_config.num_labels == 3
    assert RDConfig(student_config={"model_type": "vit", "num_labels": 4}).num_labels == 4


def test_labels_of_a_timm_configuration_are_read_from_its_dictionary(make_student: Make, names: list[str]) -> None:
    config = RDConfig(student_config=make_student("timm").config.to_dict())
    assert list(config.id2label.values()) == names
    config.id2label = {0: "fox", 1: "gnu", 2: "hen"}
    written = config.to_dict()["student_config"]
    assert (written["num_classes"], written["label_names"]) == (3, ["fox", "gnu", "hen"])


def test_the_students_configuration_is_the_one_it_has(make_student: Make) -> None:
    student = make_student()
    model = RDForImageClassification(RDConfig(student_config=copy.deepcopy(student.config)), student)
    assert model.config.student_config is student.config


def test_from_a_student_on_disk(make_student: Make, batch: Batch, tmp_path: Path) -> None:
    make_student().save_pretrained(tmp_path)
    model = RDForImageClassification.from_student(
        tmp_path, teacher_width=12, student_options={"num_labels": 3, "ignore_mismatched_sizes": True}
    )
    assert model(batch["pixel_values"]).logits.shape == (8, 3)


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_the_student_alone_is_an_ordinary_model(
    make_student: Make, names: list[str], kind: str, batch: Batch, tmp_path: Path
) -> None:
    model = _make(make_student(kind)).eval()
    size = {"height": 16, "width": 16}
    model.save_student(tmp_path, ViTImageProcessor(size=size))
    student = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert type(student) is type(model.student)
    torch.testing.assert_close(student(batch["pixel_values"]).logits, model(batch["pixel_values"]).logits)
    assert student.config.id2label == dict(enumerate(names))
    assert AutoImageProcessor.from_pretrained(tmp_path).size["height"] == 16
    assert "rd" not in json.loads((tmp_path / "config.json").read_text())["model_type"]


def test_a_student_with_an_adapter_is_not_saved_as_an_ordinary_model(make_student: Make, tmp_path: Path) -> None:
    model = _make(make_student("vit"))
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ValueError, match=r"student: found '.*', a layer of peft, allowed .* merge_and_unload"):
        model.save_student(tmp_path)
    adapted.merge_and_unload().save_student(tmp_path)


@pytest.mark.parametrize(
    ("architecture", "arguments"), [("test_resnet", None), ("test_vit", {"depth": 2, "img_size": 16})]
)
def test_a_timm_student_loads_in_both_libraries(
    make_student: Make,
    names: list[str],
    batch: Batch,
    architecture: str,
    arguments: dict[str, Any] | None,
    tmp_path: Path,
) -> None:
    model = _make(make_student("timm", architecture=architecture, model_args=arguments)).eval()
    elsewhere = tmp_path.parent / "elsewhere"
    elsewhere.write_text("theirs")
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(elsewhere)
    model.save_student(tmp_path)
    assert elsewhere.read_text() == "theirs" and not any(path.name.startswith(".") for path in tmp_path.iterdir())
    expected = model(batch["pixel_values"]).logits
    here = AutoModelForImageClassification.from_pretrained(tmp_path)
    there = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert type(here) is TimmWrapperForImageClassification and here.config.id2label == dict(enumerate(names))
    torch.testing.assert_close(here(batch["pixel_values"]).logits, expected)
    torch.testing.assert_close(there(batch["pixel_values"]), expected)
    assert there.pretrained_cfg["label_names"] == names
    assert AutoImageProcessor.from_pretrained(tmp_path) is not None
    assert not list(tmp_path.glob("*.bin"))


# ------------------------------------------------------------------------------------------------ without hf_ext
ELSEWHERE = """
import importlib.abc, sys

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, *_):
        if name.split(".")[0] == "hf_ext":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
import torch
from transformers import AutoModelForImageClassification
model = AutoModelForImageClassification.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
images = torch.load(sys.argv[2])
torch.save(model(images).logits, sys.argv[3])
model.train()
try:
    model(images, torch.zeros(8, dtype=torch.int64), teacher_features=torch.zeros(8, 12))
except ImportError as error:
    print(error)
assert "hf_ext" not in sys.modules
"""


def test_the_whole_loads_without_this_package(make_student: Make, kind: str, batch: Batch, tmp_path: Path) -> None:
    model = _make(make_student(kind)).eval()
    model.save_pretrained(tmp_path / "model")
    torch.save(batch["pixel_values"], tmp_path / "images.pt")
    arguments = [str(tmp_path / name) for name in ("model", "images.pt", "logits.pt")]
    environment = os.environ | {"HF_HOME": str(tmp_path / "hf_home"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, *arguments], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().endswith("training an RD model with labels needs its loss")
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), model(batch["pixel_values"]).logits)


def test_the_code_that_travels_needs_transformers_alone(make_student: Make, tmp_path: Path) -> None:
    _make(make_student()).save_pretrained(tmp_path)
    files = list(tmp_path.glob("*.py"))
    assert len(files) == 7
    needed = {name for file in files for name in get_imports(file)} - set(sys.stdlib_module_names)
    assert needed == {"torch", "transformers", "huggingface_hub", "safetensors"}  # which transformers needs


def test_sharing_leaves_no_trace(make_student: Make, tmp_path: Path) -> None:
    model = _make(make_student())
    model.save_pretrained(tmp_path / "shared")
    written = json.loads((tmp_path / "shared" / "config.json").read_text())
    assert written["auto_map"]["AutoModel"] == "modeling_rd.RDModel"
    assert getattr(model.config, "auto_map", None) is None
    assert RDForImageClassification._auto_class is None and RDConfig._auto_class is None
    assert type(AutoModelForImageClassification.from_pretrained(tmp_path / "shared")) is RDForImageClassification


# ------------------------------------------------------------------------------------------------ ecosystem
def test_pipeline(make_student: Make, names: list[str], tmp_path: Path) -> None:
    _make(make_student()).save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    from PIL import Image

    found = pipeline("image-classification", str(tmp_path))(Image.new("RGB", (20, 20)))
    assert {entry["label"] for entry in found} == set(names)


def test_gradient_checkpointing_where_the_student_can(make_student: Make, batch: Batch, teacher: nn.Module) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = _make(make_student("vit"), teacher).train()
        if checkpointing:
            model.activation_checkpointing_enable()
            assert model.student.vit.layers[0].gradient_checkpointing
        model(**batch).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert all(torch.allclose(gradients[0][name], gradients[1][name], atol=1e-6) for name in gradients[0])
    timm_student = _make(make_student("timm", architecture="test_vit", model_args={"img_size": 16}))
    timm_student.activation_checkpointing_enable()
    assert timm_student.student.timm_model.grad_checkpointing
    with pytest.raises(ValueError, match="does not support activation checkpointing"):
        _make(make_student("resnet")).activation_checkpointing_enable()


def test_mixed_precision(make_student: Make, kind: str, batch: Batch, teacher: nn.Module) -> None:
    if kind == "timm":  # its last stage would see maps of 1 x 1: oneDNN's bfloat16 gradient of such weights is random
        batch = {**batch, "pixel_values": F.interpolate(batch["pixel_values"], scale_factor=2)}
    model = _make(make_student(kind), teacher).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(**batch).loss
    assert loss.dtype == torch.float32
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    half = _make(make_student(kind).bfloat16(), teacher).train()
    assert half.phi[0].weight.dtype == torch.bfloat16
    given = half(batch["pixel_values"].bfloat16(), batch["labels"])
    assert given.loss.isfinite() and given.loss.dtype == torch.float32


def test_export(make_student: Make, kind: str, batch: Batch) -> None:
    model = _make(make_student(kind)).eval()
    program = torch.export.export(model, (batch["pixel_values"],), strict=False)
    torch.testing.assert_close(program.module()(batch["pixel_values"]).logits, model(batch["pixel_values"]).logits)


def test_built_on_meta(make_student: Make) -> None:
    with torch.device("meta"):
        model = RDForImageClassification(RDConfig(student_config=make_student("vit").config, teacher_width=12))
    assert all(parameter.is_meta for parameter in model.parameters())
