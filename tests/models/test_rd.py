"""RD models: the student as it was, a teacher that leaves no trace."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn
from toy_models import clip
from transformers import (
    AutoModel,
    CLIPImageProcessor,
    ConvNextImageProcessor,
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    Dinov2Config,
    Dinov2ForImageClassification,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    ResNetModel,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

from hf_ext.functional import rd_losses
from hf_ext.models import RDForImageClassification

Make = Callable[..., PreTrainedModel]
Batch = dict[str, Tensor]


def _make(student: PreTrainedModel, teacher: Any = None, **settings: Any) -> RDForImageClassification:
    return RDForImageClassification.from_student(student, teacher, **{"teacher_width": 12, **settings})


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# ------------------------------------------------------------------------------------------------ the student
def test_the_students_weights_stay(make_student: Make, names: list[str], kind: str) -> None:
    student = make_student(kind)
    before = _weights(student)
    model = _make(student)
    assert model.student is student and _same(_weights(model.student), before)
    assert model.config.num_labels == 5 and model.config.id2label == dict(enumerate(names))


def test_weights_that_transformers_does_not_know_stay(make_student: Make) -> None:
    """Modules that came in after the student was made carry no mark that they are initialised."""
    student = make_student("timm")
    student.timm_model = timm.create_model("test_resnet", num_classes=5)
    nn.init.normal_(student.timm_model.fc.weight)
    before = _weights(student)
    assert _same(_weights(_make(student).student), before)


def test_inference_is_the_students(make_student: Make, kind: str, batch: Batch, teacher: nn.Module) -> None:
    student = make_student(kind)
    expected = copy.deepcopy(student)(batch["pixel_values"])
    model = _make(student, teacher).eval()
    given = model(batch["pixel_values"])
    assert list(given) == ["logits"] and torch.equal(given.logits, expected.logits)
    with_loss = model(**batch)
    assert list(with_loss) == ["loss", "logits"] and torch.equal(with_loss.logits, expected.logits)
    assert torch.equal(with_loss.loss, nn.functional.cross_entropy(expected.logits, batch["labels"]))
    assert torch.equal(model(batch["pixel_values"], return_dict=False)[0], expected.logits)


def test_evaluation_needs_no_teacher_and_does_not_ask_it(make_student: Make, batch: Batch) -> None:
    def refuse(_: Tensor) -> Tensor:
        raise AssertionError("asked")

    student = make_student()
    without, refusing = _make(student).eval()(**batch), _make(student, refuse).eval()(**batch)
    assert torch.equal(without.loss, refusing.loss)
    _make(student, refuse).train()(batch["pixel_values"])  # no labels, no loss


def test_hidden_states_are_the_students(make_student: Make, batch: Batch) -> None:
    student = make_student("vit")
    given = _make(student)(batch["pixel_values"], output_hidden_states=True)
    assert len(given.hidden_states) == len(student(batch["pixel_values"], output_hidden_states=True).hidden_states)


def test_the_classifier_is_found(make_student: Make, kind: str, batch: Batch) -> None:
    model = _make(make_student(kind)).eval()
    given = model(batch["pixel_values"], output_details=True)
    assert given.student_features.shape == (8, model.classifier.in_features)
    assert torch.allclose(model.classifier(given.student_features), given.logits, atol=1e-6)
    assert model.phi[-1].out_features == model.classifier.in_features


def test_features_of_a_classifier_wider_than_the_model_says() -> None:
    sizes = {"image_size": 16, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = _make(Dinov2ForImageClassification(Dinov2Config(**sizes, num_labels=5)))
    assert model.classifier.in_features == 32 == model.phi[-1].out_features
    assert model(torch.randn(2, 3, 16, 16), output_details=True, teacher_features=torch.randn(2, 12)).logits.shape


def test_a_classifier_behind_a_norm(make_student: Make, batch: Batch) -> None:
    student = make_student("timm", architecture="test_vit", model_args={"img_size": 16})
    student.timm_model.head = nn.Sequential(nn.BatchNorm1d(64), nn.Linear(64, 5))
    given = _make(student).eval()(batch["pixel_values"], output_details=True)
    assert torch.allclose(student.timm_model.head[1](given.student_features), given.logits, atol=1e-6)


def test_students_without_one_linear_classifier_are_refused(make_student: Make) -> None:
    identity = make_student("timm")
    identity.timm_model.reset_classifier(0)
    with pytest.raises(ValueError, match=r"student: found .* in TimmWrapper.*, allowed is one Linear .* 5 outputs"):
        _make(identity)
    convolution = make_student("resnet")
    convolution.classifier = nn.Sequential(nn.Conv2d(16, 5, 1), nn.Flatten())
    with pytest.raises(ValueError, match="student: found no linear layer in ResNet"):
        _make(convolution)
    sizes = {"image_size": 16, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    two = DeiTForImageClassificationWithTeacher(DeiTConfig(**sizes, num_labels=5))
    with pytest.raises(ValueError, match="found cls_classifier with 5 outputs, distillation_classifier with 5"):
        _make(two)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_labels": 7}, "num_labels: found 7, allowed is that of the student, 5"),
        ({"id2label": {0: "a"}}, "num_labels: found 1, allowed is that of the student, 5"),
        ({"student_classifier": "nowhere"}, "student_classifier: found 'nowhere', which does not exist"),
        ({"student_classifier": "resnet"}, "student_classifier: found 'resnet', which is ResNet"),
        ({"student_options": {"num_labels": 5}}, "student_options: found some with a student"),
        ({"alpha": -1.0}, "alpha: found -1.0"),
        ({"temperature": 0.0}, "temperature: found 0.0"),
        ({"teacher_width": 0}, "teacher_width: found 0"),
        ({"phi_kind": "transformer"}, "phi_kind: found 'transformer', allowed are mlp, conv"),
        ({"teacher_inputs": "other"}, "teacher_inputs: found 'other', allowed are same, pixel_values, features"),
        ({"teacher_mean": [0.5]}, r"teacher_std: found None with teacher_mean=\[0.5\]"),
        ({"pixel_mean": [0.5], "pixel_std": [0.0]}, "pixel_std: found 0.0, allowed are numbers > 0"),
        ({"teacher_size": [8]}, r"teacher_size: found \[8\]"),
        ({"teacher": 3}, "teacher: found int, allowed are a model"),
    ],
)
def test_wrong_settings_are_refused(make_student: Make, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _make(make_student(), **settings)


def test_a_bare_timm_model_is_refused() -> None:
    with pytest.raises(ValueError, match="student: found ResNet, allowed are an image classifier of transformers"):
        _make(timm.create_model("test_resnet"))


# ------------------------------------------------------------------------------------------------ the loss
def test_the_loss_is_the_equation(make_student: Make, kind: str, batch: Batch, teacher: nn.Module) -> None:
    weights = {"alpha": 0.5, "gamma": 2.0, "beta": 0.25, "temperature": 3.0}
    model = _make(make_student(kind), teacher, **weights).train()
    model.student.eval()  # norms and dropout as below
    given = model(**batch, output_details=True)
    features = model.phi(teacher(batch["pixel_values"]))
    head = model.classifier
    expected = rd_losses(features, given.student_features, batch["labels"], head.weight, head.bias, **weights)
    for name, value in expected.items():
        torch.testing.assert_close(given.losses[name], value)
    torch.testing.assert_close(given.loss, expected["total"])
    torch.testing.assert_close(model(**batch).loss, given.loss)
    assert list(model(**batch)) == ["loss", "logits"]


def test_all_learn_but_the_teacher(make_student: Make, kind: str, batch: Batch, teacher: nn.Module) -> None:
    model = _make(make_student(kind), teacher).train()
    model(**batch).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in teacher.parameters())


def test_detached_the_alignment_moves_the_student_only(make_student: Make, batch: Batch, teacher: nn.Module) -> None:
    model = _make(make_student(), teacher, alpha=0.0, detach_reprogrammed=True).train()
    model(**batch).loss.backward()
    assert all(parameter.grad is None for parameter in model.phi.parameters())
    assert model.classifier.weight.grad.any()


def test_evaluation_gives_terms_on_request(make_student: Make, batch: Batch, teacher: nn.Module) -> None:
    model = _make(make_student(), teacher).eval()
    given = model(**batch, output_details=True)
    assert given.loss == given.losses["student"] != given.losses["total"]
    without = _make(make_student()).eval()(**batch, output_details=True)
    assert without.losses is None and without.reprogrammed is None and without.student_features is not None


@pytest.mark.parametrize("labels", [torch.zeros(8), torch.zeros(8, 5), torch.zeros(8, 1, dtype=torch.int64)])
def test_labels_that_are_no_classes_are_refused(make_student: Make, batch: Batch, labels: Tensor) -> None:
    with pytest.raises(ValueError, match=r"labels: found torch.* allowed are classes"):
        _make(make_student())(batch["pixel_values"], labels)


# ------------------------------------------------------------------------------------------------ the teacher
def test_the_teacher_is_no_part_of_the_weights(make_student: Make, batch: Batch, teacher: nn.Module) -> None:
    model = _make(make_student())
    without = _weights(model)
    assert model.attach_teacher(teacher) is model and model.teacher is teacher
    assert _same(_weights(model), without)
    assert {id(p) for p in teacher.parameters()}.isdisjoint(id(p) for p in model.parameters())


def test_the_teacher_stays_in_evaluation_mode(make_student: Make, batch: Batch, teacher: nn.Module) -> None:
    before = _weights(teacher)
    model = _make(make_student(), teacher).train()
    assert not teacher.training
    teacher.train()
    model(**batch)
    assert not teacher.training and _same(_weights(teacher), before)


def test_the_teacher_keeps_its_dtype(make_student: Make, batch: Batch, teacher: nn.Module) -> None:
    model = _make(make_student(), teacher.double()).train()
    assert model(**batch).loss.dtype == torch.float32
    assert teacher.convolution.weight.dtype == torch.float64


def test_the_teacher_follows_the_images(make_student: Make, batch: Batch, teacher: nn.Module) -> None:
    model = _make(make_student(), teacher).train().to("meta")
    assert teacher.convolution.weight.device.type == "cpu"
    given = model(batch["pixel_values"].to("meta"), output_details=True)
    assert given.reprogrammed.is_meta and all(value.is_meta for value in teacher.state_dict().values())


TEACHERS: dict[str, tuple[Callable[[], Any], int, str]] = {
    "resnet": (
        lambda: ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 24], depths=[1, 1])),
        24,
        "transformers",
    ),
    "vit": (
        lambda: ViTModel(
            ViTConfig(image_size=16, patch_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
        ),
        16,
        "transformers",
    ),
    "timm": (lambda: timm.create_model("test_resnet", num_classes=3), 96, "timm"),
    "module": (lambda: nn.Sequential(nn.AvgPool2d(8), nn.Flatten()), 12, "module"),
    "function": (lambda: lambda images: images.mean((2, 3)), 3, "callable"),
}


@pytest.mark.parametrize("name", TEACHERS)
def test_teachers_of_all_kinds(make_student: Make, batch: Batch, name: str) -> None:
    make, width, kind = TEACHERS[name]
    torch.manual_seed(0)
    model = _make(make_student(), make(), teacher_width=width).train()
    given = model(**batch, output_details=True)
    assert given.teacher_features.shape == (8, width) and not given.teacher_features.requires_grad
    assert model.config.teacher_kind == kind and given.loss.isfinite()


@pytest.mark.parametrize("name", ["resnet", "timm"])
def test_feature_maps(make_student: Make, batch: Batch, name: str) -> None:
    make, width, _ = TEACHERS[name]
    torch.manual_seed(0)
    model = _make(make_student(), make(), teacher_width=width, phi_kind="conv").train()
    given = model(**batch, output_details=True)
    assert given.teacher_features.ndim == 4 and given.reprogrammed.shape == given.student_features.shape
    given.loss.backward()
    assert all(parameter.grad.any() for parameter in model.phi.parameters())


def test_a_teacher_by_name(make_student: Make, batch: Batch, tmp_path: Path) -> None:
    make, width, _ = TEACHERS["resnet"]
    make().save_pretrained(tmp_path / "teacher")
    model = _make(make_student(), tmp_path / "teacher", teacher_width=width)
    model.save_pretrained(tmp_path / "model")
    again = RDForImageClassification.from_pretrained(tmp_path / "model")
    assert again.teacher is None and again.config.teacher_name == str(tmp_path / "teacher")
    again.attach_teacher()
    assert torch.equal(again.train()(**batch).loss, model.train()(**batch).loss)


def test_a_teachers_name_stays_with_the_teacher_given_again(make_student: Make, tmp_path: Path) -> None:
    make, width, _ = TEACHERS["resnet"]
    make().save_pretrained(tmp_path)
    settings = {"teacher_width": width, "teacher_name": str(tmp_path), "teacher_revision": "v1"}
    model = _make(make_student(), AutoModel.from_pretrained(tmp_path), **settings)
    assert (model.config.teacher_name, model.config.teacher_revision) == (str(tmp_path), "v1")


def test_a_teachers_name_goes_with_the_teacher(make_student: Make, tmp_path: Path) -> None:
    make, width, _ = TEACHERS["resnet"]
    make().save_pretrained(tmp_path)
    model = _make(make_student(), tmp_path, teacher_width=width)
    assert model.config.teacher_name == str(tmp_path)
    model.attach_teacher(lambda images: images.mean((2, 3)))
    assert (model.config.teacher_name, model.config.teacher_kind) == (None, "callable")
    with pytest.raises(ValueError, match="teacher: found none, here and as teacher_name"):
        model.attach_teacher()
    named = _make(make_student(), lambda images: images.mean((2, 3)), teacher_name="my/teacher")
    assert named.config.teacher_name == "my/teacher"


def test_of_a_model_of_images_and_texts_the_image_part_teaches(make_student: Make, tmp_path: Path) -> None:
    dual = clip()
    dual.save_pretrained(tmp_path)
    pixels = torch.randn(2, 3, 16, 16)
    expected = dual.vision_model(pixels).pooler_output
    for teacher in (dual, tmp_path):
        model = RDForImageClassification.from_student(make_student(), teacher)
        torch.testing.assert_close(model.get_teacher_features(pixels), expected)
        assert model.config.teacher_name == str(tmp_path) or teacher is dual


@pytest.mark.parametrize(
    ("settings", "extra", "message"),
    [
        ({}, {}, "teacher: found none attached and no teacher_features in the batch, allowed is either: "),
        ({"teacher_inputs": "features"}, {"teacher": len}, "teacher: found 'features' as teacher_inputs and no"),
        (
            {"teacher_inputs": "pixel_values"},
            {"teacher": len},
            "teacher_inputs: found 'pixel_values' and no teacher_pixel_values",
        ),
        ({}, {"teacher": len, "teacher_pixel_values": torch.zeros(8, 3, 4, 4)}, "teacher_inputs: found 'same' and"),
        ({}, {"teacher": lambda images: (images,)}, "teacher: found an output of type tuple without pooler_output"),
        ({}, {"teacher": lambda images: images.mean((2, 3))}, r"found shape \(8, 3\), allowed is \[B, 12\]"),
        ({}, {"teacher_features": torch.zeros(8, 12, 2, 2)}, r"found shape \(8, 12, 2, 2\), allowed is \[B, 12\]"),
        (
            {"phi_kind": "conv"},
            {"teacher_features": torch.zeros(8, 12)},
            r"found shape \(8, 12\), allowed is \[B, 12, H, W\] with teacher_width=12 and phi_kind='conv'",
        ),
    ],
)
def test_training_without_features_that_fit_is_refused(
    make_student: Make, batch: Batch, settings: dict[str, Any], extra: dict[str, Any], message: str
) -> None:
    model = _make(make_student(), extra.get("teacher"), **settings).train()
    columns = {name: value for name, value in extra.items() if name != "teacher"}
    with pytest.raises(ValueError, match=message):
        model(**batch, **columns)


def test_no_teacher_to_attach(make_student: Make) -> None:
    with pytest.raises(ValueError, match="teacher: found none, here and as teacher_name"):
        _make(make_student()).attach_teacher()


# ------------------------------------------------------------------------------------------------ its inputs
def test_features_of_the_batch_go_first(make_student: Make, batch: Batch, teacher: nn.Module) -> None:
    model = _make(make_student(), teacher).train()
    features = teacher(batch["pixel_values"]).detach()
    with_teacher = model(**batch).loss
    model.attach_teacher(len)  # would fail
    torch.testing.assert_close(model(**batch, teacher_features=features).loss, with_teacher)


def test_pixel_values_of_the_teachers_own(make_student: Make, batch: Batch, teacher: nn.Module) -> None:
    seen = []
    model = _make(make_student(), lambda images: teacher(seen.append(images) or images), teacher_inputs="pixel_values")
    own = torch.randn(8, 3, 32, 32)
    model.train()(**batch, teacher_pixel_values=own)
    assert seen[0] is own


def test_the_teachers_view_is_what_its_processor_makes(make_student: Make) -> None:
    """The student's pixel values, converted, are those of the teacher's own processor, but for the order of steps."""
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    size = {"height": 16, "width": 16}
    student = ViTImageProcessor(size=size, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.4])
    others = {
        "other statistics": ViTImageProcessor(size=size, image_mean=[0.1, 0.2, 0.3], image_std=[0.3, 0.2, 0.1]),
        "none": ViTImageProcessor(size=size, do_normalize=False),
    }
    seen: list[Tensor] = []
    for name, processor in others.items():
        model = _make(
            make_student(),
            lambda images: seen.append(images) or images.mean((2, 3)),
            teacher_width=3,
            image_processor=student,
            teacher_processor=processor,
        ).eval()
        model(student(image, return_tensors="pt")["pixel_values"], output_details=True)
        torch.testing.assert_close(seen[-1], processor(image, return_tensors="pt")["pixel_values"], msg=name)


@pytest.mark.parametrize(
    ("processor", "size"),
    [
        (ConvNextImageProcessor(size={"shortest_edge": 24}), [24, 24]),
        (CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 20, "width": 24}), [20, 24]),
        (ViTImageProcessor(size={"height": 20, "width": 24}), [20, 24]),
    ],
    ids=["an edge", "a crop", "height and width"],
)
def test_the_teachers_size_is_read_in_every_form(processor: Any, size: list[int], make_student: Make) -> None:
    seen = []

    def teacher(pixels: Tensor) -> Tensor:
        seen.append(list(pixels.shape[-2:]))
        return pixels.mean((2, 3))

    student = ViTImageProcessor(size={"height": 16, "width": 16})
    model = RDForImageClassification.from_student(
        make_student(), teacher, teacher_width=3, image_processor=student, teacher_processor=processor
    )
    model.get_teacher_features(torch.randn(2, 3, 16, 16))
    assert model.config.teacher_size == size and seen == [size]


def test_the_teachers_view_has_its_size_and_channels(make_student: Make) -> None:
    seen: list[Tensor] = []
    settings = {"teacher_size": [8, 12], "teacher_mean": [0.1, 0.2, 0.3], "teacher_std": [1.0, 2.0, 4.0]}
    model = _make(
        make_student(num_channels=1), lambda x: seen.append(x) or x.mean((2, 3)), teacher_width=3, **settings
    )
    model.eval()(torch.full((2, 1, 16, 16), 0.5), output_details=True)
    expected = torch.tensor([0.4, 0.15, 0.05]).view(1, 3, 1, 1).expand(2, 3, 8, 12)
    torch.testing.assert_close(seen[0], expected)


def test_the_width_of_a_teacher_is_found(make_student: Make, names: list[str], tmp_path: Path) -> None:
    teacher = ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 24], depths=[1, 1], layer_type="basic"))
    assert RDForImageClassification.from_student(make_student(), teacher).config.teacher_width == 24
    timm_teacher = timm.create_model("test_resnet", num_classes=0)
    assert RDForImageClassification.from_student(make_student(), timm_teacher).config.teacher_width == 96
    with pytest.raises(ValueError, match="teacher_width: found none with a callable as teacher"):
        RDForImageClassification.from_student(make_student(), lambda pixels: pixels.flatten(1))
    with pytest.raises(ValueError, match="teacher_width: found none without a teacher"):
        RDForImageClassification.from_student(make_student())


def test_a_classifier_without_a_pooler_teaches_what_it_reads_itself(make_student: Make, tmp_path: Path) -> None:
    classifier = make_student("vit")
    classifier.save_pretrained(tmp_path)
    model = RDForImageClassification.from_student(make_student(), tmp_path)
    pixels = torch.randn(3, 3, 16, 16)
    expected = classifier.vit(pixels).last_hidden_state[:, 0]
    torch.testing.assert_close(model.get_teacher_features(pixels), expected)
    assert model.config.teacher_width == 16


@pytest.mark.parametrize(("given", "taken"), [(1, 1), (1, 3), (3, 3)])
def test_a_timm_teacher_of_other_channels(given: int, taken: int) -> None:
    """Its settings say three, whatever `in_chans` was; images of one channel become what it takes."""
    torch.manual_seed(0)
    teacher = timm.create_model("test_resnet", pretrained=False, num_classes=0, in_chans=taken)
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    student = ResNetForImageClassification(ResNetConfig(**sizes, num_channels=given, num_labels=5))
    model = RDForImageClassification.from_student(student, teacher)
    images = torch.randn(4, given, 32, 32, generator=torch.Generator().manual_seed(0))
    assert model.config.teacher_width == teacher.num_features
    features = model.get_teacher_features(images)
    torch.testing.assert_close(features, teacher.eval()(images.expand(-1, taken, -1, -1)))
    assert model.train()(pixel_values=images, labels=torch.arange(4)).loss.isfinite()


@pytest.mark.parametrize("kind", ["timm", "transformers"])
def test_a_teacher_of_fewer_channels_than_images_have(kind: str, make_student: Callable[..., Any]) -> None:
    if kind == "timm":
        teacher: Any = timm.create_model("test_resnet", pretrained=False, num_classes=0, in_chans=1)
    else:
        sizes: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [8], "depths": [1], "layer_type": "basic"}
        teacher = ResNetModel(ResNetConfig(num_channels=1, **sizes))
    model = RDForImageClassification.from_student(make_student(), teacher)
    with pytest.raises(ValueError, match="teacher: found images of 3 channels, allowed are 1, which it takes, or 1"):
        model.get_teacher_features(torch.zeros(2, 3, 32, 32))
