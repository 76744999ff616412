"""DISAM's update next to the plain Trainer's and to SAM in a loop written by hand."""

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from transformers import Trainer, TrainingArguments

from hf_ext.benchmarks.engine import Bar, Benchmark, Contender, Step
from hf_ext.benchmarks.training import images, update, vit
from hf_ext.trainers import DISAMConfig, DISAMTrainer

ROWS, SETTING = 32, "a ViT of 5 million weights, 32 images of 64 x 64 pixels, 4 domains, AdamW, gradients clipped"
PLAIN, HAND = "plain Trainer", "pytorch-optimizer's SAM in a hand-written loop"
DISAM, SAM, ADAPTIVE = "DISAM", "SAM (lambda 0)", "DISAM, adaptive"
GLOBAL, RUNNING = "DISAM, global weights", "DISAM, running weights"


def _update(micro_batches: int, updates: int = 1, **options: Any) -> Callable[[torch.device, bool], Step]:
    """Updates in `micro_batches` parts; options of DISAM, or none for the plain Trainer."""
    trainer, arguments = (DISAMTrainer, DISAMConfig) if options else (Trainer, TrainingArguments)

    def make(device: torch.device, quick: bool) -> Step:
        rows = 8 if quick else ROWS
        batches = [
            {
                name: values.to(device)
                for name, values in images(rows // micro_batches).items()
                if options or "ids" not in name
            }
            for _ in range(micro_batches)
        ]
        extra: dict[str, Any] = {"disam_num_domains": 4} if options else {}
        return update(trainer, arguments, vit(quick), batches, device, updates=updates, **options, **extra)

    return make


def _by_hand(device: torch.device, quick: bool) -> Step:
    from pytorch_optimizer import SAM as HandSAM

    model: Any = vit(quick)
    model.to(device).train()
    batch = {name: values.to(device) for name, values in images(8 if quick else ROWS).items() if "ids" not in name}
    optimizer = HandSAM(model.parameters(), base_optimizer=torch.optim.AdamW, rho=0.05, lr=1e-3)

    def step() -> None:
        model(**batch).loss.backward()
        optimizer.first_step(zero_grad=True)
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.second_step(zero_grad=True)

    return step


_HAND = (Contender(HAND, _by_hand),) if importlib.util.find_spec("pytorch_optimizer") else ()

STEP = Benchmark(
    name="disam-step",
    title="An update of one batch",
    setting=SETTING,
    contenders=(
        Contender(PLAIN, _update(1)),
        Contender(DISAM, _update(1, disam_rho=0.05, disam_lambda=0.1), is_method=True),
        Contender(SAM, _update(1, disam_rho=0.05, disam_lambda=0.0), is_method=True),
        Contender(ADAPTIVE, _update(1, disam_rho=0.5, disam_adaptive=True), is_method=True),
        *_HAND,
    ),
    reference=PLAIN,
    bars=(Bar(DISAM, PLAIN, 2.05), Bar(SAM, PLAIN, 2.05), *(Bar(DISAM, hand.name, 1.05) for hand in _HAND)),
)

ACCUMULATION = Benchmark(
    name="disam-accumulation",
    title="An update of four micro-batches",
    setting=f"{SETTING}, 4 x 8 images",
    contenders=(
        Contender(PLAIN, _update(4)),
        Contender(GLOBAL, _update(4, disam_domain_weights="global"), is_method=True),
        Contender(RUNNING, _update(4, disam_domain_weights="running"), is_method=True),
    ),
    reference=PLAIN,
    bars=(Bar(GLOBAL, PLAIN, 2.4), Bar(RUNNING, PLAIN, 2.05)),
)

SEVERAL = 4
FOUR_PLAIN, FOUR = f"{SEVERAL} updates of the plain Trainer", f"{SEVERAL} updates of DISAM, one first pass"

EVERY = Benchmark(
    name="disam-every",
    title="Four updates, of which DISAM perturbs all along the same step",
    setting=SETTING,
    contenders=(
        Contender(FOUR_PLAIN, _update(1, updates=SEVERAL)),
        Contender(FOUR, _update(1, updates=SEVERAL, disam_lambda=0.1, disam_every=SEVERAL), is_method=True),
    ),
    reference=FOUR_PLAIN,
    bars=(Bar(FOUR, FOUR_PLAIN, 1.3),),
)

BENCHMARKS = (STEP, ACCUMULATION, EVERY)
