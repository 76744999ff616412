"""Two processes whose parts of a batch differ, or are made in another way than by the default, against one process."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

SCRIPT = Path(__file__).parent / "scripts" / "train.py"
_MEASURED = ("accuracy", "expert_0")  # a loss is a mean over batches, whose repeated rows count in Trainer
_SGD = {"optim": "sgd", "learning_rate": 0.1}


@dataclass(frozen=True)
class Case:
    """A method in one process and in two, which are to train the same weights.

    Args:
        method: file in `scripts`.
        training: arguments of training.
        options: what the scripts take.
        split: whether the batch size is of all processes.
        batch: rows of all processes.
    """

    method: str
    training: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    split: bool = False
    batch: int = 8

    def run(self, folder: Path, name: str, processes: int) -> dict[str, Any]:
        rows = self.batch if self.split else self.batch // processes
        training = {**_SGD, "per_device_train_batch_size": rows, **self.training}
        places = {"output_dir": str(folder / name), "weights": str(folder / f"{name}-{processes}.safetensors")}
        return {"method": self.method, **self.options, **places, "training": training}


def _compare(cases: dict[str, Case], run_script: Any, folder: Path) -> None:
    runs = {}
    for processes in (1, 2):
        options = [case.run(folder, name, processes) for name, case in cases.items()]
        runs[processes] = run_script(SCRIPT, {"runs": options}, processes=processes)["runs"]
    weights, logs, metrics = {}, {}, {}
    for name, one, two in zip(cases, runs[1], runs[2], strict=True):
        first, second = (load_file(folder / f"{name}-{processes}.safetensors") for processes in (1, 2))
        weights[name] = max((first[key] - second[key]).abs().max().item() for key in first)
        pairs = zip(one["history"], two["history"], strict=True)
        logs[name] = [
            {key: (entry[key], other[key]) for key in entry if other[key] != pytest.approx(entry[key], abs=2e-5)}
            for entry, other in pairs
        ]
        found = {key: (value, two["metrics"][key]) for key, value in one["metrics"].items() if key.endswith(_MEASURED)}
        metrics[name] = {key: pair for key, pair in found.items() if pair[1] != pytest.approx(pair[0], abs=2e-5)}
    assert {name: value for name, value in weights.items() if not value < 1e-6} == {}
    assert {name: found for name, found in metrics.items() if found} == {}
    assert {name: entries for name, entries in logs.items() if any(entries)} == {}


IMAGE_ROUTER = {"routing": "router", "twd_weight": 1.0, "router_norm": "layer"}
DIVBS = {"divbs_ratio": 0.5, "divbs_selection_scope": "global"}
GPL = {"gpl_warmup_epochs": 1, "gpl_prior": 0.4, "gpl_held_out": 0.3, "gpl_edge_steps": 3, "gpl_neighbors": [3, 2]}
ROUTER: dict[str, Any] = {"adapter": {"routing": "router", "twd_weight": 1.0}, "linear_router": True}
SPLIT = {"accelerator_config": {"split_batches": True}}
STREAM = {"accelerator_config": {"dispatch_batches": False}}
OTHERWISE_MADE = {
    "tarf split": Case("tarf", SPLIT, split=True),
    "tarf split, fewer forget rows": Case("tarf", {**SPLIT, "tarf_forget_batch_size": 4}, split=True),
    "mola stream": Case("mola", STREAM, {"stream": True}),
    "mola image router, accumulating": Case(
        "mola", options={"adapter": {**IMAGE_ROUTER, "twd_weight": 0}}, training={"gradient_accumulation_steps": 2}
    ),
    "disam stream": Case("disam", {**STREAM, "disam_rho": 0.5, "disam_num_domains": 3}, {"stream": True}),
    "divbs stream": Case("divbs", {**STREAM, **DIVBS}, {"stream": True}),
    "gpl split": Case("gpl", {**GPL, **SPLIT, "gpl_guide": "mlp", "max_steps": 18}, split=True),
}


@pytest.mark.slow
def test_batches_made_otherwise(run_script: Any, tmp_path: Path) -> None:
    _compare(OTHERWISE_MADE, run_script, tmp_path)


UNEVEN = {"accelerator_config": {"even_batches": False}, "dataloader_drop_last": False, "max_steps": 12}
ROWS = {"rows": 46}  # in two processes the last update has 4 and 2 of them
LAST_BATCHES_DIFFER = {
    "mola task": Case("mola", UNEVEN, ROWS),
    "mola router": Case("mola", UNEVEN, {**ROWS, **ROUTER}),
    "mola image router": Case("mola", UNEVEN, {**ROWS, "adapter": IMAGE_ROUTER}),
    "mola router, sum": Case("mola", {**UNEVEN, "mola_task_reduction": "sum"}, {**ROWS, **ROUTER}),
    "mola router, before they differ": Case("mola", {**UNEVEN, "max_steps": 5}, {"rows": 44, **ROUTER}),
    "rd": Case("rd", {**UNEVEN, "rd_beta": 0.5}, ROWS),
    "rd, student alone": Case("rd", {**UNEVEN, "rd_method": "student"}, ROWS),
    "disam over mola": Case("disam", {**UNEVEN, "disam_rho": 0.5, "disam_lambda": 1.0}, {**ROWS, **ROUTER}),
    "disam": Case("disam", {**UNEVEN, "disam_rho": 0.5, "disam_domain_weights": "running"}, ROWS),
    "fer": Case("fer", UNEVEN, ROWS),
    "tarf": Case("tarf", UNEVEN, ROWS),
    "fedlesam": Case("fedlesam", UNEVEN, ROWS),
    "fedgela": Case("fedgela", UNEVEN, ROWS),
    # of 101 rows, the last update has 4 and 1
    "causald": Case("causald", {**UNEVEN, "max_steps": 14, "causald_num_candidates": 6}),
    # of 48 nodes, the last update has 5 and 3
    "gpl": Case("gpl", {**UNEVEN, **GPL, "gpl_guide": "mlp"}, batch=10),
    "gpl, nnpu": Case("gpl", {**UNEVEN, **GPL, "gpl_objective": "nnpu"}, batch=10),
    "divbs": Case("divbs", {**UNEVEN, **DIVBS, "divbs_draw": "sample"}, ROWS),
    "divbs, then all": Case("divbs", {**UNEVEN, **DIVBS, "divbs_strategy": "loss", "divbs_warmup_share": 0.5}, ROWS),
    "divbs uniform": Case("divbs", {**UNEVEN, **DIVBS, "divbs_strategy": "uniform"}, ROWS),
    "divbs, all rows": Case("divbs", {**UNEVEN, "divbs_ratio": 1.0}, ROWS),
}


@pytest.mark.slow
def test_last_batches_of_different_sizes(run_script: Any, tmp_path: Path) -> None:
    _compare(LAST_BATCHES_DIFFER, run_script, tmp_path)


_OF_LOADERS = r"accelerator_config: found even_batches=False with {} batches an epoch in processes 0 to 1, allowed are"
_OF_STREAMS = r"train_dataloader: found 1, 0 micro-batches for step 3 in processes 0 to 1, allowed are as many in each"
OWN_LOADER = {"own_loader": True}
REFUSED = {
    "mola": (Case("mola", UNEVEN, {"rows": 44}), _OF_LOADERS.format("6, 5")),
    "divbs of its own": (Case("divbs", {**UNEVEN, "divbs_ratio": 0.5}, {"rows": 40}), _OF_LOADERS.format("3, 2")),
    "disam split": (
        Case(
            "disam",
            {**UNEVEN, "accelerator_config": {"even_batches": False, **SPLIT["accelerator_config"]}},
            {"rows": 42},
            split=True,
        ),
        _OF_LOADERS.format("6, 5"),
    ),
    "fer stream": (Case("fer", options=OWN_LOADER), _OF_STREAMS),
    "mola stream": (Case("mola", options={**OWN_LOADER, **ROUTER}), _OF_STREAMS),
    "divbs stream": (
        Case("divbs", DIVBS, OWN_LOADER),
        r"train_dataloader: found 4, 0 candidates in processes 0 to 1 with divbs_selection_scope='global'",
    ),
    "evaluation": (
        Case("mola", {"eval_strategy": "steps", "eval_steps": 1}, OWN_LOADER),
        r"eval_dataset: found 2, 1 batches in processes 0 to 1, allowed are as many in each",
    ),
    "tarf split": (
        Case("tarf", {**SPLIT, "tarf_forget_batch_size": 3}, split=True),
        r"tarf_forget_batch_size: found 3 with split_batches=True, allowed are multiples of 2",
    ),
}


@pytest.mark.slow
def test_what_would_hang_is_refused_in_all_processes(run_script: Any, tmp_path: Path) -> None:
    runs = [{**case.run(tmp_path, name, 2), "refused": True} for name, (case, _) in REFUSED.items()]
    results = run_script(SCRIPT, {"runs": runs}, processes=2)["runs"]
    for (name, (_, message)), result in zip(REFUSED.items(), results, strict=True):
        first, second = result["errors"]
        assert first == second and re.search(message, first), (name, first)


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others(run_script: Any, tmp_path: Path) -> None:
    """The first one waits for the second's gradients when that is killed: the launcher ends both, and says so."""
    run = Case("mola", options={"kill_at": 2, "kill_process": 1}).run(tmp_path, "killed", 2)
    run_script(SCRIPT, {"runs": [run]}, processes=2, killed=True)
    assert not Path(run["weights"]).exists()
