"""MoLA training in real processes: two equal one, and a killed run resumes bit for bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).parent / "scripts" / "train.py"
ROUTINGS: dict[str, dict[str, Any]] = {
    "task": {"routing": "task"},
    "router": {"routing": "router", "twd_weight": 1.0},
}


def _largest_difference(one: Path, other: Path) -> float:
    first, second = load_file(one), load_file(other)
    assert first.keys() == second.keys()
    return max((first[name].double() - second[name].double()).abs().max().item() for name in first)


@pytest.mark.slow
def test_two_processes_train_like_one(run_script: Any, tmp_path: Path) -> None:
    cases = [(routing, reduction) for routing in ROUTINGS for reduction in ("sample", "sum")]
    results = {}
    for processes in (1, 2):
        runs = []
        for routing, reduction in cases:
            name = f"{routing}-{reduction}-{processes}"
            training = {
                "per_device_train_batch_size": 8 // processes,
                "optim": "sgd",
                "learning_rate": 0.1,
                "mola_task_reduction": reduction,
            }
            runs.append(
                {
                    "method": "mola",
                    "output_dir": str(tmp_path / name),
                    "weights": str(tmp_path / f"{name}.safetensors"),
                    "adapter": ROUTINGS[routing],
                    "linear_router": True,
                    "training": training,
                }
            )
        results[processes] = run_script(SCRIPT, {"runs": runs}, processes=processes)["runs"]
    for (routing, reduction), one, two in zip(cases, results[1], results[2], strict=True):
        name = f"{routing}-{reduction}"
        difference = _largest_difference(tmp_path / f"{name}-1.safetensors", tmp_path / f"{name}-2.safetensors")
        assert difference < 1e-6, name
        for first, second in zip(one["history"], two["history"], strict=True):
            assert first["loss"] == pytest.approx(second["loss"], abs=1e-5), name
            assert first.get("twd_loss") == pytest.approx(second.get("twd_loss"), abs=1e-5), name
            assert ("twd_loss" in first) == (routing == "router")
        for metric, value in one["metrics"].items():
            if "loss" in metric or "routing" in metric:
                assert value == pytest.approx(two["metrics"][metric], abs=1e-5), (name, metric)


@pytest.mark.slow
def test_a_killed_run_resumes_bit_for_bit(run_script: Any, tmp_path: Path) -> None:
    adapters = [ROUTINGS["task"], {"routing": "router", "train_backbone": True}]
    kills = [{"kill_at": 5}, {"kill_while_saving": True}]
    training = {"per_device_train_batch_size": 4, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 1}

    def options(name: str, adapter: dict[str, Any], **extra: Any) -> dict[str, Any]:
        places = {
            "method": "mola",
            "output_dir": str(tmp_path / name),
            "weights": str(tmp_path / f"{name}.safetensors"),
        }
        return {"adapter": adapter, "dropout": 0.1, "training": training, **places, **extra}

    whole = [options(f"whole-{i}", adapter) for i, adapter in enumerate(adapters)]
    expected = run_script(SCRIPT, {"runs": whole})["runs"]
    resumed_runs = []
    for i, adapter in enumerate(adapters):
        for j, kill in enumerate(kills):
            run_script(SCRIPT, {"runs": [options(f"parts-{i}-{j}", adapter, **kill)]}, killed=True)
            resumed_runs.append(options(f"parts-{i}-{j}", adapter, resume=True))
    resumed = run_script(SCRIPT, {"runs": resumed_runs})["runs"]
    for index, run in enumerate(resumed):
        i, j = divmod(index, len(kills))
        first = load_file(tmp_path / f"whole-{i}.safetensors")
        second = load_file(tmp_path / f"parts-{i}-{j}.safetensors")
        assert first.keys() == second.keys()
        assert [name for name in first if not torch.equal(first[name], second[name])] == [], (i, j)
        assert [entry["loss"] for entry in run["history"]] == [entry["loss"] for entry in expected[i]["history"]]
