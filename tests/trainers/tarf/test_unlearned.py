"""UA, RA, TA and MIA after training: of which rows, and what the card says."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from huggingface_hub import ModelCard

from hf_ext.metrics import unlearning_metrics
from hf_ext.trainers import TARFConfig, TARFTrainer
from hf_ext.trainers.tarf.forget_rows import rows_outside

FOUR = ("UA", "RA", "TA", "MIA")


def _trained(vit: Callable[..., Any], data: Dataset, out: Path, test: Any, **options: Any) -> tuple[Any, Any]:
    forget = options.pop("forget", None)
    args = TARFConfig(
        str(out), num_train_epochs=2, logging_steps=1, use_cpu=True, report_to="none", save_strategy="no", **options
    )
    trainer = TARFTrainer(vit(), args, train_dataset=data, eval_dataset=test, forget_dataset=forget)
    return trainer, trainer.train()


def _logits(trainer: Any, rows: Dataset) -> Any:
    with torch.no_grad():
        return trainer.model.eval()(pixel_values=rows.with_format("torch")["pixel_values"][:]).logits.numpy()


def test_what_was_forgotten_is_measured(vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> None:
    labels = np.array(data.with_format(None)["labels"])
    gone = int(labels[0])
    test = data.select(range(10, 48))
    options = {"tarf_forget_column": "labels", "tarf_forget_value": [str(gone)]}
    trainer, output = _trained(vit, data, tmp_path, test, **options)
    outside = [row for row in range(10, 48) if labels[row] != gone]
    parts = {"forget": np.flatnonzero(labels == gone), "retain": np.flatnonzero(labels != gone), "test": outside}
    rows = np.concatenate(list(parts.values()))
    names = [name for name, places in parts.items() for _ in places]
    expected = unlearning_metrics(_logits(trainer, data.select(rows)), labels[rows], names)
    assert trainer.unlearned == pytest.approx(expected)
    assert {name: output.metrics[f"unlearning_{name}"] for name in FOUR} == pytest.approx(
        {name: expected[name] for name in FOUR}
    )
    trainer.save_model()
    trainer.create_model_card()
    text = ModelCard.load(tmp_path / "README.md").text
    for name in FOUR:
        assert f"| **TARF** | {name} | {expected[name]:.3f} |" in text
    assert f"{len(outside)} evaluation rows whose labels is none that is to be forgotten" in text
    assert "| gap |" not in text and "UA: accuracy on the rows to forget" in text


def test_without_a_column_all_evaluation_rows_count(vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> None:
    trainer, _ = _trained(vit, data, tmp_path, data.select(range(20)), forget=list(range(8)))
    facts = trainer.card_facts()
    assert "of 8 rows to forget, 40 remaining rows and 20 evaluation rows." in facts["dataset_description"]
    assert {row.metric for row in facts["results"]} >= set(FOUR)


@pytest.mark.parametrize("what", ["no test", "several tests", "nothing to forget"])
def test_what_cannot_be_measured_is_not(what: str, vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> None:
    test: Any = {"no test": None, "several tests": {"a": data, "b": data}}.get(what, data)
    forget = None if what == "nothing to forget" else list(range(8))
    trainer, output = _trained(vit, data, tmp_path, test, forget=forget, tarf_method="ft")
    assert trainer.unlearned == {} and not [name for name in output.metrics if name.startswith("unlearning_")]
    assert "dataset_description" not in trainer.card_facts()


def test_rows_outside() -> None:
    data = Dataset.from_dict({"kind": ["a", "b", "a", "c"], "mark": [True, False, False, True]})
    assert rows_outside(data, "kind", ["a", "z"]).tolist() == [1, 3]  # type: ignore[union-attr]
    assert rows_outside(data, "kind", ["z"]).tolist() == [0, 1, 2, 3]  # type: ignore[union-attr]
    assert rows_outside(data, "mark").tolist() == [1, 2]  # type: ignore[union-attr]
    assert rows_outside(data, "other", ["a"]) is None
