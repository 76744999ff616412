"""Arguments of DivBS: which part of every batch is trained on; and what they allow of data and processes."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from accelerate import Accelerator
from transformers import DataCollatorWithFlattening

_CHOICES = {
    "divbs_rule": ("residual", "projection"),
    "divbs_draw": ("argmax", "sample"),
    "divbs_strategy": ("divbs", "uniform", "loss", "grad_norm"),
    "divbs_selection_scope": ("process", "global"),
    "divbs_features": ("sketch", "pooled", "exact"),
    "divbs_schedule": ("constant", "linear", "cosine"),
}


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class DivBSArguments:
    """Arguments of `DivBSMixin`, to be mixed with any TrainingArguments; every field's help says what it does."""

    divbs_ratio: float = _option(
        0.1,
        "Share of the candidates that is trained on. per_device_train_batch_size counts rows that are trained on: "
        "batches of per_device_train_batch_size / divbs_ratio candidates are drawn. 1: the plain Trainer.",
    )
    divbs_rule: Literal["residual", "projection"] = _option(
        "residual", "Score of a candidate: 'residual', the paper's; 'projection', the exact gain."
    )
    divbs_draw: Literal["argmax", "sample"] = _option(
        "argmax",
        "'argmax': the best candidate; 'sample': drawn in proportion to the scores, as the released code does.",
    )
    divbs_strategy: Literal["divbs", "uniform", "loss", "grad_norm"] = _option(
        "divbs", "'divbs', or a baseline: at random, the largest losses, the largest last-layer gradients."
    )
    divbs_selection_scope: Literal["process", "global"] = _option(
        "process", "'process': every process selects from its own candidates; 'global': all from all, as one would."
    )
    divbs_head_module: str | None = _option(
        None, "Name of the linear layer that makes the logits, if it is not found."
    )
    divbs_scoring_batch_size: int | None = _option(
        None, "Rows per forward pass of the scoring; None: all candidates at once."
    )
    divbs_score_in_eval_mode: bool = _option(True, "Score without dropout and with BatchNorm's running statistics.")
    divbs_features: Literal["sketch", "pooled", "exact"] = _option(
        "sketch",
        "Gradient of a sequence of token labels: 'sketch', projected at random; 'pooled', product of means; 'exact', "
        "for small vocabularies.",
    )
    divbs_sketch_dim: int = _option(64, "Numbers a side of a sketch.")
    divbs_schedule: Literal["constant", "linear", "cosine"] = _option(
        "constant", "How the share goes from divbs_ratio, the largest, to divbs_final_ratio over the steps."
    )
    divbs_final_ratio: float | None = _option(None, "Share at the end of a linear or cosine schedule.")
    divbs_warmup_share: float = _option(
        0.0, "Share of the steps, at the start, that train on all candidates; needs the memory for them."
    )
    divbs_anneal_share: float = _option(
        0.0, "Share of the steps, at the end, that train on all candidates; needs the memory for them."
    )

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}: found {getattr(self, name)!r}, allowed are {', '.join(map(repr, choices))}")
        if not 0 < self.divbs_ratio <= 1:
            raise ValueError(f"divbs_ratio: found {self.divbs_ratio}, allowed are numbers in (0, 1]")
        if (self.divbs_schedule == "constant") != (self.divbs_final_ratio is None):
            raise ValueError(
                f"divbs_final_ratio: found {self.divbs_final_ratio} with divbs_schedule={self.divbs_schedule!r}, "
                "allowed are None with 'constant' and a number with the others"
            )
        if self.divbs_final_ratio is not None and not 0 < self.divbs_final_ratio <= self.divbs_ratio:
            raise ValueError(
                f"divbs_final_ratio: found {self.divbs_final_ratio}, allowed are numbers in (0, {self.divbs_ratio}], "
                "divbs_ratio being the largest"
            )
        for name in ("divbs_warmup_share", "divbs_anneal_share"):
            if not 0 <= getattr(self, name) <= 1 or self.divbs_warmup_share + self.divbs_anneal_share > 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, allowed are shares in [0, 1], both 1 at most")
        for name in ("divbs_scoring_batch_size", "divbs_sketch_dim"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, allowed are integers >= 1")
        parent = getattr(super(), "__post_init__", None)
        if parent is not None:
            parent()

    def divbs_ratio_at(self, step: int, max_steps: int) -> float:
        """Share of the candidates that the update after `step` others is trained on."""
        first, last = self.divbs_warmup_share * max_steps, (1 - self.divbs_anneal_share) * max_steps
        if step < first - 1e-6 or step >= last - 1e-6:
            return 1.0
        if self.divbs_final_ratio is None:
            return self.divbs_ratio
        progress = (step - first) / max(last - first - 1, 1)
        if self.divbs_schedule == "cosine":
            progress = (1 - math.cos(math.pi * progress)) / 2
        return self.divbs_ratio + min(max(progress, 0.0), 1.0) * (self.divbs_final_ratio - self.divbs_ratio)


def check_data(args: Any, collator: Any) -> None:
    """Refuse batches whose rows are not samples, and a sampler that decides the size of batches."""
    flattens = isinstance(getattr(collator, "collator", collator), DataCollatorWithFlattening)
    refused = {
        "packing": getattr(args, "packing", False),
        "padding_free": getattr(args, "padding_free", False) or getattr(collator, "padding_free", False),
        "data_collator": "DataCollatorWithFlattening" if flattens else False,
    }
    for name, found in refused.items():
        if found:
            raise ValueError(f"{name}: found {found}, allowed are batches with one sample per row to select from")
    if args.train_sampling_strategy == "batch_rebalance":
        raise ValueError(
            "train_sampling_strategy: found 'batch_rebalance', which decides the size of batches itself, allowed are "
            "the others"
        )


def check_processes(args: Any, accelerator: Accelerator) -> None:
    """Refuse models that no process has as a whole, and processes with unequal batches to select from together."""
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    fsdp = getattr(accelerator.state, "fsdp_plugin", None) is not None
    if fsdp or (plugin is not None and plugin.zero_stage == 3):
        raise ValueError(
            f"fsdp, deepspeed: found {'FSDP' if fsdp else 'DeepSpeed ZeRO-3'}, allowed are models that every process "
            "has as a whole: they are scored by the model itself"
        )
    if args.divbs_selection_scope == "global" and not args.accelerator_config.even_batches:
        raise ValueError(
            "accelerator_config: found even_batches=False with divbs_selection_scope='global', allowed is True: every "
            "process brings as many candidates"
        )
