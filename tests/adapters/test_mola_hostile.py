"""Folders that somebody else has made: refused before anything of theirs is run, and with one clear error."""

import json
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModel, PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from hf_ext.adapters import MoLAConfig

WEIGHTS = "adapter_model.safetensors"
HUGE = 10**12
Load = Callable[[nn.Module, Path], object]
WAYS: dict[str, Load] = {
    "peft": PeftModel.from_pretrained,
    "config given": lambda model, folder: PeftModel.from_pretrained(
        model, folder, config=PeftConfig.from_pretrained(folder)
    ),
    "transformers": lambda model, folder: model.load_adapter(str(folder)),  # type: ignore[operator]
    "second adapter": lambda model, folder: get_peft_model(
        model, MoLAConfig(target_modules=["q_proj"], num_experts=3)
    ).load_adapter(folder, "other"),
}


class Payload:
    """A pickle that writes a file when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.fixture
def folder(vit: Any, tmp_path: Path) -> Path:
    config = MoLAConfig(target_modules=["q_proj"], num_experts=3, r=2, routing="router", task_heads=["classifier"])
    get_peft_model(vit.model(), config).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def _change(folder: Path, **settings: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


@pytest.mark.parametrize("way", WAYS)
def test_pickles_are_not_opened(way: str, vit: Any, folder: Path, tmp_path: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Payload(tmp_path / "opened")))
    with pytest.raises(ValueError, match=r"adapter_model.bin: found a pickle in .*, allowed are weights in"):
        WAYS[way](vit.model(), folder)
    assert not (tmp_path / "opened").exists()


def test_a_pickle_beside_the_weights_is_passed_over(vit: Any, folder: Path, tmp_path: Path) -> None:
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Payload(tmp_path / "opened")))
    PeftModel.from_pretrained(vit.model(), folder)
    assert not (tmp_path / "opened").exists()


def _truncated(data: bytes) -> bytes:
    return data[:-100]


def _longer(data: bytes) -> bytes:
    return data + bytes(100)


def _huge_header(data: bytes) -> bytes:
    return struct.pack("<Q", 2**62) + data[8:]


def _header(change: Callable[[dict[str, Any]], None]) -> Callable[[bytes], bytes]:
    def changed(data: bytes) -> bytes:
        size = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8 : 8 + size])
        change(next(value for key, value in header.items() if key.endswith("mola_A")))
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + data[8 + size :]

    return changed


BROKEN = {
    "truncated": _truncated,
    "trailing bytes": _longer,
    "huge header": _huge_header,
    "no header": lambda data: data[:4],
    "another format": lambda data: pickle.dumps(1),
    "tensor beyond the file": _header(lambda entry: entry.update(data_offsets=[0, 2**40])),
    "overlapping tensors": _header(lambda entry: entry.update(data_offsets=[0, 192])),
    "unknown dtype": _header(lambda entry: entry.update(dtype="PICKLE")),
    "size that does not fit": _header(lambda entry: entry.update(shape=[10**12])),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_files_are_refused_by_name(kind: str, vit: Any, folder: Path) -> None:
    file = folder / WEIGHTS
    file.write_bytes(BROKEN[kind](file.read_bytes()))
    for load in (WAYS["peft"], WAYS["transformers"]):
        with pytest.raises(ValueError, match=rf"{WEIGHTS}: found a broken file in '.*adapter' \(.*\), allowed is"):
            load(vit.model(), folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"num_experts": HUGE},
            rf"q_proj.mola_A' of shape \(3, 2, 16\) .*, allowed is one of shape \({HUGE}, 2, 16\)",
        ),
        ({"num_experts": 2}, r"q_proj.mola_A' of shape \(3, 2, 16\) .*, allowed is one of shape \(2, 2, 16\)"),
        ({"r": HUGE}, rf"q_proj.mola_A' of shape \(3, 2, 16\) .*, allowed is one of shape \(3, {HUGE}, 16\)"),
        ({"rank_pattern": {"1.*q_proj": HUGE}}, r"layers.1.attention.q_proj.mola_A' of shape \(3, 2, 16\)"),
        ({"twd_dim": HUGE}, rf"mola_projection.weight' of shape \(32, 3\) .* \({HUGE}, 3\)"),
        ({"num_tasks": HUGE}, rf"mola_head_weight' of shape \(3, 4, 16\) .* \({HUGE}, 4, 16\)"),
        ({"target_modules": ["q_proj", "fc1"]}, r"no '.*layers.0.mlp.fc1.mola_A' in"),
        ({"target_modules": "all-linear", "rank_pattern": {"fc1": HUGE}}, r"no '.*mola_A' in"),
        ({"task_heads": ["classifier", "o_proj"]}, r"no '.*o_proj.mola_head_weight' in"),
        ({"router": "image-full", "target_modules": "dummy-target-modules", "num_experts": HUGE}, "no layer to adapt"),
    ],
    ids=str,
)
@pytest.mark.parametrize("way", WAYS)
def test_sizes_are_those_of_the_weights(
    way: str, settings: dict[str, Any], message: str, vit: Any, folder: Path
) -> None:
    """Nothing of the configuration's size is made before; the allocation would be another error."""
    _change(folder, **settings)
    with pytest.raises(ValueError, match=message):
        WAYS[way](vit.model(), folder)


def _without(name: str, folder: Path) -> None:
    tensors = {key: value for key, value in load_file(folder / WEIGHTS).items() if name not in key}
    save_file(tensors, folder / WEIGHTS)


@pytest.mark.parametrize(
    ("missing", "settings"),
    [
        (".mola_", {"num_experts": HUGE}),
        ("1.attention.q_proj.mola_B", {}),
        ("mola_head_bias", {}),
        ("mola_head", {"num_tasks": HUGE}),
        ("mola_router.head.bias", {}),
        ("mola_router.stem.1.running_mean", {}),
        ("mola_projection", {"twd_dim": HUGE}),
    ],
)
def test_no_tensor_may_be_missing(missing: str, settings: dict[str, Any], vit: Any, folder: Path) -> None:
    _without(missing, folder)
    _change(folder, **settings)
    message = rf"^{WEIGHTS}: found no 'base_model.model.*{missing}.* in .*adapter', allowed is one of shape"
    with pytest.raises(ValueError, match=message):
        PeftModel.from_pretrained(vit.model(), folder)


def test_tensors_without_values_prove_no_size(vit: Any, folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    ends = {".mola_A": torch.empty(HUGE, 2, 0), ".mola_B": torch.empty(HUGE, 0, 2)}
    for key in tensors:
        tensors[key] = next((value for end, value in ends.items() if key.endswith(end)), tensors[key])
    save_file(tensors, folder / WEIGHTS)
    _change(folder, num_experts=HUGE)
    with pytest.raises(ValueError, match=rf"mola_A' of shape \({HUGE}, 2, 0\) in"):
        PeftModel.from_pretrained(vit.model(), folder)


def test_one_tensor_is_for_one_layer(vit: Any, folder: Path) -> None:
    """Paths may have had other names, but then each of them."""
    tensors = load_file(folder / WEIGHTS)
    expected = PeftModel.from_pretrained(vit.model(), folder).state_dict()
    renamed = {key.replace(".vit.layers.", ".vit.encoder.layer."): value for key, value in tensors.items()}
    save_file(renamed, folder / WEIGHTS)
    found = PeftModel.from_pretrained(vit.model(), folder, key_mapping={"^vit.encoder.layer": "vit.layers"})
    assert all(torch.equal(value, expected[key]) for key, value in found.state_dict().items())
    _without("1.attention.q_proj", folder)
    with pytest.raises(ValueError, match=r"found no '.*vit.layers.1.attention.q_proj.mola_A'"):
        PeftModel.from_pretrained(vit.model(), folder)


@pytest.mark.parametrize("missing", ["1.attention.q_proj", "mola_head", "mola_router.head", "mola_projection"])
def test_a_refusal_leaves_the_model_as_it_was(missing: str, vit: Any, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, bad := tmp_path / "bad")
    _without(missing, bad)
    good = PeftModel.from_pretrained(vit.model(), folder).eval()
    expected = good(**vit.inputs, mola_task_ids=0).logits
    with pytest.raises(ValueError, match="found no"):
        good.load_adapter(bad, "other")
    assert list(good.peft_config) == ["default"] and not [key for key in good.state_dict() if ".other" in key]
    assert torch.equal(good(**vit.inputs, mola_task_ids=0).logits, expected)

    base = vit.model()
    before = [(key, value.requires_grad) for key, value in base.named_parameters()]
    for load in (WAYS["peft"], WAYS["transformers"]):
        with pytest.raises(ValueError, match="found no"):
            load(base, bad)
        assert [(key, value.requires_grad) for key, value in base.named_parameters()] == before
    base.load_adapter(str(folder))
    assert torch.equal(base.eval()(**vit.inputs, mola_task_ids=0).logits, expected)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_experts": "3"},
        {"num_experts": None},
        {"r": 2.5},
        {"r": True},
        {"lora_alpha": "16"},
        {"routing": "../../evil"},
        {"router": "../../evil.py"},
        {"router": {"class": "os.system"}},
        {"router_kind": "x"},
        {"conv_form": 1},
        {"target_modules": {"q_proj": 1}},
        {"target_modules": [1]},
        {"target_modules": "(("},
        {"exclude_modules": 5},
        {"modules_to_save": "classifier"},
        {"task_heads": {"classifier": 1}},
        {"rank_pattern": {"q_proj": 0}},
        {"rank_pattern": [1]},
        {"alpha_pattern": {"q_proj": "x"}},
        {"task_type": "../../evil"},
        {"train_backbone": "yes"},
        {"twd_temperature": -1},
    ],
    ids=str,
)
def test_settings_of_other_types_are_refused(settings: dict[str, Any], vit: Any, folder: Path) -> None:
    _change(folder, **settings)
    with pytest.raises(ValueError, match=next(iter(settings)).replace("_", ".")):
        PeftModel.from_pretrained(vit.model(), folder)


def test_no_module_is_imported_for_a_configuration(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "evil.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(folder)
    _change(folder, auto_mapping={"base_model_class": "Model", "parent_library": "evil"}, task_type=None)
    with pytest.raises((ValueError, ImportError), match="evil"):
        AutoPeftModel.from_pretrained(folder)


def test_one_may_start_anew_from_a_configuration(vit: Any, folder: Path) -> None:
    config = MoLAConfig.from_pretrained(folder)
    config.num_experts, config.r = 5, 4  # for weights that are yet to be trained
    model = get_peft_model(vit.model(), config)
    assert next(value for name, value in model.named_parameters() if "mola_A" in name).shape[:2] == (5, 4)
    config.target_modules = {"fc1"}
    get_peft_model(vit.model(), config)
    larger = vit.model()
    larger.vit.layers[0].attention.q_proj = nn.Linear(16, 20)
    larger.name_or_path = "me/larger"  # another base model than the adapter's
    get_peft_model(larger, MoLAConfig.from_pretrained(folder))
    (folder / WEIGHTS).unlink()
    get_peft_model(vit.model(), MoLAConfig.from_pretrained(folder))


def test_ranks_by_name_and_the_authors_convolutions_load(named: Callable[[str], Any], tmp_path: Path) -> None:
    zoo = named("resnet")
    patterns = {"rank_pattern": {"encoder.stages.0.*convolution": 3}, "conv_form": "loralib"}
    model = get_peft_model(zoo.model(), MoLAConfig(target_modules=zoo.targets, num_experts=2, r=2, **patterns))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(zoo.model(), tmp_path)
    expected, found = (
        {name: value for name, value in one.state_dict().items() if "mola_A" in name} for one in (model, loaded)
    )
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
