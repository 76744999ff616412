"""MoLA next to PEFT's LoRA, X-LoRA and Poly, and next to the loops over experts that one would write first."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PolyConfig, XLoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from hf_ext.adapters import MoLAConfig
from hf_ext.benchmarks.engine import Bar, Benchmark, Contender, Step
from hf_ext.benchmarks.mola_layers import (
    BARE,
    BY_EXPERTS,
    CONVS,
    LINEARS,
    LORA,
    adapter,
    convolutions,
    linear,
    lora,
    mola,
    stepping,
)
from hf_ext.benchmarks.tables import Table
from hf_ext.benchmarks.traffic import traffic_table
from hf_ext.benchmarks.training import images, update, vit
from hf_ext.trainers import MoLATrainer, MoLATrainingConfig

EXPERTS, RANK = 4, 4
BASE, LORA_WIDE = "base, all weights trained", "LoRA, rank E r"
GRAD, ROUTER, MERGED = "MoLA-Grad", "MoLA-Router", "MoLA-Grad, one task merged"
MASKED, SELECTED, XLORA, POLY = "masked loop", "index-select loop", "X-LoRA", "Poly"
MIXTURE = "one expert per sample"  # the work of MoLA-Grad, of which the loop that selects rows needs the least


# ------------------------------------------------------------------------------------------------ loops
class ExpertLoop(nn.Module):
    """E low-rank adapters of a linear layer, one after the other: on the whole batch, or on the samples of each."""

    def __init__(self, base: nn.Linear, task_ids: Tensor, *, select: bool) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        sizes = [(RANK, base.in_features), (base.out_features, RANK)]
        self.A, self.B = (
            nn.ParameterList([nn.Parameter(torch.randn(size)) for _ in range(EXPERTS)]) for size in sizes
        )
        self.task_ids = task_ids
        self.select = select

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        for expert, (A, B) in enumerate(zip(self.A, self.B, strict=True)):
            if self.select:
                rows = (self.task_ids == expert).nonzero().squeeze(-1)
                y = y.index_add(0, rows, ((x[rows] @ A.t()) @ B.t()) * 2.0)
            else:
                mask = (self.task_ids == expert).to(x.dtype)[:, None, None]
                y = y + mask * ((x @ A.t()) @ B.t()) * 2.0
        return y


def _with_loops(model: nn.Module, task_ids: Tensor, *, select: bool) -> nn.Module:
    model.requires_grad_(False)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and not name.endswith("lm_head"):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, ExpertLoop(layer, task_ids, select=select))
    return model


# ------------------------------------------------------------------------------------------------ layers
_LINEAR, _CONVOLUTIONS = linear(32, 197, 192), convolutions(32, 64, 28)


def _mola(targets: str | list[str], **options: Any) -> MoLAConfig:
    return mola(EXPERTS, RANK, targets, **options)


LAYERS = Benchmark(
    name="mola-layers",
    title="Linear layers of a transformer block",
    setting=f"32 x 197 x 192, E={EXPERTS}, r={RANK}, mixed tasks in the batch, forward and backward",
    contenders=(
        Contender(BARE, stepping(_LINEAR, lambda model, _: model)),
        Contender(LORA, stepping(_LINEAR, adapter(lambda: lora(RANK, LINEARS)))),
        Contender(LORA_WIDE, stepping(_LINEAR, adapter(lambda: lora(EXPERTS * RANK, LINEARS)))),
        Contender(GRAD, stepping(_LINEAR, adapter(lambda: _mola(LINEARS)), experts=EXPERTS), True, MIXTURE),
        Contender(
            MASKED,
            stepping(_LINEAR, lambda model, ids: _with_loops(model, ids, select=False)),
            work=MIXTURE,
        ),
        Contender(
            SELECTED,
            stepping(_LINEAR, lambda model, ids: _with_loops(model, ids, select=True)),
            work=MIXTURE,
        ),
    ),
    reference=LORA_WIDE,
    bars=(Bar(GRAD, LORA_WIDE, 1.05), Bar(GRAD, MASKED, 0.5)),
)

CONVOLUTIONS = Benchmark(
    name="mola-convolutions",
    title="3 x 3 convolutions",
    setting=f"32 x 64 x 28 x 28, E={EXPERTS}, r={RANK}, mixed tasks in the batch, forward and backward",
    contenders=(
        Contender(BARE, stepping(_CONVOLUTIONS, lambda model, _: model)),
        Contender(LORA, stepping(_CONVOLUTIONS, adapter(lambda: lora(RANK, CONVS)))),
        Contender(LORA_WIDE, stepping(_CONVOLUTIONS, adapter(lambda: lora(EXPERTS * RANK, CONVS)))),
        Contender(
            f"{GRAD}, factored",
            stepping(_CONVOLUTIONS, adapter(lambda: _mola(CONVS, conv_form="factored")), experts=EXPERTS),
            is_method=True,
            work=MIXTURE,
        ),
        Contender(
            f"{GRAD}, loralib",
            stepping(_CONVOLUTIONS, adapter(lambda: _mola(CONVS, conv_form="loralib")), experts=EXPERTS),
            is_method=True,
            work=MIXTURE,
        ),
    ),
    reference=LORA_WIDE,
    bars=(Bar(f"{GRAD}, factored", LORA_WIDE, 1.05),),
)


# ------------------------------------------------------------------------------------------------ whole model
_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def _llama(quick: bool) -> LlamaForCausalLM:
    width, depth = (16, 1) if quick else (256, 4)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=256,
            hidden_size=width,
            intermediate_size=3 * width,
            num_hidden_layers=depth,
            num_attention_heads=4,
            use_cache=False,
        )
    )


def _xlora(model: LlamaForCausalLM, quick: bool) -> nn.Module:
    with tempfile.TemporaryDirectory() as folder:
        adapters = {str(expert): str(Path(folder) / str(expert)) for expert in range(EXPERTS)}
        for path in adapters.values():
            get_peft_model(_llama(quick), lora(RANK, _TARGETS, task_type="CAUSAL_LM")).save_pretrained(path)
        config = XLoraConfig(
            task_type="CAUSAL_LM",
            hidden_size=model.config.hidden_size,
            adapters=adapters,
            use_trainable_adapters=True,
        )
        return get_peft_model(model, config, autocast_adapter_dtype=False)


def _model_step(
    adapt: Callable[[LlamaForCausalLM, Tensor, bool], nn.Module], *, ids: str | None = None
) -> Callable[[torch.device, bool], Step]:
    """Forward and backward of a small language model on a batch of mixed tasks."""

    def make(device: torch.device, quick: bool) -> Step:
        tokens = torch.randint(256, (4, 8) if quick else (16, 128)).to(device)
        task_ids = (torch.arange(len(tokens)) % EXPERTS).to(device)
        model = adapt(_llama(quick), task_ids, quick).to(device).train()
        options = {ids: task_ids} if ids else {}

        def step() -> None:
            model(input_ids=tokens, labels=tokens, **options).loss.backward()
            model.zero_grad(set_to_none=True)

        return step

    return make


def _merged(model: LlamaForCausalLM, task_ids: Tensor, quick: bool) -> nn.Module:
    merged: nn.Module = get_peft_model(model, _mola(_TARGETS, task_type="CAUSAL_LM")).merge_task(1)
    return merged.requires_grad_(True)


MODEL = Benchmark(
    name="mola-model",
    title="A small Llama",
    setting=f"4 layers of width 256, 16 x 128 tokens, E={EXPERTS}, r={RANK}, all linear layers of the blocks adapted, "
    "mixed tasks in the batch, forward and backward",
    contenders=(
        Contender(BASE, _model_step(lambda model, ids, quick: model)),
        Contender(LORA, _model_step(lambda model, ids, quick: get_peft_model(model, lora(RANK, _TARGETS)))),
        Contender(
            LORA_WIDE, _model_step(lambda model, ids, quick: get_peft_model(model, lora(EXPERTS * RANK, _TARGETS)))
        ),
        Contender(
            GRAD,
            _model_step(lambda model, ids, quick: get_peft_model(model, _mola(_TARGETS)), ids="mola_task_ids"),
            is_method=True,
            work=MIXTURE,
        ),
        Contender(
            ROUTER,
            _model_step(lambda model, ids, quick: get_peft_model(model, _mola(_TARGETS, routing="router"))),
            is_method=True,
        ),
        Contender(MERGED, _model_step(_merged), is_method=True),
        Contender(XLORA, _model_step(lambda model, ids, quick: _xlora(model, quick))),
        Contender(
            POLY,
            _model_step(
                lambda model, ids, quick: get_peft_model(
                    model,
                    PolyConfig(
                        r=RANK, n_tasks=EXPERTS, n_skills=EXPERTS, target_modules=_TARGETS, task_type="CAUSAL_LM"
                    ),
                ),
                ids="task_ids",
            ),
        ),
        Contender(MASKED, _model_step(lambda model, ids, quick: _with_loops(model, ids, select=False)), work=MIXTURE),
        Contender(SELECTED, _model_step(lambda model, ids, quick: _with_loops(model, ids, select=True)), work=MIXTURE),
    ),
    reference=LORA_WIDE,
    bars=(
        Bar(GRAD, LORA_WIDE, 1.05),
        Bar(ROUTER, LORA_WIDE, 1.05),
        Bar(GRAD, XLORA, 0.5),
        Bar(GRAD, MASKED, 0.5),
        Bar(MERGED, BASE, 1.05),
    ),
)


# ------------------------------------------------------------------------------------------------ messages
def decorrelating(device: torch.device, quick: bool) -> Step:
    """An update of a router with the TwD loss over the rows of all processes."""
    batch = {name: values.to(device) for name, values in images(_EACH, groups=EXPERTS).items()}
    batch["task_ids"] = batch.pop("domain_ids")
    adapted = get_peft_model(vit(True), _mola(["q_proj", "v_proj"], routing="router"))
    return update(MoLATrainer, MoLATrainingConfig, adapted, [batch], device)


_EACH = 32


def messages(rounds: int, quick: bool) -> Table:
    """What the TwD loss has processes send each other."""
    return traffic_table(
        "mola-messages",
        "Messages of MoLA's TwD loss",
        "An image router, projections of width 32",
        decorrelating,
        _EACH,
        quick,
    )


BENCHMARKS = (LAYERS, CONVOLUTIONS, MODEL, *BY_EXPERTS)
TABLES = (messages,)
