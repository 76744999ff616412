"""DISAM in one process: the step it takes, what it leaves as it was, logs, evaluation, refusals, other trainers."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import ClassLabel, Dataset, IterableDataset
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import (
    EvalPrediction,
    ResNetConfig,
    ResNetForImageClassification,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hf_ext.adapters import MoLAConfig
from hf_ext.data.samplers import BalancedSampler
from hf_ext.functional import disam_ascent_loss, sam_perturbation
from hf_ext.trainers import DISAMArguments, DISAMConfig, DISAMMixin, DISAMTrainer, MoLAArguments, MoLAMixin

TINY = 1e-30  # a perturbation that changes no weight


@pytest.fixture
def rows(data: Dataset) -> Dataset:
    return data.rename_column("task_ids", "domain_ids")


def _options(out: Path, **extra: Any) -> dict[str, Any]:
    defaults = {"max_steps": 4, "learning_rate": 0.1, "optim": "sgd", "logging_steps": 1, "save_strategy": "no"}
    quiet = {"use_cpu": True, "disable_tqdm": True, "report_to": "none", "per_device_train_batch_size": 8}
    return {"output_dir": str(out), **defaults, **quiet, **extra}


def _disam(model: Any, out: Path, rows: Any, **extra: Any) -> DISAMTrainer:
    return DISAMTrainer(model, DISAMConfig(**_options(out, **extra)), train_dataset=rows)


def _difference(one: torch.nn.Module, other: torch.nn.Module) -> float:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return max((a.double() - b.double()).abs().max().item() for a, b in pairs)


def _accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def _by_hand(
    model: torch.nn.Module, rows: Dataset, *, rho: float, lambda_: float, adaptive: bool, sharpness: str = "sam"
) -> None:
    """One step of SGD with learning rate 0.1 on all rows, straight from the equations."""
    batch = rows[:]
    params = list(model.parameters())

    def losses() -> Tensor:
        return F.cross_entropy(model(pixel_values=batch["pixel_values"]).logits, batch["labels"], reduction="none")

    grads = torch.autograd.grad(disam_ascent_loss(losses(), batch["domain_ids"], lambda_=lambda_), params)
    first = torch.cat([grad.flatten() for grad in grads])
    clean = [param.detach().clone() for param in params]
    with torch.no_grad():
        for param, step in zip(params, sam_perturbation(params, grads, rho=rho, adaptive=adaptive), strict=True):
            param += step
        if sharpness == "sagm":
            for param, grad in zip(params, grads, strict=True):
                param -= 0.3 * grad
    grads = torch.autograd.grad(losses().mean(), params)
    if sharpness != "sam":
        second = torch.cat([grad.flatten() for grad in grads])
        apart = first - (first @ second) / second.square().sum() * second
        whole = (first + second) / 2 if sharpness == "sagm" else second - 0.3 * apart
        grads = [
            one.view_as(param) for one, param in zip(whole.split([p.numel() for p in params]), params, strict=True)
        ]
    with torch.no_grad():
        for param, before, grad in zip(params, clean, grads, strict=True):
            param.copy_(before - 0.1 * grad)


# ------------------------------------------------------------------------------------------------ the step
@pytest.mark.parametrize(("batch", "accumulation"), [(48, 1), (12, 4)])
@pytest.mark.parametrize(
    ("lambda_", "adaptive", "sharpness"),
    [(0.0, False, "sam"), (2.0, False, "sam"), (2.0, True, "sam"), (2.0, True, "gsam"), (2.0, True, "sagm")],
)
def test_a_step_is_the_equations(
    lambda_: float,
    adaptive: bool,
    sharpness: str,
    batch: int,
    accumulation: int,
    vit: Callable[..., Any],
    rows: Dataset,
    tmp_path: Path,
) -> None:
    trained, expected = vit(), vit()
    _disam(
        trained,
        tmp_path,
        rows,
        max_steps=1,
        max_grad_norm=0,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        disam_rho=0.5,
        disam_lambda=lambda_,
        disam_adaptive=adaptive,
        disam_sharpness=sharpness,
        disam_alpha=None if sharpness == "sam" else 0.3,
    ).train()
    _by_hand(expected, rows, rho=0.5, lambda_=lambda_, adaptive=adaptive, sharpness=sharpness)
    assert _difference(trained, expected) < 1e-6
    _by_hand(plain := vit(), rows, rho=0.0, lambda_=0.0, adaptive=False)
    assert _difference(trained, plain) > 1e-4


def _with_norms(seed: int = 0) -> ResNetForImageClassification:
    torch.manual_seed(seed)
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    return ResNetForImageClassification(ResNetConfig(num_channels=1, num_labels=5, **sizes))


@pytest.mark.parametrize("kind", ["vit", "resnet"])
@pytest.mark.parametrize(
    "settings",
    [
        {"disam_rho": 0.0, "disam_lambda": 1.0},
        {"disam_rho": TINY, "disam_lambda": 1.0},
        {"disam_rho": TINY, "disam_lambda": 1.0, "disam_domain_weights": "running"},
        {"disam_rho": TINY, "disam_lambda": 0.0},
    ],
)
@pytest.mark.parametrize("accumulation", [1, 3])
def test_without_a_perturbation_it_is_the_plain_trainer(
    kind: str, settings: dict[str, Any], accumulation: int, vit: Callable[..., Any], rows: Dataset, tmp_path: Path
) -> None:
    """Bit for bit, with dropout and BatchNorm: random numbers, statistics and weights are as they would have been."""
    options = {"gradient_accumulation_steps": accumulation, "optim": "adamw_torch", "learning_rate": 1e-3}
    plain, disam = (
        _with_norms() if kind == "resnet" else vit(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
        for _ in range(2)
    )
    Trainer(plain, TrainingArguments(**_options(tmp_path, **options)), train_dataset=rows).train()
    _disam(disam, tmp_path, rows, **options, **settings).train()
    assert _difference(plain, disam) == 0
    assert _difference(plain, _with_norms() if kind == "resnet" else vit()) > 0


def test_both_passes_drop_the_same(vit: Callable[..., Any], rows: Dataset, tmp_path: Path) -> None:
    trainer = _disam(vit(hidden_dropout_prob=0.5), tmp_path, rows, disam_rho=TINY, gradient_accumulation_steps=2)
    trainer.train()
    for entry in trainer.state.log_history[:-1]:
        assert entry["loss"] == pytest.approx(entry["clean_loss"], rel=1e-5)


# ------------------------------------------------------------------------------------------------ one for several
def test_a_perturbation_for_two_updates(vit: Callable[..., Any], rows: Dataset, tmp_path: Path) -> None:
    """In the second one the gradient is taken at the new weights, moved along the step of the first one."""
    options = {"max_grad_norm": 0, "per_device_train_batch_size": 48, "disam_rho": 0.5, "disam_lambda": 2.0}
    trained, once, expected = vit(), vit(), vit()
    trainer = _disam(trained, tmp_path, rows, max_steps=2, disam_every=2, lr_scheduler_type="constant", **options)
    trainer.train()
    _disam(once, tmp_path, rows, max_steps=1, **options).train()
    batch, params = rows[:], list(expected.parameters())
    outputs = expected(pixel_values=batch["pixel_values"])
    losses = F.cross_entropy(outputs.logits, batch["labels"], reduction="none")
    steps = sam_perturbation(
        params, torch.autograd.grad(disam_ascent_loss(losses, batch["domain_ids"], lambda_=2.0), params), rho=0.5
    )
    moved, params = vit(), list(once.parameters())
    with torch.no_grad():
        for place, param, step in zip(moved.parameters(), params, steps, strict=True):
            place.copy_(param + step)
    moved(pixel_values=batch["pixel_values"], labels=batch["labels"]).loss.backward()
    with torch.no_grad():
        for param, place in zip(params, moved.parameters(), strict=True):
            param -= 0.1 * place.grad
    assert _difference(trained, once) < 1e-6
    log = trainer.state.log_history
    assert ["clean_loss" in entry for entry in log[:2]] == [True, False]
    assert log[0]["perturbation_norm"] == pytest.approx(log[1]["perturbation_norm"]) == pytest.approx(0.5)


def test_a_shared_perturbation_saves_passes(vit: Callable[..., Any], rows: Dataset, tmp_path: Path) -> None:
    class Counting(DISAMTrainer):
        passes = 0

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            self.passes += 1
            return super().compute_loss(*args, **kwargs)

    made = {
        every: Counting(vit(), DISAMConfig(**_options(tmp_path, max_steps=8, disam_every=every)), train_dataset=rows)
        for every in (1, 2, 4)
    }
    for trainer in made.values():
        trainer.train()
    assert {every: trainer.passes for every, trainer in made.items()} == {1: 16, 2: 12, 4: 10}


@pytest.mark.parametrize("saved", [3, 4, 6])
def test_a_resumed_run_takes_the_same_perturbation(
    saved: int, vit: Callable[..., Any], rows: Dataset, tmp_path: Path
) -> None:
    options = {"max_steps": 8, "disam_every": 4, "disam_rho": 0.5, "save_strategy": "steps", "save_steps": 1}
    whole, resumed = vit(), vit(seed=1)
    _disam(whole, tmp_path, rows, **options).train()
    checkpoint = str(tmp_path / f"checkpoint-{saved}")
    _disam(resumed, tmp_path, rows, **options).train(resume_from_checkpoint=checkpoint)
    assert _difference(whole, resumed) == 0


def test_a_second_training_begins_with_a_perturbation_of_its_own(
    vit: Callable[..., Any], rows: Dataset, tmp_path: Path
) -> None:
    trainer = _disam(vit(), tmp_path, rows, max_steps=3, disam_every=4, disam_rho=0.5)
    trainer.train()
    assert trainer.checkpoint_state().keys() > {f"perturbation/{name}" for name, _ in trainer.model.named_parameters()}
    fresh, again = vit(), trainer.model
    again.load_state_dict(fresh.state_dict())
    set_seed(trainer.args.seed)
    trainer.train()
    other = _disam(fresh, tmp_path, rows, max_steps=3, disam_every=4, disam_rho=0.5)
    other.train()
    assert _difference(again, fresh) == 0


def test_running_weights(vit: Callable[..., Any], rows: Dataset, tmp_path: Path) -> None:
    """The first update knows no losses and is SAM's; the second goes by those of the first."""
    options = {"per_device_train_batch_size": 48, "disam_rho": 0.5, "disam_lambda": 2.0, "max_grad_norm": 0}
    running = {"disam_domain_weights": "running", "disam_running_decay": 0.0}
    trained, sam = vit(), vit()
    _disam(trained, tmp_path, rows, max_steps=1, **options, **running).train()
    _by_hand(sam, rows, rho=0.5, lambda_=0.0, adaptive=False)
    assert _difference(trained, sam) < 1e-6
    trained = vit()
    trainer = _disam(trained, tmp_path, rows, max_steps=2, **options, **running)
    trainer.train()
    first, second = trainer.state.log_history[:2]
    losses = [first[f"domain_loss/{domain}"] for domain in range(3)]
    counts = np.bincount(np.asarray(rows["domain_ids"][:]), minlength=3)
    expected = counts / counts.sum() - 2 * 2.0 / 3 * (np.array(losses) - np.mean(losses))
    assert [second[f"ascent_weight/{domain}"] for domain in range(3)] == pytest.approx(expected.tolist(), abs=1e-5)
    assert [first[f"ascent_weight/{domain}"] for domain in range(3)] == pytest.approx((counts / 48).tolist())


class Interrupt(Exception):
    pass


@pytest.mark.parametrize("call", [1, 2, 3, 5, 6])
def test_an_interruption_leaves_the_weights(call: int, vit: Callable[..., Any], rows: Dataset, tmp_path: Path) -> None:
    """Two micro-batches: a forward for the losses, two of the first pass, then two at the perturbed weights."""
    model, calls = _with_norms(), []

    def count(module: torch.nn.Module, _: Any) -> None:
        if not module.training:  # Trainer's scale of the loss is probed before the first step
            return
        calls.append(len(calls))
        if len(calls) == call:
            raise Interrupt

    model.register_forward_pre_hook(count)
    trainer = _disam(
        model, tmp_path, rows, disam_rho=0.5, disam_lambda=1.0, gradient_accumulation_steps=2, max_steps=1
    )
    if call == 6:  # these are all
        trainer.train()
        assert len(calls) == 5
        return
    with pytest.raises(Interrupt):
        trainer.train()
    before = _with_norms()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))


# ------------------------------------------------------------------------------------------------ logs, evaluation
def test_logs(vit: Callable[..., Any], rows: Dataset, tmp_path: Path) -> None:
    model = vit()
    trainer = _disam(model, tmp_path, rows, max_steps=1, per_device_train_batch_size=48, disam_rho=0.3)
    trainer.train()
    (entry, _) = trainer.state.log_history
    batch, start = rows[:], vit()
    losses = F.cross_entropy(start(pixel_values=batch["pixel_values"]).logits, batch["labels"], reduction="none")
    means = [losses[batch["domain_ids"] == domain].mean().item() for domain in range(3)]
    assert [entry[f"domain_loss/{domain}"] for domain in range(3)] == pytest.approx(means, rel=1e-5)
    assert entry["domain_loss_variance"] == pytest.approx(np.var(means), rel=1e-3)
    assert entry["perturbation_norm"] == pytest.approx(0.3, rel=1e-5)
    assert entry["clean_loss"] == pytest.approx(losses.mean().item(), rel=1e-5)
    assert entry["loss"] > entry["clean_loss"]
    assert sum(entry[f"ascent_weight/{domain}"] for domain in range(3)) == pytest.approx(1)


def test_names_of_domains(vit: Callable[..., Any], rows: Dataset, tmp_path: Path) -> None:
    named = rows.with_format(None).map(lambda row: {"domain_ids": ["photo", "art", "sketch"][row["domain_ids"]]})
    named = named.with_format("torch")
    train = named.filter(lambda row: row["domain_ids"] != "art")
    args = DISAMConfig(
        **_options(
            tmp_path,
            eval_strategy="steps",
            eval_steps=2,
            save_strategy="best",
            metric_for_best_model="worst_domain_accuracy",
            load_best_model_at_end=True,
        )
    )
    trainer = DISAMTrainer(vit(), args, train_dataset=train, eval_dataset=named, compute_metrics=_accuracy)
    trainer.train()
    logged = {key for entry in trainer.state.log_history for key in entry if key.startswith("domain_loss/")}
    assert logged == {"domain_loss/photo", "domain_loss/sketch"}
    metrics = trainer.evaluate()
    found = [metrics[f"eval_domain_{name}_accuracy"] for name in ("photo", "art", "sketch")]
    assert metrics["eval_worst_domain_accuracy"] == min(found) == trainer.state.best_metric
    trainer.save_model()
    trainer.create_model_card()
    card = ModelCard.load(tmp_path / "README.md")
    assert "| domain art |" in card.text and "| disam_rho | 0.05 |" in card.text
    assert card.data.library_name == "transformers"


def test_class_labels_name_domains(vit: Callable[..., Any], rows: Dataset, tmp_path: Path) -> None:
    labelled = rows.cast_column("domain_ids", ClassLabel(names=["a", "b", "c", "never"]))
    trainer = _disam(vit(), tmp_path, labelled, logging_steps=4)
    trainer.train()
    names = {key for key in trainer.state.log_history[0] if key.startswith("domain_loss/")}
    assert names == {"domain_loss/a", "domain_loss/b", "domain_loss/c"}


def test_the_balanced_sampler(vit: Callable[..., Any], rows: Dataset, tmp_path: Path) -> None:
    ids = np.array([0] * 20 + [1] * 7 + [2] * 3)
    epoch = iter([0, 0, 1])
    sampler = BalancedSampler(ids, seed=1, epoch=lambda: next(epoch))
    first, again, other = (list(sampler) for _ in range(3))
    assert first == again != other and len(first) == len(ids) == len(sampler)
    assert all(sorted(ids[first[start : start + 3]]) == [0, 1, 2] for start in range(0, 30, 3))
    assert set(np.flatnonzero(ids == 1)) <= set(first)  # all of a small group before any is drawn again
    seen: list[Tensor] = []

    class Watching(DISAMTrainer):
        def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
            samples, number = super().get_batch_samples(*args, **kwargs)
            seen.extend(batch["domain_ids"].bincount() for batch in samples)
            return samples, number

    args = DISAMConfig(**_options(tmp_path, disam_domain_sampler="balanced", per_device_train_batch_size=6))
    Watching(vit(), args, train_dataset=rows).train()
    assert len(seen) == 4 and all(counts.tolist() == [2, 2, 2] for counts in seen)


# ------------------------------------------------------------------------------------------------ refusals
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"disam_rho": -1.0}, "disam_rho: found -1.0, allowed are numbers >= 0"),
        ({"disam_lambda": float("nan")}, "disam_lambda: found nan"),
        ({"disam_domain_weights": "local"}, "disam_domain_weights: found 'local'"),
        ({"disam_domain_sampler": "even"}, "disam_domain_sampler: found 'even'"),
        ({"disam_running_decay": 1.0}, "disam_running_decay: found 1.0"),
        ({"disam_num_domains": 0}, "disam_num_domains: found 0"),
        ({"disam_sharpness": "asam"}, "disam_sharpness: found 'asam', allowed are 'sam', 'gsam', 'sagm'"),
        ({"disam_alpha": 0.1}, "disam_alpha: found 0.1 with disam_sharpness='sam'"),
        ({"disam_domain_column": "style"}, "disam_domain_column: found no column 'style' in train_dataset"),
        ({"disam_domain_column": "pixel_values"}, "pixel_values: found float32 values"),
        ({"optim": "lomo"}, "optim: found 'lomo'"),
        ({"disam_every": 0}, "disam_every: found 0"),
        ({"disam_every": 2, "disam_sharpness": "gsam"}, "disam_every: found 2 with disam_sharpness='gsam'"),
        ({"disam_every": 2, "disam_sync_perturbation": False}, "disam_every: found 2 with .*disam_sync_pert"),
        (
            {"disam_domain_sampler": "balanced", "train_sampling_strategy": "sequential"},
            "disam_domain_sampler: found 'balanced' with train_sampling_strategy='sequential'",
        ),
    ],
)
def test_refusals(
    settings: dict[str, Any], words: str, vit: Callable[..., Any], rows: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        _disam(vit(), tmp_path, rows, **settings)


def test_weights_that_are_divided_otherwise(vit: Callable[..., Any], rows: Dataset, tmp_path: Path) -> None:
    trainer = _disam(vit(), tmp_path, rows, disam_rho=0.5)
    divided = [("is_fsdp_enabled", "FSDP1"), ("is_deepspeed_enabled", "DeepSpeed")]  # the accelerator is none of FSDP2
    for name, found in divided:
        setattr(trainer, name, True)
        with pytest.raises(ValueError, match=f"disam: found {found}, allowed are weights that are not sharded"):
            trainer.check_arguments()
        setattr(trainer, name, False)
    trainer.check_arguments()


def test_own_losses(vit: Callable[..., Any], rows: Dataset, tmp_path: Path) -> None:
    def mean(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        return F.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch

    def each(outputs: Any, labels: Tensor) -> Tensor:
        return F.cross_entropy(outputs.logits, labels, reduction="none")

    args = DISAMConfig(**_options(tmp_path, disam_lambda=1.0))
    with pytest.raises(ValueError, match="compute_loss_func: found one without per_sample_loss_func"):
        DISAMTrainer(vit(), args, train_dataset=rows, compute_loss_func=mean)
    usual, own = vit(), vit()
    DISAMTrainer(usual, args, train_dataset=rows).train()
    DISAMTrainer(own, args, train_dataset=rows, compute_loss_func=mean, per_sample_loss_func=each).train()
    assert _difference(usual, own) < 1e-6


def test_streams(vit: Callable[..., Any], rows: Dataset, tmp_path: Path) -> None:
    plain = rows.with_format(None)

    unknown = IterableDataset.from_generator(lambda: iter(plain.to_list())).with_format("torch")
    with pytest.raises(ValueError, match="disam_num_domains: found None"):
        _disam(vit(), tmp_path, unknown)
    trained, streamed = vit(), vit()
    options = {"train_sampling_strategy": "sequential", "disam_lambda": 1.0}
    _disam(trained, tmp_path, rows, **options).train()
    _disam(streamed, tmp_path, unknown, disam_num_domains=3, disam_lambda=1.0).train()
    with pytest.raises(ValueError, match="domain_ids: found ids from 0 to 2, allowed are 0 to 1"):
        _disam(streamed, tmp_path, unknown, disam_num_domains=2, disam_lambda=1.0).train()
    assert _difference(trained, streamed) == 0


# ------------------------------------------------------------------------------------------------ in company
@pytest.mark.parametrize(
    "extra", [{"bf16": True}, {"activation_checkpointing": True}, {"label_smoothing_factor": 0.1}]
)
def test_options_of_the_trainer(extra: dict[str, Any], vit: Callable[..., Any], rows: Dataset, tmp_path: Path) -> None:
    usual, other = vit(), vit()
    options = {"disam_rho": 0.3, "disam_lambda": 1.0, "max_steps": 2}
    _disam(usual, tmp_path, rows, **options).train()
    _disam(other, tmp_path, rows, **options, **extra).train()
    assert _difference(other, vit()) > 1e-3
    assert _difference(usual, other) < (1e-6 if "activation_checkpointing" in extra else 0.05)


@pytest.mark.slow
def test_a_compiled_model(vit: Callable[..., Any], rows: Dataset, tmp_path: Path) -> None:
    usual, compiled = vit(), vit()
    options = {"disam_rho": 0.3, "disam_lambda": 1.0, "max_steps": 2}
    _disam(usual, tmp_path, rows, **options).train()
    _disam(compiled, tmp_path, rows, **options, torch_compile=True, torch_compile_backend="aot_eager").train()
    assert _difference(usual, compiled) < 1e-5


def test_lora_alone_is_perturbed(vit: Callable[..., Any], rows: Dataset, tmp_path: Path) -> None:
    model = get_peft_model(vit(), LoraConfig(target_modules=["q_proj", "fc1"], r=2, init_lora_weights=False))
    perturbed: set[str] = set()

    class Watching(DISAMTrainer):
        def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
            self.before = {name: value.clone() for name, value in model.named_parameters()}
            return super().get_batch_samples(*args, **kwargs)

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            perturbed.update(name for name, value in model.named_parameters() if (value != self.before[name]).any())
            return super().compute_loss(*args, **kwargs)

    Watching(model, DISAMConfig(**_options(tmp_path, disam_rho=0.5, max_steps=2)), train_dataset=rows).train()
    assert perturbed == {name for name, value in model.named_parameters() if value.requires_grad}


@dataclass
class MoLAToo(DISAMArguments, MoLAArguments, TrainingArguments):
    pass


def test_mola(vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> None:
    rows = data.add_column("domain_ids", [row % 2 for row in range(len(data))]).with_format("torch")
    config = MoLAConfig(
        target_modules=["q_proj"],
        num_experts=3,
        r=2,
        routing="router",
        router=torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3)),
        twd_weight=0.5,
    )
    torch.manual_seed(0)
    model = get_peft_model(vit(), config)

    class Both(DISAMMixin, MoLAMixin, Trainer):
        pass

    args = MoLAToo(**_options(tmp_path, disam_lambda=1.0, gradient_accumulation_steps=2))
    trainer = Both(model, args, train_dataset=rows, eval_dataset=rows, compute_metrics=_accuracy)
    trainer.train()
    assert {"twd_loss", "domain_loss/1", "perturbation_norm"} <= set(trainer.state.log_history[0])
    metrics = trainer.evaluate()
    assert {"eval_task_2_accuracy", "eval_domain_1_accuracy", "eval_worst_domain_accuracy"} <= set(metrics)
    trainer.save_model()
    trainer.create_model_card()
    card = ModelCard.load(tmp_path / "README.md")
    assert {"disam", "mola"} <= set(card.data.tags) and "## MoLA" in card.text


def test_seq2seq(tmp_path: Path) -> None:
    @dataclass
    class Config(DISAMArguments, Seq2SeqTrainingArguments):
        pass

    class Both(DISAMMixin, Seq2SeqTrainer):
        pass

    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "vocab_size": 40}
    model = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0))
    tokens = torch.randint(2, 40, (16, 6)).tolist()
    rows = Dataset.from_dict({"input_ids": tokens, "labels": tokens, "domain_ids": [0, 1] * 8}).with_format("torch")
    args = Config(**_options(tmp_path, disam_lambda=1.0, predict_with_generate=True))
    trainer = Both(model, args, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    assert trainer.state.log_history[0]["domain_loss/1"] > 0
    assert "eval_loss" in trainer.evaluate()


def test_a_loss_that_cannot_be_split_is_refused(rows: Dataset, tmp_path: Path) -> None:
    class OnlyLoss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
            return {"loss": (self.weight * pixel_values.mean()).sum()}

    with pytest.raises(ValueError, match="model: found no logits and labels"):
        _disam(OnlyLoss(), tmp_path, rows).train()
    model = OnlyLoss()
    _disam(model, tmp_path, rows.remove_columns("domain_ids"), disam_lambda=0.0).train()  # SAM asks for neither
    assert model.weight.item() != 1
