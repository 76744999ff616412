"""The plan that follows from TARF's arguments: when to ascend on the data to forget, when to retain."""

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hf_ext.functional import annealed_ascent_weight, tarf_phase

#: in the order of their numbers in logs, from 1
PHASES = ("I", "II", "III")


@dataclass(frozen=True)
class Update:
    """What an optimiser step is made of; rows are those of all its micro-batches and processes."""

    k_t: float
    retains: bool
    phase: str
    retain_rows: Tensor | int
    forget_rows: Tensor | int


@dataclass(frozen=True)
class Plan:
    """What happens at time t, in epochs: the forget term has `weight(t)`, remaining data are trained on from t1 on.

    Args:
        k, T, t0, t1: as in `hf_ext.functional.tarf`.
        annealed: whether k(t) falls; otherwise it is k until T - t0.
        selection: how remaining data to leave out are found at t1; "none" leaves nothing out.
        fractional: whether t moves with every update instead of every epoch.
    """

    k: float
    T: float
    t0: float = 0.0
    t1: float = 0.0
    annealed: bool = False
    selection: str = "none"
    fractional: bool = False

    def time(self, updates: int, updates_per_epoch: int) -> float:
        """t after that many updates."""
        return updates / updates_per_epoch if self.fractional else float(updates // updates_per_epoch)

    def weight(self, t: float) -> float:
        """k(t), of the forget term."""
        if self.annealed:
            return annealed_ascent_weight(t, k=self.k, T=self.T, t0=self.t0)
        return self.k if self.phase(t) in ("I", "II") else 0.0

    def phase(self, t: float) -> str:
        """`"I"`, `"II"` or `"III"`, see `tarf_phase`."""
        return tarf_phase(t, T=self.T, t0=self.t0, t1=self.t1)

    def retains(self, t: float) -> bool:
        """Whether the remaining data are trained on at time t."""
        return self.phase(t) in ("II", "III")

    def update(self, t: float, *, retain_rows: Tensor | int, forget_rows: Tensor | int) -> Update:
        """The update at time t, of so many rows."""
        return Update(self.weight(t), self.retains(t), self.phase(t), retain_rows, forget_rows)

    @property
    def is_neutral(self) -> bool:
        """Whether this is nothing but fine-tuning on the remaining data."""
        return self.weight(0.0) == 0 and self.retains(0.0) and self.selection == "none"


def plan_of(args: Any, epochs: float) -> Plan:
    """The plan of `TARFArguments` for a run of that many epochs.

    The baselines: `ga` ascends with weight 1 and never retains; `ft` only retains; `random_labels` trains on both,
    the forget data with labels drawn at random; `ga_ft` ascends with constant weight k while it retains.

    Raises:
        ValueError: a plan with an idle gap, or one that has nothing to find out.
    """
    baselines = {
        "ga": Plan(k=1.0, T=epochs, t1=math.inf),
        "ft": Plan(k=0.0, T=epochs, t0=epochs),
        "random_labels": Plan(k=1.0, T=epochs),
        "ga_ft": Plan(k=args.tarf_k, T=epochs),
    }
    if args.tarf_method in baselines:
        return baselines[args.tarf_method]
    _check_selection(args)
    t0 = 0.7 * epochs if args.tarf_t0 is None else args.tarf_t0
    t1 = float(args.tarf_selection != "none") if args.tarf_t1 is None else args.tarf_t1
    if t0 > epochs:
        raise ValueError(f"tarf_t0: found {t0:g}, allowed are 0 to the number of epochs, {epochs:g}")
    plan = Plan(
        k=args.tarf_k,
        T=epochs,
        t0=t0,
        t1=t1,
        annealed=args.tarf_schedule == "annealed",
        selection=args.tarf_selection,
        fractional=args.tarf_anneal_by == "step",
    )
    if t1 > epochs - t0:
        raise ValueError(
            f"tarf_t1: found {t1:g} with {epochs:g} epochs and tarf_t0={t0:g}, allowed are 0 to "
            f"{epochs - t0:g} (epochs - tarf_t0): between the two neither forgetting nor retaining would be active"
        )
    if t1 > 0 and args.tarf_k == 0:
        raise ValueError(f"tarf_t1: found {t1:g} with tarf_k=0, allowed is 0: until tarf_t1 nothing is done")
    if args.tarf_selection != "none" and t1 == 0:
        raise ValueError(
            f"tarf_selection: found {args.tarf_selection!r} with tarf_t1=0, allowed is 'none' with that: what to "
            "leave out is found by an ascent before tarf_t1"
        )
    return plan


def _check_selection(args: Any) -> None:
    """Refuse numbers that say how much is left out where another option says that they do not count."""
    default = type(args).__dataclass_fields__["tarf_top_fraction"].default
    asked = {
        name: value
        for name, unset in (("tarf_n_hidden_groups", None), ("tarf_beta", None), ("tarf_top_fraction", default))
        if (value := getattr(args, name)) != unset
    }
    if len(asked) > 1:
        found = ", ".join(f"{name}={value}" for name, value in asked.items())
        raise ValueError(f"tarf_selection: found {found}, allowed is one of them: each says how much is left out")
    for name, value in asked.items():
        allowed = "'groups'" if name == "tarf_n_hidden_groups" else "'groups', 'samples'"
        if repr(args.tarf_selection) not in allowed:
            raise ValueError(
                f"tarf_selection: found {args.tarf_selection!r} with {name}={value}, allowed with that are {allowed}"
            )
