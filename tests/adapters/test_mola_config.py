"""Configurations that cannot work are refused when they are made."""

import ast
import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peft import PeftConfig

from hf_ext.adapters import MoLAConfig


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_experts", None),
        ("num_experts", 0),
        ("num_experts", 2.0),
        ("num_experts", True),
        ("r", 0),
        ("r", "8"),
        ("lora_alpha", -1),
        ("lora_alpha", "16"),
        ("routing", "random"),
        ("conv_form", "depthwise"),
        ("router", 3),
        ("router_kind", "top-k"),
        ("router_norm", "instance"),
        ("twd_weight", -0.1),
        ("twd_temperature", 0),
        ("twd_dim", 0),
        ("num_tasks", 0),
        ("lora_dropout", 1.0),
        ("bias", "some"),
        ("train_backbone", "yes"),
        ("use_rslora", 1),
        ("rank_pattern", {"q": 0}),
    ],
)
def test_wrong_configurations_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name}: found .*, allowed (is|are)"):
        MoLAConfig(**{"target_modules": ["q"], "num_experts": 2, name: value})


def test_more_heads_than_experts_need_a_router() -> None:
    with pytest.raises(ValueError, match="num_tasks: found 3, allowed is at most num_experts=2"):
        MoLAConfig(target_modules=["q"], num_experts=2, num_tasks=3, task_heads=["head"])
    assert MoLAConfig(target_modules=["q"], num_experts=2, num_tasks=3, task_heads=["head"], routing="router")


#: every option that is a number, and the least that it may be
NUMBERS: dict[str, float] = {
    **{"num_experts": 1, "r": 1, "twd_dim": 1, "num_tasks": 1, "layers_to_transform": 0, "rank_pattern": 1},
    **{"lora_alpha": 0, "twd_weight": 0, "twd_temperature": 1e-9, "lora_dropout": 0, "alpha_pattern": 0},
}
INTEGERS = ("num_experts", "r", "twd_dim", "num_tasks", "layers_to_transform", "rank_pattern")


def _options(name: str, value: Any) -> dict[str, Any]:
    """Options with this number, in the form that its option has."""
    given = {"q": value} if name.endswith("_pattern") else [value] if name == "layers_to_transform" else value
    return {"target_modules": ["q"], "num_experts": 2, name: given}


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, "1", True, np.float32("nan"), np.True_])
@pytest.mark.parametrize("name", NUMBERS)
def test_what_is_no_finite_number_is_refused(name: str, value: Any) -> None:
    options = _options(name, value)
    shown = value if name == "layers_to_transform" else options[name]
    with pytest.raises(ValueError, match=rf"^{name}: found {re.escape(repr(shown))}, allowed are"):
        MoLAConfig(**options)


@pytest.mark.parametrize(("name", "least"), NUMBERS.items())
def test_numbers_in_range_and_of_numpy_are_saved(name: str, least: float, tmp_path: Path) -> None:
    for number in (least, np.int64(least) if isinstance(least, int) else np.float64(least)):
        MoLAConfig(**_options(name, number)).save_pretrained(str(tmp_path))
        read = PeftConfig.from_pretrained(str(tmp_path))
        assert getattr(read, name) == _options(name, least)[name]
    with pytest.raises(ValueError, match=f"^{name}: found"):
        MoLAConfig(**_options(name, np.int64(math.ceil(least) - 1)))


@pytest.mark.parametrize("name", INTEGERS)
def test_counts_are_integers(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: found .*1.0.*, allowed are .*integers"):
        MoLAConfig(**_options(name, 1.0))


@pytest.mark.parametrize("value", [True, -1, 1.0, "1"])
def test_a_single_block_is_an_integer(value: Any) -> None:
    assert MoLAConfig(target_modules=["q"], num_experts=2, layers_to_transform=np.int64(1)).layers_to_transform == 1
    with pytest.raises(ValueError, match=r"layers_to_transform: found .*, allowed are integers >= 0"):
        MoLAConfig(target_modules=["q"], num_experts=2, layers_to_transform=value)


def test_names_in_patterns_are_text() -> None:
    with pytest.raises(ValueError, match=r"rank_pattern: found \{3: 4\}, allowed are None, names with"):
        MoLAConfig(target_modules=["q"], num_experts=2, rank_pattern={3: 4})


@pytest.mark.parametrize("name", ["rank_pattern", "alpha_pattern", "layers_pattern", "exclude_modules"])
@pytest.mark.parametrize("wrong", ["*.q_proj", "(q", "q["])
def test_patterns_are_regular_expressions(name: str, wrong: str) -> None:
    made = {wrong: 4} if name.endswith(("rank_pattern", "alpha_pattern")) else wrong
    with pytest.raises(ValueError, match=rf"{name}: found {re.escape(repr(wrong))}, allowed is a regular expression"):
        MoLAConfig(target_modules=["q_proj"], num_experts=2, layers_to_transform=[0], **{name: made})


def test_a_file_with_an_infinite_number_is_refused(tmp_path: Path) -> None:
    MoLAConfig(target_modules=["q"], num_experts=2, lora_alpha=4).save_pretrained(str(tmp_path))
    path = tmp_path / "adapter_config.json"
    path.write_text(path.read_text().replace('"lora_alpha": 4', '"lora_alpha": Infinity'))
    with pytest.raises(ValueError, match="lora_alpha: found inf, allowed are finite numbers >= 0"):
        PeftConfig.from_pretrained(str(tmp_path))


def test_the_table_of_options_is_complete() -> None:
    page = (Path(__file__).parents[2] / "adapters" / "mola" / "README.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| `(.+?)` \|", page.partition("\n## Options\n")[2], flags=re.MULTILINE)
    default = MoLAConfig(num_experts=2)
    own = {field.name for field in dataclasses.fields(MoLAConfig)} - {f.name for f in dataclasses.fields(PeftConfig)}
    assert [name for name, _ in rows] == [field.name for field in dataclasses.fields(MoLAConfig) if field.name in own]
    for name, value in rows:
        assert ast.literal_eval(value) == (None if name == "num_experts" else getattr(default, name)), name


def test_help_makes_sense_alone() -> None:
    for field in dataclasses.fields(MoLAConfig):
        if field.name not in {other.name for other in dataclasses.fields(PeftConfig)}:
            text = field.metadata["help"]
            assert re.fullmatch(r"[A-Z'].+\.", text), field.name
            assert field.default is not None or "by default" in text or "required" in text, field.name
