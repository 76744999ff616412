"""Unlearning with TARF and its baselines on tiny models."""

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

from hf_ext.data import facts
from hf_ext.functional import representation_gravity, retain_mask_by_label
from hf_ext.trainers import MethodMixin, TARFArguments, TARFConfig, TARFMixin, TARFTrainer
from hf_ext.trainers.tarf.forgetting import NPO, loss_of_guessing, random_labels
from hf_ext.trainers.tarf.identification import row_batches
from hf_ext.trainers.tarf.paired import ROW, PairedBatches
from hf_ext.trainers.tarf.plan import plan_of
from hf_ext.trainers.tarf.retention import right_and_all, sampled_rows

FORGET = list(range(0, 16))  # of the 48 rows; 32 remain


def _arguments(out: Path, kind: type[Any] = TARFConfig, **extra: Any) -> Any:
    defaults = {"num_train_epochs": 5, "learning_rate": 0.1, "optim": "sgd", "logging_steps": 1}
    quiet = {"use_cpu": True, "disable_tqdm": True, "report_to": "none", "save_strategy": "no"}
    sizes = {"per_device_train_batch_size": 8, "tarf_t0": 2, "tarf_k": 0.5}
    paper = {"tarf_selection": "groups", "tarf_max_forget_loss": np.inf}
    return kind(output_dir=str(out), **{**defaults, **quiet, **sizes, **paper, **extra})


NEUTRAL = {"tarf_k": 0.0, "tarf_selection": "none", "tarf_t1": 0}


def _difference(one: torch.nn.Module, other: torch.nn.Module) -> float:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)


def _history(trainer: Trainer) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


# ------------------------------------------------------------------------------------------------ the neutral setting
@pytest.mark.parametrize("options", [NEUTRAL, {"tarf_method": "ft"}], ids=["k=0", "ft"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_with_nothing_to_forget_it_is_the_plain_trainer(
    options: dict[str, Any], accumulation: int, vit: Callable[..., Any], data: Dataset, tmp_path: Path
) -> None:
    shared: dict[str, Any] = {"gradient_accumulation_steps": accumulation, "num_train_epochs": 2}
    plain, neutral = vit(hidden_dropout_prob=0.1), vit(hidden_dropout_prob=0.1)
    arguments = _arguments(tmp_path, **shared)
    names = set(TARFArguments.__dataclass_fields__)
    usual = {name: value for name, value in vars(arguments).items() if name in _plain_fields() and name not in names}
    Trainer(plain, TrainingArguments(**usual), train_dataset=data.select(range(16, 48))).train()
    TARFTrainer(neutral, _arguments(tmp_path, **shared, **options), train_dataset=data, forget_dataset=FORGET).train()
    assert _difference(plain, neutral) == 0
    assert _difference(plain, vit()) > 0


def _plain_fields() -> set[str]:
    return {name for name, field in TrainingArguments.__dataclass_fields__.items() if field.init}


# ------------------------------------------------------------------------------------------------ the loss
def test_accumulation_leaves_the_update_as_it_is(vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> None:
    whole, parts = vit(), vit()
    one = TARFTrainer(whole, _arguments(tmp_path), train_dataset=data, forget_dataset=FORGET)
    one.train()
    split = _arguments(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    other = TARFTrainer(parts, split, train_dataset=data, forget_dataset=FORGET)
    other.train()
    assert _difference(whole, parts) < 1e-6
    assert one.identification.identified["dropped"] == other.identification.identified["dropped"] != []
    for first, second in zip(_history(one), _history(other), strict=True):
        assert first["loss"] == pytest.approx(second["loss"], abs=1e-5)
        assert first.get("forget_loss") == pytest.approx(second.get("forget_loss"), abs=1e-5)
        assert first.get("retain_loss") == pytest.approx(second.get("retain_loss"), abs=1e-5)


def test_phases_and_weights_are_as_logged(vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> None:
    trainer = TARFTrainer(vit(), _arguments(tmp_path), train_dataset=data, forget_dataset=FORGET)
    trainer.train()
    logs = _history(trainer)
    assert [entry["phase"] for entry in logs] == [1] * 4 + [2] * 8 + [3] * 8
    expected = [0.5 * max(5 - t - 2, 0) / 5 for t in range(5)]
    assert [entry["k_t"] for entry in logs] == pytest.approx(np.repeat(expected, 4).tolist())
    for entry in logs:
        assert ("forget_loss" in entry) == (entry["phase"] < 3)
        assert ("retain_loss" in entry) == ("dropped_fraction" in entry) == (entry["phase"] > 1)
        loss = entry.get("retain_loss", 0) - entry["k_t"] * entry.get("forget_loss", 0)
        assert entry["loss"] == pytest.approx(loss, abs=1e-5)
    assert logs[-1]["dropped_fraction"] > 0


def test_time_may_move_with_every_update(vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> None:
    arguments = _arguments(tmp_path, tarf_anneal_by="step", tarf_t1=0.5, num_train_epochs=3, tarf_t0=1)
    trainer = TARFTrainer(vit(), arguments, train_dataset=data, forget_dataset=FORGET)
    trainer.train()
    logs = _history(trainer)
    assert [entry["phase"] for entry in logs] == [1] * 2 + [2] * 6 + [3] * 4
    assert [entry["k_t"] for entry in logs[:4]] == pytest.approx([0.5 * (2 - t / 4) / 3 for t in range(4)])
    # max_steps is as good a way to say how long
    steps = _arguments(tmp_path, tarf_anneal_by="step", tarf_t1=0.5, max_steps=12, tarf_t0=1)
    again = TARFTrainer(vit(), steps, train_dataset=data, forget_dataset=FORGET)
    again.train()
    assert [entry["k_t"] for entry in _history(again)] == [entry["k_t"] for entry in logs]


def test_one_update_by_hand(vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> None:
    """Batches as large as the data, so that their order does not matter."""
    model, by_hand = vit(), vit()
    arguments = _arguments(
        tmp_path,
        max_steps=2,
        num_train_epochs=2,
        per_device_train_batch_size=32,
        tarf_forget_batch_size=16,
        tarf_t0=0,
        tarf_t1=0,
        tarf_selection="none",
        lr_scheduler_type="constant",
    )
    TARFTrainer(model, arguments, train_dataset=data, forget_dataset=FORGET).train()
    forget, remaining = data[:16], data[16:]
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.1)
    by_hand.train()
    for t in range(2):
        losses = [
            torch.nn.functional.cross_entropy(by_hand(part["pixel_values"]).logits, part["labels"])
            for part in (forget, remaining)
        ]
        optimizer.zero_grad()
        (losses[1] - 0.5 * (2 - t) / 2 * losses[0]).backward()
        torch.nn.utils.clip_grad_norm_(by_hand.parameters(), 1.0)
        optimizer.step()
    assert _difference(model, by_hand) < 1e-6


def test_the_cap_stops_the_ascent(vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> None:
    options = {"tarf_selection": "none", "num_train_epochs": 2, "tarf_t0": 0, "tarf_t1": 1}
    capped = _arguments(tmp_path, tarf_max_forget_loss=1e-3, **options)
    model = vit()
    trainer = TARFTrainer(model, capped, train_dataset=data, forget_dataset=FORGET)
    trainer.train()
    first = _history(trainer)[0]
    assert first["capped_fraction"] == 1 and first["loss"] == 0
    assert first["grad_norm"] == 0


@pytest.mark.parametrize("method", ["tarf", "ga"])
def test_by_default_the_cap_is_twice_the_loss_of_guessing(
    method: str, vit: Callable[..., Any], data: Dataset, tmp_path: Path
) -> None:
    """Of five classes: log 25. A bias of b makes the loss log(4 + e^b) of the other four, that of its own none."""
    model, shares = vit(), []
    with torch.no_grad():
        model.classifier.weight.zero_()
    for bias in (3.0, 3.1):  # log(4 + e^3) is less than log 25, log(4 + e^3.1) is more
        with torch.no_grad():
            model.classifier.bias.copy_(torch.tensor([bias, 0, 0, 0, 0]))
        options = {"tarf_max_forget_loss": None, "tarf_selection": "none", "tarf_method": method, "max_steps": 1}
        arguments = _arguments(tmp_path, tarf_t0=0, learning_rate=0.0, tarf_forget_batch_size=16, **options)
        trainer = TARFTrainer(model, arguments, train_dataset=data, forget_dataset=FORGET)
        trainer.train()
        shares.append(_history(trainer)[0].get("capped_fraction"))
    labels = torch.as_tensor(data[:16]["labels"])
    assert shares == ([0, labels.ne(0).float().mean().item()] if method == "tarf" else [None, None])


@pytest.mark.parametrize(
    ("logits", "labels", "expected"),
    [
        (torch.zeros(3, 4), torch.zeros(3).long(), np.log(4)),
        (torch.zeros(3, 5, 6), torch.zeros(3, 5).long(), np.log(6)),
        (torch.zeros(3, 4), torch.zeros(3, 4), np.log(2)),
        (torch.zeros(3, 1), torch.zeros(3, 1), None),
        (torch.zeros(3, 1), torch.zeros(3), None),
    ],
    ids=["classes", "tokens", "several labels", "a number", "numbers"],
)
def test_the_loss_of_guessing(logits: torch.Tensor, labels: torch.Tensor, expected: float | None) -> None:
    assert loss_of_guessing(logits, labels) == (None if expected is None else pytest.approx(expected))


def test_what_is_retained_is_measured(
    vit: Callable[..., Any], data: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A model that knows its data keeps them with a weak ascent, and loses them with a large learning rate."""
    known = vit(hidden_dropout_prob=0.3)
    options = {"num_train_epochs": 40, "learning_rate": 0.3, "tarf_method": "ft"}
    TARFTrainer(known, _arguments(tmp_path, **options), train_dataset=data, forget_dataset=FORGET).train()
    rows = data.select(range(16, 48)).select(torch.linspace(0, 31, 16).long().tolist())
    logging.getLogger("transformers").addHandler(caplog.handler)
    for rate in (0.01, 2.0):
        model = copy.deepcopy(known)
        options = {"learning_rate": rate, "tarf_selection": "none", "max_grad_norm": 0.0, "num_train_epochs": 3}
        trainer = TARFTrainer(model, _arguments(tmp_path, **options), train_dataset=data, forget_dataset=FORGET)
        caplog.clear()
        output = trainer.train()
        for name, judged in (("retain_accuracy_before", known), ("retain_accuracy", model)):
            with torch.no_grad():
                right = judged.eval()(rows[:]["pixel_values"]).logits.argmax(-1) == rows[:]["labels"]
            assert output.metrics[name] == pytest.approx(right.float().mean().item())
            assert trainer.state.log_history[-1][name] == output.metrics[name]
        assert ("the accuracy on the retained rows was" in caplog.text) == (rate == 2.0)
    logging.getLogger("transformers").removeHandler(caplog.handler)
    assert output.metrics["retain_accuracy"] < output.metrics["retain_accuracy_before"] - 0.05


def test_what_is_left_out_need_not_be_retained(
    vit: Callable[..., Any], data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only rows with tau = 1 count, before and after."""
    arguments = _arguments(tmp_path, tarf_n_hidden_groups=1, num_train_epochs=3)
    trainer = TARFTrainer(vit(), arguments, train_dataset=data, forget_dataset=FORGET)
    output = trainer.train()
    assert trainer.identification.retained is not None
    rows = torch.linspace(0, 31, 16).long()
    kept = rows[trainer.identification.retained[rows] == 1].tolist()
    assert 0 < len(kept) < 16
    for name, judged in (("retain_accuracy_before", vit()), ("retain_accuracy", trainer.model)):
        part = data.select(range(16, 48)).select(kept)[:]
        with torch.no_grad():
            right = judged.eval()(part["pixel_values"]).logits.argmax(-1) == part["labels"]
        assert output.metrics[name] == pytest.approx(right.float().mean().item())


def test_rows_that_are_looked_at(data: Dataset) -> None:
    """All of few, a tenth of many."""
    numbers = [len(sampled_rows(range(size))) for size in (0, 7, 100, 900, 2000, 9000)]
    assert numbers == [0, 7, 16, 90, 200, 256] and sampled_rows(data.to_iterable_dataset()) == []
    assert sampled_rows(range(2**26))[-1] == 2**26 - 1
    assert sampled_rows(range(900))[0] == 0 and sampled_rows(range(900))[-1] == 899


def test_looking_leaves_no_trace(vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> None:
    """Neither does an augmentation that draws numbers, nor a part of the model that is kept in evaluation mode."""

    def augmented(batch: dict[str, Any]) -> dict[str, Any]:
        pixels = torch.as_tensor(np.asarray(batch["pixel_values"], dtype="float32"))
        return batch | {"pixel_values": list(pixels + torch.randn(pixels.shape) + np.random.random())}

    rows = data.with_format(None).with_transform(augmented)
    trainer = TARFTrainer(vit(), _arguments(tmp_path), train_dataset=rows, forget_dataset=FORGET)
    trainer.model.train()
    trainer.model.vit.eval()
    torch.manual_seed(0)
    np.random.seed(0)
    states = torch.get_rng_state(), np.random.get_state()[1]
    seen = torch.cat([inputs["labels"] for _, inputs in row_batches(trainer, trainer.train_dataset)])
    assert len(seen) == 32
    assert torch.equal(states[0], torch.get_rng_state()) and np.array_equal(states[1], np.random.get_state()[1])
    assert trainer.model.training and not trainer.model.vit.training


def test_what_is_not_measured(vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> None:
    """Numbers, of any type; and rows other than those before a run was resumed."""

    class Silent(Trainer):
        def train(self, *args: Any, **kwargs: Any) -> Any:
            super().train(*args, **kwargs)

    class SilentTARF(TARFMixin, Silent):
        pass

    options: dict[str, Any] = {"tarf_selection": "none", "num_train_epochs": 3}
    numbers = SilentTARF(vit(num_labels=1), _arguments(tmp_path, **options), train_dataset=data, forget_dataset=FORGET)
    numbers.train()
    assert not any("retain_accuracy" in entry for entry in numbers.state.log_history)
    classes = SilentTARF(
        vit(), _arguments(tmp_path, **options), train_dataset=data, forget_dataset=FORGET, eval_dataset=data
    )
    assert classes.train() is None  # which is the user's affair
    assert "unlearning_UA" in classes.state.log_history[-2] and "retain_accuracy" in classes.state.log_history[-1]
    assert classes.retention.end(classes, classes.train_dataset.select(range(7)), None) == {}


def test_retained_tokens() -> None:
    logits = torch.eye(4)[torch.tensor([[1, 2, 3], [0, 0, 0]])]
    labels = torch.tensor([[1, 2, 0], [-100, 0, 1]])
    assert right_and_all(logits, labels, shifted=False).tolist() == [[2, 3], [1, 2]]
    labels = torch.tensor([[9, 1, 2], [9, -100, 1]])
    assert right_and_all(logits, labels, shifted=True).tolist() == [[2, 2], [0, 1]]
    assert right_and_all(logits[:, 0], torch.tensor([1, 1]), shifted=True).tolist() == [[1, 1], [0, 1]]


def test_a_loss_of_ones_own(vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> None:
    def twice(losses: torch.Tensor, original: Any, lengths: torch.Tensor) -> torch.Tensor:
        assert original is None and lengths.eq(1).all()
        return -2 * losses

    own, doubled = vit(), vit()
    TARFTrainer(own, _arguments(tmp_path), train_dataset=data, forget_dataset=FORGET, forget_loss=twice).train()
    TARFTrainer(doubled, _arguments(tmp_path, tarf_k=1.0), train_dataset=data, forget_dataset=FORGET).train()
    assert _difference(own, doubled) < 1e-6


def test_npo_compares_with_the_original_model(vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> None:
    model = vit()
    original = copy.deepcopy(model)
    arguments = _arguments(
        tmp_path, tarf_forget_loss="npo", tarf_npo_beta=0.5, tarf_selection="none", tarf_t1=1, tarf_k=2.0
    )
    trainer = TARFTrainer(model, arguments, train_dataset=data, forget_dataset=FORGET)
    trainer.train()
    forget = data[:16]
    with torch.no_grad():
        logits = original.eval()(forget["pixel_values"]).logits
    expected = torch.nn.functional.cross_entropy(logits, forget["labels"], reduction="none")
    torch.testing.assert_close(trainer.identification.original["forget"], expected)
    k_t = 2 * 3 / 5
    assert _history(trainer)[0]["loss"] == pytest.approx(k_t * 2 / 0.5 * np.log(2), rel=1e-4)  # p is still p_original
    assert NPO.needs_original


# ------------------------------------------------------------------------------------------------ identification
class _Recording(TARFTrainer):
    """Notes the weights where the losses of the remaining rows are asked for."""

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        before = self.identification.retained
        state, training = copy.deepcopy(self.model.state_dict()), self.model.training
        found = super().get_batch_samples(*args, **kwargs)
        assert self.model.training == training
        if self.state.global_step == 0:
            self.first = state
        if before is None and self.identification.retained is not None:
            self.at_t1, self.step_of_t1 = state, self.state.global_step
        return found


@pytest.mark.parametrize("gravity_by", ["absolute", "relative"])
@pytest.mark.parametrize("column", [None, "task_ids"])
def test_the_groups_that_moved_most_are_left_out(
    column: str | None, gravity_by: Any, vit: Callable[..., Any], data: Dataset, tmp_path: Path
) -> None:
    data = data.cast_column("labels", ClassLabel(names=list("abcde")))
    arguments = _arguments(
        tmp_path,
        tarf_n_hidden_groups=2,
        tarf_group_column=column,
        tarf_gravity=gravity_by,
        per_device_eval_batch_size=5,
    )
    model = vit(hidden_dropout_prob=0.5)  # losses in training mode would be others
    trainer = _Recording(model, arguments, train_dataset=data, forget_dataset=FORGET)
    trainer.train()
    rows, logits = data[16:], []
    reference = vit()
    for state in (trainer.first, trainer.at_t1):
        reference.load_state_dict(state)
        with torch.no_grad():
            logits.append(reference.eval()(rows["pixel_values"]).logits)
    groups = rows[column or "labels"]
    gravity = representation_gravity(logits[0], logits[1], rows["labels"])
    if gravity_by == "relative":
        losses = torch.nn.functional.cross_entropy(logits[0], rows["labels"], reduction="none")
        for group in groups.unique():
            gravity[groups == group] /= losses[groups == group].mean()
    mask = retain_mask_by_label(gravity, groups, num_groups=2)
    means = [gravity[groups == group].mean().item() for group in groups.unique()]
    assert trainer.identification.identified["gravity"] == pytest.approx(means, rel=1e-5)
    assert trainer.step_of_t1 == 4
    assert torch.equal(trainer.identification.retained, mask)
    dropped = groups[mask == 0].unique().tolist()
    names = [str(group) if column else "abcde"[group] for group in dropped]
    assert trainer.identification.identified["dropped"] == names
    facts = trainer.card_facts()
    assert facts["facts"]["identified"]["dropped"] == names
    assert facts["hyper_parameters"]["identified"] == ", ".join(names)
    assert facts["hyper_parameters"]["remaining rows left out"] == int((mask == 0).sum())


@pytest.mark.parametrize(("options", "dropped"), [({}, 4), ({"tarf_top_fraction": 0.5}, 16), ({"tarf_beta": 1e9}, 0)])
def test_samples_are_left_out_by_rank_or_threshold(
    options: dict[str, Any], dropped: int, vit: Callable[..., Any], data: Dataset, tmp_path: Path
) -> None:
    arguments = _arguments(tmp_path, tarf_selection="samples", num_train_epochs=3, tarf_t0=1, **options)
    trainer = TARFTrainer(vit(), arguments, train_dataset=data, forget_dataset=FORGET)
    trainer.train()
    retained = trainer.identification.retained
    assert retained is not None and (retained == 0).sum() == dropped
    assert trainer.identification.identified["beta"] > 0
    trainer.create_model_card()  # without a picture of groups
    assert "gravity.png" not in (tmp_path / "README.md").read_text()


def test_identification_may_look_at_other_rows(vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> None:
    """Training rows with random noise, plain ones to identify by."""
    plain = data.select(range(16, 48))
    noisy = plain.with_transform(
        lambda rows: {
            "pixel_values": [torch.tensor(x) + torch.randn(1, 8, 8) for x in rows["pixel_values"]],
            "labels": [int(y) for y in rows["labels"]],
        }
    )
    arguments = _arguments(tmp_path, remove_unused_columns=False)
    forget = data.select(FORGET).remove_columns("task_ids")
    found = []
    for identify in (plain.remove_columns("task_ids"), None):
        trainer = TARFTrainer(vit(), arguments, train_dataset=noisy, forget_dataset=forget, identify_dataset=identify)
        trainer.train()
        found.append(trainer.identification.original["remaining"])
    with torch.no_grad():
        logits = vit().eval()(plain[:]["pixel_values"]).logits
    expected = torch.nn.functional.cross_entropy(logits, plain[:]["labels"], reduction="none")
    torch.testing.assert_close(found[0], expected)
    assert (found[1] - expected).abs().max() > 1e-3


def test_a_beta_that_drops_everything_stops(vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> None:
    arguments = _arguments(tmp_path, tarf_selection="samples", tarf_beta=1e-30)
    with pytest.raises(ValueError, match=r"tarf_beta: found 1e-30, at which all 32 .* \(beta too small\)"):
        TARFTrainer(vit(), arguments, train_dataset=data, forget_dataset=FORGET).train()


# ------------------------------------------------------------------------------------------------ data
def test_three_ways_to_say_what_to_forget(vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> None:
    data = data.cast_column("labels", ClassLabel(names=list("abcde"))).add_column(
        "gone", np.isin(data["labels"][:], (1, 3))
    )
    rows = np.flatnonzero(data["gone"][:])
    by_column = {"tarf_forget_column": "gone"}
    by_name = {"tarf_forget_column": "labels", "tarf_forget_value": ["b", "3"]}
    models, shared = [], {"num_train_epochs": 3, "tarf_t0": 1}
    for options, forget in (
        ({}, rows),
        (by_column, None),
        (by_name, None),
        ({}, data.select(rows)),
    ):
        train = data.select(np.setdiff1d(np.arange(48), rows)) if isinstance(forget, Dataset) else data
        models.append(vit())
        trainer = TARFTrainer(
            models[-1], _arguments(tmp_path, **shared, **options), train_dataset=train, forget_dataset=forget
        )
        trainer.train()
        assert (len(trainer.train_dataset), len(trainer.forget_dataset)) == (48 - len(rows), len(rows))
    assert [_difference(models[0], other) for other in models[1:]] == [0, 0, 0]


def test_workers_load_the_same_batches(vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> None:
    one, two = vit(), vit()
    for model, workers in ((one, 0), (two, 1)):
        arguments = _arguments(tmp_path, dataloader_num_workers=workers, num_train_epochs=2, tarf_t0=0.5)
        TARFTrainer(model, arguments, train_dataset=data, forget_dataset=FORGET).train()
    assert _difference(one, two) == 0


def test_pairs_are_a_function_of_seed_epoch_and_place() -> None:
    def rows(size: int, first: int, count: int, epoch: int = 3, **share: Any) -> list[int]:
        pairs = PairedBatches(list_of(7), size, lambda batch: [row[ROW] for row in batch], seed=5, **share)
        return [row for batch in pairs.take(epoch, first, count) for row in batch]

    def list_of(number: int) -> Any:
        return [{"x": i} for i in range(number)]

    whole = rows(4, 0, 7)
    assert sorted(whole[:7]) == sorted(whole[7:14]) == list(range(7)) and whole[:7] != whole[7:14]
    assert rows(4, 0, 7, epoch=4) != whole
    assert rows(4, 3, 4) == whole[12:]  # resumed
    assert rows(1, 13, 2) == whole[13:15] and rows(28, 0, 1) == whole
    shared = [rows(2, 0, 7, process=process, processes=2) for process in (0, 1)]
    for batch in range(7):
        assert shared[0][2 * batch :][:2] + shared[1][2 * batch :][:2] == whole[4 * batch :][:4]


# ------------------------------------------------------------------------------------------------ baselines
def test_baselines(vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> None:
    logs = {}
    for name in ("ga", "ga_ft", "random_labels", "ft"):
        arguments = _arguments(tmp_path, tarf_method=name, num_train_epochs=2)
        trainer = TARFTrainer(vit(), arguments, train_dataset=data, forget_dataset=FORGET)
        trainer.train()
        logs[name] = _history(trainer)
        assert trainer.identification.retained is None
    assert all(entry["loss"] == pytest.approx(-entry["forget_loss"], abs=1e-5) for entry in logs["ga"])
    assert logs["ga"][-1]["forget_loss"] > logs["ga"][0]["forget_loss"] and "retain_loss" not in logs["ga"][0]
    for entry in logs["ga_ft"]:
        assert entry["loss"] == pytest.approx(entry["retain_loss"] - 0.5 * entry["forget_loss"], abs=1e-5)
    assert all("phase" not in entry for entry in logs["ft"])
    assert all(entry["loss"] > entry["retain_loss"] for entry in logs["random_labels"])


def test_only_salient_weights_change(vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> None:
    """SalUn, with rows in batches of unequal sizes; the same when the run is interrupted and resumed."""
    options = {"tarf_method": "random_labels", "tarf_saliency": 0.3, "per_device_eval_batch_size": 5}
    kept = {"save_strategy": "steps", "save_steps": 4}
    model, original = vit(), vit()
    trainer = TARFTrainer(model, _arguments(tmp_path, **options), train_dataset=data, forget_dataset=FORGET)
    trainer.train()
    rows = data[: len(FORGET)]
    original.eval()(pixel_values=rows["pixel_values"], labels=rows["labels"]).loss.backward()
    weights = dict(original.named_parameters())
    salient = torch.cat([weight.grad.abs().flatten() for weight in weights.values()])
    threshold = salient.sort(descending=True).values[round(0.3 * len(salient)) - 1]
    for name, weight in model.named_parameters():
        moved, large = weight != weights[name], weights[name].grad.abs() >= threshold * 1.001
        assert not (moved & (weights[name].grad.abs() < threshold * 0.999)).any()
        assert (moved == large).float().mean() > 0.9
    assert not any(weight._backward_hooks for weight in model.parameters())
    TARFTrainer(vit(), _arguments(tmp_path, **options, **kept), train_dataset=data, forget_dataset=FORGET).train()
    resumed = vit()
    again = TARFTrainer(resumed, _arguments(tmp_path, **options, **kept), train_dataset=data, forget_dataset=FORGET)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    assert _difference(model, resumed) == 0


def test_random_labels_are_others_and_stay() -> None:
    labels, rows = torch.arange(60) % 5, torch.arange(60)
    drawn = random_labels(labels, rows, num_labels=5, num_rows=60, seed=1)
    assert (drawn != labels).all() and drawn.unique().tolist() == [0, 1, 2, 3, 4]
    part = random_labels(labels[7:9], rows[7:9], num_labels=5, num_rows=60, seed=1)
    assert torch.equal(part, drawn[7:9])
    with pytest.raises(ValueError, match=r"found 'random_labels' with torch\.float32 labels"):
        random_labels(torch.rand(2), rows[:2], num_labels=5, num_rows=60, seed=1)


# ------------------------------------------------------------------------------------------------ composition
def test_a_lora_is_the_patch_that_forgets(vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> None:
    model = get_peft_model(vit(), LoraConfig(r=2, target_modules=["q_proj", "v_proj", "fc1"]))
    trainer = TARFTrainer(model, _arguments(tmp_path), train_dataset=data, forget_dataset=FORGET)
    trainer.train()
    rows = trainer.train_dataset[:]
    with torch.no_grad():
        with model.eval().disable_adapter():
            logits = model(pixel_values=rows["pixel_values"]).logits
        adapted = model(pixel_values=rows["pixel_values"]).logits
    losses = torch.nn.functional.cross_entropy(logits, rows["labels"], reduction="none")
    torch.testing.assert_close(trainer.identification.original["remaining"], losses)
    assert (adapted - logits).abs().max() > 1e-3
    trainer.save_model()
    trainer.create_model_card(model_name="forgot")
    assert (tmp_path / "adapter_model.safetensors").is_file()
    card = (tmp_path / "README.md").read_text()
    assert "Approximate unlearning gives no guarantee" in card and "rows to forget | 16" in card
    assert (tmp_path / "gravity.png").is_file()


def test_bfloat16_autocast(vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> None:
    trainer = TARFTrainer(vit(), _arguments(tmp_path, bf16=True), train_dataset=data, forget_dataset=FORGET)
    trainer.train()
    logs = _history(trainer)
    assert all(np.isfinite(entry["loss"]) for entry in logs) and logs[-1]["retain_loss"] < logs[4]["retain_loss"]


@pytest.mark.parametrize(
    "extra", [{"activation_checkpointing": True}, {"torch_compile": True, "torch_compile_backend": "aot_eager"}]
)
def test_options_that_change_nothing(
    extra: dict[str, Any], vit: Callable[..., Any], data: Dataset, tmp_path: Path
) -> None:
    models = [vit(), vit()]
    for model, options in zip(models, ({}, extra), strict=True):
        arguments = _arguments(tmp_path, **options)
        TARFTrainer(model, arguments, train_dataset=data, forget_dataset=FORGET).train()
    assert _difference(*models) < 1e-5


def _gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2LMHeadModel(GPT2Config(vocab_size=11, n_positions=8, n_embd=16, n_layer=1, n_head=2, **dropout))


def test_language_models(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 11, (24, 6))
    labels = np.where(np.arange(6) < rng.integers(0, 4, (24, 1)), -100, ids)
    data = Dataset.from_dict({"input_ids": ids, "labels": labels}).with_format("torch")
    models = [_gpt2(), _gpt2()]
    for model, sizes in zip(models, ((8, 1), (2, 4)), strict=True):
        arguments = _arguments(
            tmp_path,
            tarf_selection="samples",
            per_device_train_batch_size=sizes[0],
            gradient_accumulation_steps=sizes[1],
            tarf_forget_loss="npo",
        )
        trainer = TARFTrainer(model, arguments, train_dataset=data, forget_dataset=range(8))
        trainer.train()
    assert _difference(*models) < 1e-6
    rows = data[8:]
    with torch.no_grad():
        logits = _gpt2().eval()(rows["input_ids"]).logits[:, :-1]
    targets = rows["labels"][:, 1:]
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    expected = losses.sum(1) / targets.ne(-100).sum(1)
    torch.testing.assert_close(trainer.identification.original["remaining"], expected)
    with pytest.raises(ValueError, match="found 'groups' or 'relative' without tarf_group_column"):
        TARFTrainer(_gpt2(), _arguments(tmp_path), train_dataset=data, forget_dataset=range(8)).train()
    with pytest.raises(ValueError, match="found 'groups' or 'relative' without tarf_group_column"):
        arguments = _arguments(tmp_path, tarf_selection="samples", tarf_gravity="relative")
        TARFTrainer(_gpt2(), arguments, train_dataset=data, forget_dataset=range(8)).train()


def test_sft_trainer(tmp_path: Path) -> None:
    """What is to be forgotten are rows of the data that SFTTrainer prepares; the rest is as in TARFTrainer."""
    trl = pytest.importorskip("trl")

    @dataclass
    class Config(TARFArguments, trl.SFTConfig):
        pass

    class SFT(TARFMixin, trl.SFTTrainer):
        pass

    known = facts()["train"].select(range(96))
    rows = known.rename_columns({"question": "prompt"}).map(lambda row: {"completion": " " + row["answer"]})
    used = sorted({word for text in known["text"][:] for word in text.split()})
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[EOS]", *used])}
    words = Tokenizer(WordLevel(vocabulary, unk_token="[PAD]"))
    words.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", eos_token="[EOS]")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(vocabulary), pad_token_id=0, eos_token_id=1, **sizes))
    plain = copy.deepcopy(model)
    options: dict[str, Any] = {"tarf_group_column": "person", "tarf_n_hidden_groups": 1, "bf16": False}
    chosen = {"tarf_forget_column": "person", "tarf_forget_value": ["0"]}
    sft = _arguments(tmp_path, Config, max_length=None, gradient_checkpointing=False, **options, **chosen)
    trainer = SFT(model, sft, train_dataset=rows, processing_class=tokenizer)
    assert len(trainer.forget_dataset) == 12 and set(trainer.forget_dataset["person"][:]) == {0}
    trainer.train()
    TARFTrainer(
        plain,
        _arguments(tmp_path, **options),
        train_dataset=trainer.train_dataset,
        forget_dataset=trainer.forget_dataset,
        data_collator=trl.trainer.sft_trainer.DataCollatorForLanguageModeling(pad_token_id=0),
    ).train()
    assert _difference(model, plain) == 0
    assert len(trainer.identification.identified["dropped"]) == 1
    with pytest.raises(ValueError, match="forget_dataset: found no input_ids, labels, allowed are rows prepared"):
        raw = _arguments(tmp_path, Config, max_length=None, **options)
        SFT(plain, raw, train_dataset=rows, forget_dataset=known, processing_class=tokenizer)


def test_iterable_data_without_identification(vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> None:
    stream = data.select(range(16, 48)).to_iterable_dataset()
    shared: dict[str, Any] = {"max_steps": 4, "tarf_anneal_by": "step", "tarf_t0": 0.5}
    arguments = _arguments(tmp_path, **shared, tarf_t1=0, tarf_selection="none")
    trainer = TARFTrainer(vit(), arguments, train_dataset=stream, forget_dataset=data.select(FORGET))
    trainer.train()
    assert [entry["phase"] for entry in _history(trainer)] == [2, 2, 3, 3]
    with pytest.raises(ValueError, match="train_dataset: found a IterableDataset with tarf_selection='groups'"):
        TARFTrainer(
            vit(),
            _arguments(tmp_path, **shared, tarf_t1=0.5),
            train_dataset=stream,
            forget_dataset=data.select(FORGET),
        )


def test_evaluation_is_plain(vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> None:
    trainer = TARFTrainer(
        vit(), _arguments(tmp_path), train_dataset=data, forget_dataset=FORGET, eval_dataset=data.select(range(20))
    )
    before = trainer.evaluate()["eval_loss"]
    with torch.no_grad():
        rows = data[:20]
        expected = vit().eval()(rows["pixel_values"], labels=rows["labels"]).loss
    assert before == pytest.approx(expected.item(), rel=1e-5)
    trainer.train()
    assert trainer.evaluate()["eval_loss"] > 0
    only_evaluated = TARFTrainer(vit(), _arguments(tmp_path), eval_dataset=data)
    assert only_evaluated.evaluate()["eval_loss"] > 0


def test_an_exploding_ascent_stops_with_finite_weights(vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> None:
    def overflowing(losses: torch.Tensor, original: Any, lengths: torch.Tensor) -> torch.Tensor:
        return -losses * (float("inf") if trainer.state.global_step == 2 else 1.0)

    model = vit()
    trainer = TARFTrainer(
        model, _arguments(tmp_path), train_dataset=data, forget_dataset=FORGET, forget_loss=overflowing
    )
    with pytest.raises(FloatingPointError, match=r"not finite in step 3 \(phase I\)"):
        trainer.train()
    assert all(weight.isfinite().all() for weight in model.parameters())
    assert _difference(model, vit()) > 0


@pytest.mark.parametrize("asked", [None, 6])
def test_batches_of_both_kinds_shrink_to_fit(
    asked: int | None, vit: Callable[..., Any], data: Dataset, tmp_path: Path
) -> None:
    model, sizes = vit(), []

    def too_large(module: Any, _: Any, inputs: dict[str, Any]) -> None:
        if not module.training:
            return
        sizes.append(len(inputs["pixel_values"]))
        if sizes[-1] > 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    model.register_forward_pre_hook(too_large, with_kwargs=True)
    options = {"auto_find_batch_size": True, "tarf_selection": "none", "tarf_t1": 0, "tarf_forget_batch_size": asked}
    trainer = TARFTrainer(
        model,
        _arguments(tmp_path, num_train_epochs=1, tarf_t0=0, **options),
        train_dataset=data,
        forget_dataset=FORGET,
    )
    trainer.train()
    assert trainer.state.global_step == trainer.state.max_steps and trainer._train_batch_size <= 4
    assert sizes[-2] == (trainer._train_batch_size if asked is None else 6 * trainer._train_batch_size // 8)


# ------------------------------------------------------------------------------------------------ refusals
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tarf_method": "forget"}, "tarf_method: found 'forget', allowed are 'tarf', 'ga', 'ft'"),
        ({"tarf_selection": "classes"}, "tarf_selection: found 'classes', allowed are 'none', 'groups', 'samples'"),
        ({"tarf_k": -1.0}, "tarf_k: found -1.0, allowed are numbers >= 0"),
        ({"tarf_top_fraction": 0.0}, "tarf_top_fraction: found 0.0, allowed are numbers in"),
        ({"tarf_top_fraction": 1.5}, r"tarf_top_fraction: found 1.5, allowed are numbers in \(0, 1\]"),
        ({"tarf_beta": 0.0}, "tarf_beta: found 0.0, allowed are None, numbers > 0"),
        ({"tarf_max_forget_loss": 0.0}, "tarf_max_forget_loss: found 0.0, allowed are None, numbers > 0"),
        ({"tarf_forget_value": ["1"]}, "tarf_forget_column: found none with tarf_forget_value"),
        ({"tarf_k": float("nan")}, "tarf_k: found nan"),
    ],
)
def test_wrong_arguments_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        _arguments(tmp_path, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tarf_t1": 4}, "tarf_t1: found 4 with 5 epochs and tarf_t0=2, allowed are 0 to 3"),
        ({"tarf_t0": 6}, "tarf_t0: found 6, allowed are 0 to the number of epochs, 5"),
        ({"tarf_k": 0.0}, "tarf_t1: found 1 with tarf_k=0, allowed is 0"),
        (
            {"tarf_selection": "none", "tarf_beta": 0.5},
            "tarf_selection: found 'none' with tarf_beta=0.5, allowed with",
        ),
        (
            {"tarf_selection": "none", "tarf_top_fraction": 0.2},
            "tarf_selection: found 'none' with tarf_top_fraction=0.2",
        ),
        ({"tarf_selection": "samples", "tarf_n_hidden_groups": 1}, "allowed with that are 'groups'$"),
        ({"tarf_beta": 0.5, "tarf_n_hidden_groups": 1}, "found tarf_n_hidden_groups=1, tarf_beta=0.5, allowed is one"),
        ({"tarf_t1": 0}, "tarf_selection: found 'groups' with tarf_t1=0, allowed is 'none'"),
        ({"tarf_group_column": "nope"}, "tarf_group_column: found 'nope', allowed are labels, pixel_values, task_ids"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor, compute_loss_func: found one of them"),
        ({"forget": None}, "forget_dataset: found none"),
        ({"forget": []}, "forget_dataset: found no rows"),
        ({"forget": [48]}, "forget_dataset: found rows 48 to 48, allowed are 0 to 47"),
        ({"forget": range(48)}, "train_dataset: found all 48 rows to be forgotten"),
        ({"tarf_forget_column": "nope", "forget": None}, "tarf_forget_column: found 'nope', allowed are"),
        ({"tarf_forget_column": "labels"}, "forget_dataset: found one with tarf_forget_column"),
        (
            {"tarf_forget_column": "labels", "tarf_forget_value": ["9"], "forget": None},
            "tarf_forget_value: found '9' in no row of 'labels'",
        ),
        ({"identify": range(3)}, "identify_dataset: found 3 rows, allowed are the 32 remaining rows"),
    ],
)
def test_what_cannot_work_is_refused(
    options: dict[str, Any], message: str, vit: Callable[..., Any], data: Dataset, tmp_path: Path
) -> None:
    forget, identify = options.pop("forget", FORGET), options.pop("identify", None)
    with pytest.raises(ValueError, match=message):
        TARFTrainer(
            vit(),
            _arguments(tmp_path, **options),
            train_dataset=data,
            forget_dataset=forget,
            identify_dataset=identify,
        )


def test_more_hidden_groups_than_there_are(vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> None:
    model = vit()
    arguments = _arguments(tmp_path, tarf_n_hidden_groups=5)
    with pytest.raises(ValueError, match="tarf_n_hidden_groups: found 5 of 5 groups"):
        TARFTrainer(model, arguments, train_dataset=data, forget_dataset=FORGET).train()
    assert _difference(model, vit()) == 0  # before the first step


@pytest.mark.parametrize("selection", ["groups", "samples"])
def test_a_share_that_leaves_nothing(selection: str, vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> None:
    model, share = vit(), {"groups": 0.81, "samples": 0.97}[selection]  # of five groups, of 32 samples
    arguments = _arguments(tmp_path, tarf_selection=selection, tarf_top_fraction=share)
    with pytest.raises(
        ValueError, match=f"tarf_top_fraction: found {share} with .* {selection} in the remaining data"
    ):
        TARFTrainer(model, arguments, train_dataset=data, forget_dataset=FORGET).train()
    assert _difference(model, vit()) == 0  # before the first step


def test_packing_and_other_methods_are_refused(vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> None:
    arguments = _arguments(tmp_path)
    arguments.packing = True
    with pytest.raises(ValueError, match="packing: found True, allowed is False"):
        TARFTrainer(vit(), arguments, train_dataset=data, forget_dataset=FORGET)

    class Other(MethodMixin):
        method = "mola"

    class Both(TARFMixin, Other, Trainer):
        pass

    with pytest.raises(ValueError, match="tarf: found it combined with mola"):
        Both(vit(), _arguments(tmp_path), train_dataset=data, forget_dataset=FORGET)


def test_the_default_plan() -> None:
    plan = plan_of(TARFArguments(), 10)
    assert (plan.k, plan.T, plan.t0, plan.t1, plan.selection) == (0.05, 10, 7, 0, "none")
    assert [plan.phase(t) for t in range(10)] == ["II"] * 3 + ["III"] * 7
    groups = plan_of(TARFArguments(tarf_selection="groups"), 10)
    assert [groups.phase(t) for t in range(10)] == ["I", "II", "II", *["III"] * 7]
    constant = plan_of(TARFArguments(tarf_schedule="constant"), 10)
    assert [constant.weight(t) for t in range(4)] == [0.05, 0.05, 0.05, 0]


# ------------------------------------------------------------------------------------------------ checkpoints
def test_a_resumed_run_has_what_was_measured(vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 3}
    whole = vit()
    first = TARFTrainer(whole, _arguments(tmp_path, **saving), train_dataset=data, forget_dataset=FORGET)
    first.train()
    for step in (3, 4, 6):
        if step == 4:
            continue
        again = vit(seed=7)
        trainer = TARFTrainer(again, _arguments(tmp_path, **saving), train_dataset=data, forget_dataset=FORGET)
        trainer.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert _difference(whole, again) == 0, step
        assert trainer.identification.identified == first.identification.identified
    other = TARFTrainer(vit(), _arguments(tmp_path, **saving), train_dataset=data, forget_dataset=range(8))
    with pytest.raises(ValueError, match="found 32 of the original model's losses of the remaining data"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
