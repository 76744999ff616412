"""DivBS training in real processes: two equal one, and a killed run resumes bit for bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).parent / "scripts" / "train.py"
NAMES = ("loss", "candidate_loss", "kept_loss", "captured_fraction", "greedy_fraction", "selected_fraction")


def _places(tmp_path: Path, name: str) -> dict[str, str]:
    weights = str(tmp_path / f"{name}.safetensors")
    return {"method": "divbs", "output_dir": str(tmp_path / name), "weights": weights}


@pytest.mark.slow
def test_two_processes_train_like_one(run_script: Any, tmp_path: Path) -> None:
    cases: dict[str, dict[str, Any]] = {
        "images": {},
        "images-sampled": {"training": {"divbs_draw": "sample", "gradient_accumulation_steps": 2}},
        "images-uniform": {"training": {"divbs_strategy": "uniform"}},
        "images-loss": {"training": {"divbs_strategy": "loss"}},
        "sequences": {"sequences": True},
    }
    results = {}
    for processes in (1, 2):
        runs = []
        for name, case in cases.items():
            training = {
                "per_device_train_batch_size": 4 // processes,
                "divbs_ratio": 0.25,
                "divbs_selection_scope": "global",
                "optim": "sgd",
                "learning_rate": 0.1,
                "max_steps": 3,
                **case.get("training", {}),
            }
            runs.append({**case, **_places(tmp_path, f"{name}-{processes}"), "training": training})
        if processes == 2:  # each from its own candidates: no comparison, but it trains
            training = {"per_device_train_batch_size": 2, "divbs_ratio": 0.25, "max_steps": 2}
            runs.append({**_places(tmp_path, "local"), "training": training})
        results[processes] = run_script(SCRIPT, {"runs": runs}, processes=processes)["runs"]
    local = results[2].pop()
    assert [entry["selected_fraction"] for entry in local["history"]] == [0.25, 0.25]
    for name, one, two in zip(cases, results[1], results[2], strict=True):
        first, second = (load_file(tmp_path / f"{name}-{processes}.safetensors") for processes in (1, 2))
        assert first.keys() == second.keys()
        assert max((first[key].double() - second[key].double()).abs().max().item() for key in first) < 1e-6, name
        for alone, together in zip(one["history"], two["history"], strict=True):
            for key in NAMES:
                assert alone.get(key) == pytest.approx(together.get(key), abs=1e-5), (name, key)
        assert all(entry["selected_fraction"] == 0.25 for entry in two["history"])


@pytest.mark.slow
def test_a_killed_run_resumes_bit_for_bit(run_script: Any, tmp_path: Path) -> None:
    training = {
        "per_device_train_batch_size": 2,
        "divbs_ratio": 0.25,
        "divbs_draw": "sample",
        "save_strategy": "steps",
        "save_steps": 2,
        "save_total_limit": 1,
    }

    def options(name: str, **extra: Any) -> dict[str, Any]:
        return {"dropout": 0.1, "training": training, **_places(tmp_path, name), **extra}

    (expected,) = run_script(SCRIPT, {"runs": [options("whole")]})["runs"]
    kills: list[dict[str, Any]] = [{"kill_at": 5}, {"kill_while_saving": True}, {"kill_scoring": 4}]
    for index, kill in enumerate(kills):
        run_script(SCRIPT, {"runs": [options(f"parts-{index}", **kill)]}, killed=True)
    runs = [options(f"parts-{index}", resume=True) for index in range(len(kills))]
    first = load_file(tmp_path / "whole.safetensors")
    for index, run in enumerate(run_script(SCRIPT, {"runs": runs})["runs"]):
        second = load_file(tmp_path / f"parts-{index}.safetensors")
        assert first.keys() == second.keys()
        assert [name for name in first if not torch.equal(first[name], second[name])] == [], kills[index]
        for name in NAMES:
            assert [entry[name] for entry in run["history"]] == [entry[name] for entry in expected["history"]]
