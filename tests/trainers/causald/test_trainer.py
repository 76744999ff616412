"""Training a student: its loss, its neutral setting, checkpoints, evaluation, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from torch import nn
from transformers import AutoModel, Trainer

from hf_ext.data.interactions import NextItems
from hf_ext.functional import causald_loss, inverse_propensity_weights
from hf_ext.metrics import RankingMetrics, rank_targets
from hf_ext.trainers import CausalDTrainer
from hf_ext.trainers.causald.candidates import EFFECT, WEIGHT, CandidateRows

Make = Callable[..., Any]


def _same(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def _difference(one: nn.Module, other: nn.Module) -> float:
    first, second = one.state_dict(), other.state_dict()
    return max((first[name] - second[name]).abs().max().item() for name in first)


def _logged(trainer: Trainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


# ------------------------------------------------------------------------------------------------ the loss
@pytest.mark.parametrize("kind", ["softmax", "bce"])
@pytest.mark.parametrize("debias", ["none", "ips"])
def test_an_update_is_its_equation(kind: Any, debias: str, make_trainer: Make, recommender: Make) -> None:
    """One step of plain SGD over the first eight rows, in their order."""
    student = recommender(loss=kind)
    options = {"causald_kind": kind, "causald_debias": debias, "causald_alpha": 0.4, "causald_temperature": 3.0}
    options |= {"max_steps": 1, "train_sampling_strategy": "sequential", "causald_ips_clip": 2.0}
    trainer = make_trainer(student, teachers=[recommender("deepfm", 1)], **options)
    trainer.train()
    rows, model = trainer.train_dataset, recommender(loss=kind)
    batch = torch.utils.data.default_collate(rows.__getitems__(list(range(8))))
    logits = model(batch["input_ids"], candidate_ids=batch["candidate_ids"]).logits
    labels = F.one_hot(batch["labels"], 5) if kind == "bce" else batch["labels"]
    effect = torch.from_numpy(np.array(rows.columns[EFFECT][:8]))
    losses = causald_loss(logits, labels, effect, alpha=0.4, temperature=3.0, kind=kind, reduction="none")
    weights = torch.ones(8)
    if debias == "ips":
        counts = torch.from_numpy(rows.split.item_counts[rows.targets])
        weights = inverse_propensity_weights(counts, clip=2.0)[:8]
        assert weights.std() > 0.1
    total = (0.6 * weights * losses["recommendation"] + 0.4 * 9 * losses["distillation"]).mean()
    total.backward()
    with torch.no_grad():
        for weight in model.parameters():
            weight -= 0.5 * weight.grad
    assert _difference(student, model) < 1e-6 and _difference(student, recommender()) > 1e-3
    assert _logged(trainer, "loss") == pytest.approx([total.item()], abs=1e-6)
    assert _logged(trainer, "recommendation_loss") == pytest.approx(
        [(weights * losses["recommendation"]).mean().item()]
    )
    assert _logged(trainer, "distillation_loss") == pytest.approx([losses["distillation"].mean().item()])


def test_the_student_alone_is_the_plain_trainer(make_trainer: Make, recommender: Make) -> None:
    """Bit for bit, with dropout, accumulation, and AdamW; the teachers are not asked."""
    settings = {"gradient_accumulation_steps": 2, "optim": "adamw_torch", "learning_rate": 0.01, "max_steps": 4}
    (teacher := recommender(seed=1)).register_forward_pre_hook(lambda *_: pytest.fail("asked"))
    rows = make_trainer(causald_alpha=0.0).train_dataset
    kinds = (
        {"causald_alpha": 0.0},
        {"kind": Trainer, "train_dataset": rows},
        {"causald_alpha": 0.0, "teachers": [teacher]},
    )
    models, trainers = [], []
    for options in kinds:
        models.append(recommender(dropout=0.2))
        trainers.append(make_trainer(models[-1], **options, **settings))
        trainers[-1].train()
    ours, plain, _ = trainers
    assert _same(models[0], models[1]) and _same(models[2], models[1]) and not _same(models[0], recommender())
    assert _logged(ours, "loss") == _logged(plain, "loss")
    assert _logged(ours, "recommendation_loss") == pytest.approx(_logged(plain, "loss"))


def test_candidates_are_those_of_fixed_negatives(make_trainer: Make, recommender: Make, data: NextItems) -> None:
    """A plain Trainer on `NextItems` trains alike, but for rounding: all others are drawn with one probability."""
    rows = NextItems(data.split, max_length=6, num_negatives=4, fixed_negatives=True, seed=3)
    models = [recommender(), recommender()]
    make_trainer(models[0], causald_alpha=0.0, causald_candidate_seed=3).train()
    make_trainer(models[1], kind=Trainer, train_dataset=rows).train()
    assert _difference(*models) < 1e-5 < _difference(models[0], recommender())


def test_accumulation_is_one_large_batch(make_trainer: Make, recommender: Make) -> None:
    """Micro-batches of different sizes, too: three updates go through the data's end."""
    models = [recommender(), recommender()]
    settings = {"teachers": [recommender("din", 1)], "causald_debias": "ips", "max_steps": 3}
    make_trainer(models[0], per_device_train_batch_size=16, **settings).train()
    settings["teachers"] = [recommender("din", 1)]
    make_trainer(models[1], per_device_train_batch_size=4, gradient_accumulation_steps=4, **settings).train()
    assert _difference(*models) < 1e-6


def test_alpha_and_temperature_matter(make_trainer: Make, recommender: Make) -> None:
    models = []
    for settings in ({}, {"causald_alpha": 1.0}, {"causald_temperature": 1.0}):
        models.append(recommender())
        make_trainer(models[-1], teachers=[recommender("din", 1)], **settings).train()
    assert _difference(models[0], models[1]) > 1e-3 and _difference(models[0], models[2]) > 1e-3


def test_a_student_comes_to_say_what_its_teacher_says(make_trainer: Make, recommender: Make) -> None:
    trainer = make_trainer(
        teachers=[recommender("deepfm", 1)], causald_alpha=1.0, max_steps=150, optim="adamw_torch", learning_rate=0.02
    )
    trainer.train()
    divergences = _logged(trainer, "distillation_loss")
    assert np.mean(divergences[-5:]) < 0.2 * divergences[0]


def test_the_future_changes_nothing(split: Make, make_trainer: Make, recommender: Make, tmp_path: Path) -> None:
    """Other validation and test items: the same teachers' effect, bank, weights of rows and student."""
    models, found = [], []
    for future in (0, 3):
        models.append(recommender())
        rows = NextItems(split(future=future), max_length=6)
        options = {"causald_front_door": "bank", "causald_bank_size": 8, "causald_debias": "ips"}
        options |= {"train_dataset": rows, "output_dir": str(tmp_path / str(future))}
        trainer = make_trainer(models[-1], teachers=[recommender("sasrec", 1, direct_rank=2)], **options)
        trainer.train()
        found.append(trainer.train_dataset)
    one, other = found
    assert not np.array_equal(one.split.interactions.item_rows, other.split.interactions.item_rows)
    for name in (EFFECT, WEIGHT):
        np.testing.assert_array_equal(one.columns[name], other.columns[name])
    assert _same(*models)


def test_autocast(make_trainer: Make, recommender: Make) -> None:
    models = [recommender(), recommender()]
    for model, options in zip(models, ({}, {"bf16": True}), strict=True):
        make_trainer(model, teachers=[recommender("din", 1)], **options).train()
    assert 1e-7 < _difference(*models) < 0.05
    assert {weight.dtype for weight in models[1].parameters()} == {torch.float32}


def test_adapters_of_a_student(make_trainer: Make, recommender: Make) -> None:
    base = recommender("sasrec", intermediate_size=16)
    linear = [name for name, module in base.named_modules() if isinstance(module, nn.Linear)]
    student = get_peft_model(base, LoraConfig(target_modules=linear, r=2))
    before = {name: value.clone() for name, value in student.state_dict().items()}
    trainer = make_trainer(student, teachers=[recommender("din", 1)])
    trainer.train()
    changed = {name for name, value in student.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all("lora_" in name for name in changed)


# ------------------------------------------------------------------------------------------------ what is saved
def test_the_student_alone_is_saved(make_trainer: Make, recommender: Make, tmp_path: Path) -> None:
    student = recommender()
    trainer = make_trainer(student, teachers=[recommender("din", 1)], save_strategy="steps", save_steps=3)
    trainer.train()
    with safe_open(tmp_path / "checkpoint-3" / "model.safetensors", framework="pt") as file:
        assert set(file.keys()) == set(student.state_dict())
    assert _same(AutoModel.from_pretrained(tmp_path / "checkpoint-3"), student)


def test_resuming_is_bit_equal(make_trainer: Make, recommender: Make, tmp_path: Path) -> None:
    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 4, "optim": "adamw_torch"}
    whole, again = recommender(dropout=0.2), recommender(seed=9, dropout=0.2)
    make_trainer(whole, teachers=[recommender("din", 1)], **settings).train()
    trainer = make_trainer(again, teachers=[recommender("din", 1)], **settings)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert _same(whole, again)


def test_a_second_training_needs_no_teachers(make_trainer: Make, recommender: Make) -> None:
    trainer = make_trainer(teachers=[recommender("din", 1)])
    trainer.train()
    trainer.train()
    assert len(_logged(trainer, "distillation_loss")) == 3


# ------------------------------------------------------------------------------------------------ evaluation
def test_evaluation_ranks_all_items_for_head_and_tail(
    make_trainer: Make, recommender: Make, data: NextItems, tmp_path: Path
) -> None:
    rows = NextItems(data.split, "validation", max_length=6)
    trainer = make_trainer(
        teachers=[recommender("din", 1)],
        eval_dataset=rows,
        causald_head_fraction=0.5,
        eval_strategy="steps",
        eval_steps=3,
    )
    trainer.train()
    expected = RankingMetrics(rows, head_fraction=0.5).of(rank_targets(trainer.model, rows))
    found = {name.removeprefix("eval_"): value for name, value in trainer.state.log_history[-2].items()}
    assert {name: found[name] for name in expected} == pytest.approx(expected, nan_ok=True)
    trainer.create_model_card()
    assert (tmp_path / "user_groups.png").is_file()
    text = (tmp_path / "README.md").read_text()
    assert "| front door | ensemble |" in text.replace("`", "") and "| teachers | din |" in text.replace("`", "")
    facts = json.loads(json.dumps(trainer.card_facts()["facts"]["user_groups"]))
    assert facts["ndcg@10"] == pytest.approx({"head": expected["head_ndcg@10"], "tail": expected["tail_ndcg@10"]})


def test_metrics_of_a_user_stay(make_trainer: Make, recommender: Make, data: NextItems) -> None:
    rows = NextItems(data.split, "validation", max_length=6)

    def shape(predicted: Any) -> dict[str, float]:
        return {"columns": predicted.predictions.shape[1]}

    trainer = make_trainer(teachers=[recommender("din", 1)], eval_dataset=rows, compute_metrics=shape)
    assert trainer.evaluate()["eval_columns"] == 20
    several = make_trainer(
        teachers=[recommender("din", 1)], eval_dataset={"a": rows, "b": NextItems(data.split, "test")}
    )
    assert {"eval_a_ndcg@10", "eval_b_ndcg@10"} <= set(several.evaluate())


# ------------------------------------------------------------------------------------------------ refusals
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"causald_alpha": 1.5}, r"causald_alpha: found 1.5, allowed are numbers in \[0, 1\]"),
        ({"causald_temperature": 0.0}, "causald_temperature: found 0.0, allowed are numbers > 0"),
        ({"causald_front_door": "window"}, "causald_front_door: found 'window', allowed are 'ensemble', 'bank'"),
        ({"causald_num_candidates": 1}, "causald_num_candidates: found 1, allowed are integers >= 2"),
        ({"causald_num_candidates": 21}, "causald_num_candidates: found 21, allowed are at most 20"),
        ({"causald_teacher_weights": [-1.0]}, r"causald_teacher_weights: found \[-1.0\], allowed are numbers >= 0"),
        ({"causald_teacher_weights": [0.0]}, r"causald_teacher_weights: found \[0.0\], .* not all zero"),
        ({"causald_ips_clip": 0.5}, "causald_ips_clip: found 0.5, allowed are numbers >= 1"),
        ({"causald_kind": "bce"}, "causald_kind: found 'bce' and a model of loss='softmax'"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor: found 0.1, allowed is 0"),
        ({"compute_loss_func": lambda *_: None}, "compute_loss_func: found one, allowed is none"),
        ({"model": nn.Linear(2, 2)}, "model: found Linear, allowed is SequentialRecommenderForNextItem"),
    ],
)
def test_what_cannot_work_is_refused(
    options: dict[str, Any], message: str, make_trainer: Make, recommender: Make
) -> None:
    with pytest.raises(ValueError, match=message):
        make_trainer(teachers=[recommender("din", 1)], **options)


def test_students_and_rows_that_are_refused(make_trainer: Make, recommender: Make, data: NextItems) -> None:
    with pytest.raises(
        ValueError, match=r"model: found a direct path \(direct_rank=2\), allowed is a student without"
    ):
        make_trainer(recommender(direct_rank=2), teachers=[recommender("din", 1)])
    with pytest.raises(ValueError, match="model: found num_items=21, allowed is 20, as the training data have"):
        make_trainer(recommender(num_items=21), teachers=[recommender("din", 1, num_items=21)])
    for rows, message in (
        (NextItems(data.split, targets="every"), "found rows with a next item at every position"),
        (NextItems(data.split, num_negatives=3), "found rows with candidate_ids"),
        (NextItems(data.split, "validation"), "found the part 'validation', allowed is 'train'"),
    ):
        with pytest.raises(ValueError, match=f"train_dataset: {message}"):
            make_trainer(teachers=[recommender("din", 1)], train_dataset=rows)
    one = make_trainer(teachers=[recommender("din", 1)], causald_front_door="ensemble")
    assert isinstance(one, CausalDTrainer) and isinstance(one.train_dataset, CandidateRows)
