"""Whatever is refused or fails, by whatever call, leaves the user's model exactly as it was."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    AutoPeftModel,
    LNTuningConfig,
    LoHaConfig,
    LoraConfig,
    PeftConfig,
    PeftModel,
    VeraConfig,
    get_peft_model,
    inject_adapter_in_model,
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hf_ext.adapters import MoLAConfig

WEIGHTS = "adapter_model.safetensors"


def config(**settings: Any) -> MoLAConfig:
    return MoLAConfig(**{"target_modules": ["q_proj", "fc1"], "num_experts": 3, "r": 2, **settings})


def everything(model: nn.Module) -> dict[str, Any]:
    """Every attribute of every module by identity, what is in its containers, and all values of tensors."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        for key, value in vars(module).items():
            held = list(value.items()) if isinstance(value, dict) else value
            inside = (
                [id(one[1]) if isinstance(one, tuple) else one for one in held] if isinstance(held, list) else None
            )
            names = sorted(map(str, value)) if isinstance(value, dict | set) else None
            found[f"{name}.{key}"] = (id(value), inside, names)
    for name, parameter in model.named_parameters():
        found[f"trained {name}"] = parameter.requires_grad
    return found | {f"value {name}": value.clone() for name, value in model.state_dict().items()}


def same(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Names of what differs."""
    both = before.keys() & after.keys()
    changed = [
        key
        for key in both
        if not (
            torch.equal(before[key].nan_to_num(), after[key].nan_to_num())
            if isinstance(before[key], Tensor)
            else before[key] == after[key]
        )
    ]
    return sorted(changed + list(before.keys() ^ after.keys()))


# ------------------------------------------------------------------------------------------------ configurations
Start = Callable[[Any], Any]
STARTS: dict[str, Start] = {
    "base": lambda zoo: zoo.model().train(),
    "partly frozen": lambda zoo: zoo.model().requires_grad_(False).train(),
    "MoLA base": lambda zoo: get_peft_model(zoo.model(), config(routing="router"), "first").get_base_model(),
}
MAKES: dict[str, Callable[[Any, MoLAConfig], object]] = {
    "get_peft_model": lambda model, settings: get_peft_model(model, settings),
    "low memory": lambda model, settings: get_peft_model(model, settings, low_cpu_mem_usage=True),
    "inject_adapter_in_model": lambda model, settings: inject_adapter_in_model(settings, model),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "unknown target": {"target_modules": ["nothing"]},
    "layer that cannot be adapted": {"target_modules": ["q_proj", "layernorm"]},
    "all excluded": {"exclude_modules": ["q_proj", "fc1"]},
    "unknown head": {"task_heads": ["nothing"]},
    "head that is none": {"task_heads": ["classifier", "layernorm"]},
    "head and target": {"task_heads": ["classifier"], "modules_to_save": ["classifier"]},
    "unknown router": {"routing": "router", "router": "nothing"},
    "modules_to_save that cannot be": {"modules_to_save": ["layers"]},
}


@pytest.mark.parametrize("cause", SETTINGS)
@pytest.mark.parametrize("way", MAKES)
@pytest.mark.parametrize("start", STARTS)
def test_of_a_configuration(start: str, way: str, cause: str, vit: Any) -> None:
    model = STARTS[start](vit)
    before, settings = everything(model), config(**SETTINGS[cause])
    written = settings.to_dict()
    with pytest.raises(ValueError, match=r"found|[Nn]o modules|All modules"):
        MAKES[way](model, settings)
    assert same(before, everything(model)) == []
    assert settings.to_dict() == written  # so that it can be used again


@pytest.mark.parametrize("cause", [*SETTINGS, "name that is there"])
def test_of_a_further_adapter(cause: str, vit: Any) -> None:
    model = get_peft_model(vit.model(), config(routing="router", modules_to_save=["classifier"]))
    before = everything(model)
    with pytest.raises(ValueError, match=r"found|[Nn]o modules|All modules|already exists"):
        model.add_adapter("default" if cause == "name that is there" else "other", config(**SETTINGS.get(cause, {})))
    assert same(before, everything(model)) == []


@pytest.mark.parametrize("experts", [3, 2])
@pytest.mark.parametrize("way", MAKES)
def test_of_an_adapter_of_the_same_name(way: str, experts: int, vit: Any) -> None:
    peft_model = get_peft_model(vit.model(), config(init_weights=False))
    before, expected = everything(peft_model), peft_model.eval()(**vit.inputs, mola_task_ids=1).logits
    before = everything(peft_model)
    with pytest.raises(ValueError, match="adapter_name: found 'default', which the model has already"):
        MAKES[way](peft_model.get_base_model(), config(target_modules=["v_proj"], num_experts=experts))
    assert same(before, everything(peft_model)) == []
    assert torch.equal(peft_model(**vit.inputs, mola_task_ids=1).logits, expected)
    MAKES[way](peft_model.unload(), config(num_experts=experts))  # the way out


@pytest.mark.parametrize("wrapped", [True, False], ids=["PeftModel", "its base"])
@pytest.mark.parametrize("way", [*MAKES, "from_pretrained", "load_adapter"])
def test_of_a_model_with_lora(way: str, wrapped: bool, vit: Any, tmp_path: Path) -> None:
    get_peft_model(vit.model(), config()).save_pretrained(tmp_path)
    lora = get_peft_model(vit.model(), LoraConfig(target_modules=["q_proj"], init_lora_weights=False)).eval()
    model: Any = lora if wrapped else lora.get_base_model()
    loads = {
        "from_pretrained": lambda: PeftModel.from_pretrained(model, tmp_path),
        "load_adapter": lambda: model.load_adapter(str(tmp_path), "other"),
    }
    before, expected = everything(lora), lora(**vit.inputs).logits
    with pytest.raises(ValueError, match=r"allowed is (a|the) base model|different peft types"):
        loads[way]() if way in loads else MAKES[way](model, config())
    assert same(before, everything(lora)) == []
    assert torch.equal(lora(**vit.inputs).logits, expected)


OTHERS: dict[str, Callable[[], PeftConfig]] = {
    "LoRA in its layers": lambda: LoraConfig(target_modules=["q_proj"]),
    "LoRA in others": lambda: LoraConfig(target_modules=["v_proj"]),
    "LoRA in none": lambda: LoraConfig(target_modules=["nothing"]),
    "LoHa": lambda: LoHaConfig(target_modules=["q_proj", "v_proj"]),
    "VeRA": lambda: VeraConfig(target_modules=["q_proj"]),
    "LN tuning": lambda: LNTuningConfig(target_modules=["layernorm"]),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_of_another_type_on_a_model_with_mola(kind: str, vit: Any, tmp_path: Path) -> None:
    get_peft_model(vit.model(), LoraConfig(target_modules=["v_proj"])).save_pretrained(tmp_path)
    mola = get_peft_model(vit.model(), config(routing="router", init_weights=False)).eval()
    before, expected = everything(mola), mola(**vit.inputs).logits
    before, base = everything(mola), mola.get_base_model()
    ways: dict[str, Callable[[], object]] = {
        "get_peft_model": lambda: get_peft_model(mola, OTHERS[kind]()),
        "on the base": lambda: get_peft_model(base, OTHERS[kind](), "other"),
        "mixed": lambda: get_peft_model(base, OTHERS[kind](), mixed=True),
        "add_adapter": lambda: mola.add_adapter("other", OTHERS[kind]()),
        "inject_adapter_in_model": lambda: inject_adapter_in_model(OTHERS[kind](), base),
        "from_pretrained": lambda: PeftModel.from_pretrained(base, tmp_path),
        "load_adapter": lambda: mola.load_adapter(str(tmp_path), "other"),
        "load_adapter of transformers": lambda: base.load_adapter(str(tmp_path)),
    }
    for way in ways.values():
        with pytest.raises(ValueError, match=r"found one with a MoLA adapter|different peft types|compatible|support"):
            way()
        assert same(before, everything(mola)) == []
    assert torch.equal(mola(**vit.inputs).logits, expected)
    get_peft_model(mola.unload(), LoraConfig(target_modules=["q_proj"]))  # the way out


@pytest.mark.parametrize("unknown", ["nothing", ["default", "nothing"]])
def test_of_an_adapter_that_is_not_there(unknown: Any, vit: Any) -> None:
    model = get_peft_model(vit.model(), config())
    before = everything(model)
    for call in (model.base_model.set_adapter, lambda name: model.set_adapter(str(name)), model.delete_adapter):
        with pytest.raises((ValueError, TypeError), match=r"found 'nothing'|not found|does not exist|unhashable"):
            call(unknown)
        assert same(before, everything(model)) == []


def test_of_a_task_type_that_the_model_is_not_for(vit: Any) -> None:
    model = vit.model()
    before = everything(model)
    with pytest.raises(ValueError, match="task_type: found 'CAUSAL_LM' for a ViTForImageClassification"):
        get_peft_model(model, config(task_type="CAUSAL_LM"))
    assert same(before, everything(model)) == []


def test_of_attention_that_never_calls_its_projection() -> None:
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True))
    before = everything(model)
    for targets in ("all-linear", ["out_proj"], r".*\.out_proj"):
        with pytest.raises(ValueError, match="of a MultiheadAttention, which reads its weight and never calls it"):
            get_peft_model(model, config(target_modules=targets))
    assert same(before, everything(model)) == []


def test_an_encoder_of_torch_calls_its_layers_in_evaluation_too() -> None:
    """Where nothing needs a gradient, it would take their weights instead: the base model's, without the adapter."""
    base = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1)
    settings = config(target_modules=["linear1", "linear2"], init_weights=False)
    model, x = get_peft_model(base, settings).eval(), torch.randn(2, 3, 8)
    expected = model(x, mola_task_ids=1)
    with torch.no_grad():
        torch.testing.assert_close(model(x, mola_task_ids=1), expected)
        with model.disable_adapter():
            assert not torch.allclose(model(x), expected)
    assert not [module for module in model.unload().modules() if module._forward_hooks]


# ------------------------------------------------------------------------------------------------ files
@dataclass
class Fault:
    """Something wrong with an adapter's folder."""

    change: Callable[[dict[str, Tensor]], Any]
    message: str
    case: str = "router"


def _end(tensors: dict[str, Tensor], end: str) -> str:
    return next(key for key in tensors if key.endswith(end))


def _without(end: str) -> Callable[[dict[str, Tensor]], Any]:
    return lambda tensors: tensors.pop(_end(tensors, end))


def _with(end: str, change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], Any]:
    def changed(tensors: dict[str, Tensor]) -> None:
        tensors[_end(tensors, end)] = change(tensors[_end(tensors, end)])

    return changed


def _more(name: str, *shape: int) -> Callable[[dict[str, Tensor]], Any]:
    return lambda tensors: tensors.update({f"base_model.model.{name}": torch.ones(shape)})


def _one(value: float) -> Callable[[Tensor], Tensor]:
    def changed(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        tensor.view(-1)[-1] = value
        return tensor

    return changed


CASES: dict[str, dict[str, Any]] = {
    "router": {"routing": "router", "modules_to_save": ["classifier"], "init_weights": False},
    "backbone": {"train_backbone": True},
    "heads": {"task_heads": ["classifier"], "bias": "mola_only"},
}
FAULTS = {
    "no experts of a layer": Fault(_without("1.attention.q_proj.mola_B"), "found no"),
    "no router": Fault(_without("mola_router.head.bias"), "found no"),
    "no projection": Fault(_without("mola_projection.weight"), "found no"),
    "no saved module": Fault(_without("classifier.weight"), "found no"),
    "no head": Fault(_without("mola_head_bias"), "found no", "heads"),
    "no bias": Fault(_without("q_proj.base_layer.bias"), "found no", "heads"),
    "no backbone": Fault(_without("vit.layernorm.weight"), "found no", "backbone"),
    "none of a backbone": Fault(
        lambda tensors: [tensors.pop(key) for key in list(tensors) if ".mola_" not in key], "found no", "backbone"
    ),
    "another shape": Fault(_with("classifier.weight", lambda tensor: tensor[:2]), r"of shape \(2, 16\)"),
    "another E": Fault(_with("q_proj.mola_A", lambda tensor: tensor[:2]), r"of shape \(2, 2, 16\)"),
    "the base's": Fault(_more("vit.layernorm.weight", 16), "tensors in .* that are not of this adapter"),
    "the replaced module's": Fault(_more("classifier.original_module.weight", 4, 16), "not of this adapter"),
    "a third block's": Fault(_more("vit.layers.2.attention.q_proj.mola_A", 3, 2, 16), "not of this adapter"),
    "a head's": Fault(_more("classifier.weight", 4, 16), "not of this adapter", "heads"),
    "NaN": Fault(_with("fc1.mola_A", _one(torch.nan)), "with NaN or infinite values"),
    "inf": Fault(_with("fc1.mola_B", _one(-torch.inf)), "with NaN or infinite values"),
    "NaN in a saved module": Fault(_with("classifier.bias", _one(torch.nan)), "with NaN"),
    "NaN in the backbone": Fault(_with("vit.layernorm.bias", _one(torch.nan)), "with NaN", "backbone"),
    "NaN in a half": Fault(_with("fc1.mola_A", lambda tensor: _one(torch.nan)(tensor.half())), "with NaN"),
    "integers": Fault(_with("fc1.mola_A", lambda tensor: tensor.long()), "with dtype torch.int64, allowed is a float"),
    "complex": Fault(_with("fc1.mola_A", lambda tensor: tensor.to(torch.complex64)), "with dtype torch.complex64"),
    "booleans": Fault(_with("fc1.mola_A", lambda tensor: tensor.bool()), "with dtype torch.bool"),
    "a count of floats": Fault(
        _with("num_batches_tracked", lambda tensor: tensor.float()), "with dtype torch.float32, allowed is torch.int64"
    ),
    "a negative variance": Fault(_with("running_var", _one(-1e-3)), "with negative values"),
}
LOADS: dict[str, Callable[[Any, Path], object]] = {
    "from_pretrained": lambda model, folder: PeftModel.from_pretrained(model, folder),
    "for training": lambda model, folder: PeftModel.from_pretrained(model, folder, is_trainable=True),
    "low memory": lambda model, folder: PeftModel.from_pretrained(model, folder, low_cpu_mem_usage=True),
    "config given": lambda model, folder: PeftModel.from_pretrained(
        model, folder, config=PeftConfig.from_pretrained(folder)
    ),
    "transformers": lambda model, folder: model.load_adapter(str(folder)),
}


@pytest.fixture
def folders(vit: Any, tmp_path: Path) -> dict[str, Path]:
    for case, settings in CASES.items():
        get_peft_model(vit.model(), config(**settings)).save_pretrained(tmp_path / case)
    return {case: tmp_path / case for case in CASES}


def _faulty(folder: Path, fault: Fault, into: Path) -> Path:
    shutil.copytree(folder, into)
    tensors = load_file(into / WEIGHTS)
    fault.change(tensors)
    save_file(tensors, into / WEIGHTS)
    return into


@pytest.mark.parametrize("cause", FAULTS)
def test_of_a_file(cause: str, vit: Any, folders: dict[str, Path], tmp_path: Path) -> None:
    fault = FAULTS[cause]
    folder = _faulty(folders[fault.case], fault, tmp_path / "faulty")
    model = vit.model().train()
    before = everything(model)
    for load in LOADS.values():
        with pytest.raises(ValueError, match=fault.message):
            load(model, folder)
        assert same(before, everything(model)) == []
    good = PeftModel.from_pretrained(model, folders[fault.case])  # the next one is none the worse
    for name in ("other", "default") if fault.case == "router" else ("default",):  # a further one, or one anew
        before = everything(good)
        with pytest.raises(ValueError, match=fault.message):
            good.load_adapter(folder, name)
        assert same(before, everything(good)) == []


NO_WEIGHTS: dict[str, Callable[[Path], object]] = {
    "none": lambda file: file.unlink(),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
    "a pickle": lambda file: file.rename(file.with_name("adapter_model.bin")),
    "empty": lambda file: file.write_bytes(b""),
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:-10]),
}


@pytest.mark.parametrize("cause", NO_WEIGHTS)
def test_of_a_folder_without_weights(cause: str, vit: Any, folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["router"], tmp_path / "x")
    NO_WEIGHTS[cause](tmp_path / "x" / WEIGHTS)
    model = vit.model()
    before = everything(model)
    for load in LOADS.values():
        with pytest.raises(ValueError, match=r"adapter_model.(safetensors|bin): found (no such|a pickle|a broken)"):
            load(model, tmp_path / "x")
        assert same(before, everything(model)) == []


def test_of_a_failure_of_peft_itself(vit: Any, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    model, good = vit.model(), PeftModel.from_pretrained(vit.model(), folders["router"])
    before, with_adapter = everything(model), everything(good)
    monkeypatch.setattr("peft.peft_model.set_peft_model_state_dict", fail)
    with pytest.raises(KeyboardInterrupt):
        PeftModel.from_pretrained(model, folders["router"])
    with pytest.raises(KeyboardInterrupt):
        good.load_adapter(folders["router"], "other")
    assert same(before, everything(model)) == [] and same(with_adapter, everything(good)) == []


def test_names_that_nothing_renames_are_refused(vit: Any, folders: dict[str, Path], tmp_path: Path) -> None:
    rename = Fault(
        lambda tensors: [
            tensors.update({key.replace("vit.layers", "vit.blocks"): tensors.pop(key)}) for key in list(tensors)
        ],
        "found",
    )
    folder, model = _faulty(folders["router"], rename, tmp_path / "x"), vit.model()
    before = everything(model)
    for load in LOADS.values():
        with pytest.raises(ValueError, match="allowed are the names that the base model has now"):
            load(model, folder)
        assert same(before, everything(model)) == []
    PeftModel.from_pretrained(model, folder, key_mapping={"^vit.blocks": "vit.layers"})


def test_of_a_file_for_more_blocks(vit: Any, folders: dict[str, Path]) -> None:
    model = vit.model()
    del model.vit.layers[1]
    before = everything(model)
    for load in LOADS.values():
        with pytest.raises(ValueError, match=r"found 4 tensors .* not of this adapter \('.*layers.1.attention"):
            load(model, folders["router"])
        assert same(before, everything(model)) == []


def test_a_folder_is_whole(
    vit: Any, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """peft would take what is not in a folder, weights or configuration, from the Hub repo of the same name."""
    asked: list[Any] = []
    monkeypatch.setattr("peft.utils.save_and_load.hf_hub_download", lambda *args, **_: asked.append(args))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folders["router"], "user/repo")
    Path("user/repo", WEIGHTS).unlink()
    for name in ("user/repo", "./user/repo"):
        with pytest.raises(ValueError, match=f"{WEIGHTS}: found no such file in '{name}'"):
            PeftModel.from_pretrained(vit.model(), name)
    assert asked == []

    Path("user/repo/adapter_config.json").rename("adapter_config.json")
    monkeypatch.setattr("peft.config.hf_hub_download", lambda *_, **__: str(tmp_path / "adapter_config.json"))
    with pytest.raises(ValueError, match=r"adapter_config.json: found none in the folder 'user/repo'"):
        PeftModel.from_pretrained(vit.model(), "user/repo")


def test_the_base_of_a_repo_is_no_folder_here(
    vit: Any, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    vit.model().save_pretrained("w/base")
    settings = json.loads((folders["router"] / "adapter_config.json").read_text())
    Path("repo.json").write_text(json.dumps(settings | {"base_model_name_or_path": "w/base"}))
    monkeypatch.setattr("peft.config.hf_hub_download", lambda *_, **__: str(tmp_path / "repo.json"))
    message = "base_model_name_or_path: found the name of a folder here, 'w/base' in 'me/repo'"
    with pytest.raises(ValueError, match=message):
        AutoPeftModel.from_pretrained("me/repo")
    shutil.rmtree("w")
    assert PeftConfig.from_pretrained("me/repo").base_model_name_or_path == "w/base"


# ------------------------------------------------------------------------------------------------ saving
def test_no_pickle_is_saved(vit: Any, tmp_path: Path) -> None:
    model = get_peft_model(vit.model(), config())
    with pytest.raises(ValueError, match="safe_serialization: found False, allowed is True"):
        model.save_pretrained(tmp_path / "x", safe_serialization=False)
    assert not (tmp_path / "x").exists()
    lora = get_peft_model(vit.model(), LoraConfig(target_modules=["q_proj"]))
    lora.save_pretrained(tmp_path / "x", safe_serialization=False)  # is nothing of ours
    assert (tmp_path / "x" / "adapter_model.bin").exists()


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_embeddings_that_peft_saves_along_load(name: str, named: Callable[[str], Any], tmp_path: Path) -> None:
    zoo = named(name)
    model = get_peft_model(zoo.model(), config(target_modules=zoo.targets))
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(1)
    model.save_pretrained(tmp_path, save_embedding_layers=True)
    loaded = PeftModel.from_pretrained(zoo.model(), tmp_path)
    assert torch.equal(loaded.get_input_embeddings().weight, model.get_input_embeddings().weight)
