"""Every method with `torch_compile`: compiled indeed, with as many graphs as are needed, and trained as without it."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # pytest's import mode adds no folders

from runs import SCRIPT, Case, largest_difference, run_of

_GPL = {"gpl_warmup_epochs": 1, "gpl_prior": 0.4, "gpl_held_out": 0.3, "gpl_edge_steps": 3}
_SCHEDULE = {"divbs_ratio": 0.5, "divbs_schedule": "linear", "divbs_final_ratio": 0.25}
COMPILED = {
    "mola task": Case("mola"),
    "mola router": Case("mola", options={"adapter": {"routing": "router", "twd_weight": 1.0}, "linear_router": True}),
    "disam": Case("disam", {"disam_rho": 0.5, "disam_lambda": 1.0}),
    "divbs": Case("divbs", {"divbs_ratio": 0.25}),
    "divbs schedule": Case("divbs", {**_SCHEDULE, "per_device_train_batch_size": 8}),
    "tarf": Case("tarf", {"tarf_t0": 0.25, "tarf_t1": 0.125}),  # its phases begin with the first three updates
    "fer": Case("fer", {"gradient_accumulation_steps": 2}),
    "rd": Case("rd", {"rd_beta": 0.5}),
    "causald gru": Case("causald", {"causald_num_candidates": 6}),
    "causald sasrec": Case("causald", {"causald_num_candidates": 6}, {"student": "sasrec"}),
    "gpl": Case("gpl", _GPL),
    "gpl sampled": Case("gpl", {**_GPL, "gpl_neighbors": [3, 3], "per_device_train_batch_size": 12}),
    "fedlesam": Case("fedlesam", {"fedlesam_rho": 0.5}),
    "fedgela": Case("fedgela"),
}
#: updates after which there are no more graphs, where these are not two: a number of rows that changes is compiled for
#: any number at its second value, and GPL's warm-up of an epoch ends after four updates over samples
SETTLED = {"divbs schedule": 3, "gpl sampled": 5}
#: those in which some layer is none of a graph: a hook on RD's classifier, and GRUs of torch itself
IN_PIECES = {"rd", "causald gru"}
#: those that look at rows apart from training, without gradients: such passes are not compiled
LOOKING = {"divbs", "divbs schedule", "tarf", "gpl", "gpl sampled"}


@pytest.fixture(scope="module")
def results(
    launch: Any, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Callable[[str], tuple[Any, ...]]:
    """What came out of a case as it is, and compiled."""
    folder = tmp_path_factory.mktemp("compiled")
    asked = {item.callspec.params.get("name") for item in request.session.items if hasattr(item, "callspec")}
    cases = {name: case for name, case in COMPILED.items() if name in asked}
    sgd = {"optim": "sgd", "learning_rate": 0.1}
    compiled = {"torch_compile": True, "torch_compile_backend": "aot_eager"}
    runs = [
        run_of(
            case,
            folder,
            f"{name}-{kind}",
            training={**sgd, **extra, "max_steps": SETTLED.get(name, 2) + 2},
            refused=True,
        )
        for name, case in cases.items()
        for kind, extra in (("plain", {}), ("compiled", compiled))
    ]
    done = launch(SCRIPT, {"runs": runs}, folder=folder)["runs"]
    pairs = dict(zip(cases, zip(done[::2], done[1::2], strict=True), strict=True))
    return lambda name: (folder, *pairs[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_it_trains_the_same(results: Any, name: str) -> None:
    folder, plain, compiled = results(name)
    for result in (plain, compiled):
        assert "errors" not in result, result["errors"][0]
    assert largest_difference(*(folder / f"{name}-{kind}.safetensors" for kind in ("plain", "compiled"))) < 1e-5
    for first, second in zip(plain["history"], compiled["history"], strict=True):
        assert first["loss"] == pytest.approx(second["loss"], abs=1e-5, rel=1e-5)
    for metric, value in plain["metrics"].items():
        if any(word in metric for word in ("loss", "accuracy", "auc")):
            assert value == pytest.approx(compiled["metrics"][metric], abs=1e-5, nan_ok=True), metric


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_every_update_runs_graphs_that_are_soon_all_there(results: Any, name: str) -> None:
    _, plain, compiled = results(name)
    assert plain["bare"]["training"] >= len(plain["graphs"]) and not any(plain["graphs"])
    assert compiled["bare"]["training"] == 0
    assert bool(compiled["bare"]["apart"]) == (name in LOOKING)
    assert bool(compiled["breaks"]) == (name in IN_PIECES), compiled["breaks"]
    settled = compiled["graphs"][SETTLED.get(name, 2) - 1 :]
    assert len(settled) > 1 and len(set(settled)) == 1 and settled[0] > 0
