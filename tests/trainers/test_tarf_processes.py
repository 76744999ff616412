"""TARF in real processes: two equal one, and a killed run resumes bit for bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).parent / "scripts" / "train.py"
SETTINGS: dict[str, dict[str, Any]] = {
    "groups": {},
    "samples": {"tarf_selection": "samples", "tarf_forget_loss": "npo", "gradient_accumulation_steps": 2},
}


def _run(folder: Path, name: str, setting: str, rows: int, **extra: Any) -> dict[str, Any]:
    accumulation = SETTINGS[setting].get("gradient_accumulation_steps", 1)
    training = {"optim": "sgd", "learning_rate": 0.1, "per_device_train_batch_size": rows // accumulation}
    return {
        "method": "tarf",
        "output_dir": str(folder / name),
        "weights": str(folder / f"{name}.safetensors"),
        "training": {**training, **SETTINGS[setting], **extra.pop("training", {})},
        **extra,
    }


@pytest.mark.slow
def test_two_processes_train_like_one(run_script: Any, tmp_path: Path) -> None:
    results = {
        processes: run_script(
            SCRIPT,
            {"runs": [_run(tmp_path, f"{name}-{processes}", name, 8 // processes) for name in SETTINGS]},
            processes=processes,
        )["runs"]
        for processes in (1, 2)
    }
    for name, one, two in zip(SETTINGS, results[1], results[2], strict=True):
        weights = [load_file(tmp_path / f"{name}-{processes}.safetensors") for processes in (1, 2)]
        assert max((weights[0][key] - weights[1][key]).abs().max().item() for key in weights[0]) < 1e-6, name
        assert [entry["phase"] for entry in one["history"]] == [1, 1, 2, 2, 3, 3]
        for first, second in zip(one["history"], two["history"], strict=True):
            for term in ("loss", "forget_loss", "retain_loss", "k_t", "phase", "dropped_fraction"):
                assert first.get(term) == pytest.approx(second.get(term), abs=1e-5), (name, term)


@pytest.mark.slow
def test_a_killed_run_resumes_bit_for_bit(run_script: Any, tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 1, "optim": "adamw_torch"}
    saving["learning_rate"] = 1e-3
    kills = {
        "groups": {"saving": {"kill_while_saving": True}, "t1": {"kill_while_identifying": True}},
        "samples": {"step": {"kill_at": 5}},
    }
    whole = [_run(tmp_path, f"whole-{name}", name, 8, dropout=0.1, training=saving) for name in SETTINGS]
    expected = run_script(SCRIPT, {"runs": whole})["runs"]
    resumed_runs = []
    for setting, kill, how in [(name, kill, how) for name, hows in kills.items() for kill, how in hows.items()]:
        options: dict[str, Any] = {"dropout": 0.1, "training": saving}
        run_script(SCRIPT, {"runs": [_run(tmp_path, f"{setting}-{kill}", setting, 8, **options, **how)]}, killed=True)
        resumed_runs.append((setting, kill, _run(tmp_path, f"{setting}-{kill}", setting, 8, **options, resume=True)))
    resumed = run_script(SCRIPT, {"runs": [run for *_, run in resumed_runs]})["runs"]
    for (setting, kill, _), run in zip(resumed_runs, resumed, strict=True):
        first = load_file(tmp_path / f"whole-{setting}.safetensors")
        second = load_file(tmp_path / f"{setting}-{kill}.safetensors")
        assert [key for key in first if not torch.equal(first[key], second[key])] == [], (setting, kill)
        losses = [entry["loss"] for entry in expected[list(SETTINGS).index(setting)]["history"]]
        assert [entry["loss"] for entry in run["history"]] == losses, (setting, kill)
