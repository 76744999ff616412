"""Models x configurations x what peft does with them: the whole life of an adapter, in every combination."""

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PeftModel, get_model_status, get_peft_model
from peft.helpers import check_if_peft_model, disable_input_dtype_casting
from torch import Tensor, nn

from hf_ext.adapters import MoLAConfig
from hf_ext.adapters.mola.layer import MoLAConv2d, MoLAHead, MoLALayer

IDS = torch.tensor([2, 0, 1])


class Perceptron(nn.Module):
    """Reads sizes and weights of its layers, as models do."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(-1, self.fc1.in_features).to(self.fc1.weight.dtype)
        x = self.fc2(self.fc1(x).relu()).relu()
        return self.head(x[:, : self.fc2.out_features])


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.head = nn.Conv2d(4, 4, 3, stride=2, padding=1), nn.Linear(4, 4)

    def forward(self, pixel_values: Tensor) -> Tensor:
        assert (self.conv2.in_channels, self.conv2.kernel_size, self.conv2.stride) == (4, (3, 3), (2, 2))
        x = self.conv2(self.norm(self.conv1(pixel_values)).relu())
        return self.head(x.mean(dim=(2, 3)))


class Pooled(nn.Module):
    """A router of a user's own, which takes its input as it is."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1))


MODELS = ("vit", "gpt2", "mlp", "conv")
SETTINGS: dict[str, dict[str, Any]] = {
    "task": {},
    "router": {"routing": "router"},
    "modules_to_save": {"modules_to_save": ["HEAD"]},
    "heads": {"task_heads": ["HEAD"], "bias": "mola_only"},
    "backbone": {"train_backbone": True},
    "router, heads and backbone": {"routing": "router", "task_heads": ["HEAD"], "train_backbone": True},
}


class Case:
    """A model with the configurations for it."""

    def __init__(self, name: str, setting: str, zoo: Any) -> None:
        images = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        own: dict[str, tuple[Any, Any, list[str]]] = {
            "mlp": (Perceptron, {"x": images[:, 0, :1, :6]}, ["fc1", "fc2"]),
            "conv": (Convolutions, {"pixel_values": images}, ["conv1", "conv2"]),
        }
        self.make, self.inputs, self.targets = own[name] if zoo is None else (zoo.model, zoo.inputs, zoo.targets)
        self.head = {"vit": "classifier", "gpt2": "lm_head"}.get(name, "head")
        self.settings = SETTINGS[setting]
        self.router = Pooled(6) if name == "mlp" else None
        self.trains_base = "backbone" in setting or "heads" in setting

    def model(self) -> Any:
        torch.manual_seed(0)
        return self.make().eval()

    def config(self, **more: Any) -> MoLAConfig:
        options = {**self.settings, **more}
        options = {
            key: [self.head if one == "HEAD" else one for one in value] if isinstance(value, list) else value
            for key, value in options.items()
        }
        if options.get("routing") == "router":
            options["router"] = copy.deepcopy(self.router)
        return MoLAConfig(
            **{"target_modules": self.targets, "num_experts": 3, "r": 2, "init_weights": False} | options
        )

    def adapted(self, **more: Any) -> Any:
        torch.manual_seed(1)
        model = get_peft_model(self.model(), self.config(**more))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1)
        return model.eval()

    def __call__(self, model: Any, **kwargs: Any) -> Tensor:
        with torch.no_grad():
            output = model(**self.inputs, **{"mola_task_ids": IDS, **kwargs})
        return getattr(output, "logits", output)


@pytest.fixture(params=[(model, setting) for model in MODELS for setting in SETTINGS], ids=" ".join)
def case(request: pytest.FixtureRequest, named: Callable[[str], Any]) -> Case:
    name, setting = request.param
    return Case(name, setting, named(name) if name in ("vit", "gpt2") else None)


def test_saved_and_loaded(case: Case, tmp_path: Path) -> None:
    model = case.adapted()
    model.save_pretrained(tmp_path)
    assert check_if_peft_model(str(tmp_path))
    for options in ({}, {"adapter_name": "other"}, {"low_cpu_mem_usage": True}, {"is_trainable": True}):
        loaded = PeftModel.from_pretrained(case.model(), tmp_path, config=case.config(), **options).eval()
        assert torch.equal(case(loaded), case(model))
        names = {name.replace(".other", ".default") for name, one in loaded.named_parameters() if one.requires_grad}
        trained = {name for name, one in model.named_parameters() if one.requires_grad}
        if case.config().bias == "none":  # which peft leaves trainable
            assert names == (trained if "is_trainable" in options else set())


def test_deleted_and_left(case: Case) -> None:
    """Whichever is deleted, all layers agree on what is active, and the next forward runs."""
    if case.config().train_backbone:
        pytest.skip("a backbone is trained by one adapter alone")
    model = case.adapted()
    others = {
        "b": {"target_modules": case.targets[-1:], "bias": "none", "task_heads": None, "modules_to_save": None},
        "c": {"bias": "none", "task_heads": None, "modules_to_save": None, "routing": "task"},
    }
    outputs = {"default": case(model)}
    for name, settings in others.items():
        torch.manual_seed(2)
        model.add_adapter(name, case.config(**settings))
        model.set_adapter(name)
        outputs[name] = case(model)
    for deleted in ("c", "default", "b"):
        model.delete_adapter(deleted)
        left = sorted(model.peft_config)
        assert not [name for name in model.state_dict() if deleted in name.split(".")]
        layers = [module for module in model.modules() if isinstance(module, MoLALayer | MoLAHead)]
        assert {tuple(layer.active_adapters) for layer in layers} == {tuple(left[:1])}
        assert model.base_model.active_adapters == left[:1]
        if left:
            assert torch.equal(case(model), outputs[left[0]])
    assert model.unload().state_dict().keys() == case.model().state_dict().keys()


def test_disabled(case: Case) -> None:
    model, plain = case.adapted(), case.model()
    with torch.no_grad():
        output = plain(**case.inputs)
    expected = getattr(output, "logits", output)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with model.disable_adapter():
            found = case(model)
    if case.trains_base:
        assert any("does not produce the same output" in str(warning.message) for warning in caught)
    else:
        assert torch.equal(found, expected)
        assert not [warning for warning in caught if "same output" in str(warning.message)]
    assert not torch.equal(case(model), expected)


def test_status(case: Case) -> None:
    model = case.adapted()
    layers = [module for module in model.modules() if isinstance(module, MoLALayer | MoLAHead)]
    saved = len(case.config().modules_to_save or ())
    for status in (model.get_model_status(), get_model_status(model)):
        assert status.peft_types == {"default": "MOLA"}
        assert status.num_adapter_layers == len(layers) + saved
        assert (status.enabled, status.active_adapters, status.available_adapters) == (True, ["default"], ["default"])
        assert status.requires_grad == {"default": True} and status.devices == {"default": ["cpu"]}
    kinds = {status.module_type for status in (*model.get_layer_status(), *peft.get_layer_status(model))}
    assert kinds <= {"mola.MoLALinear", "mola.MoLAConv2d", "mola.MoLAHead", "ModulesToSaveWrapper"}


def test_layers_look_like_those_they_replace(case: Case) -> None:
    model = case.adapted()
    for module in model.modules():
        if isinstance(module, MoLALayer | MoLAHead):
            base: Any = module.get_base_layer()
            assert module.weight is base.weight and module.bias is base.bias
            for name in ("nf", "nx", *(getattr(base, "__constants__", None) or ())):
                assert getattr(module, name, None) == getattr(base, name, None)
            sizes = {module.in_features, module.out_features}
            assert sizes == ({base.in_channels, base.out_channels} if isinstance(module, MoLAConv2d) else sizes)
            assert sizes == set(base.weight.shape[:2])
            assert not hasattr(module, "no_such_name")
    routing = model.get_base_model().adapter_routing
    assert not hasattr(routing, "weight") and not hasattr(routing, "bias")


def test_helpers_and_calls(case: Case) -> None:
    model = case.adapted()
    expected = case(model)
    with disable_input_dtype_casting(model):
        assert torch.equal(case(model), expected)
    assert all(module.cast_input_dtype_enabled for module in model.modules() if isinstance(module, MoLALayer))
    with pytest.raises(ValueError, match=r"adapter_names: found .*, allowed is None"):
        case(model, adapter_names=["default", "default", "__base__"])
    assert torch.equal(case(copy.deepcopy(model)), expected)


@pytest.mark.parametrize("adapter_too", [True, False])
def test_half_precision(case: Case, adapter_too: bool) -> None:
    """Also with a router that does not cast, whatever its dtype."""
    torch.manual_seed(1)
    model = get_peft_model(case.model().to(torch.bfloat16), case.config(), autocast_adapter_dtype=not adapter_too)
    inputs = {k: v.to(torch.bfloat16) if v.is_floating_point() else v for k, v in case.inputs.items()}
    output = model.eval()(**inputs, mola_task_ids=IDS)
    logits = getattr(output, "logits", output)
    assert logits.dtype == torch.bfloat16 and logits.isfinite().all()


def test_on_a_compiled_base(case: Case, tmp_path: Path) -> None:
    """Called by position too; names of all tensors are those of the base model in it."""
    torch._dynamo.reset()
    torch.manual_seed(1)
    model = get_peft_model(torch.compile(case.model(), backend="eager"), case.config()).eval()
    torch.manual_seed(1)
    plain = get_peft_model(case.model(), case.config()).eval()
    assert {key.replace("_orig_mod.", "") for key in model.state_dict()} == set(plain.state_dict())
    assert all("_orig_mod." in key for key in model.state_dict())
    with torch.no_grad():
        first, *rest = case.inputs.values()
        options = dict(zip(list(case.inputs)[1:], rest, strict=True))
        output = model(first, **options, mola_task_ids=IDS)
    torch.testing.assert_close(getattr(output, "logits", output), case(plain))
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(torch.compile(case.model(), backend="eager"), tmp_path, config=case.config())
    found, expected = again.state_dict(), model.state_dict()
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    assert not model.unload()._orig_mod._forward_pre_hooks
