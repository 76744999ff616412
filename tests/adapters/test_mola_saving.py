"""Saved adapters load in new processes, by every call of the ecosystem, under any name, with equal logits to 0."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertForMaskedLM,
    BertForMultipleChoice,
    LlamaModel,
    RobertaConfig,
    RobertaForMaskedLM,
)

from hf_ext._models import with_new_modules
from hf_ext.adapters import MoLAConfig
from hf_ext.adapters.mola import register_router

IDS = torch.tensor([2, 0, 1])

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "vit task": ("vit", {"modules_to_save": ["classifier"]}),
    "vit router": ("vit", {"routing": "router"}),
    "vit heads": ("vit", {"task_heads": ["classifier"], "bias": "mola_only"}),
    "vit router and backbone": (
        "vit",
        {"routing": "router", "train_backbone": True, "modules_to_save": ["classifier"]},
    ),
    "resnet backbone": ("resnet", {"train_backbone": True}),
    "bert router": ("bert", {"routing": "router", "task_type": "SEQ_CLS"}),
    "gpt2 task": ("gpt2", {"task_type": "CAUSAL_LM"}),
}

AUTO = {
    "vit": "ImageClassification",
    "resnet": "ImageClassification",
    "bert": "SequenceClassification",
    "gpt2": "CausalLM",
}

LOAD = """
import json, sys, torch
import hf_ext
import peft, transformers
options = json.load(open("cases.json"))
sys.path.insert(0, options["conftest"])
import conftest
for case, name in options["cases"].items():
    zoo, ids, auto = conftest.ZOO[name], torch.tensor([2, 0, 1]), options["auto"][name]
    folder, base_folder = f"{case}/adapter", f"{case}/base"
    Auto = getattr(transformers, f"AutoModelFor{auto}")

    def with_peft(**kwargs):
        return peft.PeftModel.from_pretrained(Auto.from_pretrained(base_folder), folder, **kwargs)

    def with_load_adapter():
        model = Auto.from_pretrained(base_folder)
        model.load_adapter(folder, adapter_name="c")
        return model

    ways = {
        "peft": with_peft,
        "other name": lambda: with_peft(adapter_name="b"),
        "low memory": lambda: with_peft(low_cpu_mem_usage=True),
        "auto": lambda: getattr(peft, f"AutoPeftModelFor{auto}", peft.AutoPeftModel).from_pretrained(folder),
        "transformers": lambda: Auto.from_pretrained(folder),
        "load_adapter": with_load_adapter,
    }
    expected = torch.load(f"{case}/logits.pt", weights_only=True)
    for way, load in ways.items():
        with torch.no_grad():
            got = load().eval()(**zoo.inputs, mola_task_ids=ids).logits
        print(json.dumps([case, way, (got - expected).abs().max().item()]))
"""


@pytest.mark.slow
def test_every_way_to_load(named: Callable[[str], Any], run_snippet: Callable[..., str], tmp_path: Path) -> None:
    for case, (name, config) in CASES.items():
        zoo = named(name)
        zoo.model().save_pretrained(tmp_path / case / "base")
        base = type(zoo.model()).from_pretrained(tmp_path / case / "base")
        base.name_or_path = base.config._name_or_path = f"{case}/base"
        torch.manual_seed(1)
        defaults = {"target_modules": zoo.targets, "num_experts": 3, "r": 2, "init_weights": False}
        model = get_peft_model(base, MoLAConfig(**{**defaults, **config}))
        model.train()(**zoo.inputs, mola_task_ids=IDS)  # moves what BatchNorm statistics may move
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn_like(parameter))
            expected = model.eval()(**zoo.inputs, mola_task_ids=IDS).logits
        torch.save(expected, tmp_path / case / "logits.pt")
        model.save_pretrained(tmp_path / case / "adapter")
    options = {"cases": {case: name for case, (name, _) in CASES.items()}, "auto": AUTO}
    (tmp_path / "cases.json").write_text(json.dumps({**options, "conftest": str(Path(__file__).parent)}))
    printed = run_snippet(LOAD, cwd=tmp_path)
    results = [json.loads(line) for line in printed.splitlines() if line.startswith("[")]
    assert len(results) == 6 * len(CASES)
    assert [result for result in results if result[2] != 0] == []


def _adapted(zoo: Any, **config: Any) -> Any:
    torch.manual_seed(1)
    defaults = {"target_modules": zoo.targets, "num_experts": 3, "r": 2, "init_weights": False}
    return get_peft_model(zoo.model(), MoLAConfig(**{**defaults, **config}))


def test_frozen_batchnorm_does_not_drift(named: Callable[[str], Any]) -> None:
    zoo = named("resnet")
    model = _adapted(zoo).train()
    before = {name: value.clone() for name, value in model.named_buffers()}
    for _ in range(3):
        model(**zoo.inputs, mola_task_ids=IDS)
    assert all(torch.equal(before[name], value) for name, value in model.named_buffers())
    trained = _adapted(zoo, train_backbone=True).train()
    trained(**zoo.inputs, mola_task_ids=IDS)
    assert any(not torch.equal(before[name], value) for name, value in trained.named_buffers() if name in before)


def test_a_new_router_is_in_the_mode_of_its_base(named: Callable[[str], Any]) -> None:
    zoo = named("resnet")
    config = MoLAConfig(target_modules=zoo.targets, num_experts=3, routing="router")
    model = get_peft_model(zoo.model(), config)  # a base model in eval mode
    before = {name: value.clone() for name, value in model.named_buffers()}
    model(**zoo.inputs)
    assert all(torch.equal(before[name], value) for name, value in model.named_buffers())


def test_half_precision_base(vit: Any, tmp_path: Path) -> None:
    base = vit.model().to(torch.bfloat16)
    torch.manual_seed(1)
    config = MoLAConfig(target_modules=vit.targets, num_experts=3, r=2, init_weights=False, routing="router")
    model = get_peft_model(base, config).eval()
    assert {value.dtype for name, value in model.named_parameters() if "mola_" in name} == {torch.float32}
    inputs = {"pixel_values": vit.inputs["pixel_values"].to(torch.bfloat16)}
    expected = model(**inputs).logits
    assert expected.dtype == torch.bfloat16
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(vit.model().to(torch.bfloat16), tmp_path).eval()
    assert torch.equal(loaded(**inputs).logits, expected)


# ------------------------------------------------------------------------------------------------ routers
class _MeanRouter(torch.nn.Module):
    def __init__(self, experts: int = 3, channels: int = 3) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(channels, experts)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.linear(pixel_values.mean(dim=(2, 3)))


def test_a_router_of_ones_own(vit: Any, tmp_path: Path) -> None:
    model = _adapted(vit, routing="router", router=_MeanRouter()).eval()
    expected = model(**vit.inputs).logits
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["router"] == "custom"
    with pytest.raises(ValueError, match="router: found 'custom'"):
        PeftModel.from_pretrained(vit.model(), tmp_path)
    config = MoLAConfig.from_pretrained(str(tmp_path))
    config.router = _MeanRouter()
    loaded = PeftModel.from_pretrained(vit.model(), tmp_path, config=config).eval()
    assert torch.equal(loaded(**vit.inputs).logits, expected)


def test_a_registered_router_loads_by_its_name(vit: Any, tmp_path: Path) -> None:
    def build(base_model: torch.nn.Module, num_experts: int) -> torch.nn.Module:
        return _MeanRouter(num_experts)

    register_router("mean-of-pixels", build)
    register_router("mean-of-pixels", build)  # again is fine
    with pytest.raises(ValueError, match="name: found 'mean-of-pixels', which is taken"):
        register_router("mean-of-pixels", lambda base, experts: _MeanRouter(experts))
    model = _adapted(vit, routing="router", router="mean-of-pixels").eval()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(vit.model(), tmp_path).eval()
    assert torch.equal(loaded(**vit.inputs).logits, model(**vit.inputs).logits)


def test_wrong_routers_are_refused(vit: Any) -> None:
    with pytest.raises(ValueError, match="router: found 'no-such', allowed are"):
        _adapted(vit, routing="router", router="no-such")
    model = _adapted(vit, routing="router", router=_MeanRouter(experts=2))
    with pytest.raises(ValueError, match=r"router: found logits of shape \(3, 2\), allowed is \[B, E\] = \(3, 3\)"):
        model(**vit.inputs)


@pytest.mark.parametrize("head", [RobertaForMaskedLM, BertForMaskedLM, BertForMultipleChoice])
@pytest.mark.parametrize("routing", ["task", "router"])
def test_a_new_head_of_several_modules(head: Any, routing: str, tmp_path: Path) -> None:
    """peft cannot load modules in modules of `modules_to_save`; and choices have an axis of their own."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    kind: Any = head.config_class
    AutoModel.from_config(kind(vocab_size=50, pad_token_id=0, **sizes)).save_pretrained(tmp_path / "base")

    def model(seed: int) -> Any:
        torch.manual_seed(seed)
        return head.from_pretrained(tmp_path / "base")

    words = torch.randint(5, 40, (3, 2, 7) if head is BertForMultipleChoice else (3, 7))
    inputs = {"input_ids": words, "mola_task_ids": IDS}
    settings = {"target_modules": ["query"], "num_experts": 3, "r": 2, "init_weights": False, "routing": routing}
    with pytest.raises(ValueError, match="allowed is"):
        get_peft_model(model(0), MoLAConfig(**settings))
    saved = with_new_modules(base := model(0), None)
    peft_model = get_peft_model(base, MoLAConfig(**settings, modules_to_save=saved)).eval()
    peft_model.save_pretrained(tmp_path / "adapter")
    expected = peft_model(**inputs).logits
    for seed in (1, 2):
        loaded = PeftModel.from_pretrained(model(seed), tmp_path / "adapter").eval()
        assert torch.equal(loaded(**inputs).logits, expected)


def test_saved_modules_are_not_in_each_other() -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    model = RobertaForMaskedLM(RobertaConfig(vocab_size=50, **sizes))
    names = [name for name, _ in model.named_modules()]
    settings = MoLAConfig(target_modules=["query"], num_experts=2, modules_to_save=["lm_head", "lm_head.dense"])
    with pytest.raises(ValueError, match=r"modules_to_save: found .* names that 'lm_head' and 'lm_head\.dense' in it"):
        get_peft_model(model, settings)
    assert [name for name, _ in model.named_modules()] == names


@pytest.mark.parametrize("targets", [["q_proj"], ["q_proj", "lm_head"]])
def test_a_resized_vocabulary_is_saved_along(targets: list[str], named: Callable[[str], Any], tmp_path: Path) -> None:
    """Its rows are random; peft writes them to the adapter's file, which then is what a load takes them from."""
    zoo = named("llama")
    zoo.model().save_pretrained(tmp_path / "base")

    def resized(seed: int) -> Any:
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        model.resize_token_embeddings(60)
        return model

    settings = {"target_modules": targets, "num_experts": 3, "r": 2, "init_weights": False}
    model = get_peft_model(resized(0), MoLAConfig(**settings)).eval()
    model.save_pretrained(tmp_path / "adapter")
    for seed in (1, 2):
        loaded = PeftModel.from_pretrained(resized(seed), tmp_path / "adapter").eval()
        both = (one(**zoo.inputs, mola_task_ids=IDS).logits for one in (model, loaded))
        assert torch.equal(*both)
    LlamaModel.from_pretrained(tmp_path / "base").save_pretrained(tmp_path / "headless")
    with pytest.raises(ValueError, match=r"found None, while \['lm_head.weight'\]"):
        get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "headless"), MoLAConfig(**settings))


@pytest.mark.parametrize("name", ["b", "mo", "second"])
@pytest.mark.parametrize("routing", ["task", "router"])
def test_a_further_adapter_may_be_called_by_a_letter(name: str, routing: str, vit: Any, tmp_path: Path) -> None:
    """`b` is in the names of all tensors, those of the adapters that are there already too."""
    settings = {"target_modules": vit.targets, "num_experts": 3, "r": 2, "init_weights": False, "routing": routing}
    first = get_peft_model(vit.model(), MoLAConfig(**settings, modules_to_save=["classifier"])).eval()
    first.save_pretrained(tmp_path)
    expected = first(**vit.inputs, mola_task_ids=IDS).logits
    model = PeftModel.from_pretrained(vit.model(), tmp_path).eval()
    for further in (name, f"{name}2"):
        model.load_adapter(str(tmp_path), further)
        model.set_adapter(further)
        assert torch.equal(model(**vit.inputs, mola_task_ids=IDS).logits, expected)
    model.delete_adapter("default")
    base = vit.model()
    base.load_adapter(str(tmp_path), adapter_name=name)
    assert torch.equal(base.eval()(**vit.inputs, mola_task_ids=IDS).logits, expected)
