"""Saved models load as they were saved, or not at all: by their classes, Auto classes and the code that they carry."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from toy_models import backbone, embed
from transformers import AutoModel, AutoModelForImageClassification

from hf_ext.models import FERForImageClassification, FERModel, RDForImageClassification

Weights = dict[str, torch.Tensor]
#: a weight and a variance of either
NAMES = {
    "fer": ("transformation.0.weight", "fer.vision.embedder.embedder.normalization.running_var"),
    "rd": ("phi.0.weight", "student.resnet.embedder.embedder.normalization.running_var"),
}


@pytest.fixture(params=list(NAMES))
def saved(request: pytest.FixtureRequest, make_student: Callable[..., Any], tmp_path: Path) -> tuple[str, Path]:
    """A saved model and its kind."""
    torch.manual_seed(0)
    model: Any = None
    if request.param == "fer":
        model = FERForImageClassification.from_backbones(backbone("resnet"), embed, ["happy", "sad", "neutral"])
    else:
        model = RDForImageClassification.from_student(make_student(), teacher_width=12)
    model.save_pretrained(tmp_path / "saved")
    return request.param, tmp_path / "saved"


def _loaders(kind: str) -> list[Callable[[Path], Any]]:
    own: Any = FERForImageClassification if kind == "fer" else RDForImageClassification
    auto = AutoModelForImageClassification.from_pretrained
    return [own.from_pretrained, auto, lambda folder: auto(folder, trust_remote_code=True)]


def _with(value: float) -> Callable[[Weights, str], None]:
    def change(weights: Weights, name: str) -> None:
        weights[name].view(-1)[0] = value

    return change


def _as(dtype: torch.dtype) -> Callable[[Weights, str], None]:
    def change(weights: Weights, name: str) -> None:
        weights[name] = weights[name].to(dtype)

    return change


CHANGES: dict[str, tuple[Callable[[Weights, str], Any], str]] = {
    "nan": (_with(float("nan")), "found NaN or infinite values in the weights of"),
    "inf": (_with(float("-inf")), "found NaN or infinite values in the weights of"),
    "integers": (_as(torch.int64), "found I64 values in the weights of"),
    "truth values": (_as(torch.bool), "found BOOL values in the weights of"),
    "complex": (_as(torch.complex64), "found C64 values in the weights of"),
    "missing": (lambda weights, name: weights.pop(name), "found no tensor in the weights of"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_weights_that_are_none_are_refused(change: str, saved: tuple[str, Path]) -> None:
    kind, folder = saved
    name, (make, message) = NAMES[kind][0], CHANGES[change]
    weights = load_file(folder / "model.safetensors")
    make(weights, name)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for load in _loaders(kind):
        with pytest.raises(ValueError, match=f"^{name}: {message}"):
            load(folder)


def test_negative_variances_and_strange_tensors_are_refused(saved: tuple[str, Path]) -> None:
    kind, folder = saved
    whole = load_file(folder / "model.safetensors")
    for name, weights, message in (
        (NAMES[kind][1], {**whole, NAMES[kind][1]: -whole[NAMES[kind][1]]}, "found negative variances"),
        ("zebra.weight", {**whole, "zebra.weight": torch.ones(2)}, "found a tensor that no part of the model has"),
    ):
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        for load in _loaders(kind):
            with pytest.raises(ValueError, match=f"^{name}: {message}"):
                load(folder)


def test_texts_without_features_are_refused(saved: tuple[str, Path]) -> None:
    kind, folder = saved
    if kind == "rd":
        return
    weights = load_file(folder / "model.safetensors")
    weights["classifier.text_features"][1, 0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for load in _loaders(kind):
        with pytest.raises(ValueError, match=r"^classifier\.text_features: found NaN"):
            load(folder)


def test_nothing_is_unpickled_and_nothing_fetched(
    saved: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder called like a repository of the Hub is a folder; a broken file is said to be one."""
    kind, folder = saved
    file = folder / "model.safetensors"
    torch.save(load_file(file), folder / "pytorch_model.bin")
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "user").mkdir()
    folder.rename(tmp_path / "user" / "repo")
    for load in _loaders(kind):
        with pytest.raises(ValueError, match="found broken safetensors"):
            load(Path("user/repo"))
    (tmp_path / "user/repo/model.safetensors").unlink()
    for load in _loaders(kind):
        for place in ("user/repo", "./user/repo"):
            with pytest.raises(OSError, match=r"no file named model\.safetensors"):
                load(place)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="use_safetensors: found False, allowed is True"):
        _loaders(kind)[0](tmp_path / "user/repo", use_safetensors=False)  # type: ignore[call-arg]


def test_what_is_whole_loads_in_parts_and_in_half(saved: tuple[str, Path], tmp_path: Path) -> None:
    """From several files, in another dtype, as the bare model; what is asked for is reported."""
    kind, folder = saved
    model = _loaders(kind)[1](folder)
    model.save_pretrained(tmp_path / "parts", max_shard_size="5KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    again = _loaders(kind)[1](tmp_path / "parts")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    model.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    assert AutoModel.from_pretrained(tmp_path / "half", dtype="auto").dtype == torch.bfloat16
    bare = AutoModel.from_pretrained(folder)
    assert kind == "rd" or type(bare) is FERModel
    weights = load_file(tmp_path / "half" / "model.safetensors")
    weights.pop(NAMES[kind][0])
    save_file(weights, tmp_path / "half" / "model.safetensors", metadata={"format": "pt"})
    _, report = AutoModelForImageClassification.from_pretrained(tmp_path / "half", output_loading_info=True)
    assert set(report["missing_keys"]) == {NAMES[kind][0]}
