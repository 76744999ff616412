"""A mixin with arguments of another kind names the dataclass to mix in."""

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import Trainer, TrainingArguments

from hf_ext import trainers

METHODS = [("MoLA", "MoLATrainingConfig"), ("DISAM", "DISAMConfig"), ("DivBS", "DivBSConfig"), ("TARF", "TARFConfig")]
METHODS += [("FER", "FERTrainingConfig"), ("RD", "RDTrainingConfig")]


@pytest.mark.parametrize(("method", "config"), METHODS)
def test_plain_arguments_are_refused(method: str, config: str, vit: Any, data: Dataset, tmp_path: Path) -> None:
    message = f"allowed is one with {method}Arguments mixed in, such as {config}$"
    kind = getattr(trainers, f"{method}Trainer")
    with pytest.raises(ValueError, match=f"args: found TrainingArguments, {message}"):
        kind(vit(), TrainingArguments(output_dir=str(tmp_path), use_cpu=True), train_dataset=data)
    with pytest.raises(ValueError, match=f"args: found none, {message}"):
        kind(model=vit(), train_dataset=data)


def test_arguments_of_trl(vit: Any, data: Dataset, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    kind: Any = type("Mine", (trainers.DISAMMixin, trl.SFTTrainer), {})
    args = trl.SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    with pytest.raises(ValueError, match="args: found SFTConfig, allowed is one with DISAMArguments mixed in"):
        kind(model=vit(), args=args, train_dataset=data)


def test_of_two_methods_the_one_that_is_lacking_is_named(vit: Any, data: Dataset, tmp_path: Path) -> None:
    kind: Any = type("Both", (trainers.DivBSMixin, trainers.DISAMMixin, Trainer), {})
    args = trainers.DivBSConfig(output_dir=str(tmp_path), use_cpu=True)
    with pytest.raises(ValueError, match="args: found DivBSConfig, allowed is one with DISAMArguments mixed in"):
        kind(vit(), args, train_dataset=data)
