"""Recommenders in transformers, PEFT and torch: saved, loaded, trained, adapted and exported."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, Trainer, TrainingArguments
from transformers.dynamic_module_utils import get_imports

from hf_ext.models import SequentialRecommenderConfig, SequentialRecommenderForNextItem, SequentialRecommenderModel
from hf_ext.models.recsys.items_recsys import ItemTable

ARCHITECTURES = ("sasrec", "gru", "din", "deepfm")
ITEMS, LENGTH = 12, 6
HISTORIES = torch.tensor([[0, 0, 3, 1, 4, 2], [5, 9, 2, 6, 5, 11], [0, 0, 0, 0, 0, 7]])
CANDIDATES = torch.tensor([[3, 1, 12], [7, 6, 2], [4, 9, 1]])
TABLE = ItemTable([f"sku-{row}" for row in range(1, ITEMS + 1)], [f"Lamp {row}" for row in range(1, ITEMS + 1)])


def _model(architecture: str = "sasrec", **config: Any) -> Any:
    torch.manual_seed(0)
    settings = {"num_items": ITEMS, "hidden_size": 8, "max_length": LENGTH, **config}
    return SequentialRecommenderForNextItem(SequentialRecommenderConfig(architecture=architecture, **settings))


@pytest.fixture(params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


# ------------------------------------------------------------------------------------------------ saving
def test_saved_and_loaded(architecture: str, tmp_path: Path) -> None:
    model = _model(architecture, direct_rank=2, intermediate_size=5).eval()
    model.set_items(TABLE)
    model.save_pretrained(tmp_path)
    again, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(again) is SequentialRecommenderForNextItem and not any(report.values())
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    torch.testing.assert_close(again(HISTORIES).logits, model(HISTORIES).logits)
    assert again.recommend(["sku-3"], k=3).titles == model.recommend(["sku-3"], k=3).titles
    assert type(AutoConfig.from_pretrained(tmp_path)) is SequentialRecommenderConfig
    assert again.config.intermediate_size == 5 and again.config.architecture == architecture
    bare = SequentialRecommenderModel.from_pretrained(tmp_path)
    given, expected = (one(HISTORIES, candidate_ids=CANDIDATES).mediator for one in (bare, model))
    torch.testing.assert_close(given, expected)
    half = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16 and half(HISTORIES, labels=torch.tensor([1, 2, 3])).loss.isfinite()


def test_every_parameter_has_dimensions_and_a_start(architecture: str) -> None:
    """FSDP shards no scalars; nothing keeps what memory held before."""
    model = _model(architecture, direct_rank=2)
    assert all(value.ndim for value in model.parameters())
    assert all(bool(value.isfinite().all()) for value in model.parameters())
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            assert bool((module.weight[0] == 0).all()), name
    assert _model(architecture).model.item_embeddings.weight.std().item() == pytest.approx(0.02, rel=0.3)


def test_weights_that_are_not_all_there(tmp_path: Path) -> None:
    _model().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.encoder.positions.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"model\.encoder\.positions\.weight: found no tensor"):
        AutoModel.from_pretrained(tmp_path)


ELSEWHERE = """
import importlib.abc, sys

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, *_):
        if name.split(".")[0] == "hf_ext":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
import torch
from transformers import AutoModel
for name in ("sasrec", "gru", "din", "deepfm"):
    folder = f"{sys.argv[1]}/{name}"
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    found = model.recommend(["sku-3", "sku-1"], k=4)
    torch.save({"scores": found.scores, "titles": found.titles}, f"{folder}/found.pt")
    model.save_pretrained(f"{folder}/again")
    again = AutoModel.from_pretrained(f"{folder}/again", trust_remote_code=True)
    assert again.recommend(["sku-3", "sku-1"], k=4).titles == found.titles
assert "hf_ext" not in sys.modules
"""


def test_it_loads_without_this_package(tmp_path: Path) -> None:
    models = {name: _model(name, direct_rank=2) for name in ARCHITECTURES}
    for name, model in models.items():
        model.set_items(TABLE)
        model.save_pretrained(tmp_path / name)
    environment = os.environ | {"HF_HOME": str(tmp_path / "hf_home"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", ELSEWHERE, str(tmp_path)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name, model in models.items():
        found, expected = torch.load(tmp_path / name / "found.pt"), model.recommend(["sku-3", "sku-1"], k=4)
        torch.testing.assert_close(found["scores"], expected.scores)
        assert found["titles"] == expected.titles
    written = json.loads((tmp_path / "gru" / "config.json").read_text())
    assert written["auto_map"]["AutoModel"] == "modeling_recsys.SequentialRecommenderForNextItem"
    files = {file.name for file in (tmp_path / "gru").glob("*.py")}
    source = Path(sys.modules[SequentialRecommenderConfig.__module__].__file__ or "").parent
    assert files == {file.name for file in source.glob("*.py")} - {"__init__.py"}
    needed = {word for file in files for word in get_imports(tmp_path / "gru" / file)} - set(sys.stdlib_module_names)
    assert needed == {"torch", "transformers", "huggingface_hub", "safetensors", "numpy"}


# ------------------------------------------------------------------------------------------------ training
def _rows(kind: str) -> list[dict[str, Tensor]]:
    """Whoever has seen item n next sees n + 1."""
    rows = []
    for start in range(32):
        line = (torch.arange(start, start + LENGTH + 1) % ITEMS) + 1
        history, target = line[:-1], line[-1]
        row = {"input_ids": history, "attention_mask": torch.ones_like(history)}
        if kind == "every":
            row["labels"] = line[1:]
        elif kind == "full":
            row["labels"] = target
        else:
            row["candidate_ids"] = torch.stack([target, *((target + shift - 1) % ITEMS + 1 for shift in (2, 5, 7))])
            row["labels"] = torch.tensor(0)
        rows.append(row)
    return rows


def _arguments(folder: Path, **options: Any) -> TrainingArguments:
    quiet: dict[str, Any] = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "save_strategy": "no"}
    return TrainingArguments(str(folder), **quiet, **options)


@pytest.mark.parametrize("loss", ["softmax", "bce"])
@pytest.mark.parametrize("kind", ["every", "full", "sampled"])
def test_a_plain_trainer_learns(architecture: str, kind: str, loss: str, tmp_path: Path) -> None:
    if kind == "every" and architecture in ("din", "deepfm"):
        pytest.skip("of causal encoders alone")
    model = _model(architecture, dropout=0.0, loss=loss, hidden_size=16)
    args = _arguments(tmp_path, max_steps=60, learning_rate=2e-2, per_device_train_batch_size=16)
    data: Any = _rows(kind)
    trainer = Trainer(model, args, train_dataset=data, eval_dataset=data)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.6 * before
    trainer.save_model(str(tmp_path / "saved"))
    assert type(AutoModel.from_pretrained(tmp_path / "saved")) is SequentialRecommenderForNextItem
    predicted = trainer.predict(data).predictions  # neither mediators nor the direct path's part are gathered
    assert predicted.shape == (32, 4 if kind == "sampled" else ITEMS)


@pytest.mark.parametrize("kind", ["every", "full", "sampled"])
def test_eight_rows_are_two_times_four(kind: str, tmp_path: Path) -> None:
    """Of unequal numbers of labels, too."""
    data: Any = _rows(kind)[:8]
    if kind == "every":
        for row, unlabelled in zip(data, (0, 5, 0, 0, 4, 1, 0, 3), strict=True):
            row["labels"] = row["labels"].masked_fill(torch.arange(LENGTH) < unlabelled, -100)
    found = []
    for size, steps in ((8, 1), (4, 2), (1, 8)):
        model = _model("sasrec", dropout=0.0, direct_rank=2)
        options: dict[str, Any] = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
        args = _arguments(tmp_path, max_steps=2, optim="sgd", learning_rate=0.1, **options)
        Trainer(model, args, train_dataset=data).train()
        found.append(_weights(model))
    for other in found[1:]:
        for name, value in found[0].items():
            torch.testing.assert_close(other[name], value, rtol=1e-5, atol=1e-6)


def test_bfloat16(architecture: str) -> None:
    model = _model(architecture, direct_rank=2)
    expected = model.eval()(HISTORIES, labels=torch.tensor([1, 2, 3])).loss
    with torch.autocast("cpu", torch.bfloat16):
        for given in ({}, {"candidate_ids": CANDIDATES}):
            outputs = model(HISTORIES, labels=torch.tensor([1, 2, 2]), **given)
            assert outputs.loss.dtype == torch.float32
            outputs.loss.backward()
        found = model(HISTORIES, labels=torch.tensor([1, 2, 3])).loss
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)
    assert all(bool(value.grad.isfinite().all()) for value in model.parameters() if value.grad is not None)


def test_gradient_checkpointing() -> None:
    labels = HISTORIES.roll(-1, 1).masked_fill(HISTORIES.roll(-1, 1) == 0, 5)
    found = []
    for checkpointing in (False, True):
        model = _model("sasrec", dropout=0.0).train()
        if checkpointing:
            model.activation_checkpointing_enable()
        model(HISTORIES, labels=labels).loss.backward()
        found.append([value.grad for value in model.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    for architecture in ("gru", "din", "deepfm"):
        with pytest.raises(ValueError, match="does not support"):
            _model(architecture).activation_checkpointing_enable()


# ------------------------------------------------------------------------------------------------ PEFT
@pytest.mark.parametrize("targets", ["all-linear", "item_embeddings"])
def test_lora(architecture: str, targets: str, tmp_path: Path) -> None:
    if targets == "all-linear" and architecture == "gru":
        targets = "dense"  # the GRU's own weights are no linear layers
    base = _model(architecture, direct_rank=2)
    base.set_items(TABLE)
    base.save_pretrained(tmp_path / "base")
    names: Any = targets if targets == "all-linear" else [targets]
    lora = LoraConfig(target_modules=names, r=2, init_lora_weights=False)
    model = get_peft_model(AutoModel.from_pretrained(tmp_path / "base"), lora).eval()
    assert not torch.allclose(model(HISTORIES).logits, base.eval()(HISTORIES).logits, atol=1e-6)
    torch.testing.assert_close(
        model(HISTORIES, candidate_ids=CANDIDATES).logits, model(HISTORIES).logits.gather(1, CANDIDATES - 1)
    )
    model(HISTORIES, labels=torch.tensor([1, 2, 3])).loss.backward()
    trained = [value for value in model.parameters() if value.requires_grad]
    assert all(value.grad is not None for value in trained)
    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(AutoModel.from_pretrained(tmp_path / "base"), tmp_path / "adapter").eval()
    torch.testing.assert_close(again(HISTORIES).logits, model(HISTORIES).logits)
    assert again.recommend(["sku-3"], k=2).titles == model.recommend(["sku-3"], k=2).titles
    merged: Any = model.merge_and_unload()
    torch.testing.assert_close(merged(HISTORIES).logits, again(HISTORIES).logits)
    merged.save_pretrained(tmp_path / "merged")
    assert AutoModel.from_pretrained(tmp_path / "merged").items.ids == TABLE.ids


# ------------------------------------------------------------------------------------------------ export
@pytest.mark.parametrize("direct", [0, 2])
def test_export(architecture: str, direct: int) -> None:
    """With candidates and without, for batches of any size."""
    model = _model(architecture, direct_rank=direct).eval()
    batch = torch.export.Dim("batch", min=2, max=64)
    other = torch.cat([HISTORIES, HISTORIES.flip(1)])
    whole = torch.export.export(model, (HISTORIES,), dynamic_shapes={"input_ids": {0: batch}}).module()
    for rows in (HISTORIES, other):
        torch.testing.assert_close(whole(rows).logits, model(rows).logits)
    given = {"input_ids": HISTORIES, "candidate_ids": CANDIDATES}
    shapes = {"input_ids": {0: batch}, "candidate_ids": {0: batch, 1: torch.export.Dim.AUTO}}
    few = torch.export.export(model, (), given, dynamic_shapes=shapes).module()
    more = torch.cat([CANDIDATES, CANDIDATES])
    torch.testing.assert_close(
        few(input_ids=other, candidate_ids=more).logits, model(other, candidate_ids=more).logits
    )


def test_compile(architecture: str) -> None:
    model = _model(architecture, direct_rank=2).eval()
    whole = architecture != "gru"  # torch leaves recurrent networks out of its graphs
    compiled = torch.compile(model, backend="eager", fullgraph=whole)
    torch.testing.assert_close(compiled(HISTORIES).logits, model(HISTORIES).logits)
