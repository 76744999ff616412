"""FedLESAM at a client of any Trainer: one pass per update, at weights moved back along the last global update.

FedLESAM, locally estimated global perturbations (Fan et al., ICML 2024, arXiv:2405.18890).
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from hf_ext.functional import (
    control_update,
    dynamic_update,
    lesam_perturbation,
    proximal_correction,
    scaffold_correction,
)
from hf_ext.functional._dtypes import at_least_float32
from hf_ext.trainers.federated.corrections import Correction, Drift, Proximal
from hf_ext.trainers.federated.fedlesam.arguments import (
    FedLESAMArguments,
    check_plain_steps,
    check_server,
    check_server_helps,
)
from hf_ext.trainers.federated.rounds import Contribution, FederatedMixin, Round, Tensors
from hf_ext.trainers.updates import norm_of


@dataclass
class FedLESAMConfig(FedLESAMArguments, TrainingArguments):
    """`TrainingArguments` with the arguments of FedLESAM."""


class FedLESAMMixin(FederatedMixin):
    """Takes the gradients of a round at `w + eps`, where `eps` leads back along the global model's last change.

    `eps = rho (w_prev - w_t) / ||w_prev - w_t||`, over the trainable parameters, is computed once per round and is the
    same in all of its updates: the weights are moved before the first micro-batch of an update and put back, bit for
    bit, after the last one, before gradients are corrected and clipped and the optimizer steps. In a client's first
    round, without a federation, and with `fedlesam_rho=0` nothing is moved.

    "S" adds `lamb (c - c_i)` to the gradients, "D" adds `lamb (w - w_t + h_i)`; with `fedlesam_rho=0` these are
    SCAFFOLD and FedDyn. Clipping sees the sum. The controls of S are means over the steps that were really made,
    weight decay and clipping included, at whatever learning rates.

    Logged per update: "loss" at the moved weights, `perturbation_norm`, and `control_norm`, the length of `c - c_i` or
    `w - w_t + h_i`.

    Raises:
        ValueError: at construction, for sharded parameters (FSDP, DeepSpeed), several GPUs in one process, optimizers
            that step during the backward pass, and with "S" for all but plain SGD; in a round, for a server that
            differs in variant or source, or does not send what these need, and for controls or an earlier model of
            other parameters.
    """

    args: Any  # TrainingArguments with FedLESAMArguments mixed in
    model: Any
    method = "fedlesam"
    arguments = FedLESAMArguments
    perturbs = True
    committed = ("control",)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._perturbation: list[Tensor] | None = None
        self._perturbation_norm: Tensor | float = 0.0
        self._controls: list[Tensor] = []  # c_i of S, h_i of D, on the CPU
        self._global_control: list[Tensor] = []  # c of S
        self._rates: dict[str, float] = {}  # learning rates of the round's updates, added up, by parameter
        self._counting: Any = None  # handle of what adds them up
        super().__init__(*args, **kwargs)

    def check_arguments(self) -> None:
        super().check_arguments()
        if self.args.fedlesam_rho or self.args.fedlesam_variant != "base":
            self.check_whole_updates("FedLESAM")
        if self.args.fedlesam_variant == "S":
            check_plain_steps(self.args, self.optimizer)

    # ---------------------------------------------------------------------------------------------- the round
    def begin_round(self, round: Round) -> None:
        check_server(self.args, round)
        super().begin_round(round)
        self._perturbation = None

    def prepare_round(self, round: Round) -> None:
        """The perturbation and the controls of a round."""
        super().prepare_round(round)
        check_server_helps(self.args, round)
        self._perturbation = self._perturbation_of(round) if self.args.fedlesam_rho else None
        self._rates = dict.fromkeys(self.trained, 0.0)
        if self.args.fedlesam_variant != "base":
            self._controls = self._control_of(round.memory, "control")
        if self.args.fedlesam_variant == "S":
            self._global_control = self._control_of(round.broadcast, "control")

    def _perturbation_of(self, round: Round) -> list[Tensor] | None:
        update = self._global_update(round)
        if update is None or not update:
            return None
        if self.args.fedlesam_direction == "random" and any(bool(one.any()) for one in update):
            update = random_directions(update, (self.args.seed, round.number, round.client))
        steps = lesam_perturbation(update, rho=self.args.fedlesam_rho) or []
        self._perturbation_norm = norm_of(steps, self.args.device)
        if not bool(torch.as_tensor(self._perturbation_norm).isfinite()):
            raise ValueError("global update: found values that are not finite, allowed are finite models")
        pairs = zip(steps, self.trained.values(), strict=True)
        return [step.to(param.dtype) for step, param in pairs] if self._perturbation_norm else None

    def _global_update(self, round: Round) -> list[Tensor] | None:
        """`w_t - w_prev` of the trained parameters; None in a first round."""
        if self.args.fedlesam_source == "server":
            sent = round.broadcast.get("global-update")
            return None if sent is None else self.on_devices(self.tensors_of(sent, "global-update"))
        earlier = round.memory.get("received")
        if earlier is None:
            return None
        ends = ((round.received, "received"), (earlier, "memory"))
        now, then = (self.on_devices(self.tensors_of(tensors, entry)) for tensors, entry in ends)
        return proximal_correction(now, then)

    def _control_of(self, records: Any, entry: str) -> list[Tensor]:
        """On the CPU; zeros in a first round."""
        if entry in records:
            return [at_least_float32(one) for one in self.tensors_of(records[entry], entry)]
        return [at_least_float32(torch.zeros_like(param, device="cpu")) for param in self.trained.values()]

    def corrections(self, round: Round) -> list[Correction]:
        found = super().corrections(round)
        weight = self.args.fedlesam_lamb
        if self.args.fedlesam_variant == "S":
            drift = scaffold_correction(self._global_control, self._controls)
            found.append(Drift(weight, self.on_devices(drift)))
        if self.args.fedlesam_variant == "D":
            received = self.on_devices(self.tensors_of(round.received, "received"))
            found.append(Proximal(weight, received, self.on_devices(self._controls), name="control"))
        return found

    def end_round(self) -> Contribution:
        contribution = super().end_round()
        if self.round is None or not self.trained:
            return contribution
        memory, sent = dict(contribution.memory), dict(contribution.sent)
        received = self.tensors_of(self.round.received, "received")
        params = [param.detach().cpu() for param in self.trained.values()]
        if self.args.fedlesam_source == "client" and self.args.fedlesam_rho:
            memory["received"] = self._kept(received)
        if self.args.fedlesam_variant == "S":
            rates = [self._rates[name] for name in self.trained]
            new = control_update(self._controls, self._global_control, params, received, sum_of_rates=rates)
            memory["control"] = self._kept(new)
            sent["control"] = self._kept([one - old for one, old in zip(new, self._controls, strict=True)])
        if self.args.fedlesam_variant == "D":
            memory["control"] = self._kept(dynamic_update(self._controls, params, received))
        return dataclasses.replace(contribution, memory=memory, sent=sent)

    def _kept(self, tensors: Sequence[Tensor]) -> Tensors:
        """By name, on the CPU, in the parameters' dtypes but at least float32; nothing of the model's own."""
        pairs = zip(self.trained, tensors, strict=True)
        return {name: at_least_float32(one).to("cpu", copy=True) for name, one in pairs}

    # ---------------------------------------------------------------------------------------------- an update
    def begin_update(self, model: nn.Module, num_items_in_batch: Tensor | int | None) -> None:
        super().begin_update(model, num_items_in_batch)
        if self._perturbation is not None:
            self.move_weights(list(self.trained.values()), self._perturbation)
            self.record(diagnostics={"perturbation_norm": self._perturbation_norm})

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        made = super().create_optimizer(*args, **kwargs)
        if self.args.fedlesam_variant == "S":
            optimizer = getattr(made, "optimizer", made)  # accelerate's, once it has trained
            check_plain_steps(self.args, optimizer)
            if self._counting is not None:
                self._counting.remove()
            self._counting = optimizer.register_step_post_hook(self._count_rates)
        return made

    def _count_rates(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """A step has been made (one that a loss scaler leaves out has not), at these rates."""
        names = {param: name for name, param in self.trained.items()}
        for group in optimizer.param_groups:
            for param in group["params"]:
                if param in names:
                    self._rates[names[param]] += float(group["lr"])

    # ---------------------------------------------------------------------------------------------- checkpoints
    def checkpoint_state(self) -> dict[str, Any]:
        counts = self.round is not None and self.args.fedlesam_variant == "S"
        return super().checkpoint_state() | ({"fedlesam_rates": self._rates} if counts else {})

    def load_checkpoint_state(self, state: dict[str, Any]) -> None:
        super().load_checkpoint_state(state)
        self._rates |= state.get("fedlesam_rates", {})


def random_directions(tensors: Sequence[Tensor], seeds: tuple[int, ...]) -> list[Tensor]:
    """Normal numbers in the place of these, the same for the same seeds on every device."""
    seed = int(np.random.SeedSequence(seeds).generate_state(1)[0])
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(one.shape, generator=generator, dtype=torch.float32).to(one) for one in tensors]


class FedLESAMTrainer(FedLESAMMixin, Trainer):
    """`Trainer` with FedLESAM at a client; see `FedLESAMMixin`. Takes `FedLESAMConfig` as `args`."""
