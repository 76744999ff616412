"""Runs of `scripts/train.py`: what they are told, and how what they leave is compared."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

SCRIPT = Path(__file__).parent / "scripts" / "train.py"


@dataclass(frozen=True)
class Case:
    """A method with some settings.

    Args:
        method: file in `scripts`.
        training: arguments of training.
        options: what the method's script takes.
        kills: options with which the run kills itself; those of all methods by default.
        evaluates: whether evaluation is to be the same too. With texts of different lengths Trainer's own is not: it
            takes the mean over batches of the means over tokens.
    """

    method: str
    training: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    kills: tuple[dict[str, Any], ...] = ({"kill_at": 5}, {"kill_while_saving": True})
    evaluates: bool = True


def run_of(case: Case, folder: Path, name: str, **options: Any) -> dict[str, Any]:
    """A run of a case, which leaves its weights in `folder` under `name`."""
    training = {"per_device_train_batch_size": 4, **case.training, **options.pop("training", {})}
    places = {"output_dir": str(folder / name), "weights": str(folder / f"{name}.safetensors")}
    return {"method": case.method, **case.options, **places, "training": training, **options}


def rows_of(case: Case, processes: int) -> dict[str, int]:
    """Rows of a micro-batch in each of some processes, for eight in every update."""
    return {"per_device_train_batch_size": 8 // processes // case.training.get("gradient_accumulation_steps", 1)}


def largest_difference(one: Path, other: Path) -> float:
    """Between the weights of two runs, which have the same names."""
    first, second = load_file(one), load_file(other)
    assert first.keys() == second.keys()
    return max((first[name].double() - second[name].double()).abs().max().item() for name in first)
