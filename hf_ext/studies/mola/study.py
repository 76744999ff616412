"""MoLA against the usual ways to adapt one model to several tasks."""

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from datasets import DatasetDict
from peft import LoraConfig, PeftConfig, PolyConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)

from hf_ext._runs import arguments, freeze_statistics, group_accuracies, logits, quiet
from hf_ext.adapters import MoLAConfig
from hf_ext.adapters.mola.router import ImageRouter
from hf_ext.studies.mola.data import BUILDERS, DIGITS_NEED, check
from hf_ext.studies.study import Case, Comparison, Outcome, Preparation, Run, Source, Study, System
from hf_ext.studies.training import Rows
from hf_ext.trainers import MoLATrainer, MoLATrainingConfig

RANK = 4
STEPS = {"digits": 300, "digits8": 300, "domains": 300, "images": 200, "text": 200}
#: layers that are adapted and those that every system trains in full, by the base model's type
PARTS = {
    "vit": {
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"],
        "modules_to_save": ["classifier"],
    },
    "resnet": {"target_modules": ["convolution"], "modules_to_save": ["classifier"]},
    "modernbert": {"target_modules": ["Wqkv", "Wo", "Wi"], "modules_to_save": ["head", "classifier"]},
}
FULL, LORA, LORA_WIDE = "full fine-tuning, shared", "LoRA, rank r", "LoRA, rank E r"
LORA_EACH, POLY = "LoRA, one per task", "Poly"
GRAD, ROUTER, ROUTER_PLAIN = "MoLA-Grad", "MoLA-Router", "MoLA-Router, no TwD"
ROUTER_TUNED = "MoLA-Router, TwD tuned"


def prepare(ready: Preparation) -> None:
    """Leave the base model and the data in the folder."""
    problem = BUILDERS[ready.name](ready)
    problem.base.save_pretrained(ready.folder / "base")
    problem.data.save_to_disk(str(ready.folder / "data"))


def run(run: Run) -> Outcome:
    """Adapt the base model with one system; the score is the mean over tasks of the accuracy."""
    data = DatasetDict.load_from_disk(str(run.folder / "data")).with_format("torch")
    base = _load(run)
    kind = run.system.options["kind"]
    if kind == "each":
        return _one_model_per_task(run, base, data)
    model = _adapted(run, base, data["train"].features["task_ids"].num_classes)
    trainer = _trainer(run, model, data["train"])
    trainer.train()
    scores = {name: _accuracies(trainer, data[name]) for name in ("validation", "test")}
    details = dict(scores["test"])
    if kind == "router":
        details["routing distance"] = _routing_distance(trainer)
    return Outcome(_mean(scores["validation"]), _mean(scores["test"]), details)


# ------------------------------------------------------------------------------------------------ systems
def _load(run: Run) -> PreTrainedModel:
    auto = AutoModelForSequenceClassification if run.case.data == "text" else AutoModelForImageClassification
    model: PreTrainedModel = auto.from_pretrained(run.folder / "base")
    if run.case.options["backbone"] == "frozen" and run.system.options["kind"] != "full":
        freeze_statistics(model)
    return model


def _adapted(run: Run, base: PreTrainedModel, tasks: int) -> nn.Module:
    torch.manual_seed(run.seed)
    options = run.system.options
    kind = options["kind"]
    if kind == "full":
        return base
    config = _adapter_config(base, kind, tasks, options.get("wide", False), run)
    model = get_peft_model(base, config)
    if run.case.options["backbone"] == "joint" and kind not in ("task", "router"):
        for name, parameter in model.named_parameters():
            if "original_module" not in name:
                parameter.requires_grad_(True)
    return PolyModel(model) if kind == "poly" else model


def _adapter_config(base: PreTrainedModel, kind: str, tasks: int, wide: bool, run: Run) -> PeftConfig:
    shared: dict[str, Any] = dict(PARTS[base.config.model_type])
    if kind == "poly":
        return PolyConfig(r=RANK, n_tasks=tasks, n_skills=tasks, n_splits=1, **shared)
    rank = RANK * tasks if wide else RANK
    shared |= {"r": rank, "lora_alpha": 4 * rank}
    if kind in ("lora", "each"):
        return LoraConfig(**shared)
    if kind == "router" and base.config.model_type == "resnet":
        shared["router"] = ImageRouter(3, tasks, max_size=16)  # at 32 pixels it costs several times the small model
    shared["routing"] = kind
    return MoLAConfig(
        num_experts=tasks,
        train_backbone=run.case.options["backbone"] == "joint",
        twd_weight=run.hyper_parameters.get("twd_weight", run.system.options.get("twd_weight", 0.0)),
        twd_temperature=run.hyper_parameters.get("twd_temperature", 1.0),
        **shared,
    )


class PolyModel(nn.Module):
    """Poly, called the way its tuner wants: peft hands `task_ids` on only in models typed for one of its tasks."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.tuner = model.base_model

    def forward(self, task_ids: Tensor, labels: Tensor | None = None, **inputs: Tensor) -> Any:
        return self.tuner(task_ids=task_ids, labels=labels, **inputs)


def _trainer(run: Run, model: nn.Module, data: Any, *, batch_size: int = 32) -> Trainer:
    mola = run.system.options["kind"] in ("task", "router")
    kind: tuple[type[Trainer], type[TrainingArguments]]
    kind = (MoLATrainer, MoLATrainingConfig) if mola else (Trainer, TrainingArguments)
    args = arguments(
        kind[1],
        steps=10 if run.quick else STEPS[run.case.data],
        learning_rate=run.hyper_parameters["learning_rate"],
        seed=run.seed,
        per_device_train_batch_size=batch_size,
        remove_unused_columns=not isinstance(model, PolyModel),
        label_names=["labels"],
    )
    trainer = quiet(kind[0](model=model, args=args, train_dataset=_rows(data)))
    if "adapter_rate" in run.hyper_parameters:
        trainer.optimizer = _two_rates(trainer, model, run.hyper_parameters["adapter_rate"])
    return trainer


def _two_rates(trainer: Trainer, model: nn.Module, adapter_rate: float) -> torch.optim.Optimizer:
    """The Trainer's optimiser with another learning rate for the adapters than for all else."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    kind, options = trainer.get_optimizer_cls_and_kwargs(trainer.args)
    adapters = {"params": [parameter for name, parameter in named if "poly" in name], "lr": adapter_rate}
    others = {"params": [parameter for name, parameter in named if "poly" not in name]}
    optimizer: torch.optim.Optimizer = kind([others, adapters], **options)
    return optimizer


def _rows(data: Any) -> Rows:
    return Rows(data, [name for name in data.column_names if name != "domain_ids"])


def _one_model_per_task(run: Run, base: PreTrainedModel, data: DatasetDict) -> Outcome:
    """A LoRA (and, trained jointly, a backbone) of its own for every task, at as many updates of as many samples."""
    tasks = data["train"].features["task_ids"].num_classes
    scores: dict[str, dict[str, float]] = {"validation": {}, "test": {}}
    for task in range(tasks):
        rows = {name: np.flatnonzero(np.asarray(split["task_ids"][:]) == task) for name, split in data.items()}
        own = {name: data[name].select(chosen) for name, chosen in rows.items()}
        model = _adapted(run, copy.deepcopy(base), tasks)
        trainer = _trainer(run, model, own["train"], batch_size=max(1, 32 // tasks))
        trainer.train()
        for name in scores:
            scores[name] |= _accuracies(trainer, own[name])
    return Outcome(_mean(scores["validation"]), _mean(scores["test"]), scores["test"])


# ------------------------------------------------------------------------------------------------ scores
def _accuracies(trainer: Trainer, data: Any) -> dict[str, float]:
    names = data.features["task_ids"].names
    plain = data.with_format("numpy")
    return group_accuracies(logits(trainer, _rows(data)), plain["labels"][:], plain["task_ids"][:], names)


def _mean(scores: Mapping[str, float]) -> float:
    return float(np.mean(list(scores.values())))


def _routing_distance(trainer: Any) -> float:
    """Mean distance between two tasks' mean routing weights (test rows, the last that were predicted)."""
    table = np.asarray(trainer.routing_table)
    distances = np.linalg.norm(table[:, None] - table[None], axis=-1)
    return float(distances[np.triu_indices(len(table), 1)].mean())


def _rates(case: Case) -> Mapping[str, tuple[float, ...]]:
    joint = case.options["backbone"] == "joint"
    return {"learning_rate": (5e-4, 1e-3, 2e-3, 5e-3) if joint else (1e-3, 2e-3, 5e-3, 1e-2)}


def _twd_grid(case: Case) -> Mapping[str, tuple[float, ...]]:
    return {"learning_rate": (2e-3, 5e-3), "twd_weight": (0.03, 0.3, 1.0), "twd_temperature": (0.5, 2.0)}


def _poly_rates(case: Case) -> Mapping[str, tuple[float, ...]]:
    if case.options["backbone"] == "frozen":
        return {"learning_rate": (5e-3, 2e-2, 5e-2, 1e-1)}
    # its update is scaled by 1 / r in place of 4
    return {"learning_rate": (1e-3, 2e-3), "adapter_rate": (5e-3, 2e-2, 5e-2)}


def _full_rates(case: Case) -> Mapping[str, tuple[float, ...]]:
    return {"learning_rate": (5e-4, 1e-3, 2e-3, 5e-3)}


PROTOCOL = """
- **Who knows the task.** MoLA-Grad, Poly and one LoRA per task are told every sample's task, in training and in the
  test; the others are not. Where the classes of tasks differ (text) or their labels contradict each other (digits),
  a part of what those three win is that knowledge. MoLA-Router is told in training only, and only for the TwD loss.
  All choose among the classes of all tasks.
- **Base models**, made anew for every seed with the optimiser below. Digits: a ViT (2 blocks, width 48), 500 steps
  at 2e-3 on 597 other images, upright and with their own labels. Images: a ResNet for 32 x 32 pixels (3 blocks, up
  to 128 channels), 300 steps at 1e-3 on the first style's training rows, which are trained on again. Text: a
  ModernBERT (2 blocks, width 64, 32 tokens; its byte pairs are learned from all texts, without labels), 400 steps
  at 3e-3 on a third of the training rows of all tasks, which are not used again.
- **Adapters** are in all linear layers of the blocks (in all convolutions of the ResNet), r = 4, scaled by 4,
  without dropout; E is the number of tasks. The classifier (with ModernBERT's head) is trained in full, one for all
  tasks; only one LoRA per task has one per task.
- **Frozen backbone**: nothing else is trained, routers apart, except by full fine-tuning; the ResNet's BatchNorms
  keep the base model's running statistics. **Joint backbone**: the base model is trained along with the adapters, as
  in the paper. Full fine-tuning is the same in both.
- **MoLA-Router** mixes softly, by a network of the input: the paper's residual network for digits and images (these
  at 16 x 16 pixels), a small perceptron on the mean embedding for text. TwD has weight 0.1 and temperature 1.
- **Budget**: 300 updates (200 for images and text) of 32 samples of all tasks as they come, with the Trainer's AdamW
  (no weight decay, gradients clipped at norm 1) and a cosine schedule without warm-up. One LoRA per task: for each
  task as many updates, of 32 / E of its own samples (rounded down: with five tasks 30 in place of 32), on a copy of
  the base model.
- **Poly** as in peft: E skills, one split, a learned task-skill matrix; its update is scaled by 1 / r, so its
  learning rates are larger: with a joint backbone its adapters have one of their own, chosen along with the
  backbone's, of six combinations. It is left out for images, since it knows no convolutions.
- **Hyper-parameters**: only the learning rate, of four values (but Poly with a joint backbone), by the mean
  validation accuracy of runs with two other seeds, 1000 and 1001. Validation rows are a sixth of the training rows,
  drawn by the seed, and are trained on by no run; a validation digit is one in all its turns.
  Test rows are the same for all seeds, and neither trained on nor chosen by. Of the texts, 152 of SST-2's and SUBJ's
  test sentences are training sentences of the other task, since both come from the same reviews.
- A seed draws base model, validation rows and order of batches; of the embedded digits also which of those that are
  not in the test set the base model is trained on. It is shared by all systems, so that differences are taken
  within a seed.
""".strip()

COMPARISON = Study(
    name="mola",
    title="MoLA: one model for several tasks",
    question=(
        "Does a mixture of low-rank adapters serve tasks that disturb each other better than one shared adapter, one "
        "adapter per task or full fine-tuning, with the task known (MoLA-Grad) and unknown (MoLA-Router)?"
    ),
    metric="accuracy, mean over tasks",
    data={
        "digits": Source(
            "handwritten digits (scikit-learn) in four quarter turns, each with another shift of the labels",
            embedded="digits-rotated",
            needs=DIGITS_NEED,
            origin="comes with scikit-learn",
        ),
        "images": Source(
            "PACS: seven classes as photos, paintings, cartoons and sketches",
            needs="image, label, domain (class labels), split (train, test; or these splits)",
            origin="PACS (Li et al., 2017); examples/README.md says how to make the table",
        ),
        "text": Source(
            "five text classification tasks in one table: SST-2, TREC, CoLA, SUBJ, AG News",
            needs="text, task, label_name, split (train, test; or these splits)",
            origin="the tasks' own sources; examples/README.md says how to make the table",
        ),
    },
    cases=tuple(
        Case(f"{data}, {backbone} backbone", data, {"backbone": backbone})
        for data in ("digits", "images", "text")
        for backbone in ("frozen", "joint")
    ),
    systems=(
        System(FULL, {"kind": "full"}, _full_rates),
        System(LORA, {"kind": "lora"}, _rates),
        System(LORA_WIDE, {"kind": "lora", "wide": True}, _rates),
        System(LORA_EACH, {"kind": "each"}, _rates),
        System(POLY, {"kind": "poly"}, _poly_rates, excluded={"images": "peft's Poly adapts linear layers only"}),
        System(GRAD, {"kind": "task"}, _rates, is_method=True),
        System(ROUTER, {"kind": "router", "twd_weight": 0.1}, _rates, is_method=True),
        System(ROUTER_PLAIN, {"kind": "router"}, _rates),
    ),
    comparisons=(
        *(Comparison(GRAD, baseline) for baseline in (FULL, LORA, LORA_WIDE, LORA_EACH, POLY)),
        *(Comparison(ROUTER, baseline) for baseline in (FULL, LORA, LORA_WIDE, ROUTER_PLAIN)),
    ),
    check=check,
    prepare=prepare,
    run=run,
    protocol=PROTOCOL,
    tuning_seeds=2,
)

TWD = Study(
    name="mola-twd",
    title="MoLA: the task-wise decorrelation loss",
    question=(
        "Where does the TwD loss raise the accuracy of a router? Its weight and temperature are chosen on validation "
        "data, with few and many tasks, contradicting and related ones."
    ),
    metric="accuracy, mean over tasks",
    data={
        "digits": Source("digits in four quarter turns, labels shifted", embedded="digits-rotated", needs=DIGITS_NEED),
        "digits8": Source(
            "digits in eight tasks: four turns, plain and inverted",
            embedded="digits-rotated-inverted",
            needs=DIGITS_NEED,
        ),
        "domains": Source("digits in four domains with the same labels", embedded="digits-domains", needs=DIGITS_NEED),
    },
    cases=(
        Case("4 tasks", "digits", {"backbone": "frozen"}),
        Case("8 tasks", "digits8", {"backbone": "frozen"}),
        Case("4 related domains", "domains", {"backbone": "frozen"}),
    ),
    systems=(
        System(ROUTER_PLAIN, {"kind": "router"}, _rates),
        System(ROUTER, {"kind": "router", "twd_weight": 0.1}, _rates, is_method=True),
        System(ROUTER_TUNED, {"kind": "router"}, _twd_grid, is_method=True),
    ),
    comparisons=(Comparison(ROUTER, ROUTER_PLAIN), Comparison(ROUTER_TUNED, ROUTER_PLAIN)),
    check=check,
    prepare=prepare,
    run=run,
    protocol=(
        "As in the study `mola`, on a frozen backbone, with eight experts for eight tasks. *Tuned*: weight and "
        "temperature of the TwD loss are chosen along with the learning rate, of twelve combinations; the other two "
        "have four learning rates to choose from. All are chosen by the mean validation accuracy of runs with four "
        "other seeds, 1000 to 1003. TwD is taken over the pairs of a batch of 32."
    ),
    tuning_seeds=4,
)

STUDIES = (COMPARISON, TWD)
