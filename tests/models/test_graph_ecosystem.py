"""Models of graphs in transformers, PEFT and torch: saved, loaded, trained, adapted and exported."""

import copy
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, Trainer, TrainingArguments
from transformers.dynamic_module_utils import get_imports

from hf_ext.models import GraphPUConfig, GraphPUModel

CONVOLUTIONS = ("gcn", "sage", "gat", "gcnii", "fagcn", "mlp")
NODES, FEATURES = 24, 6
SIDE = torch.arange(NODES) % 2


def _edges() -> Tensor:
    """A ring on either side, both ways."""
    nodes = torch.arange(NODES)
    there = torch.stack([nodes, (nodes + 2) % NODES])
    return torch.cat([there, there.flip(0)], dim=1)


EDGES = _edges()
X = torch.randn(NODES, FEATURES, generator=torch.Generator().manual_seed(1)) + SIDE[:, None]
WEIGHTS = torch.rand(EDGES.shape[1], generator=torch.Generator().manual_seed(2))


def _model(conv: str = "gcn", **config: Any) -> Any:
    torch.manual_seed(0)
    return GraphPUModel(GraphPUConfig(conv=conv, num_features=FEATURES, **config))


@pytest.fixture(params=CONVOLUTIONS)
def conv(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# ------------------------------------------------------------------------------------------------ saving
def test_saved_and_loaded(conv: str, tmp_path: Path) -> None:
    model = _model(conv, edge_scorer=True, num_layers=3, dropout=0.25).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value), alpha=0.1)
    model.config.class_prior, model.config.prior_interval = 0.25, (0.125, 0.5)  # as they are found in training
    model.config.score_offset, model.config.threshold = -0.5, 0.75
    model.save_pretrained(tmp_path)
    again, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(again) is GraphPUModel and not any(report.values())
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    assert torch.equal(again(X, EDGES, WEIGHTS).logits, model(X, EDGES, WEIGHTS).logits)
    assert torch.equal(again.predict(X, EDGES).positive, model.predict(X, EDGES).positive)
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is GraphPUConfig and (config.conv, config.num_layers, config.dropout) == (conv, 3, 0.25)
    assert (config.class_prior, config.prior_interval) == (0.25, [0.125, 0.5])
    assert (config.score_offset, config.threshold) == (-0.5, 0.75)
    placed = AutoModel.from_pretrained(tmp_path, device_map="cpu")
    assert torch.equal(placed(X, EDGES, WEIGHTS).logits, model(X, EDGES, WEIGHTS).logits)
    half = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16 and half(X, EDGES, WEIGHTS).logits.isfinite().all()


def test_every_parameter_has_dimensions_and_a_start(conv: str) -> None:
    """FSDP shards no scalars; nothing keeps what memory held before, and a seed says what it is."""
    model, other = _model(conv, edge_scorer=True, hidden_size=32), _model(conv, edge_scorer=True, hidden_size=32)
    for (name, value), same in zip(model.named_parameters(), other.parameters(), strict=True):
        assert value.ndim and torch.equal(value, same), name
        if name == "edge_scorer.output.bias":
            assert value.tolist() == [2.0]
        elif name.endswith("bias") or name == "edge_scorer.output.weight":
            assert not value.any(), name
        else:
            bound = (6 / sum(value.shape[-2:])) ** 0.5
            assert 0.3 * bound < float(value.detach().abs().max()) <= bound, name


def test_weights_that_are_not_all_there(tmp_path: Path) -> None:
    _model().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    removed = weights.pop("convolutions.layers.1.bias")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"^convolutions\.layers\.1\.bias: found no tensor"):
        AutoModel.from_pretrained(tmp_path)
    weights["convolutions.layers.1.bias"] = removed * float("nan")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"^convolutions\.layers\.1\.bias: found NaN"):
        AutoModel.from_pretrained(tmp_path)


def test_copies(conv: str) -> None:
    model = _model(conv, edge_scorer=True).eval()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(X, EDGES, WEIGHTS).logits, model(X, EDGES, WEIGHTS).logits)


# ------------------------------------------------------------------------------------------------ elsewhere
MISSING = """
import importlib.abc, sys, warnings

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, *_):
        if name.split(".")[0] == sys.argv[2]:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
"""
WITHOUT_THIS_PACKAGE = (
    MISSING
    + """
import torch
from transformers import AutoModel
given = torch.load(f"{sys.argv[1]}/given.pt")
for name in ("gcn", "sage", "gat", "gcnii", "fagcn", "mlp"):
    folder = f"{sys.argv[1]}/{name}"
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    torch.save(model.predict(*given).probabilities, f"{folder}/found.pt")
    model.save_pretrained(f"{folder}/again")
    again = AutoModel.from_pretrained(f"{folder}/again", trust_remote_code=True)
    assert torch.equal(again.predict(*given).logits, model.predict(*given).logits)
    fresh = type(model)(model.config)
    assert fresh.edge_scores(*given[:2]).unique().tolist() == [2.0]
assert "hf_ext" not in sys.modules
"""
)


def _run(code: str, tmp_path: Path, *arguments: str) -> None:
    environment = os.environ | {"HF_HOME": str(tmp_path / "hf_home"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code, str(tmp_path), *arguments]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_it_loads_without_this_package(tmp_path: Path) -> None:
    models = {name: _model(name, edge_scorer=True) for name in CONVOLUTIONS}
    torch.save((X, EDGES, WEIGHTS), tmp_path / "given.pt")
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
    _run(WITHOUT_THIS_PACKAGE, tmp_path, "hf_ext")
    for name, model in models.items():
        found = torch.load(tmp_path / name / "found.pt")
        torch.testing.assert_close(found, model.predict(X, EDGES, WEIGHTS).probabilities)
    written = json.loads((tmp_path / "gcn" / "config.json").read_text())
    assert written["auto_map"]["AutoModel"] == "modeling_graph.GraphPUModel"
    files = {file.name for file in (tmp_path / "gcn").glob("*.py")}
    source = Path(sys.modules[GraphPUConfig.__module__].__file__ or "").parent
    assert files == {file.name for file in source.glob("*.py")} - {"__init__.py"}
    needed = {word for file in files for word in get_imports(tmp_path / "gcn" / file)} - set(sys.stdlib_module_names)
    assert needed == {"torch", "transformers", "huggingface_hub", "safetensors", "torch_geometric"}


def test_without_pytorch_geometric(tmp_path: Path) -> None:
    """Nothing else needs it, nobody is warned, and whoever does need it is told how to get it."""
    _model().save_pretrained(tmp_path)
    _run(
        MISSING
        + """
warnings.simplefilter("error", UserWarning)
import hf_ext
from transformers import AutoConfig, AutoModel
from hf_ext import GraphPUConfig, GraphPUModel
for make in (
    lambda: GraphPUModel(GraphPUConfig()),
    lambda: AutoModel.from_pretrained(sys.argv[1]),
    lambda: AutoModel.from_config(AutoConfig.for_model("graph_pu")),
):
    try:
        make()
    except ImportError as error:
        assert "torch_geometric is not installed" in str(error), error
        assert "pip install 'torch-geometric>=2.8'" in str(error), error
    else:
        raise AssertionError("made")
""",
        tmp_path,
        "torch_geometric",
    )


def test_code_that_travels_says_what_is_missing(tmp_path: Path) -> None:
    _model().save_pretrained(tmp_path)
    _run(
        MISSING
        + """
sys.argv[2] = "torch_geometric"
sys.modules["hf_ext"] = None
from transformers import AutoModel
try:
    AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
except ImportError as error:
    assert "pip install 'torch-geometric>=2.8'" in str(error), error
else:
    raise AssertionError("loaded")
""",
        tmp_path,
        "torch_geometric",
    )


def test_importing_it_is_light() -> None:
    code = "import sys, hf_ext.models; from transformers import AutoModel; from hf_ext import GraphPUModel"
    code += "; assert 'hf_ext.models.graph.modeling_graph' in sys.modules; assert 'torch_geometric' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300, stdin=subprocess.DEVNULL)


# ------------------------------------------------------------------------------------------------ training
class _Graphs(torch.utils.data.Dataset[Any]):
    """The graph, a row for every part of the labels."""

    def __init__(self, *labels: Tensor) -> None:
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, place: int) -> dict[str, Tensor]:
        return {"x": X, "edge_index": EDGES, "edge_weight": WEIGHTS, "labels": self.labels[place]}


def _only(rows: list[Any]) -> Any:
    (row,) = rows
    return row


def _trainer(model: Any, folder: Path, data: _Graphs, **options: Any) -> Trainer:
    quiet: dict[str, Any] = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "save_strategy": "no"}
    one: dict[str, Any] = {"per_device_train_batch_size": 1, "per_device_eval_batch_size": 1}
    args = TrainingArguments(str(folder), **one, **quiet, **options)
    return Trainer(model, args, data_collator=_only, train_dataset=data, eval_dataset=data)


def test_a_plain_trainer_learns(conv: str, tmp_path: Path) -> None:
    model = _model(conv, dropout=0.0)
    trainer = _trainer(model, tmp_path, _Graphs(SIDE), max_steps=60, learning_rate=5e-2)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.6 * before
    predicted = trainer.predict(_Graphs(SIDE))
    assert np.shape(predicted.predictions) == np.shape(predicted.label_ids) == (NODES,)
    trainer.save_model(str(tmp_path / "saved"))
    assert type(AutoModel.from_pretrained(tmp_path / "saved")) is GraphPUModel


def test_labels_in_one_step_or_in_parts(tmp_path: Path) -> None:
    """Unequal parts of the labels, whose losses are accumulated, are one step of all of them."""
    part = torch.arange(NODES) < 5
    found = []
    for labels in ((SIDE,), (SIDE.where(part, -100), SIDE.where(~part, -100))):
        model = _model(dropout=0.0)
        options: dict[str, Any] = {"optim": "sgd", "learning_rate": 0.1, "gradient_accumulation_steps": len(labels)}
        _trainer(model, tmp_path, _Graphs(*labels), max_steps=2, **options).train()
        found.append(model.state_dict())
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-5, atol=1e-6)


def test_bfloat16(conv: str) -> None:
    model = _model(conv, dropout=0.0, edge_scorer=True).eval()
    expected = model(X, EDGES, WEIGHTS, labels=SIDE).loss
    weights = WEIGHTS.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        operator = model.operator(EDGES, WEIGHTS, NODES)[1]
        outputs = model(X, EDGES, weights, labels=SIDE)
        learned = model.learned_weights(X, EDGES)
    assert torch.equal(operator, model.operator(EDGES, WEIGHTS, NODES)[1])
    assert outputs.loss.dtype == learned.dtype == torch.float32
    torch.testing.assert_close(outputs.loss, expected, rtol=3e-2, atol=3e-2)
    (outputs.loss + learned.sum()).backward()
    assert all(value.grad is not None and bool(value.grad.isfinite().all()) for value in model.parameters())
    half = model.to(torch.bfloat16)
    outputs = half(X.bfloat16(), EDGES, WEIGHTS.bfloat16(), labels=SIDE)
    assert outputs.logits.dtype == torch.bfloat16 and outputs.loss.dtype == torch.float32
    torch.testing.assert_close(outputs.loss, expected, rtol=5e-2, atol=5e-2)
    assert half.predict(X, EDGES).probabilities.dtype == torch.float32


def test_lora_where_layers_are_linear(tmp_path: Path) -> None:
    """PyTorch Geometric's own linear layers are none that PEFT knows."""
    for conv in ("mlp", "gcnii", "fagcn"):
        base = _model(conv)
        base.save_pretrained(tmp_path / conv)
        lora = LoraConfig(target_modules="all-linear", r=2, init_lora_weights=False)
        model = get_peft_model(AutoModel.from_pretrained(tmp_path / conv), lora).eval()
        assert not torch.allclose(model(X, EDGES).logits, base.eval()(X, EDGES).logits, atol=1e-6)
        model.save_pretrained(tmp_path / "adapter")
        again = PeftModel.from_pretrained(AutoModel.from_pretrained(tmp_path / conv), tmp_path / "adapter").eval()
        torch.testing.assert_close(again(X, EDGES).logits, model(X, EDGES).logits)


# ------------------------------------------------------------------------------------------------ export
@pytest.mark.parametrize("weighted", [False, True])
def test_export(conv: str, weighted: bool) -> None:
    """For graphs of any size."""
    model = _model(conv).eval()
    nodes, edges = torch.export.Dim("nodes", min=2), torch.export.Dim("edges", min=2)
    given, shapes = {"x": X, "edge_index": EDGES}, {"x": {0: nodes}, "edge_index": {1: edges}}
    other = {"x": X[:7], "edge_index": torch.tensor([[0, 1, 2, 6, 6], [1, 2, 0, 5, 6]])}
    if weighted:
        given["edge_weight"], other["edge_weight"] = WEIGHTS, WEIGHTS[:5]
        shapes["edge_weight"] = {0: edges}
    exported = torch.export.export(model, (), given, dynamic_shapes=shapes).module()
    for graph in (given, other):
        torch.testing.assert_close(exported(**graph).logits, model(**graph).logits)


def test_compile(conv: str) -> None:
    model = _model(conv, edge_scorer=True).eval()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(X, EDGES, WEIGHTS).logits, model(X, EDGES, WEIGHTS).logits)


class _Logits(nn.Module):
    """The one output that is wanted."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor) -> Tensor:
        return self.model(x, edge_index, edge_weight).logits


@pytest.mark.slow
def test_onnx(conv: str, tmp_path: Path) -> None:
    import onnxruntime

    model, file = _Logits(_model(conv)).eval(), tmp_path / "model.onnx"
    nodes, edges = torch.export.Dim("nodes", min=2), torch.export.Dim("edges", min=2)
    shapes = {"x": {0: nodes}, "edge_index": {1: edges}, "edge_weight": {0: edges}}
    torch.onnx.export(model, (X, EDGES, WEIGHTS), file, dynamo=True, dynamic_shapes=shapes)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    small = (X[:7], torch.tensor([[0, 1, 2, 6, 6], [1, 2, 0, 5, 6]]), WEIGHTS[:5])
    for graph in ((X, EDGES, WEIGHTS), small):
        names = {value.name for value in session.get_inputs()}
        feed = dict(zip(("x", "edge_index", "edge_weight"), (value.numpy() for value in graph), strict=True))
        (found,) = session.run(None, {name: value for name, value in feed.items() if name in names})
        with torch.no_grad():
            np.testing.assert_allclose(found, model(*graph).numpy(), rtol=1e-4, atol=1e-4)
