"""Methods' mixins in one Trainer."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import Trainer, TrainingArguments

from hf_ext.trainers import DISAMArguments, DISAMConfig, DISAMMixin, DISAMTrainer, DivBSArguments, DivBSMixin


@dataclass
class Config(DivBSArguments, DISAMArguments, TrainingArguments):
    pass


class SelectThenPerturb(DivBSMixin, DISAMMixin, Trainer):
    pass


class PerturbThenSelect(DISAMMixin, DivBSMixin, Trainer):
    pass


def _options(out: Path, **extra: Any) -> dict[str, Any]:
    defaults = {"max_steps": 3, "learning_rate": 0.1, "optim": "sgd", "logging_steps": 1, "save_strategy": "no"}
    quiet = {"use_cpu": True, "disable_tqdm": True, "report_to": "none", "per_device_train_batch_size": 8}
    return {"output_dir": str(out), **defaults, **quiet, **extra}


def _same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_both_passes_of_disam_see_what_divbs_picked(
    accumulation: int, vit: Callable[..., Any], data: Dataset, tmp_path: Path
) -> None:
    """In either order; and with all of the candidates it is DISAM alone."""
    rows = data.rename_column("task_ids", "domain_ids")
    shared: dict[str, Any] = {
        "disam_rho": 0.3,
        "disam_lambda": 1.0,
        "gradient_accumulation_steps": accumulation,
        "per_device_train_batch_size": 4,
    }
    sizes: dict[type[Trainer], list[int]] = {}
    models = {}
    for kind in (SelectThenPerturb, PerturbThenSelect):
        models[kind] = vit()
        models[kind].register_forward_pre_hook(
            lambda module, _, inputs, kind=kind: sizes.setdefault(kind, []).append(len(inputs["pixel_values"])),
            with_kwargs=True,
        )
        trainer = kind(models[kind], Config(**_options(tmp_path, divbs_ratio=0.5, **shared)), train_dataset=rows)
        trainer.train()
        logged = trainer.state.log_history[0]
        assert {"selected_fraction", "captured_fraction", "perturbation_norm", "clean_loss"} <= set(logged)
    assert _same(*models.values())
    assert not _same(models[SelectThenPerturb], vit())
    passes = {1: [8, 4, 4], 2: [8, 8, 4, 4, 4, 4, 4]}[accumulation]  # candidates, then losses, ascent and descent
    looked_at = [4, 4] if accumulation > 1 else []  # by the probe of the model's loss, before the first step
    expected = [*passes[:accumulation], *looked_at, *passes[accumulation:], *passes, *passes]
    assert sizes[SelectThenPerturb] == sizes[PerturbThenSelect] == expected
    alone, neutral = vit(), vit()
    DISAMTrainer(alone, DISAMConfig(**_options(tmp_path, **shared)), train_dataset=rows).train()
    SelectThenPerturb(neutral, Config(**_options(tmp_path, divbs_ratio=1.0, **shared)), train_dataset=rows).train()
    assert _same(alone, neutral)


class KeywordsOnly(Trainer):
    """As many users write theirs."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        return super().compute_loss(model, inputs, return_outputs, **kwargs)


class BothBeforeKeywords(DivBSMixin, DISAMMixin, KeywordsOnly):
    pass


def test_a_compute_loss_that_takes_keywords(vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> None:
    """A Trainer of a user's own, which transformers calls by keywords, trains as transformers' own."""
    rows, models = data.rename_column("task_ids", "domain_ids"), []
    for kind in (SelectThenPerturb, BothBeforeKeywords):
        models.append(vit())
        args = Config(**_options(tmp_path, divbs_ratio=0.5, disam_rho=0.3))
        kind(models[-1], args, train_dataset=rows).train()
    assert _same(*models) and not _same(models[0], vit())
