"""MoLA training in real processes: two equal one, and a killed run resumes bit for bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).parent / "scripts" / "train_mola.py"
ROUTINGS: dict[str, dict[str, Any]] = {
    "task": {"routing": "task"},
    "router": {"routing": "router", "twd_weight": 1.0},
}


def _largest_difference(one: Path, other: Path) -> float:
    first, second = load_file(one), load_file(other)
    assert first.keys() == second.keys()
    return max((first[name].double() - second[name].double()).abs().max().item() for name in first)


@pytest.mark.slow
@pytest.mark.parametrize("reduction", ["sample", "sum"])
@pytest.mark.parametrize("routing", ROUTINGS)
def test_two_processes_train_like_one(routing: str, reduction: str, run_script: Any, tmp_path: Path) -> None:
    results = {}
    for processes in (1, 2):
        training = {
            "per_device_train_batch_size": 8 // processes,
            "optim": "sgd",
            "learning_rate": 0.1,
            "mola_task_reduction": reduction,
        }
        options = {
            "output_dir": str(tmp_path / f"out{processes}"),
            "weights": str(tmp_path / f"{processes}.safetensors"),
            "adapter": ROUTINGS[routing],
            "linear_router": True,
            "training": training,
        }
        results[processes] = run_script(SCRIPT, options, processes=processes)
    assert _largest_difference(tmp_path / "1.safetensors", tmp_path / "2.safetensors") < 1e-6
    for one, two in zip(results[1]["history"], results[2]["history"], strict=True):
        assert one["loss"] == pytest.approx(two["loss"], abs=1e-5)
        assert one.get("twd_loss") == pytest.approx(two.get("twd_loss"), abs=1e-5)
        assert ("twd_loss" in one) == (routing == "router")
    for name, value in results[1]["metrics"].items():
        if "loss" in name or "routing" in name:
            assert value == pytest.approx(results[2]["metrics"][name], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kill", [{"kill_at": 5}, {"kill_while_saving": True}], ids=["in a step", "while saving"])
@pytest.mark.parametrize(
    "adapter",
    [ROUTINGS["task"], ROUTINGS["router"], {"routing": "router", "train_backbone": True}],
    ids=["task", "router", "router and backbone"],
)
def test_a_killed_run_resumes_bit_for_bit(
    adapter: dict[str, Any], kill: dict[str, Any], run_script: Any, tmp_path: Path
) -> None:
    training = {"per_device_train_batch_size": 4, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 1}
    common = {"adapter": adapter, "dropout": 0.1}
    whole = {
        "output_dir": str(tmp_path / "whole"),
        "weights": str(tmp_path / "whole.safetensors"),
        "training": training,
    }
    parts = {
        "output_dir": str(tmp_path / "parts"),
        "weights": str(tmp_path / "parts.safetensors"),
        "training": training,
    }
    expected = run_script(SCRIPT, {**common, **whole})
    run_script(SCRIPT, {**common, **parts, **kill}, killed=True)
    resumed = run_script(SCRIPT, {**common, **parts, "resume": True})
    first, second = load_file(tmp_path / "whole.safetensors"), load_file(tmp_path / "parts.safetensors")
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert [entry["loss"] for entry in resumed["history"]] == [entry["loss"] for entry in expected["history"]]
