"""FedLESAM's update at a client next to the plain Trainer's, which is that of FedAvg."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import Trainer, TrainingArguments

from hf_ext.benchmarks.engine import Bar, Benchmark, Contender, Step
from hf_ext.benchmarks.training import images, update, vit
from hf_ext.trainers.federated import FedLESAMConfig, FedLESAMTrainer
from hf_ext.trainers.federated.rounds import Round, Tensors

ROWS, SETTING = 32, "a ViT of 5 million weights, 32 images of 64 x 64 pixels, SGD, gradients clipped"
PLAIN, PROXIMAL = "plain Trainer (FedAvg)", "FedProx"
LESAM, LESAM_S, LESAM_D = "FedLESAM", "FedLESAM-S", "FedLESAM-D"


class _InRound(FedLESAMTrainer):
    """In a round from the start, with whatever its settings need: an earlier model, controls."""

    mu = 0.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        received = {name: param.detach().cpu().clone() for name, param in self.model.named_parameters()}
        memory = {"received": _noisy(received), "control": _noisy(received)}
        config = {"proximal-mu": self.mu, "fedlesam-variant": self.args.fedlesam_variant}
        self.begin_round(Round(2, 0, config, received, {"control": _noisy(received)}, memory))
        self.start_round()


class _Proximal(_InRound):
    mu = 0.1


def _noisy(tensors: Tensors) -> Tensors:
    return {name: value + 0.01 * torch.randn_like(value) for name, value in tensors.items()}


def _update(micro_batches: int, trainer: type[Trainer], **options: Any) -> Callable[[torch.device, bool], Step]:
    arguments = FedLESAMConfig if issubclass(trainer, FedLESAMTrainer) else TrainingArguments

    def make(device: torch.device, quick: bool) -> Step:
        rows = (8 if quick else ROWS) // micro_batches
        batches = [
            {name: values.to(device) for name, values in images(rows).items() if "ids" not in name}
            for _ in range(micro_batches)
        ]
        return update(trainer, arguments, vit(quick), batches, device, optim="sgd", learning_rate=1e-3, **options)

    return make


def _contenders(micro_batches: int) -> tuple[Contender, ...]:
    return (
        Contender(PLAIN, _update(micro_batches, Trainer)),
        Contender(LESAM, _update(micro_batches, _InRound), is_method=True),
        Contender(LESAM_S, _update(micro_batches, _InRound, fedlesam_variant="S"), is_method=True),
        Contender(LESAM_D, _update(micro_batches, _InRound, fedlesam_variant="D"), is_method=True),
        Contender(PROXIMAL, _update(micro_batches, _Proximal, fedlesam_rho=0.0), is_method=True),
    )


STEP = Benchmark(
    name="fedlesam-step",
    title="An update of one batch at a client",
    setting=SETTING,
    contenders=_contenders(1),
    reference=PLAIN,
    bars=(Bar(LESAM, PLAIN, 1.05),),
)

ACCUMULATION = Benchmark(
    name="fedlesam-accumulation",
    title="An update of four micro-batches at a client",
    setting=f"{SETTING}, 4 x 8 images",
    contenders=_contenders(4),
    reference=PLAIN,
    bars=(Bar(LESAM, PLAIN, 1.05),),
)

BENCHMARKS = (STEP, ACCUMULATION)
