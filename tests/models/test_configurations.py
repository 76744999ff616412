"""Numbers in the models' configurations: finite, in range, and of numpy too."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf_ext.models import FERConfig, GraphPUConfig, RDConfig

#: every number, in the form that its option has, and the least that it may be
NUMBERS: list[tuple[type, str, float]] = [
    *((FERConfig, name, 1) for name in ("vision_width", "text_width", "transformation_width")),
    *((FERConfig, name, 0) for name in ("lambda_s", "lambda_t", "lambda_c", "neutral_id")),
    (FERConfig, "logit_scale", 1e-9),
    *((GraphPUConfig, name, 1) for name in ("num_features", "hidden_size", "num_layers", "heads")),
    *((GraphPUConfig, name, 0) for name in ("dropout", "gcnii_alpha", "fagcn_eps")),
    *((GraphPUConfig, name, 1e-9) for name in ("gcnii_theta", "class_prior")),
    *((GraphPUConfig, name, -1e300) for name in ("score_offset", "threshold")),
    *((RDConfig, name, 1) for name in ("teacher_width", "phi_width", "teacher_size")),
    *((RDConfig, name, 0) for name in ("alpha", "gamma", "beta")),
    *((RDConfig, name, 1e-9) for name in ("temperature", "teacher_std", "pixel_std")),
    *((RDConfig, name, -1e300) for name in ("teacher_mean", "pixel_mean")),
]
INTEGERS = [(kind, name) for kind, name, _ in NUMBERS if "width" in name or name in ("neutral_id", "teacher_size")]
INTEGERS += [(kind, name) for kind, name, least in NUMBERS if kind is GraphPUConfig and least == 1]


def _options(name: str, value: Any) -> dict[str, Any]:
    """Options with this number, and with what has to be given together with it."""
    part, _, last = name.partition("_")
    if last in ("mean", "std"):
        return {f"{part}_mean": [0.5, 0.5], f"{part}_std": [0.5, 0.5], name: [0.5, value]}
    return {name: [8, value] if name == "teacher_size" else value}


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, "1", True, np.float32("nan"), np.True_])
@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, name, _ in NUMBERS])
def test_what_is_no_finite_number_is_refused(kind: type, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: found {re.escape(repr(value))}, allowed are (finite|num|int)"):
        kind(**_options(name, value))


@pytest.mark.parametrize(("kind", "name", "least"), NUMBERS)
def test_the_range(kind: Any, name: str, least: float, tmp_path: Path) -> None:
    for number in (least, np.int64(least) if isinstance(least, int) else np.float64(least)):
        kind(**_options(name, number)).save_pretrained(tmp_path)
        assert getattr(kind.from_pretrained(tmp_path), name) == _options(name, least)[name]
    if least > -1:
        with pytest.raises(ValueError, match=f"^{name}: found"):
            kind(**_options(name, np.int64(math.ceil(least) - 1)))


@pytest.mark.parametrize(("kind", "name"), INTEGERS)
def test_counts_are_integers(kind: type, name: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: found 1\.0, allowed are integers"):
        kind(**_options(name, 1.0))


def test_a_float_of_single_precision_is_saved_as_it_is(tmp_path: Path) -> None:
    RDConfig(beta=np.float32(0.5)).save_pretrained(tmp_path)
    assert RDConfig.from_pretrained(tmp_path).beta == 0.5
