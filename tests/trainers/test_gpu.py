"""Every method on a GPU, if there is one: it trains as on the CPU, in half precision too, and never waits for it."""

import importlib
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

ROOT = Path(__file__).parents[2]
SCRIPTS = str(Path(__file__).parent / "scripts")
_ROUTER = {"adapter": {"routing": "router", "twd_weight": 1.0}, "linear_router": True}
_DISAM = {"disam_rho": 0.05, "disam_lambda": 1.0}
#: method, arguments of training, options of its script
METHODS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "trainer": ("disam", {"disam_rho": 0.0, "disam_lambda": 0.0}, {}),
    "mola, task": ("mola", {}, {}),
    "mola, router": ("mola", {}, _ROUTER),
    "disam": ("disam", _DISAM, {}),
    "disam, running": ("disam", {**_DISAM, "disam_domain_weights": "running"}, {}),
    "disam, gsam": ("disam", {**_DISAM, "disam_sharpness": "gsam"}, {}),
    "disam over mola": ("disam", _DISAM, _ROUTER),
    "divbs": ("divbs", {"divbs_ratio": 0.25}, {}),
    "divbs, sequences": ("divbs", {"divbs_ratio": 0.25}, {"sequences": True}),
    "fer": ("fer", {}, {}),
    "rd": ("rd", {"rd_beta": 0.5}, {}),
    "rd, cached": ("rd", {"rd_cache_teacher": True}, {}),
    "tarf": ("tarf", {}, {}),
}
SELECTING = ("divbs", "divbs, sequences", "tarf")  # rounding may pick other rows
#: where a method has to wait: how long the longest text is
MAY_WAIT = {"divbs, sequences": {"trainers/divbs/rows.py"}}
#: where all do, once an update: whether loss and gradient are finite
CHECK = "trainers/finite.py"


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(SCRIPTS)
    names = [path.stem for path in Path(SCRIPTS).glob("*.py")]
    yield importlib.import_module("train").train
    for name in names:
        sys.modules.pop(name, None)


def _run(train: Any, method: str, out: Path, **training: Any) -> dict[str, Any]:
    name, own, options = METHODS[method]
    shared = {"use_cpu": False, "optim": "sgd", "learning_rate": 0.05, "per_device_train_batch_size": 8}
    places = {"output_dir": str(out), "weights": str(out / "weights.safetensors")}
    out.mkdir(exist_ok=True)
    found: dict[str, Any] = train({"method": name, **options, **places, "training": {**shared, **own, **training}})
    return found | {"weights": load_file(places["weights"])}


def _losses(run: dict[str, Any]) -> list[float]:
    return [entry["loss"] for entry in run["history"]]


@pytest.mark.parametrize("method", METHODS)
def test_like_the_cpu(method: str, train: Any, tmp_path: Path) -> None:
    cpu, gpu = (_run(train, method, tmp_path / str(flag), use_cpu=flag) for flag in (True, False))
    assert _losses(gpu)[0] == pytest.approx(_losses(cpu)[0], rel=1e-3)
    if method not in SELECTING:
        assert _losses(gpu) == pytest.approx(_losses(cpu), rel=1e-2)
        for name, value in cpu["weights"].items():
            torch.testing.assert_close(gpu["weights"][name].cpu(), value, rtol=0, atol=1e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("method", METHODS)
def test_half_precision(method: str, precision: str, train: Any, tmp_path: Path) -> None:
    """fp16 with its gradient scaler, whose first scales are too large: such updates are left out."""
    whole = _run(train, method, tmp_path / "whole", max_steps=12)
    half = _run(train, method, tmp_path / "half", max_steps=12, **{precision: True})
    unmoved = "trainer" if method == "tarf" else method  # the same model; TARF finds nothing where nothing moves
    start = _run(train, unmoved, tmp_path / "start", learning_rate=1e-12)
    weights = half["weights"]
    assert all(torch.isfinite(value).all() for value in weights.values())
    assert any(not torch.equal(value, start["weights"][name]) for name, value in weights.items())
    assert _losses(half)[0] == pytest.approx(_losses(whole)[0], rel=1e-2)
    if precision == "bf16" and method not in SELECTING:
        assert _losses(half) == pytest.approx(_losses(whole), rel=0.05)


def _waits(train: Any, method: str, out: Path, steps: int) -> Counter[str]:
    """How often which file of the package waited for the GPU in a training of so many updates."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            _run(train, method, out, max_steps=steps, logging_steps=1000, gradient_accumulation_steps=2)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    files = [Path(each.filename) for each in caught if "synchronizing CUDA" in str(each.message)]
    return Counter(str(file.relative_to(ROOT)) for file in files if file.is_relative_to(ROOT))


@pytest.mark.parametrize("method", METHODS)
def test_no_update_waits(method: str, train: Any, tmp_path: Path) -> None:
    """Once training is under way, beyond what Trainer itself does; but for one look at what is to be finite."""
    long, short = (_waits(train, method, tmp_path / str(steps), steps) for steps in (8, 4))
    waiting = {file for file in long if long[file] > short[file]}
    assert waiting - {CHECK} <= MAY_WAIT.get(method, set())
    assert long[CHECK] - short[CHECK] == 8 - 4


def test_scores_that_are_not_finite_are_found_in_their_step(train: Any, tmp_path: Path) -> None:
    build = importlib.import_module("divbs").build
    training = {"divbs_ratio": 0.25, "max_steps": 4, "logging_steps": 2, "report_to": "none", "disable_tqdm": True}
    kind, config, parts = build({"training": training})
    with torch.no_grad():
        parts["model"].classifier.weight.fill_(float("nan"))
    data = importlib.import_module("train").dataset()
    trainer = kind(args=config(output_dir=str(tmp_path), **training), train_dataset=data, **parts)
    with pytest.raises(ValueError, match=r"the scores of candidates and .* not finite in step 1"):
        trainer.train()
