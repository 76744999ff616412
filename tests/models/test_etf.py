"""The fixed simplex head: what it computes; in models of any architecture, saved, loaded, with and without hf_ext."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    BertTokenizerFast,
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    Dinov2Config,
    Dinov2ForImageClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    Trainer,
    TrainingArguments,
    ViTForImageClassification,
    ViTImageProcessor,
    pipeline,
)
from transformers.dynamic_module_utils import get_imports

from hf_ext.models import (
    ETFClassifier,
    ETFConfig,
    ETFForImageClassification,
    ETFForSequenceClassification,
    replace_classifier,
)

Make = Callable[..., Any]
NAMES = ["ant", "bee", "cat", "dog", "eel"]
_SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
_TEXT = {**_SMALL, "vocab_size": 30}
_GPT2 = {"vocab_size": 30, "n_embd": 16, "n_layer": 1, "n_head": 2, "pad_token_id": 0}
_DINOV2 = {"image_size": 16, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXTS: dict[str, tuple[type, type, dict[str, Any], str]] = {
    "bert": (BertForSequenceClassification, BertConfig, _TEXT, "classifier"),
    "roberta": (RobertaForSequenceClassification, RobertaConfig, _TEXT, "classifier.out_proj"),
    "gpt2": (GPT2ForSequenceClassification, GPT2Config, _GPT2, "score"),
    "llama": (LlamaForSequenceClassification, LlamaConfig, {**_TEXT, "pad_token_id": 0}, "score"),
    "dinov2": (Dinov2ForImageClassification, Dinov2Config, _DINOV2, "classifier"),
}
HEADS = {name: head for name, (*_, head) in TEXTS.items()} | {
    "vit": "classifier",
    "resnet": "classifier.1",
    "timm": "timm_model.fc",
}


@pytest.fixture
def plain(make_student: Make) -> Make:
    """A small model of an architecture, the same at every call, with five named classes."""

    def make(kind: str = "vit", **config: Any) -> Any:
        if kind not in TEXTS:
            return make_student(kind, **config)
        model, configuration, sizes, _ = TEXTS[kind]
        torch.manual_seed(0)
        labels = {"id2label": dict(enumerate(NAMES)), "label2id": {name: i for i, name in enumerate(NAMES)}}
        return model(configuration(**{**sizes, **labels, **config})).eval()

    return make


def _inputs(kind: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    if kind in TEXTS and kind != "dinov2":
        return {"input_ids": torch.randint(1, 30, (3, 7), generator=generator)}
    return {"pixel_values": torch.randn(3, 3, 16, 16, generator=generator)}


def _auto(kind: str) -> Any:
    is_text = kind in TEXTS and kind != "dinov2"
    return AutoModelForSequenceClassification if is_text else AutoModelForImageClassification


def _logits(model: Any, kind: str) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model.eval()(**_inputs(kind)).logits
    return logits


def _gram(weight: Tensor) -> Tensor:
    return weight.T.double() @ weight.double()


def _simplex(classes: int) -> Tensor:
    return (torch.eye(classes) * classes - 1).double() / (classes - 1)


# ------------------------------------------------------------------------------------------------ the head
@pytest.mark.parametrize(("width", "classes"), [(16, 5), (5, 5), (4, 5), (1, 2)])
def test_the_head_is_a_simplex_of_its_seed(width: int, classes: int) -> None:
    head = ETFClassifier(width, classes, seed=3)
    torch.testing.assert_close(_gram(head.weight), _simplex(classes), rtol=0, atol=1e-6)
    assert torch.equal(head.weight, ETFClassifier(width, classes, seed=3).weight)
    assert not torch.equal(head.weight, ETFClassifier(width, classes, seed=4).weight)
    torch.manual_seed(0)
    drawn = torch.rand(1)
    torch.manual_seed(0)
    ETFClassifier(width, classes)
    assert torch.equal(torch.rand(1), drawn)  # from a generator of its own
    assert not list(head.parameters()) and list(head.state_dict()) == ["weight"]


def test_what_a_seed_gives_stays() -> None:
    """A federation's clients make the same head, each on their machine."""
    weight = ETFClassifier(4, 3, seed=0).weight
    expected = [[0.63, -0.4912, -0.1387], [0.7177, -0.4946, -0.2231]]
    assert weight.shape == (4, 3) and weight.is_contiguous()
    torch.testing.assert_close(weight[:2], torch.tensor(expected), rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", [(6, 8), (6, 2, 8)])
@pytest.mark.parametrize("norm", ["l2", "none", "batch"])
def test_logits_by_hand(norm: str, shape: tuple[int, ...]) -> None:
    head = ETFClassifier(8, 5, feature_norm=norm, temperature=0.5, projection_size=6)
    features, phi = torch.randn(shape), torch.tensor([2.0, 0.0, 1.0, 1.5, 0.5])
    assert head.projection is not None
    values = features @ head.projection.weight.T + head.projection.bias
    if norm == "l2":
        values = values / values.norm(dim=-1, keepdim=True)
    if norm == "batch":
        flat = values.reshape(-1, 6)
        values = (values - flat.mean(0)) / (flat.var(0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(head(features), values @ head.weight / 0.5)
    head.class_weights = phi
    torch.testing.assert_close(head(features), values @ (head.weight * phi) / 0.5)
    head.class_weights = None
    torch.testing.assert_close(head(features), values @ head.weight / 0.5)


def test_class_weights_are_saved_nowhere_and_follow_what_is_loaded() -> None:
    head, other = ETFClassifier(8, 5), ETFClassifier(8, 5, seed=1)
    names = set(head.state_dict())
    phi = torch.tensor([5.0, 0, 0, 0, 0])
    head.class_weights = phi
    assert set(head.state_dict()) == names
    head.load_state_dict(other.state_dict())
    other.class_weights = phi
    features = torch.randn(3, 8)
    assert torch.equal(head(features), other(features)) and not head(features)[:, 1:].any()
    with pytest.raises(ValueError, match=r"class_weights: found shape \[2\]"):
        head.class_weights = torch.ones(2)
    assert head.class_weights is not None and torch.equal(head.class_weights, phi)


def test_half_precision_is_that_of_the_features_alone() -> None:
    head, features = ETFClassifier(8, 5, temperature=0.05), torch.randn(4, 8)
    exact = head(features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(head(features), exact)
        halves = head(features.bfloat16())
    assert halves.dtype == torch.bfloat16
    torch.testing.assert_close(halves.float(), exact, rtol=0.02, atol=0.15)
    assert head.bfloat16()(features.bfloat16()).dtype == torch.bfloat16
    assert ETFClassifier(8, 5).double()(features.double()).dtype == torch.float64


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((3, 5), {}, r"hidden_size: found 3 for 5 classes, .* at least 4 dimensions; allowed is projection_size=4 or"),
        ((9, 5), {"projection_size": 3}, "projection_size: found 3 for 5 classes"),
        ((9, 1), {}, "num_labels: found 1, allowed are integers >= 2"),
        ((9, 5), {"seed": -1}, "seed: found -1"),
        ((9, 5), {"temperature": 0}, "temperature: found 0, allowed are numbers > 0"),
        ((9, 5), {"feature_norm": "l1"}, "feature_norm: found 'l1', allowed are l2, batch, none"),
    ],
)
def test_heads_that_cannot_be(arguments: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ETFClassifier(*arguments, **options)


# ------------------------------------------------------------------------------------------------ replacing
@pytest.mark.parametrize("kind", HEADS)
def test_any_classifier_gets_it(kind: str, plain: Make) -> None:
    """In the place of its last linear layer; all else is the classifier's own, its loss too."""
    before, model = plain(kind), replace_classifier(plain(kind), seed=2)
    assert model.config.etf_head == HEADS[kind] and model.classifier.seed == 2 and not model.training
    caught: list[Tensor] = []
    before.get_submodule(HEADS[kind]).register_forward_pre_hook(lambda _, given: caught.append(given[0]))
    _logits(before, kind)
    logits = _logits(model, kind)
    by_hand = F.normalize(caught[0], dim=-1) @ model.classifier.weight / 0.1
    if by_hand.ndim == 3:  # of the last token
        by_hand = by_hand[:, -1]
    torch.testing.assert_close(logits, by_hand)
    labels = torch.tensor([0, 1, 4])
    torch.testing.assert_close(model(**_inputs(kind), labels=labels).loss, F.cross_entropy(logits, labels))
    names = {f"model.{name}" for name, _ in before.named_parameters() if not name.startswith(f"{HEADS[kind]}.")}
    assert {name for name, _ in model.named_parameters()} == names


def test_what_was_put_into_the_model_stays(plain: Make) -> None:
    """A layer that transformers has neither made nor read is not initialised as a part of the new model."""
    model = plain("vit")
    name = next(path for path, module in model.vit.named_modules() if isinstance(module, nn.Linear))
    layer = model.vit.get_submodule(name)
    mine = nn.Linear(layer.in_features, layer.out_features)
    nn.init.constant_(mine.weight, 0.25)
    model.vit.set_submodule(name, mine)
    assert replace_classifier(model).model.vit.get_submodule(name).weight.eq(0.25).all()


def test_the_trainer_sees_the_classifier(plain: Make, tmp_path: Path) -> None:
    """The columns that it takes, and whether its loss is a sum over the whole batch."""
    for kind in HEADS:
        before, model = plain(kind), replace_classifier(plain(kind))
        args = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True)
        one, other = Trainer(before, args), Trainer(model, args)
        assert one.model_accepts_loss_kwargs == other.model_accepts_loss_kwargs
        assert one.label_names == other.label_names == ["labels"]
        for trainer in (one, other):
            trainer._set_signature_columns_if_needed()
        assert set(_inputs(kind)) <= set(other._signature_columns or ())


def test_refused_models_are_as_they_were(plain: Make) -> None:
    model = plain("bert", hidden_size=4, num_attention_heads=1, id2label=dict(enumerate("abcdefgh")), label2id=None)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="hidden_size: found 4 for 8 classes"):
        replace_classifier(model)
    with pytest.raises(ValueError, match="temperature: found -1"):
        replace_classifier(model, temperature=-1)
    with pytest.raises(ValueError, match=r"classifier: found bert in BertForSequenceClassification, allowed is"):
        replace_classifier(model, classifier="bert")
    assert type(model.classifier) is nn.Linear and model.config.model_type == "bert"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    wide = replace_classifier(model, projection_size=7)
    assert wide.classifier.projection is not None and _logits(wide, "bert").shape == (3, 8)
    with pytest.raises(ValueError, match="model: found ETFForSequenceClassification, which has a simplex ETF"):
        replace_classifier(wide)


def test_models_of_other_kinds(plain: Make) -> None:
    lora = get_peft_model(plain("bert"), LoraConfig(target_modules=["query"]))
    for model in (BertModel(BertConfig(**_TEXT)), nn.Linear(3, 2), lora):
        with pytest.raises(ValueError, match=f"model: found {type(model).__name__}, allowed are image and sequence"):
            replace_classifier(model)  # type: ignore[arg-type]
    two = DeiTForImageClassificationWithTeacher(DeiTConfig(**_SMALL, image_size=16, patch_size=8))
    with pytest.raises(ValueError, match="found"):
        replace_classifier(two)
    regression = plain("bert", id2label={0: "score"}, label2id={"score": 0})
    with pytest.raises(ValueError, match="num_labels: found 1"):
        replace_classifier(regression)


# ------------------------------------------------------------------------------------------------ saving
@pytest.mark.parametrize("kind", HEADS)
def test_saved_and_loaded(kind: str, plain: Make, tmp_path: Path) -> None:
    model = replace_classifier(plain(kind), seed=5, temperature=0.2)
    model.save_pretrained(tmp_path)
    again, report = _auto(kind).from_pretrained(tmp_path, output_loading_info=True)
    assert type(again) is type(model) and not any(report.values())
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    exact = {} if kind == "timm" else {"rtol": 0, "atol": 0}  # one of timm is not bit-equal to itself loaded, either
    torch.testing.assert_close(_logits(again, kind), _logits(model, kind), **exact)
    assert (again.classifier.seed, again.classifier.temperature) == (5, 0.2)
    assert again.config.id2label == again.model.config.id2label == dict(enumerate(NAMES))
    assert type(AutoConfig.from_pretrained(tmp_path)) is ETFConfig


def test_from_a_checkpoint_to_a_checkpoint(plain: Make, tmp_path: Path) -> None:
    """Names of weights change between files and models of some architectures."""
    plain("vit").save_pretrained(tmp_path / "plain")
    model = replace_classifier(AutoModelForImageClassification.from_pretrained(tmp_path / "plain"))
    model.save_pretrained(tmp_path / "etf")
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "etf")
    again.save_pretrained(tmp_path / "again")
    last = AutoModelForImageClassification.from_pretrained(tmp_path / "again")
    assert torch.equal(_logits(last, "vit"), _logits(model, "vit"))
    assert torch.equal(_logits(model, "vit"), _logits(replace_classifier(plain("vit")), "vit"))


@pytest.mark.parametrize("kind", ["vit", "bert"])
def test_loading_with_other_classes(kind: str, plain: Make, tmp_path: Path) -> None:
    """A simplex of these is made, of the same seed."""
    replace_classifier(plain(kind), seed=5).save_pretrained(tmp_path)
    again = _auto(kind).from_pretrained(tmp_path, num_labels=7, ignore_mismatched_sizes=True)
    assert _logits(again, kind).shape == (3, 7) and again.model.config.num_labels == 7
    assert torch.equal(again.classifier.weight, ETFClassifier(16, 7, seed=5).weight)


def test_half_precision_and_parts(plain: Make, tmp_path: Path) -> None:
    model = replace_classifier(plain("vit")).to(torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size="5KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    again = AutoModelForImageClassification.from_pretrained(tmp_path, dtype="auto")
    assert again.dtype == again.classifier.weight.dtype == torch.bfloat16
    assert torch.equal(again.classifier.weight, model.classifier.weight)


def test_a_file_without_the_head_is_refused(plain: Make, tmp_path: Path) -> None:
    replace_classifier(plain("vit")).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.classifier.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"model\.classifier\.weight: found no tensor"):
        AutoModelForImageClassification.from_pretrained(tmp_path)
    again, report = AutoModelForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert report["missing_keys"] == {"model.classifier.weight"}
    assert torch.equal(again.classifier.weight, ETFClassifier(16, 5).weight)


@pytest.mark.parametrize(
    ("name", "value"),
    [("etf_temperature", 0), ("etf_seed", -2), ("etf_feature_norm", "l1"), ("etf_projection_size", 0.5)],
)
def test_configurations_that_are_none(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name}: found {value!r}, allowed are"):
        ETFConfig(**{name: value})


def test_what_the_configuration_lacks_is_the_classifiers(plain: Make) -> None:
    config = replace_classifier(plain("gpt2")).config
    assert (config.hidden_size, config.vocab_size) == (16, 30)
    config.pad_token_id = 7
    config.id2label = dict(enumerate("abcde"))
    assert config.base_config.pad_token_id == 7 and config.base_config.id2label[4] == "e"
    with pytest.raises(AttributeError, match="no attribute 'zebra'"):
        config.zebra  # noqa: B018


# ------------------------------------------------------------------------------------------------ without hf_ext
ELSEWHERE = """
import importlib.abc, sys

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, *_):
        if name.split(".")[0] == "hf_ext":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
import torch
from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification
for kind, auto in (("vit", AutoModelForImageClassification), ("roberta", AutoModelForSequenceClassification)):
    folder = f"{sys.argv[1]}/{kind}"
    try:
        auto.from_pretrained(folder)
    except ValueError as error:
        assert "etf" in str(error) or "trust_remote_code" in str(error), error
        print("refused")
    model = auto.from_pretrained(folder, trust_remote_code=True).eval()
    torch.save(model(**torch.load(f"{folder}/inputs.pt")).logits, f"{folder}/logits.pt")
    model.save_pretrained(f"{folder}/again")
    again = auto.from_pretrained(f"{folder}/again", trust_remote_code=True).eval()
    assert torch.equal(again(**torch.load(f"{folder}/inputs.pt")).logits, torch.load(f"{folder}/logits.pt"))
try:
    type(model).from_pretrained(folder, num_labels=3, ignore_mismatched_sizes=True)
except ImportError as error:
    print(error)
assert "hf_ext" not in sys.modules
"""


def test_it_may_be_the_first_import(run_snippet: Callable[..., str], tmp_path: Path) -> None:
    """Before transformers, whose import registers our models; what goes wrong there is a warning."""
    code = "import warnings; warnings.simplefilter('error', UserWarning); from hf_ext.models import ETFClassifier; "
    code += "from transformers import CONFIG_MAPPING; print(CONFIG_MAPPING['etf'].__name__)"
    assert run_snippet(code, cwd=tmp_path).strip() == "ETFConfig"


def test_it_loads_without_this_package(plain: Make, tmp_path: Path) -> None:
    """With its code, bit for bit; without, it is refused rather than given a random head."""
    models = {kind: replace_classifier(plain(kind), seed=3) for kind in ("vit", "roberta")}
    for kind, model in models.items():
        model.save_pretrained(tmp_path / kind)
        torch.save(_inputs(kind), tmp_path / kind / "inputs.pt")
    environment = os.environ | {"HF_HOME": str(tmp_path / "hf_home"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("refused") == 2
    assert "hf_ext is not installed: a new simplex ETF needs it" in done.stdout
    for kind, model in models.items():
        assert torch.equal(torch.load(tmp_path / kind / "logits.pt"), _logits(model, kind))
    written = json.loads((tmp_path / "vit" / "config.json").read_text())
    assert written["auto_map"]["AutoModelForImageClassification"] == "modeling_etf.ETFForImageClassification"
    assert getattr(models["vit"].config, "auto_map", None) is None and ETFForImageClassification._auto_class is None


def test_the_code_that_travels_needs_transformers_alone(plain: Make, tmp_path: Path) -> None:
    replace_classifier(plain("vit")).save_pretrained(tmp_path)
    files = {file.name for file in tmp_path.glob("*.py")}
    names = {"classifier_etf.py", "configuration_etf.py", "modeling_etf.py", "portable.py", "portable_loading.py"}
    assert files == names
    needed = {name for file in files for name in get_imports(tmp_path / file)} - set(sys.stdlib_module_names)
    assert needed == {"torch", "transformers", "huggingface_hub", "safetensors"}


# ------------------------------------------------------------------------------------------------ ecosystem
def test_pipelines(plain: Make, tmp_path: Path) -> None:
    from PIL import Image

    replace_classifier(plain("vit")).save_pretrained(tmp_path / "images")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "images")
    assert AutoImageProcessor.from_pretrained(tmp_path / "images") is not None
    found = pipeline("image-classification", str(tmp_path / "images"))(Image.new("RGB", (20, 20)))
    assert {entry["label"] for entry in found} == set(NAMES)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad"]
    replace_classifier(plain("bert")).save_pretrained(tmp_path / "texts")
    BertTokenizerFast(vocab={word: number for number, word in enumerate(words)}).save_pretrained(tmp_path / "texts")
    (found,) = pipeline("text-classification", str(tmp_path / "texts"))("good bad")
    assert found["label"] in NAMES


@pytest.mark.parametrize("task_type", [None, TaskType.SEQ_CLS])
def test_lora_around_it(task_type: Any, plain: Make, tmp_path: Path) -> None:
    """The ETF is not trained; adapter and base model give the same again."""
    for targets in (["query", "value"], "all-linear"):
        lora = LoraConfig(target_modules=targets, r=2, task_type=task_type, init_lora_weights=False)
        replace_classifier(plain("bert")).save_pretrained(tmp_path / "base")
        model = get_peft_model(_auto("bert").from_pretrained(tmp_path / "base"), lora)
        trained = [name for name, value in model.named_parameters() if value.requires_grad]
        assert trained and all("lora_" in name for name in trained)
        model.save_pretrained(tmp_path / "adapter")
        again = PeftModel.from_pretrained(_auto("bert").from_pretrained(tmp_path / "base"), tmp_path / "adapter")
        assert torch.equal(_logits(again, "bert"), _logits(model, "bert"))
        merged: Any = model.merge_and_unload()
        assert type(merged) is ETFForSequenceClassification
        merged.save_pretrained(tmp_path / "merged")
        assert torch.equal(
            _logits(_auto("bert").from_pretrained(tmp_path / "merged"), "bert"), _logits(merged, "bert")
        )


def test_a_plain_trainer_saves_and_resumes(plain: Make, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(2)
    rows = [
        {"pixel_values": torch.randn(3, 16, 16, generator=generator), "labels": torch.tensor(label % 5)}
        for label in range(8)
    ]
    sgd: dict[str, Any] = {"optim": "sgd", "learning_rate": 0.01, "per_device_train_batch_size": 4, "use_cpu": True}
    args = TrainingArguments(str(tmp_path), **sgd, max_steps=4, save_steps=2, report_to="none", disable_tqdm=True)
    whole, resumed = replace_classifier(plain("resnet")), replace_classifier(plain("resnet"))
    Trainer(whole, args, train_dataset=rows).train()  # type: ignore[arg-type]
    Trainer(resumed, args, train_dataset=rows).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))  # type: ignore[arg-type]
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())
    assert torch.equal(whole.classifier.weight, ETFClassifier(16, 5).weight)


def test_export_and_compile(plain: Make) -> None:
    model = replace_classifier(plain("vit"), feature_norm="batch")
    pixels, expected = _inputs("vit")["pixel_values"], _logits(model, "vit")
    exported = torch.export.export(model, (pixels,)).module()
    torch.testing.assert_close(exported(pixels).logits, expected)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(pixels).logits, expected)


def test_gradient_checkpointing(plain: Make) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = replace_classifier(plain("vit")).train()
        if checkpointing:
            model.activation_checkpointing_enable()
        model(**_inputs("vit"), labels=torch.tensor([0, 1, 2])).loss.backward()
        gradients.append([value.grad for value in model.parameters() if value.grad is not None])
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(*gradients, strict=True))
    assert isinstance(model.get_input_embeddings(), nn.Module)
    assert type(model.model) is ViTForImageClassification
