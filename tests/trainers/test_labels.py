"""Labels and ids of groups that cannot be: refused when a Trainer is made, whatever the method."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Value
from peft import get_peft_model
from transformers import Trainer, default_data_collator

from hf_ext.adapters import MoLAConfig
from hf_ext.trainers import (
    DISAMConfig,
    DISAMTrainer,
    DivBSConfig,
    DivBSTrainer,
    MoLATrainer,
    MoLATrainingConfig,
    TARFConfig,
    TARFTrainer,
)

Make = Callable[..., Trainer]


@pytest.fixture
def make(tmp_path: Path, vit: Any) -> Make:
    """A Trainer of a method for five classes on these data."""
    kinds: dict[str, tuple[Any, Any]] = {
        "mola": (MoLATrainer, MoLATrainingConfig),
        "router": (MoLATrainer, MoLATrainingConfig),
        "disam": (DISAMTrainer, DISAMConfig),
        "divbs": (DivBSTrainer, DivBSConfig),
        "tarf": (TARFTrainer, TARFConfig),
    }

    def made(
        method: str, rows: Any, *, model: Any = None, trainer: Any = None, options: Any = None, **more: Any
    ) -> Any:
        kind, config = kinds[method]
        model = vit() if model is None else model
        options = dict(options or {})
        if method in ("mola", "router"):
            routing = "task" if method == "mola" else "router"
            model = get_peft_model(model, MoLAConfig(target_modules=["q_proj"], num_experts=3, routing=routing))
        if method == "disam":
            options["disam_domain_column"] = "task_ids"
        if method == "tarf":
            more.setdefault("forget_dataset", list(range(4)))
        args = config(output_dir=str(tmp_path), use_cpu=True, report_to="none", **options)
        return (trainer or kind)(model, args, train_dataset=rows, **more)

    return made


def with_value(data: Dataset, column: str, value: Any, feature: Any = None) -> Dataset:
    """The data with this value in the last row of a column."""
    values = [*data.with_format(None)[column][:-1], value]
    return data.remove_columns(column).add_column(column, values, feature=feature)


METHODS = ("mola", "router", "disam", "divbs", "tarf")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("value", "found"),
    [(5, "found 5 in"), (-1, "found -1 in"), (2**40, f"found {2**40} in"), (0.5, "such as"), (None, "such as None")],
)
def test_labels_that_are_no_classes(method: str, value: Any, found: str, make: Make, data: Dataset) -> None:
    with pytest.raises(ValueError, match=rf"labels: .*{found}.*allowed are 0 to 4, the model's classes"):
        make(method, with_value(data, "labels", value))


def test_labels_of_what_is_to_be_forgotten(make: Make, data: Dataset) -> None:
    with pytest.raises(ValueError, match="labels: found 9 in the training data, allowed are 0 to 4"):
        make("tarf", data, forget_dataset=with_value(data.select(range(8)), "labels", 9))


class OwnLoss(DISAMTrainer):
    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        return super().compute_loss(*args, **kwargs)


@pytest.mark.parametrize(
    "options",
    [
        {"data_collator": lambda rows: default_data_collator(rows)},
        {"trainer": OwnLoss},
        {"compute_loss_func": lambda *_, **__: 0, "per_sample_loss_func": lambda *_: 0},
    ],
)
def test_labels_that_may_be_anything(options: dict[str, Any], make: Make, data: Dataset) -> None:
    make("disam", with_value(data, "labels", 9), **options)


def test_labels_that_are_fine(make: Make, data: Dataset, vit: Any) -> None:
    make("divbs", with_value(data, "labels", -100))
    make("divbs", data.cast_column("labels", ClassLabel(num_classes=5)))
    make("divbs", with_value(data, "labels", 9), model=vit(num_labels=1))  # a regression
    make("divbs", data.remove_columns("labels"))
    make("divbs", data.with_transform(lambda rows: rows))


@pytest.mark.parametrize("method", ["mola", "router", "disam"])
@pytest.mark.parametrize(
    ("value", "feature", "found"),
    [
        (2**40, None, rf"ids from 0 to {2**40} in train_dataset, allowed are 0 to \d+"),
        (-1, None, "ids from -1 to 2"),
        (0.5, Value("float32"), "float32 values"),
        (float("nan"), Value("float32"), "float32 values"),
        (True, Value("bool"), "bool values"),
    ],
)
def test_ids_that_are_no_groups(method: str, value: Any, feature: Any, found: str, make: Make, data: Dataset) -> None:
    if feature is not None:
        data = data.cast_column("task_ids", feature)
    with pytest.raises(ValueError, match=f"task_ids: found {found}"):
        make(method, with_value(data, "task_ids", value, feature))


def test_more_domains_than_were_said_to_be(make: Make, data: Dataset) -> None:
    with pytest.raises(ValueError, match="task_ids: found ids from 0 to 2 in train_dataset, allowed are 0 to 1"):
        make("disam", data, options={"disam_num_domains": 2})
    with pytest.raises(ValueError, match=re.escape(f"disam_num_domains: found {10**9}, allowed are")):
        make("disam", data, options={"disam_num_domains": 10**9})


@pytest.mark.parametrize("value", [-3, 2**40, float("nan")])
def test_groups_of_tarf(value: Any, make: Make, data: Dataset) -> None:
    rows = data.add_column("part", [value] * 48)
    with pytest.raises(ValueError, match="part: found"):
        make("tarf", rows, options={"tarf_selection": "groups", "tarf_group_column": "part", "num_train_epochs": 10})


@pytest.mark.parametrize("value", [2**40, -1, 0.5, float("nan"), True])
def test_ids_in_rows_that_are_no_table_are_refused_in_the_first_batch(value: Any, make: Make, data: Dataset) -> None:
    rows: Any = [{**row, "task_ids": value} for row in data.with_format("numpy")]
    with pytest.raises(ValueError, match="task_ids: found"):
        make("disam", rows, options={"disam_num_domains": 3, "max_steps": 1}).train()
