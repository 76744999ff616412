"""Every method in real processes: two train like one, and a killed run resumes bit for bit."""

import json
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hf_ext.trainers.manifest import MANIFEST

sys.path.insert(0, str(Path(__file__).parent))  # pytest's import mode adds no folders

from runs import SCRIPT, Case, largest_difference, rows_of, run_of

_ROUTER = {"adapter": {"routing": "router", "twd_weight": 1.0}, "linear_router": True}
_DIVBS = {"divbs_ratio": 0.25, "divbs_selection_scope": "global"}
_DISAM = {"disam_rho": 0.5, "disam_lambda": 1.0}
_SAMPLES = {"tarf_selection": "samples", "tarf_forget_loss": "npo", "gradient_accumulation_steps": 2}
_GPL = {"gpl_warmup_epochs": 2, "gpl_prior": 0.4, "gpl_held_out": 0.3, "gpl_edge_steps": 3}
_SEEDS = {"gpl_neighbors": [3, 2], "gpl_warmup_epochs": 1, "max_steps": 18}
_BANK = {"causald_front_door": "bank", "causald_bank_size": 5, "causald_num_candidates": 6}
TWO_PROCESSES = {
    "mola task": Case("mola"),
    "mola task, sum": Case("mola", {"mola_task_reduction": "sum"}),
    "mola router": Case("mola", options=_ROUTER),
    "mola router, sum": Case("mola", {"mola_task_reduction": "sum"}, _ROUTER),
    "disam": Case("disam", _DISAM),
    "disam, gsam": Case("disam", {**_DISAM, "disam_sharpness": "gsam", "gradient_accumulation_steps": 2}),
    "disam, sagm": Case("disam", {**_DISAM, "disam_sharpness": "sagm", "disam_alpha": 0.1}),
    "disam every third": Case("disam", {**_DISAM, "disam_every": 3}),
    "disam running": Case("disam", {**_DISAM, "disam_domain_weights": "running"}),
    "disam accumulating": Case("disam", {**_DISAM, "gradient_accumulation_steps": 2}),
    "disam balanced": Case("disam", {**_DISAM, "disam_domain_sampler": "balanced"}),
    "disam over mola": Case("disam", _DISAM, _ROUTER),
    "divbs": Case("divbs", _DIVBS),
    "divbs sampled": Case("divbs", {**_DIVBS, "divbs_draw": "sample", "gradient_accumulation_steps": 2}),
    "divbs uniform": Case("divbs", {**_DIVBS, "divbs_strategy": "uniform"}),
    "divbs loss": Case("divbs", {**_DIVBS, "divbs_strategy": "loss"}),
    "divbs sequences": Case("divbs", _DIVBS, {"sequences": True}, evaluates=False),
    "fer": Case("fer", evaluates=False),  # the loss of an evaluation is a mean over batches of means over faces
    "fer accumulating": Case(
        "fer", {"gradient_accumulation_steps": 2, "fer_contrast_pairs": "paired"}, evaluates=False
    ),
    "rd": Case("rd", {"rd_beta": 0.5}),
    "rd debiased": Case("rd", {"rd_debiased": True, "rd_decay": "linear"}),
    "rd cached": Case("rd", {"rd_cache_teacher": True, "rd_detach_reprogrammed": True, "rd_alpha": 0.0}),
    "rd raw features": Case("rd", {"rd_method": "cka"}),
    "causald": Case("causald", {"causald_num_candidates": 6}),
    "causald bank": Case(
        "causald", {**_BANK, "causald_debias": "ips", "causald_average": "logit", "gradient_accumulation_steps": 2}
    ),
    "causald student alone": Case(
        "causald", {"causald_alpha": 0.0, "causald_num_candidates": 6, "gradient_accumulation_steps": 2}
    ),
    "gpl": Case("gpl", {**_GPL, "gpl_guide": "mlp"}),
    "gpl scorer": Case("gpl", {**_GPL, "gpl_guide": "self", "gpl_edges": "scorer"}, {"scorer": True}),
    "gpl nnpu": Case("gpl", {**_GPL, "gpl_objective": "nnpu"}),
    "gpl sampled": Case("gpl", {**_GPL, **_SEEDS, "gpl_guide": "mlp"}),
    "gpl sampled, accumulating": Case(
        "gpl", {**_GPL, **_SEEDS, "gpl_objective": "rank", "gpl_guide": "self", "gradient_accumulation_steps": 2}
    ),
    "gpl sampled, nnpu": Case("gpl", {**_GPL, **_SEEDS, "gpl_objective": "nnpu"}),
    "gpl sampled, naive": Case("gpl", {**_GPL, **_SEEDS, "gpl_objective": "naive", "gradient_accumulation_steps": 2}),
    "fedlesam": Case("fedlesam", {"fedlesam_rho": 0.5}),
    "fedlesam s": Case("fedlesam", {"fedlesam_variant": "S", "gradient_accumulation_steps": 2}),
    "fedlesam d": Case("fedlesam", {"fedlesam_variant": "D", "fedlesam_direction": "random"}),
    "fedgela": Case("fedgela", {"gradient_accumulation_steps": 2}),
    "tarf saliency": Case("tarf", {"tarf_method": "random_labels", "tarf_saliency": 0.5}),
    "tarf groups": Case("tarf"),
    "tarf samples": Case("tarf", _SAMPLES),
}
KILLED = {
    "mola task": Case("mola"),
    "mola router": Case("mola", options={"adapter": {"routing": "router", "train_backbone": True}}),
    "disam": Case(
        "disam",
        {**_DISAM, "disam_domain_weights": "running", "disam_domain_sampler": "balanced"},
        kills=({"kill_at": 5}, {"kill_in_pass": True}),
    ),
    "divbs": Case(
        "divbs",
        {"divbs_ratio": 0.25, "divbs_draw": "sample", "per_device_train_batch_size": 2},
        kills=({"kill_at": 5}, {"kill_scoring": 4}),
    ),
    "fer": Case("fer"),
    "rd": Case("rd", {"rd_beta": 0.5, "rd_decay": "linear"}),
    "causald": Case(
        "causald", _BANK, kills=({"kill_at": 5}, {"kill_while_saving": True}, {"kill_while_caching": True})
    ),
    "gpl": Case("gpl", {**_GPL, "gpl_prior": "bbe", "gpl_guide": "mlp", "gpl_prior_update": "each_epoch"}),
    "gpl scorer": Case(
        "gpl", {**_GPL, "gpl_guide": "self", "gpl_edges": "scorer"}, {"scorer": True}, kills=({"kill_at": 5},)
    ),
    "gpl sampled": Case("gpl", {**_GPL, **_SEEDS, "gpl_guide": "mlp"}, kills=({"kill_at": 15}, {"kill_at": 7})),
    "fedlesam s": Case(
        "fedlesam",
        {"fedlesam_variant": "S", "optim": "sgd", "learning_rate": 0.1},
        kills=({"kill_at": 5}, {"kill_in_update": True}),
    ),
    "fedgela": Case("fedgela"),
    "tarf saliency": Case("tarf", {"tarf_method": "random_labels", "tarf_saliency": 0.5}),
    "tarf groups": Case("tarf", {"per_device_train_batch_size": 8}, kills=({"kill_while_identifying": True},)),
    "tarf samples": Case("tarf", _SAMPLES, kills=({"kill_at": 5},)),
}


@pytest.mark.slow
def test_two_processes_train_like_one(run_script: Any, tmp_path: Path) -> None:
    results = {}
    for processes in (1, 2):
        sgd = {"optim": "sgd", "learning_rate": 0.1}
        runs = []
        for name, case in TWO_PROCESSES.items():
            runs.append(run_of(case, tmp_path, f"{name}-{processes}", training=sgd | rows_of(case, processes)))
        results[processes] = run_script(SCRIPT, {"runs": runs}, processes=processes)["runs"]
    for (name, case), one, two in zip(TWO_PROCESSES.items(), results[1], results[2], strict=True):
        difference = largest_difference(tmp_path / f"{name}-1.safetensors", tmp_path / f"{name}-2.safetensors")
        assert difference < 1e-6, name
        for first, second in zip(one["history"], two["history"], strict=True):
            assert first == pytest.approx(second, abs=1e-5, rel=1e-6), name
        for metric, value in one["metrics"].items():
            if case.evaluates and any(word in metric for word in ("loss", "routing", "accuracy")):
                assert value == pytest.approx(two["metrics"][metric], abs=1e-5), (name, metric)
    router = results[1][list(TWO_PROCESSES).index("mola router")]["history"]
    assert all("twd_loss" in entry for entry in router)


@pytest.mark.slow
def test_a_killed_run_resumes_bit_for_bit(run_script: Any, tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 1}
    shared: dict[str, Any] = {"dropout": 0.1, "training": saving}
    whole = [run_of(case, tmp_path, f"{name}-whole", **shared) for name, case in KILLED.items()]
    expected = dict(zip(KILLED, run_script(SCRIPT, {"runs": whole})["runs"], strict=True))
    killed = [(name, case, number, kill) for name, case in KILLED.items() for number, kill in enumerate(case.kills)]
    runs = [run_of(case, tmp_path, f"{name}-{number}", **shared, **kill) for name, case, number, kill in killed]
    ended = [run["signal"] for run in run_script(SCRIPT, {"runs": runs, "killed": True})["runs"]]
    assert ended == [signal.SIGKILL] * len(killed)
    again = [  # before the first step there is no checkpoint
        run_of(case, tmp_path, f"{name}-{number}", **shared, resume="kill_while_caching" not in kill)
        for name, case, number, kill in killed
    ]
    for (name, _, number, kill), run in zip(killed, run_script(SCRIPT, {"runs": again})["runs"], strict=True):
        first = load_file(tmp_path / f"{name}-whole.safetensors")
        second = load_file(tmp_path / f"{name}-{number}.safetensors")
        assert first.keys() == second.keys()
        assert [key for key in first if not torch.equal(first[key], second[key])] == [], (name, kill)
        assert [entry["loss"] for entry in run["history"]] == [entry["loss"] for entry in expected[name]["history"]]


@pytest.mark.slow
def test_two_processes_stop_together(run_script: Any, tmp_path: Path) -> None:
    """Where one of them meets a loss that is not finite, and where a checkpoint lacks what one of them has saved."""
    training = {"train_sampling_strategy": "sequential", "save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    cases = {"mola": (Case("mola", training), 12), "divbs": (Case("divbs", {**training, "divbs_ratio": 0.5}), 24)}
    whole = run_of(cases["mola"][0], tmp_path, "whole")
    runs = [run_of(case, tmp_path, name, bad_row=row, refused=True) for name, (case, row) in cases.items()]
    for result in run_script(SCRIPT, {"runs": [*runs, whole]}, processes=2)["runs"][:2]:
        first, second = result["errors"]
        assert first == second
        assert re.search(r"the loss and .*gradient are not finite in step 2\b.*of micro-batch 0 of process 1", first)
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= set(json.loads((checkpoint / MANIFEST).read_text())["files"])
    (checkpoint / "rng_state_1.pth").unlink()
    refused = run_script(SCRIPT, {"runs": [{**whole, "resume": str(checkpoint), "refused": True}]}, processes=2)
    first, second = refused["runs"][0]["errors"]
    assert first == second and "found no 'rng_state_1.pth', which was saved" in first
