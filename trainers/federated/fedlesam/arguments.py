"""Arguments of FedLESAM, and what they ask of the server and of the optimizer."""

from dataclasses import dataclass
from typing import Any, Literal

import torch

from hf_ext._arguments import NonNegative
from hf_ext.trainers.arguments import MethodArguments, option
from hf_ext.trainers.federated.rounds import Round


@dataclass
class FedLESAMArguments(MethodArguments):
    """Arguments of `FedLESAMMixin`, to be mixed with any TrainingArguments; every field's help says what it does."""

    fedlesam_rho: NonNegative = option(0.1, "Length of the perturbation; 0 is the Trainer without one.")
    fedlesam_variant: Literal["base", "S", "D"] = option(
        "base", "'base'; 'S' adds SCAFFOLD's controls to the gradients, for plain SGD alone; 'D' adds FedDyn's."
    )
    fedlesam_source: Literal["client", "server"] = option(
        "client",
        "Where the last change of the global model is known from: 'client', what this client received last time; "
        "'server', the server sends it, a second model per round.",
    )
    fedlesam_lamb: NonNegative = option(0.1, "Weight of what 'S' and 'D' add; SCAFFOLD proper has 1.")
    fedlesam_direction: Literal["global", "random"] = option(
        "global", "'random': a direction drawn anew for every round and client, of the same length, as a control."
    )


def check_server(args: Any, round: Round) -> None:
    """Refuse a server that says that its clients do something else.

    Raises:
        ValueError: naming both.
    """
    for name in ("variant", "source"):
        wanted, own = round.config.get(f"fedlesam-{name}"), getattr(args, f"fedlesam_{name}")
        if wanted is not None and wanted != own:
            raise ValueError(
                f"fedlesam_{name}: found {own!r} at client {round.client}, allowed is the server's, {wanted!r}"
            )


def check_server_helps(args: Any, round: Round) -> None:
    """Refuse a server that does not know of what its clients need from it.

    Raises:
        ValueError: naming it.
    """
    from_server = args.fedlesam_rho and args.fedlesam_source == "server"
    needs = {"variant": args.fedlesam_variant != "base", "source": from_server}
    for name, needed in needs.items():
        if needed and f"fedlesam-{name}" not in round.config:
            raise ValueError(
                f"fedlesam_{name}: found {getattr(args, f'fedlesam_{name}')!r} and a server that says nothing of it, "
                "allowed is one with the strategy FedLESAM"
            )


def check_plain_steps(args: Any, optimizer: Any = None) -> None:
    """Refuse what makes steps that are no sum of gradients by their learning rates, which the control of S is made of.

    Args:
        optimizer: the one that has been made or given; None if only the arguments are known.

    Raises:
        ValueError: naming it.
    """
    why = "with fedlesam_variant='S', whose controls are means of the gradients of plain SGD"
    name = str(getattr(args.optim, "value", args.optim))
    if args.load_best_model_at_end:
        raise ValueError(f"load_best_model_at_end: found True, allowed is False {why}")
    if optimizer is None:
        if name != "sgd":
            raise ValueError(f"optim: found {name!r}, allowed is 'sgd' {why}")
        return
    if type(optimizer) is not torch.optim.SGD:
        raise ValueError(f"optimizer: found {type(optimizer).__name__}, allowed is torch.optim.SGD {why}")
    for option_name in ("momentum", "dampening", "maximize"):
        for group in optimizer.param_groups:
            if group[option_name]:
                raise ValueError(f"optimizer: found {option_name}={group[option_name]}, allowed is none {why}")
