"""Two processes whose parts of a batch differ, or are made in another way than by the default, against one process."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

SCRIPT = Path(__file__).parent / "scripts" / "train.py"
_SGD = {"optim": "sgd", "learning_rate": 0.1}


@dataclass(frozen=True)
class Case:
    """A method in one process and in two, which are to train the same weights.

    Args:
        method: file in `scripts`.
        training: arguments of training.
        options: what the scripts take.
        split: whether the batch size is of all processes.
    """

    method: str
    training: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    split: bool = False

    def run(self, folder: Path, name: str, processes: int) -> dict[str, Any]:
        rows = 8 if self.split else 8 // processes
        training = {**_SGD, "per_device_train_batch_size": rows, **self.training}
        places = {"output_dir": str(folder / name), "weights": str(folder / f"{name}-{processes}.safetensors")}
        return {"method": self.method, **self.options, **places, "training": training}


def _compare(cases: dict[str, Case], run_script: Any, folder: Path) -> None:
    runs = {}
    for processes in (1, 2):
        options = [case.run(folder, name, processes) for name, case in cases.items()]
        runs[processes] = run_script(SCRIPT, {"runs": options}, processes=processes)["runs"]
    for name, one, two in zip(cases, runs[1], runs[2], strict=True):
        first, second = (load_file(folder / f"{name}-{processes}.safetensors") for processes in (1, 2))
        assert max((first[key] - second[key]).abs().max().item() for key in first) < 1e-6, name
        for expected, found in zip(one["history"], two["history"], strict=True):
            assert found == pytest.approx(expected, abs=1e-5, rel=1e-5), name


SPLIT = {"accelerator_config": {"split_batches": True}}
STREAM = {"accelerator_config": {"dispatch_batches": False}}
OTHERWISE_MADE = {
    "tarf split": Case("tarf", SPLIT, split=True),
    "tarf split, fewer forget rows": Case("tarf", {**SPLIT, "tarf_forget_batch_size": 4}, split=True),
    "mola stream": Case("mola", STREAM, {"stream": True}),
}


@pytest.mark.slow
def test_batches_made_otherwise(run_script: Any, tmp_path: Path) -> None:
    _compare(OTHERWISE_MADE, run_script, tmp_path)
