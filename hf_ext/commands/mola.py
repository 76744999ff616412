"""`hf-ext train mola` and `hf-ext demo mola`."""

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from transformers import Trainer, TrainingArguments, ViTForImageClassification

from hf_ext.adapters import MoLAConfig
from hf_ext.commands.demo import Demo, demo_arguments, over_seeds, pretrained_vit
from hf_ext.commands.loading import accuracy
from hf_ext.commands.parsing import fields_for_cli
from hf_ext.commands.training import train_method
from hf_ext.data import load
from hf_ext.hub_cards import Result, create_card, plot_routing
from hf_ext.studies.training import group_accuracies, logits, quiet
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
    """The adapter."""

    def adapted(self, model: torch.nn.Module) -> torch.nn.Module:
        """The model with a MoLA adapter, in all linear layers if none are named."""
        options = dataclasses.asdict(self)
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
    )


# ------------------------------------------------------------------------------------------------ demo
DATASET, TASKS, RANK = "digits-rotated", 4, 4
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2", "classifier"]
SHOWN = ("MoLA-Grad (task known)", "MoLA-Router (task unknown)")
EXAMPLE = """test = hf_ext.data.load("digits-rotated")["test"].shuffle(seed=0)[:400]
logits = model(pixel_values=test["pixel_values"], mola_task_ids=test["task_ids"]).logits
print((logits.argmax(-1) == test["labels"]).float().mean())
"""


def demo(out: str, *, seeds: int = 3, steps: int = 250) -> None:
    """Adapt a small ViT to four tasks that contradict each other, with MoLA and its baselines, at equal steps.

    Raises:
        ValueError: fewer than one seed or step.
    """
    shared: dict[str, Any] = {"r": RANK, "lora_alpha": 16, "target_modules": TARGETS}
    mola: dict[str, Any] = {**shared, "num_experts": TASKS}
    systems: dict[str, PeftConfig | None] = {
        "full fine-tuning, shared": None,
        f"LoRA r={RANK}": LoraConfig(**shared),
        f"LoRA r={TASKS * RANK}": LoraConfig(**{**shared, "r": TASKS * RANK}),
        SHOWN[1]: MoLAConfig(**mola, routing="router"),
        SHOWN[0]: MoLAConfig(**mola),
    }
    scores: dict[str, list[dict[str, float]]] = {name: [] for name in ("base model", *systems)}
    text = (
        f"[bold]MoLA[/] on {DATASET}: {TASKS} tasks, each a rotation of real digits with its own shift of the labels. "
        f"A small ViT, trained on upright digits, is adapted to all of them; {seeds} seeds."
    )
    with Demo(out, text, total=seeds * (2 + len(systems)), seeds=seeds, steps=steps) as view:
        for seed in range(seeds):
            data = load(DATASET, seed=seed)
            base = pretrained_vit(data, 2 * steps, seed, view)
            view.advance()
            scores["base model"].append(_accuracies(_untrained(base), data["test"]))
            view.advance()
            for name, config in systems.items():
                torch.manual_seed(seed)
                trainer = _trainer(copy.deepcopy(base), copy.deepcopy(config), data, steps, seed, name, view)
                trainer.train()
                scores[name].append(_accuracies(trainer, data["test"]))
                view.advance()
                if seed == 0 and name == SHOWN[0]:
                    facts = _save(view.folder, base, trainer)
                if seed == 0 and name == SHOWN[1]:
                    _plot_routing(view.folder, trainer, data["test"])

    results = [
        over_seeds(name, [run[part] for run in runs], is_method=name in SHOWN, published=name == SHOWN[0], group=part)
        for name, runs in scores.items()
        for part in runs[0]
    ]
    create_card(view.folder, run=facts, **_card_facts(results, seeds, steps))
    view.finish("accuracy over all tasks", results)


def _trainer(
    base: torch.nn.Module, config: PeftConfig | None, data: Any, steps: int, seed: int, name: str, view: Demo
) -> Trainer:
    model = base if config is None else get_peft_model(base, config)
    kind, arguments = (
        (MoLATrainer, MoLATrainingConfig) if isinstance(config, MoLAConfig) else (Trainer, TrainingArguments)
    )
    trainer = kind(
        model=model,
        args=demo_arguments(arguments, steps, 1e-3 if config is None else 5e-3, seed),
        train_dataset=data["train"],
        eval_dataset=data["test"],
        compute_metrics=accuracy,
    )
    return view.watch(trainer, f"seed {seed}: {name}")


def _untrained(model: torch.nn.Module) -> Trainer:
    return quiet(Trainer(model=model, args=demo_arguments(TrainingArguments, 1, 0.0, 0)))


def _accuracies(trainer: Trainer, data: Any) -> dict[str, float]:
    """Accuracy on all test images, under "", and on those of every task."""
    plain = data.with_format("numpy")
    tasks, labels, predicted = plain["task_ids"][:], plain["labels"][:], logits(trainer, data)
    overall = float((predicted.argmax(-1) == labels).mean())
    return {"": overall} | group_accuracies(predicted, labels, tasks, data.features["task_ids"].names)


def _save(folder: Path, base: ViTForImageClassification, trainer: Any) -> dict[str, Any]:
    """Save model and base model; returns what the run says for the card."""
    trainer.evaluate()  # so that the card names the test data
    base.save_pretrained(folder / "base_model")
    trainer.model.save_pretrained(folder)
    facts: dict[str, Any] = trainer.card_facts()
    return facts


def _plot_routing(folder: Path, trainer: Any, data: Any) -> None:
    plot_routing(trainer.routing_table, folder / "routing.png", data.features["task_ids"].names)


def _card_facts(results: list[Result], seeds: int, steps: int) -> dict[str, Any]:
    return {
        "method": "mola",
        "dataset": f"scikit-learn digits ({DATASET})",
        "dataset_description": (
            f"Accuracy on the {TASKS} tasks' test images, shared classifier, base model frozen except under full "
            f"fine-tuning, {steps} steps of AdamW each; all tasks first, then every task. Values are means over "
            f"{seeds} seeds; the weights here are those of {SHOWN[0]} with seed 0."
        ),
        "results": results,
        "plots": [("routing.png", f"Where {SHOWN[1]}, trained beside it and not in this folder, sends each task")],
        "example": EXAMPLE,
        "license": "apache-2.0",
        "limitations": "A demonstration on small images. The base model is in the folder base_model.",
        "command": f"hf-ext demo mola --seeds {seeds} --steps {steps}",
    }
