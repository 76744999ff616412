"""Every method with its weights sharded over two processes (FSDP2): trained like one process, or refused."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # pytest's import mode adds no folders

from runs import SCRIPT, Case, largest_difference, rows_of, run_of

_ROUTER = {"adapter": {"routing": "router", "twd_weight": 1.0}, "linear_router": True}
_DISAM = {"disam_rho": 0.5, "disam_lambda": 1.0}
_DIVBS = {"divbs_ratio": 0.25, "divbs_selection_scope": "global"}
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
}


def _training(case: Case, processes: int) -> dict[str, Any]:
    """Eight rows in every update, and weights that several processes shard."""
    config = _VIT if case.method != "causald" else {}
    sharding = {"fsdp": processes > 1, "fsdp_config": config | case.training.get("fsdp_config", {})}
    return {"optim": "sgd", "learning_rate": 0.1, **rows_of(case, processes), **sharding}


@pytest.fixture(scope="module")
def results(
    launch: Any, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Callable[[str], tuple[Any, ...]]:
    """What came out of a case: in one process, and sharded over two; of one that is refused, in two alone."""
    folder, found = tmp_path_factory.mktemp("sharded"), {}
    asked = {item.callspec.params.get("name") for item in request.session.items if hasattr(item, "callspec")}
    like_one = {name: case for name, case in (LIKE_ONE | ROUGHLY).items() if name in asked}
    refused = {name: case for name, (case, _) in REFUSED.items() if name in asked}
    for processes, cases in ((1, like_one), (2, like_one | refused)):
        if not cases:
            continue
        runs = [
            run_of(case, folder, f"{name}-{processes}", training=_training(case, processes), refused=True)
            for name, case in cases.items()
        ]
        done = launch(SCRIPT, {"runs": runs}, folder=folder, processes=processes)["runs"]
        found |= {(name, processes): run for name, run in zip(cases, done, strict=True)}
    return lambda name: (folder, *(found[name, processes] for processes in (1, 2) if (name, processes) in found))


@pytest.mark.slow
@pytest.mark.parametrize("name", LIKE_ONE)
def test_sharded_over_two_processes_is_like_one(results: Any, name: str) -> None:
    folder, one, two = results(name)
    for result in (one, two):
        assert "errors" not in result, result["errors"][0]
    assert largest_difference(folder / f"{name}-1.safetensors", folder / f"{name}-2.safetensors") < 1e-6
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
    _, one, two = results(name)
    for result in (one, two):
        assert "errors" not in result, result["errors"][0]
    for first, second in zip(one["history"], two["history"], strict=True):
        assert first["loss"] == pytest.approx(second["loss"], abs=0.02, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_what_needs_whole_weights_says_so_in_every_process(results: Any, name: str) -> None:
    folder, refused = results(name)
    assert len(refused["errors"]) == 2
    for error in refused["errors"]:
        assert REFUSED[name][1] in error and "Traceback" not in error
    assert not list((folder / f"{name}-2").iterdir())  # Trainer itself makes the folder


@pytest.mark.slow
def test_more_processes_and_groups_that_have_the_same_parts(launch: Any, tmp_path: Path) -> None:
    """Parts of unequal sizes, and HSDP: a norm over all processes would count every part twice."""
    case = Case("disam", {**_DISAM, "disam_sharpness": "gsam", "optim": "sgd", "learning_rate": 0.1})
    groups = {"parallelism": {"dp_replicate_size": 2, "dp_shard_size": 2}}
    for processes, options in ((1, {}), (3, {}), (4, groups)):
        sharding = {"fsdp": processes > 1, "fsdp_config": dict(_VIT), "per_device_train_batch_size": 12 // processes}
        run = run_of(case, tmp_path, str(processes), training=sharding, **options)
        launch(SCRIPT, {"runs": [run]}, folder=tmp_path, processes=processes)
    for processes in (3, 4):
        assert largest_difference(tmp_path / "1.safetensors", tmp_path / f"{processes}.safetensors") < 1e-6


_RESUMED = {
    "mola task": LIKE_ONE["mola task"],
    "mola image router": Case("mola", options={"adapter": {"routing": "router"}}),
    "disam": Case("disam", {**_DISAM, "disam_domain_weights": "running", "disam_domain_sampler": "balanced"}),
    "divbs": Case("divbs", {"divbs_ratio": 0.25, "divbs_draw": "sample"}),
    "fer": LIKE_ONE["fer"],
    "rd": Case("rd", {"rd_decay": "linear"}),
    "causald": LIKE_ONE["causald sasrec, bank, accumulating"],
    "tarf": LIKE_ONE["tarf samples"],
    "fedgela": LIKE_ONE["fedgela"],
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["FULL_STATE_DICT", "SHARDED_STATE_DICT"])
def test_a_sharded_run_resumes_bit_for_bit(launch: Any, tmp_path: Path, kind: str) -> None:
    """With dropout and AdamW: weights, statistics of BatchNorms, losses, and the evaluation at the end."""
    runs = []
    for name, case in _RESUMED.items():
        training = _training(case, 2) | {"optim": "adamw_torch", "save_strategy": "steps", "save_steps": 2}
        training["fsdp_config"] |= {"state_dict_type": kind}
        places = {"model": str(tmp_path / f"{name} saved"), "dropout": 0.1, "refused": True}
        runs.append(run_of(case, tmp_path, f"{name}-whole", training=training, **places))
        resume = str(tmp_path / f"{name}-whole" / "checkpoint-4")
        runs.append(run_of(case, tmp_path, f"{name}-resumed", training=training, resume=resume, **places))
    done = launch(SCRIPT, {"runs": runs}, folder=tmp_path, processes=2)["runs"]
    for name, whole, resumed in zip(_RESUMED, done[::2], done[1::2], strict=True):
        for result in (whole, resumed):
            assert "errors" not in result, (name, result["errors"][0])
        assert (
            largest_difference(tmp_path / f"{name}-whole.safetensors", tmp_path / f"{name}-resumed.safetensors") == 0
        )
        assert [entry["loss"] for entry in whole["history"]] == [entry["loss"] for entry in resumed["history"]], name
        for metric, value in whole["metrics"].items():
            if "loss" in metric or "accuracy" in metric:
                assert value == resumed["metrics"][metric], (name, metric)
        said = [text for text in whole["warnings"] if "with which no model is saved" in text]
        written = {path.suffix for path in (tmp_path / f"{name} saved").rglob("*")}
        assert (len(said), ".safetensors" in written) == ((0, True) if kind == "FULL_STATE_DICT" else (1, False)), name
