"""`hf-ext train mola` and `hf-ext demo mola`."""

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from datasets import Dataset, DatasetDict
from peft import LoraConfig, PeftConfig, get_peft_model
from transformers import Trainer, TrainingArguments

from hf_ext._models import with_new_modules
from hf_ext._runs import group_accuracies, logits, quiet
from hf_ext.adapters import MoLAConfig
from hf_ext.commands.demo import DemoRun, Scored, run_demo
from hf_ext.commands.loading import accuracy
from hf_ext.commands.parsing import fields_for_cli
from hf_ext.commands.training import train_method
from hf_ext.data import load
from hf_ext.data.columns import holds_text, ids_of_rows, text_values
from hf_ext.hub_cards import plot_routing
from hf_ext.trainers import MoLATrainer, MoLATrainingConfig

_AdapterFields: type = fields_for_cli(
    MoLAConfig,
    {
        "num_experts": int | None,
        "target_modules": list[str] | None,
        "r": int,
        "lora_alpha": float,
        "routing": Literal["task", "router"],
        "conv_form": Literal["factored", "loralib"],
        "router": str | None,
        "router_norm": Literal["batch", "layer"],
        "router_kind": Literal["soft", "hard"],
        "twd_weight": float,
        "twd_temperature": float,
        "twd_dim": int,
        "train_backbone": bool,
        "task_heads": list[str] | None,
        "num_tasks": int | None,
        "lora_dropout": float,
        "use_rslora": bool,
        "modules_to_save": list[str] | None,
        "exclude_modules": list[str] | None,
        "bias": Literal["none", "all", "mola_only"],
    },
)


@dataclasses.dataclass
class AdapterArguments(_AdapterFields):
    """Options of the adapter."""

    def adapted(self, model: torch.nn.Module) -> torch.nn.Module:
        """The model with a MoLA adapter, in all linear layers if none are named; a new head is trained in full."""
        options = dataclasses.asdict(self)
        if not options["train_backbone"]:
            heads = options["task_heads"] or []
            saved = with_new_modules(model, [*(options["modules_to_save"] or ()), *heads]) or []
            options["modules_to_save"] = [name for name in saved if name not in heads] or None
        if options["target_modules"] in (["all-linear"], None):
            options["target_modules"] = "all-linear"
        return get_peft_model(model, MoLAConfig(**options))


def train(argv: Sequence[str]) -> None:
    """Train a MoLA adapter on a base model, evaluate it and leave a folder that is ready for the Hub."""
    train_method(
        "mola",
        MoLATrainer,
        MoLATrainingConfig,
        argv,
        description="Train a mixture of low-rank adapters (MoLA, Zhou et al. 2024) on several tasks or domains.",
        adapter=AdapterArguments,
        look=_count_tasks,
    )


def _count_tasks(options: Any, rows: Dataset, args: MoLATrainingConfig) -> None:
    """One expert for every task that is found, unless their number is given."""
    column = args.mola_task_column
    if options.num_experts is not None:
        return
    if options.routing != "task" or column not in rows.column_names:
        raise ValueError(
            f"num_experts: found none with routing={options.routing!r} and "
            f"{'a' if column in rows.column_names else 'no'} column {column!r}, allowed is a number; with "
            "routing='task' and such a column it is counted"
        )
    if holds_text(rows, column):
        options.num_experts = len(text_values(rows, column))
    else:
        classes = getattr(rows.features[column], "num_classes", None)
        options.num_experts = classes or int(ids_of_rows(rows, column).max(initial=0)) + 1


# ------------------------------------------------------------------------------------------------ demo
DATASET, TASKS, RANK = "digits-rotated", 4, 4
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2", "classifier"]
GRAD, ROUTER = "MoLA-Grad (task known)", "MoLA-Router (task unknown)"
_LORA: dict[str, Any] = {"r": RANK, "lora_alpha": 16, "target_modules": TARGETS}
SYSTEMS: dict[str, PeftConfig | None] = {
    "full fine-tuning, shared": None,
    f"LoRA r={RANK}": LoraConfig(**_LORA),
    f"LoRA r={TASKS * RANK}": LoraConfig(**{**_LORA, "r": TASKS * RANK}),
    ROUTER: MoLAConfig(**_LORA, num_experts=TASKS, routing="router"),
    GRAD: MoLAConfig(**_LORA, num_experts=TASKS),
}
EXAMPLE = """test = hf_ext.data.load("digits-rotated")["test"].shuffle(seed=0)[:400]
logits = model(pixel_values=test["pixel_values"], mola_task_ids=test["task_ids"]).logits
print((logits.argmax(-1) == test["labels"]).float().mean())
"""


def demo(out: str, *, seeds: int = 3, steps: int = 250) -> None:
    """Adapt a small ViT to four tasks that contradict each other, with MoLA and its baselines, at equal steps.

    Raises:
        ValueError: fewer than one seed or step.
    """
    run_demo(
        "mola",
        out,
        seeds=seeds,
        steps=steps,
        text=f"[bold]MoLA[/] on {DATASET}: {TASKS} tasks, each a rotation of real digits with its own shift of the "
        f"labels. A small ViT, trained on upright digits, is adapted to all of them. Compared is the accuracy of one "
        f"model on all tasks; {seeds} seeds.",
        found="What the study found: where tasks contradict each other, as here, MoLA-Grad is far better than what "
        "all tasks share and about as good as an adapter for each (shown); its router, which is not told the task, "
        "is better than a shared LoRA on digits alone.",
        systems=_systems,
        trainings=1 + len(SYSTEMS),
        shown=GRAD,
        methods=(GRAD, ROUTER),
        title="accuracy over all tasks",
        card={
            "dataset": f"scikit-learn digits ({DATASET})",
            "dataset_description": (
                f"Accuracy on the {TASKS} tasks' test images, shared classifier, base model frozen except under full "
                f"fine-tuning, {steps} steps of AdamW each; all tasks first, then every task. Values are means over "
                f"{seeds} seeds; the weights here are those of {GRAD} with seed 0."
            ),
            "plots": [("routing.png", f"Where {ROUTER}, trained like it and not in this folder, sends each task")],
            "example": EXAMPLE,
            "limitations": "A demonstration on small images. The base model is in the folder base_model.",
        },
    )


def _systems(run: DemoRun) -> Iterator[Scored]:
    data = load(DATASET, seed=run.seed)
    base = run.pretrained_vit(data)
    if run.seed == 0:
        base.save_pretrained(run.folder / "base_model")
    untrained = quiet(Trainer(model=base, args=run.arguments(TrainingArguments, 0.0)))
    yield "base model", _accuracies(untrained, data["test"]), None
    for name, config in SYSTEMS.items():
        torch.manual_seed(run.seed)
        trainer = _trainer(run, copy.deepcopy(base), copy.deepcopy(config), data)
        run.train(trainer, name)
        scores = _accuracies(trainer, data["test"])
        if run.seed == 0 and name == ROUTER:
            tasks = data["test"].features["task_ids"].names
            plot_routing(trainer.routing_table, run.folder / "routing.png", tasks)
        yield name, scores, trainer


def _trainer(run: DemoRun, base: torch.nn.Module, config: PeftConfig | None, data: DatasetDict) -> Any:
    model = base if config is None else get_peft_model(base, config)
    mola = isinstance(config, MoLAConfig)
    kind, arguments = (MoLATrainer, MoLATrainingConfig) if mola else (Trainer, TrainingArguments)
    return kind(
        model=model,
        args=run.arguments(arguments, 1e-3 if config is None else 5e-3),
        train_dataset=data["train"],
        eval_dataset=data["test"],
        compute_metrics=accuracy,
    )


def _accuracies(trainer: Trainer, data: Any) -> dict[str, float]:
    """Accuracy on all test images, under "", and on those of every task."""
    plain = data.with_format("numpy")
    tasks, labels, predicted = plain["task_ids"][:], plain["labels"][:], logits(trainer, data)
    overall = float((predicted.argmax(-1) == labels).mean())
    return {"": overall} | group_accuracies(predicted, labels, tasks, data.features["task_ids"].names)
