"""Cards show the training loss and the terms that the trainer declares, whatever else is logged."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import get_peft_model
from torch import Tensor, nn
from torch_geometric.data import Data
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification, ViTModel

from hf_ext.adapters import MoLAConfig
from hf_ext.hub_cards import METHODS, CardCallback, create_card, plot_losses, plots
from hf_ext.hub_cards.saved import FACTS_FILE
from hf_ext.models import (
    FERForImageClassification,
    GraphPUConfig,
    GraphPUModel,
    RDForImageClassification,
    SequentialRecommenderConfig,
    SequentialRecommenderForNextItem,
    replace_classifier,
)
from hf_ext.trainers import (
    CausalDConfig,
    CausalDTrainer,
    DISAMConfig,
    DISAMTrainer,
    DivBSConfig,
    DivBSTrainer,
    FERTrainer,
    FERTrainingConfig,
    GPLConfig,
    GPLTrainer,
    MoLATrainer,
    MoLATrainingConfig,
    RDTrainer,
    RDTrainingConfig,
    TARFConfig,
    TARFTrainer,
)
from hf_ext.trainers.federated import FedGELAConfig, FedGELATrainer, FedLESAMConfig, FedLESAMTrainer

SIZES: dict[str, Any] = {"image_size": 8, "patch_size": 4, "num_channels": 1, "hidden_size": 16}
SIZES |= {"intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
CLASSES = ["neutral", "happy", "sad", "angry", "afraid"]

#: by method: the terms of its loss, and what is logged with them that is none
TERMS: dict[str, tuple[list[str], list[str]]] = {
    "mola": (["twd_loss"], []),
    "disam": (
        ["clean_loss", "domain_loss/0", "domain_loss/1", "domain_loss/2"],
        ["domain_loss_variance", "perturbation_norm"],
    ),
    "divbs": ([], ["candidate_loss", "kept_loss", "selected_fraction"]),
    "tarf": (["forget_loss", "retain_loss"], []),
    "fer": (["fer_match", "fer_transform", "fer_contrast"], []),
    "rd": (["student_loss", "reprogrammed_loss", "cka_loss", "kl_loss"], []),
    "fedlesam": ([], []),
    "fedgela": ([], []),
    "causald": (["recommendation_loss", "distillation_loss"], []),
    "gpl": (["positive_loss", "negative_loss"], ["prior", "lpl", "pseudo_homophily", "mean_edge_weight"]),
}


class Teacher(nn.Module):
    """Twelve features of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 12)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.linear(pixel_values.flatten(1))


@pytest.fixture(scope="module")
def data() -> Dataset:
    rng = np.random.default_rng(0)
    rows = {"pixel_values": rng.normal(size=(48, 1, 8, 8)).astype("float32"), "labels": np.arange(48) % 5}
    ids = np.arange(48) % 3
    return Dataset.from_dict({**rows, "task_ids": ids, "domain_ids": ids}).with_format("torch")


def _vit() -> ViTForImageClassification:
    torch.manual_seed(0)
    return ViTForImageClassification(ViTConfig(**SIZES, num_labels=5))


def _trainer(method: str, folder: Path, data: Dataset, **options: Any) -> Any:
    """A method's own Trainer with all of its terms, that saves after half of its 6 steps."""
    shared: dict[str, Any] = {"output_dir": str(folder), "logging_steps": 1, "report_to": "none", "use_cpu": True}
    shared |= {"per_device_train_batch_size": 16, "num_train_epochs": 2, "save_strategy": "steps", "save_steps": 3}
    shared |= {"disable_tqdm": True, "learning_rate": 0.01, **options}
    if method == "mola":
        mola = MoLAConfig(target_modules=["q_proj"], num_experts=3, r=2, routing="router", num_tasks=3)
        model: Any = get_peft_model(_vit(), mola)
        return MoLATrainer(model, MoLATrainingConfig(**shared), train_dataset=data)
    if method == "disam":
        return DISAMTrainer(_vit(), DISAMConfig(**shared), train_dataset=data)
    if method == "divbs":
        shared["per_device_train_batch_size"] = 4
        return DivBSTrainer(_vit(), DivBSConfig(**shared, divbs_ratio=0.25), train_dataset=data)
    if method == "tarf":
        tarf = TARFConfig(**shared | {"num_train_epochs": 3}, tarf_k=0.5, tarf_t0=1)
        return TARFTrainer(_vit(), tarf, train_dataset=data, forget_dataset=list(range(16)))
    if method == "fer":
        texts = torch.randn(5, 12, generator=torch.Generator().manual_seed(5))
        torch.manual_seed(0)
        model = FERForImageClassification.from_backbones(ViTModel(ViTConfig(**SIZES)), lambda _: texts, CLASSES)
        return FERTrainer(model, FERTrainingConfig(**shared), train_dataset=data)
    if method == "causald":
        models = []
        for architecture in ("din", "gru"):
            torch.manual_seed(0)
            config = SequentialRecommenderConfig(architecture=architecture, num_items=9, hidden_size=8, max_length=4)
            models.append(SequentialRecommenderForNextItem(config))
        rows = [{"input_ids": [0, 1 + row % 8, 2, 3], "labels": 1 + row % 9} for row in range(48)]
        causald = CausalDConfig(**shared, causald_num_candidates=4)
        return CausalDTrainer(models[1], causald, train_dataset=rows, teachers=models[:1])
    if method == "gpl":
        torch.manual_seed(0)
        positive = torch.arange(30) < 15
        graph = Data(torch.randn(30, 3) + 2 * positive[:, None], torch.randint(30, (2, 80)))
        graph.positive_mask, graph.held_out_mask = (
            torch.arange(30) < 8,
            (torch.arange(30) >= 8) & (torch.arange(30) < 12),
        )
        gpl = GPLConfig(**shared | {"num_train_epochs": 6}, gpl_warmup_epochs=1, gpl_guide="mlp")
        return GPLTrainer(GraphPUModel(GraphPUConfig(num_features=3)), gpl, train_dataset=graph)
    if method == "fedlesam":
        return FedLESAMTrainer(_vit(), FedLESAMConfig(**shared), train_dataset=data)
    if method == "fedgela":
        return FedGELATrainer(replace_classifier(_vit()), FedGELAConfig(**shared), train_dataset=data)
    torch.manual_seed(0)
    model = RDForImageClassification.from_student(_vit(), Teacher(), teacher_width=12)
    return RDTrainer(model, RDTrainingConfig(**shared, rd_beta=0.5), train_dataset=data)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """By name of a picture: the labels of its lines."""
    lines: dict[str, list[str]] = {}
    save = plots.save_figure

    def save_figure(figure: Any, path: Any, *options: Any) -> None:
        lines[Path(path).name] = [str(line.get_label()) for line in figure.axes[0].get_lines()]
        save(figure, path, *options)

    monkeypatch.setattr(plots, "save_figure", save_figure)
    return lines


def _table(folder: Path) -> list[str]:
    text = (folder / "README.md").read_text()
    rows = text.partition("| loss term | first logged | last logged |\n|---|---|---|\n")[2].partition("\n\n")[0]
    return [row.split(" | ")[0].removeprefix("| ").replace("\\", "") for row in rows.splitlines()]


@pytest.mark.parametrize("method", METHODS)
def test_the_card_of_a_method_shows_the_terms_of_its_loss(
    method: str, data: Dataset, drawn: dict[str, list[str]], tmp_path: Path
) -> None:
    terms, others = TERMS[method]
    expected = ["loss", *terms]

    def check(card_of: Callable[[], object]) -> None:
        drawn.clear()
        card_of()
        assert (_table(tmp_path), drawn["losses.png"]) == (expected, expected)

    trainer = _trainer(method, tmp_path, data)
    trainer.train()
    logged = {name for entry in trainer.state.log_history for name in entry}
    assert {*expected, *others} <= logged
    check(trainer.create_model_card)
    trainer.save_model()
    check(lambda: create_card(tmp_path))  # from what was saved with the first card
    assert json.loads((tmp_path / FACTS_FILE).read_text())["run"]["loss_terms"] == terms

    resumed = _trainer(method, tmp_path, data)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    check(resumed.create_model_card)
    steps = [entry["step"] for entry in resumed.card_facts()["log_history"]]
    assert steps == list(range(1, steps[-1] + 1))  # those before the interruption, too


def test_a_run_that_is_resumed_at_its_end_knows_the_terms(data: Dataset, tmp_path: Path) -> None:
    """No step is left that would declare them again."""
    _trainer("rd", tmp_path, data, save_steps=6).train()
    resumed = _trainer("rd", tmp_path, data, save_steps=6)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert resumed.card_facts()["loss_terms"] == TERMS["rd"][0]


class _Logging(Trainer):
    """A user's own, which logs a term of its loss and something else of a similar name."""

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            logs |= {"my_term": 0.5, "my_loss_scale": 8.0}
        super().log(logs, *args, **kwargs)


def test_users_name_the_terms_of_their_own_trainer(data: Dataset, drawn: dict[str, list[str]], tmp_path: Path) -> None:
    card = CardCallback("disam")
    card.add_loss_terms(["my_term", "never_logged"])
    shared: dict[str, Any] = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "logging_steps": 1}
    arguments = TrainingArguments(str(tmp_path), max_steps=2, save_strategy="no", **shared)
    trainer = _Logging(_vit(), arguments, train_dataset=data, callbacks=[card])
    for _ in range(2):  # a second training forgets the first one, not what its loss is made of
        trainer.train()
        trainer.save_model()
        card.create_card(tmp_path)
        assert _table(tmp_path) == drawn["losses.png"] == ["loss", "my_term"]


HISTORY = [
    {"loss": 2.0, "b_loss": 1.5, "other_loss": 9.0, "step": 1},
    {"eval_loss": 3.0, "b_loss": 7.0, "step": 1},
    {"loss": 1.0, "b_loss": 0.5, "a": 0.25, "step": 2},
]


def test_terms_are_shown_in_the_order_they_are_named(drawn: dict[str, list[str]], tmp_path: Path) -> None:
    card = create_card(tmp_path, "mola", log_history=HISTORY, loss_terms=["b_loss", "loss", "a", "b_loss"])
    assert list(card.losses.items()) == [("loss", (2.0, 1.0)), ("b_loss", (1.5, 0.5)), ("a", (0.25, 0.25))]
    assert drawn["losses.png"] == ["loss", "b_loss", "a"]


def test_nothing_is_taken_for_a_term_by_its_name(drawn: dict[str, list[str]], tmp_path: Path) -> None:
    assert list(create_card(tmp_path, "mola", log_history=HISTORY).losses) == ["loss"]
    plot_losses(HISTORY, tmp_path / "x.png")
    assert drawn == {"losses.png": ["loss"], "x.png": ["loss"]}


def test_a_card_of_an_earlier_release_is_read(tmp_path: Path) -> None:
    """Its facts name no terms."""
    (tmp_path / FACTS_FILE).write_text(json.dumps({"method": "mola", "said": {}, "run": {"log_history": HISTORY}}))
    assert list(create_card(tmp_path, license="mit").losses) == ["loss"]
