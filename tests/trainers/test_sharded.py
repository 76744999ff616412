"""Every method with its weights sharded over two processes (FSDP2): trained like one process, or refused."""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import merge_fsdp_weights
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))  # pytest's import mode adds no folders

from runs import SCRIPT, Case, largest_difference, rows_of, run_of

_ROUTER = {"adapter": {"routing": "router", "twd_weight": 1.0}, "linear_router": True}
_DISAM = {"disam_rho": 0.5, "disam_lambda": 1.0}
_DIVBS = {"divbs_ratio": 0.25, "divbs_selection_scope": "global"}
_UNEVEN = {"accelerator_config": {"even_batches": False}, "dataloader_drop_last": False}
#: ViT's own list of modules to be sharded apart names one within another, which FSDP2 does not do
_VIT = {"transformer_layer_cls_to_wrap": ["ViTLayer"]}
_LLAMA = {"fsdp_config": {"transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]}}
_COMPILED = {"torch_compile": True, "torch_compile_backend": "aot_eager"}
LIKE_ONE = {
    "mola task": Case("mola"),
    "mola router": Case("mola", options=_ROUTER),
    "disam": Case("disam", _DISAM),
    "disam sam": Case("disam", {"disam_rho": 0.5, "disam_lambda": 0.0}),
    "disam gsam, accumulating, clipped": Case(
        "disam", {**_DISAM, "disam_sharpness": "gsam", "gradient_accumulation_steps": 2, "max_grad_norm": 0.1}
    ),
    "disam sagm, adaptive": Case(
        "disam", {**_DISAM, "disam_sharpness": "sagm", "disam_alpha": 0.1, "disam_adaptive": True}
    ),
    "disam running, accumulating": Case(
        "disam", {**_DISAM, "disam_domain_weights": "running", "gradient_accumulation_steps": 2}
    ),
    "disam not resharding": Case(
        "disam", {**_DISAM, "fsdp_config": {"reshard_after_forward": False}, "gradient_accumulation_steps": 2}
    ),
    "disam each batch synchronised": Case(
        "disam",
        {
            **_DISAM,
            "gradient_accumulation_steps": 2,
            "accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}},
        },
    ),
    "disam checkpointing": Case("disam", {**_DISAM, "gradient_checkpointing": True}),
    "disam tied": Case("disam", {**_DISAM, **_LLAMA}, {"tied": True}),
    "disam over mola": Case("disam", _DISAM, _ROUTER),
    "disam compiled": Case("disam", _DISAM | _COMPILED),
    "divbs": Case("divbs", _DIVBS),
    "divbs compiled": Case("divbs", _DIVBS | _COMPILED),
    "divbs loss, accumulating": Case(
        "divbs",
        {**_DIVBS, "divbs_strategy": "loss", "divbs_scoring_batch_size": 3, "gradient_accumulation_steps": 2},
    ),
    "divbs sequences": Case("divbs", {**_DIVBS, **_LLAMA}, {"sequences": True}, evaluates=False),
    # of the last update's candidates one process has eight and the other six, in four and three passes
    "divbs, last batches differ": Case(
        "divbs",
        {**_DIVBS, **_UNEVEN, "divbs_ratio": 0.5, "divbs_scoring_batch_size": 2},
        {"rows": 46},
        evaluates=False,  # in batches of other rows
    ),
    "divbs not resharding": Case("divbs", {**_DIVBS, "fsdp_config": {"reshard_after_forward": False}}),
    "fer": Case("fer", evaluates=False),
    "fer accumulating": Case(
        "fer", {"gradient_accumulation_steps": 2, "fer_contrast_pairs": "paired"}, evaluates=False
    ),
    "fer by its own list": Case("fer", {"fsdp_config": {"transformer_layer_cls_to_wrap": None}}, evaluates=False),
    "rd": Case("rd", {"rd_beta": 0.5}),
    "rd accumulating, cached": Case("rd", {"rd_cache_teacher": True, "gradient_accumulation_steps": 2}),
    "causald gru": Case("causald", {"causald_num_candidates": 6}),
    "causald sasrec, bank, accumulating": Case(
        "causald",
        {
            **{"causald_front_door": "bank", "causald_bank_size": 5, "causald_num_candidates": 6},
            **{"causald_debias": "ips", "gradient_accumulation_steps": 2},
        },
        {"student": "sasrec"},
    ),
    "causald din": Case("causald", {"causald_num_candidates": 6}, {"student": "din"}),
    "causald deepfm": Case("causald", {"causald_num_candidates": 6}, {"student": "deepfm"}),
    "fedgela": Case("fedgela", {"gradient_accumulation_steps": 2}),
    "tarf groups": Case("tarf"),
    "tarf samples": Case(
        "tarf", {"tarf_selection": "samples", "tarf_forget_loss": "npo", "gradient_accumulation_steps": 2}
    ),
}
#: in bfloat16 one process casts what it computes, and FSDP2 the weights, so that they are alike but roughly
ROUGHLY = {
    f"{name}, bf16": replace(LIKE_ONE[like], training={**LIKE_ONE[like].training, "bf16": True})
    for name, like in {
        "mola task": "mola task",
        "mola router": "mola router",
        "disam over mola": "disam over mola",
        "divbs": "divbs",
        "fer": "fer",
        "rd": "rd",
        "causald": "causald gru",
        "tarf": "tarf samples",
        "fedgela": "fedgela",
    }.items()
} | {"mola image router, bf16": Case("mola", {"bf16": True}, {"adapter": {"routing": "router", "twd_weight": 1.0}})}
REFUSED = {
    "disam apart": (
        Case("disam", {"disam_rho": 0.5, "disam_sync_perturbation": False}),
        "disam: found a perturbation for each process with FSDP2",
    ),
    "fedlesam": (
        Case("fedlesam", {"fedlesam_rho": 0.5}),
        "FedLESAM: found FSDP2, allowed are weights that are not sharded",
    ),
    "tarf saliency": (
        Case("tarf", {"tarf_method": "random_labels", "tarf_saliency": 0.5}),
        "tarf_saliency: found FSDP, allowed are weights that are not sharded",
    ),
    "gpl": (Case("gpl"), "found FSDP"),
    "divbs, one without candidates": (
        Case("divbs", {"divbs_ratio": 0.5}, {"own_loader": True}),
        "train_dataloader: found 4, 0 candidates in processes 0 to 1 with FSDP2, allowed are some in each",
    ),
    "context parallel": (
        Case("mola", options={"parallelism": {"cp_size": 2}}),
        "parallelism_config: found cp_size=2, allowed are dp_replicate_size and dp_shard_size: MoLATrainer takes",
    ),
}
#: trained by two processes with whole weights as with sharded ones
LIKE_WHOLE = {
    # of the last update's candidates one process has eight, scored in three passes, the other one, scored in none
    "divbs, one has nothing to select": Case(
        "divbs", {**_UNEVEN, "divbs_ratio": 0.5, "divbs_scoring_batch_size": 3}, {"rows": 41}
    ),
}
_IN_ORDER = {"train_sampling_strategy": "sequential", "lr_scheduler_type": "constant"}
#: one process's first row of the second update is not finite
STOPPED = {
    "mola stops": Case("mola", _IN_ORDER, {"bad_row": 12}),
    "disam stops": Case("disam", {**_DISAM, **_IN_ORDER}, {"bad_row": 12}),
    "divbs stops": Case("divbs", {"divbs_ratio": 0.5, **_IN_ORDER}, {"bad_row": 24}),
}
_IMAGE_ROUTER = {"adapter": {"routing": "router"}}
RESUMED = {
    f"{name} resumes": case
    for name, case in {
        "mola task": LIKE_ONE["mola task"],
        "mola image router": Case("mola", options=_IMAGE_ROUTER),
        "disam": Case("disam", {**_DISAM, "disam_domain_weights": "running", "disam_domain_sampler": "balanced"}),
        "divbs": Case("divbs", {"divbs_ratio": 0.25, "divbs_draw": "sample"}),
        # scored with the statistics of BatchNorms, which the processes do not share until a checkpoint is saved
        "divbs over mola": Case("divbs", {"divbs_ratio": 0.25}, _IMAGE_ROUTER),
        "fer": LIKE_ONE["fer"],
        "rd": Case("rd", {"rd_decay": "linear"}),
        "causald": LIKE_ONE["causald sasrec, bank, accumulating"],
        "tarf": LIKE_ONE["tarf samples"],
        "fedgela": LIKE_ONE["fedgela"],
    }.items()
}
#: with what makes the first checkpoint the best
BEST = {
    "mola, its best": Case("mola", {"greater_is_better": True}, _IMAGE_ROUTER),
    "disam, its best": Case("disam", {**_DISAM, "greater_is_better": False}),
    "fer, its best": Case("fer", {"greater_is_better": True}),
}
_KINDS = ("FULL_STATE_DICT", "SHARDED_STATE_DICT")


@dataclass(frozen=True)
class Run:
    """Of a case: in so many processes, with sharded weights or whole ones, and what is added to it."""

    processes: int = 2
    sharded: bool = True
    training: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    def arguments(self, case: Case) -> dict[str, Any]:
        """Eight rows in every update, and weights that several processes shard."""
        own = {**case.training, **self.training}
        config = (_VIT if case.method != "causald" else {}) | own.get("fsdp_config", {})
        sharding = {"fsdp": self.sharded, "fsdp_config": config if self.sharded else {}}
        return {"optim": "sgd", "learning_rate": 0.1, **rows_of(case, self.processes), **self.training, **sharding}


_ONE = Run(1, sharded=False)


def _runs_of(name: str, folder: Path) -> tuple[Case, dict[str, Run]]:
    """What a test compares: a case, and its runs by name."""
    for table in (LIKE_ONE, ROUGHLY):
        if name in table:
            return table[name], {"one": _ONE, "sharded": Run()}
    if name in REFUSED:
        return REFUSED[name][0], {"refused": Run()}
    if name in LIKE_WHOLE:
        return LIKE_WHOLE[name], {"whole": Run(sharded=False), "sharded": Run()}
    if name in STOPPED:
        before = Run(training={"max_steps": 1})
        return STOPPED[name], {"stopped": Run(training={"max_steps": 2}), "before": before}
    if name in RESUMED:
        return RESUMED[name], {key: run for kind in _KINDS for key, run in _resumed(name, kind, folder).items()}
    measured = {"eval_strategy": "steps", "eval_steps": 2, "metric_for_best_model": "eval_loss", "max_steps": 4}
    saving = {"save_strategy": "steps", "save_steps": 2, "load_best_model_at_end": True, **measured}
    return BEST[name], {kind: Run(training={**saving, "fsdp_config": {"state_dict_type": kind}}) for kind in _KINDS}


def _resumed(name: str, kind: str, folder: Path) -> dict[str, Run]:
    """A whole run and one from its checkpoint; with AdamW and dropout."""
    saving = {"optim": "adamw_torch", "save_strategy": "steps", "save_steps": 2}
    training = {**saving, "fsdp_config": {"state_dict_type": kind}}
    in_full = {"model_in_full": str(folder / f"{name} {kind} in full")} if kind != "FULL_STATE_DICT" else {}
    shared = {"dropout": 0.1, "model": str(folder / f"{name} {kind} saved")}
    checkpoint = str(folder / f"{name}-{kind} whole" / "checkpoint-4")
    return {
        f"{kind} whole": Run(training=training, options={**shared, **in_full}),
        f"{kind} resumed": Run(training=training, options={**shared, "resume": checkpoint}),
    }


@pytest.fixture(scope="module")
def results(
    launch: Any, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Callable[[str], tuple[Path, dict[str, Any]]]:
    """What came out of a case: the folder, and by name its runs, all of which share the processes they run in."""
    folder, found = tmp_path_factory.mktemp("sharded"), dict[str, dict[str, Any]]()
    asked = dict.fromkeys(item.callspec.params["name"] for item in request.session.items if _is_one(item))
    for processes, saves in ((1, False), (2, False), (2, True)):
        wanted = []
        for name in asked:
            if (name in RESUMED or name in BEST) != saves:
                continue
            case, runs = _runs_of(name, folder)
            wanted += [(name, case, key, run) for key, run in runs.items() if run.processes == processes]
        if not wanted:
            continue
        runs = [
            run_of(case, folder, f"{name}-{key}", training=run.arguments(case), refused=True, **run.options)
            for name, case, key, run in wanted
        ]
        done = launch(SCRIPT, {"runs": runs}, folder=folder, processes=processes)["runs"]
        for (name, _, key, _), result in zip(wanted, done, strict=True):
            found.setdefault(name, {})[key] = result
    return lambda name: (folder, found[name])


def _is_one(item: Any) -> bool:
    """Whether it is a test of a case here."""
    return item.path == Path(__file__) and "name" in getattr(getattr(item, "callspec", None), "params", ())


def _check_all_done(runs: dict[str, Any]) -> None:
    for key, result in runs.items():
        assert "errors" not in result, (key, result["errors"][0])


def _difference(folder: Path, name: str, one: str, other: str) -> float:
    return largest_difference(folder / f"{name}-{one}.safetensors", folder / f"{name}-{other}.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("name", LIKE_ONE)
def test_sharded_over_two_processes_is_like_one(results: Any, name: str) -> None:
    folder, runs = results(name)
    _check_all_done(runs)
    one, two = runs["one"], runs["sharded"]
    assert _difference(folder, name, "one", "sharded") < 1e-6
    for first, second in zip(one["history"], two["history"], strict=True):
        assert first == pytest.approx(second, abs=1e-5, rel=1e-6)
    for metric, value in one["metrics"].items():
        if LIKE_ONE[name].evaluates and any(word in metric for word in ("loss", "routing", "accuracy")):
            assert value == pytest.approx(two["metrics"][metric], abs=1e-5), metric
    if "torch_compile" in LIKE_ONE[name].training:
        assert two["bare"]["training"] == 0 and two["graphs"][-1] == two["graphs"][1] > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ROUGHLY)
def test_sharded_in_bfloat16_is_roughly_like_one(results: Any, name: str) -> None:
    _, runs = results(name)
    _check_all_done(runs)
    for first, second in zip(runs["one"]["history"], runs["sharded"]["history"], strict=True):
        assert first["loss"] == pytest.approx(second["loss"], abs=0.02, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_what_needs_whole_weights_says_so_in_every_process(results: Any, name: str) -> None:
    folder, runs = results(name)
    errors = runs["refused"]["errors"]
    assert len(errors) == 2
    for error in errors:
        assert REFUSED[name][1] in error and "Traceback" not in error
    assert not list((folder / f"{name}-refused").glob("*"))  # Trainer itself makes the folder


@pytest.mark.slow
@pytest.mark.parametrize("name", LIKE_WHOLE)
def test_each_process_selects_from_sharded_weights_as_from_whole_ones(results: Any, name: str) -> None:
    folder, runs = results(name)
    _check_all_done(runs)
    assert _difference(folder, name, "whole", "sharded") < 1e-6
    for first, second in zip(runs["whole"]["history"], runs["sharded"]["history"], strict=True):
        assert first == pytest.approx(second, abs=1e-5, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", STOPPED)
def test_what_is_not_finite_in_one_process_stops_both(results: Any, name: str) -> None:
    """With the weights before that step."""
    folder, runs = results(name)
    first, second = runs["stopped"]["errors"]
    assert first == second
    assert re.search(r"the loss and .*gradient are not finite in step 2\b.*of micro-batch 0 of process 1", first)
    assert "errors" not in runs["before"]
    assert _difference(folder, name, "stopped", "before") == 0


@pytest.mark.slow
def test_more_processes_and_groups_that_have_the_same_parts(launch: Any, tmp_path: Path) -> None:
    """Parts of unequal sizes, and HSDP: a norm over all processes would count every part twice."""
    case = Case("disam", {**_DISAM, "disam_sharpness": "gsam", "optim": "sgd", "learning_rate": 0.1})
    groups = {"parallelism": {"dp_replicate_size": 2, "dp_shard_size": 2}}

    def run(name: str, processes: int, **options: Any) -> dict[str, Any]:
        sharding = {"fsdp": processes > 1, "fsdp_config": dict(_VIT), "per_device_train_batch_size": 12 // processes}
        return run_of(case, tmp_path, name, training=sharding, **options)

    launch(SCRIPT, {"runs": [run("one", 1)]}, folder=tmp_path)
    # ten classes are three, three, three and one of four processes
    runs = [run("four", 4), run("two groups", 4, **groups)]
    launch(SCRIPT, {"runs": runs}, folder=tmp_path, processes=4)
    for name in ("four", "two groups"):
        assert largest_difference(tmp_path / "one.safetensors", tmp_path / f"{name}.safetensors") < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", RESUMED)
def test_a_sharded_run_resumes_bit_for_bit(results: Any, name: str) -> None:
    """With dropout and AdamW: weights, statistics of BatchNorms, losses, and the evaluation; from both state dicts."""
    folder, runs = results(name)
    _check_all_done(runs)
    whole = runs["FULL_STATE_DICT whole"]
    for key, run in runs.items():
        assert _difference(folder, name, "FULL_STATE_DICT whole", key) == 0, key
        assert [entry["loss"] for entry in whole["history"]] == [entry["loss"] for entry in run["history"]], key
        for metric, value in whole["metrics"].items():
            if "loss" in metric or "accuracy" in metric:
                assert value == run["metrics"][metric], (key, metric)


@pytest.mark.slow
@pytest.mark.parametrize("name", RESUMED)
def test_a_model_is_saved_of_whole_state_dicts(results: Any, name: str) -> None:
    """Of others nothing is but a warning, until they are set to be whole, as that says."""
    folder, runs = results(name)
    for kind in _KINDS:
        said = [text for text in runs[f"{kind} resumed"]["warnings"] if "with which no model is saved" in text]
        written = {path.suffix for path in (folder / f"{name} {kind} saved").rglob("*")}
        assert (len(said), ".safetensors" in written) == ((0, True) if kind == _KINDS[0] else (1, False)), kind
    saved, in_full = folder / f"{name} {_KINDS[0]} saved", folder / f"{name} {_KINDS[1]} in full"
    (file,) = saved.glob("*.safetensors")
    assert largest_difference(file, in_full / file.name) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", BEST)
def test_the_best_model_is_loaded(results: Any, name: str, tmp_path: Path) -> None:
    """Also what accelerate merges of a checkpoint's parts."""
    folder, runs = results(name)
    _check_all_done(runs)
    for kind, run in runs.items():
        best = Path(run["best"])
        assert best.name == "checkpoint-2" and best.parent.name == f"{name}-{kind}"
        assert run["metrics"]["eval_loss"] == run["best_metric"]
    assert _difference(folder, name, *_KINDS) == 0
    trained = load_file(folder / f"{name}-{_KINDS[0]}.safetensors")
    full, parts = (folder / f"{name}-{kind}" / "checkpoint-2" for kind in _KINDS)
    saved = torch.load(full / "pytorch_model_fsdp.bin", weights_only=True)
    assert saved and all(torch.equal(value.reshape(trained[key].shape), trained[key]) for key, value in saved.items())
    merge_fsdp_weights(str(parts / "pytorch_model_fsdp_0"), str(tmp_path))
    merged = load_file(tmp_path / "model.safetensors")
    if (adapter := full / "adapter_model.safetensors").is_file():
        trained = load_file(adapter)
    assert merged.keys() == trained.keys()
    assert all(torch.equal(value.reshape(trained[key].shape), trained[key]) for key, value in merged.items())
