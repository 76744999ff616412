"""Arguments of DivBS: which part of every batch is trained on; and what they allow of data and processes."""

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from accelerate import Accelerator
from transformers import DataCollatorWithFlattening

from hf_ext._arguments import Bounds, Count, Share, ShareOrZero
from hf_ext.trainers.arguments import MethodArguments, option

_MOST_CANDIDATES = 2**31


@dataclass
class DivBSArguments(MethodArguments):
    """Arguments of `DivBSMixin`, to be mixed with any TrainingArguments; every field's help says what it does."""

    divbs_ratio: Share = option(
        0.1,
        "Share of the candidates that is trained on. per_device_train_batch_size counts rows that are trained on: "
        "batches of per_device_train_batch_size / divbs_ratio candidates are drawn. 1: the plain Trainer.",
    )
    divbs_rule: Literal["residual", "projection"] = option(
        "residual", "Score of a candidate: 'residual', the paper's; 'projection', the exact gain."
    )
    divbs_draw: Literal["argmax", "sample"] = option(
        "argmax",
        "'argmax': the best candidate; 'sample': drawn in proportion to the scores, as the released code does.",
    )
    divbs_strategy: Literal["divbs", "uniform", "loss", "grad_norm"] = option(
        "divbs",
        "'divbs', or a baseline: 'uniform', at random; 'loss', the largest losses; 'grad_norm', the largest gradients "
        "of the last layer.",
    )
    divbs_selection_scope: Literal["process", "global"] = option(
        "process",
        "'process': every process selects from its own candidates; 'global': all together from those of all.",
    )
    divbs_head_module: str | None = option(
        None, "Name of the linear layer that makes the logits; by default it is looked for."
    )
    divbs_scoring_batch_size: Count | None = option(
        None, "Rows per forward pass of the scoring; by default all candidates at once."
    )
    divbs_scoring_dtype: Literal["bfloat16", "float16"] | None = option(
        None, "Compute the scoring's forward pass in this dtype (autocast); by default as the training does."
    )
    divbs_score_in_eval_mode: bool = option(True, "Score without dropout and with BatchNorm's running statistics.")
    divbs_features: Literal["sketch", "pooled", "exact"] = option(
        "sketch",
        "How the gradient of a sequence with token labels is represented: 'sketch', projected at random; 'pooled', "
        "the product of means; 'exact', for small vocabularies.",
    )
    divbs_sketch_dim: Annotated[int, Bounds(at_least=1, at_most=2**16)] = option(
        64, "Width of the random projections of divbs_features='sketch'."
    )
    divbs_schedule: Literal["constant", "linear", "cosine"] = option(
        "constant", "How the share goes from divbs_ratio, the largest, to divbs_final_ratio over the steps."
    )
    divbs_final_ratio: Share | None = option(
        None, "Share at the end of a linear or cosine divbs_schedule, which need one."
    )
    divbs_warmup_share: ShareOrZero = option(
        0.0,
        "Share of the steps, at the start, that train on all candidates; needs the memory for them.",
    )
    divbs_anneal_share: ShareOrZero = option(
        0.0,
        "Share of the steps, at the end, that train on all candidates; needs the memory for them.",
    )

    def check_options(self) -> None:
        super().check_options()
        if (self.divbs_schedule == "constant") != (self.divbs_final_ratio is None):
            raise ValueError(
                f"divbs_final_ratio: found {self.divbs_final_ratio} with divbs_schedule={self.divbs_schedule!r}, "
                "allowed are None with 'constant' and a number with the others"
            )
        if self.divbs_final_ratio is not None and self.divbs_final_ratio > self.divbs_ratio:
            raise ValueError(
                f"divbs_final_ratio: found {self.divbs_final_ratio}, allowed are numbers in (0, {self.divbs_ratio}], "
                "divbs_ratio being the largest"
            )
        if self.divbs_warmup_share + self.divbs_anneal_share > 1:
            raise ValueError(
                f"divbs_warmup_share: found {self.divbs_warmup_share} with divbs_anneal_share="
                f"{self.divbs_anneal_share}, allowed are shares in [0, 1], both 1 at most"
            )

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


def check_candidates(args: Any) -> None:
    """Refuse batches of more candidates than there could be."""
    candidates = args.train_batch_size / args.divbs_ratio
    if candidates > _MOST_CANDIDATES:
        raise ValueError(
            f"divbs_ratio: found {args.divbs_ratio}, with batches of {candidates:.0f} candidates, allowed are "
            f"{_MOST_CANDIDATES} at most"
        )


def check_scoring(args: Any) -> None:
    """Refuse scores in another half precision than a training that is in one."""
    trained_in = "bfloat16" if args.bf16 else "float16" if args.fp16 else None
    if args.divbs_scoring_dtype is not None and trained_in not in (None, args.divbs_scoring_dtype):
        raise ValueError(
            f"divbs_scoring_dtype: found {args.divbs_scoring_dtype!r} with a training in {trained_in}, which the "
            f"model's forward pass keeps to, allowed are None and {trained_in!r}"
        )


def check_processes(args: Any, accelerator: Accelerator) -> None:
    """Refuse models that cannot be scored apart from training."""
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    fsdp1 = getattr(accelerator.state, "fsdp_plugin", None) is not None and not accelerator.is_fsdp2
    if fsdp1 or (plugin is not None and plugin.zero_stage == 3):
        raise ValueError(
            f"fsdp, deepspeed: found {'FSDP1' if fsdp1 else 'DeepSpeed ZeRO-3'}, allowed are FSDP2 and models that "
            "every process has as a whole"
        )
