"""Regular expressions in a configuration: those that would take forever are refused before they are matched."""

import json
from pathlib import Path
from typing import Any

import pytest
from peft import PeftConfig

from hf_ext.adapters import MoLAConfig

ENDLESS = [
    "(a+)+$",
    "(a*)*b",
    "(.*a){20}",
    "(a|a)*$",
    "(a|ab)+c",
    "([a-z]+\\.?)*x",
    "((a?)b?)*c",
    "(a?){30}a{30}",
    "a?" * 30 + "a" * 30,
    "(a|a)" * 30,
    ".*.*.*.*.*.*x",
    r"(\w+\s?)+$",
    r"(.+)\1+x",
    "(?=(a+)+$)a",
    "(?:(?:a{1,9}){1,9}){1,9}",
    "(a*?)*?$",
]
FINE = [
    "q_proj",
    r".*\.(q|v)_proj",
    r"(.*\.)?(classifier|score)(\..*)?",
    r"model.*layers.*self_attn.*(q|k|v)_proj",
    r".*encoder\.layer\.\d+\.attention.*(query|value)",
    r"^(?!.*lm_head).*$",
    r"(vision|text)_model\.encoder\.layers\.(\d|1[0-9])\.mlp\.fc[12]",
    "|".join(f"layers.{number}.q_proj" for number in range(500)),
    r"a{3}(b{3})",
]


@pytest.mark.parametrize("pattern", ENDLESS)
def test_patterns_that_take_forever(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"target_modules: found .* which may take forever to match, allowed is"):
        MoLAConfig(target_modules=pattern, num_experts=2)


@pytest.mark.parametrize("pattern", FINE)
def test_patterns_that_people_write(pattern: str) -> None:
    assert MoLAConfig(target_modules=pattern, num_experts=2).target_modules == pattern


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("exclude_modules", ENDLESS[0]),
        ("modules_to_save", ["classifier", ENDLESS[0]]),
        ("task_heads", [ENDLESS[0]]),
        ("rank_pattern", {ENDLESS[0]: 4}),
        ("alpha_pattern", {ENDLESS[0]: 4}),
        ("layers_pattern", ENDLESS[0]),
        ("layers_pattern", [ENDLESS[0]]),
    ],
)
def test_wherever_a_pattern_may_stand(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name}: found .*take forever"):
        MoLAConfig(target_modules=["q_proj"], num_experts=2, **{name: value})


@pytest.mark.parametrize("pattern", ["(", "a{99999999999999999999}", "(" * 20_000, "*"])
def test_what_is_no_pattern(pattern: str) -> None:
    for options in ({"target_modules": pattern}, {"target_modules": ["q"], "rank_pattern": {pattern: 2}}):
        with pytest.raises(ValueError, match=r"(target_modules|rank_pattern): found .*a regular expression \("):
            MoLAConfig(num_experts=2, **options)


def test_a_pattern_from_a_repo(tmp_path: Path) -> None:
    MoLAConfig(target_modules="q_proj", num_experts=2).save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"target_modules": ENDLESS[0]}))
    with pytest.raises(ValueError, match=r"target_modules: found .*take forever"):
        PeftConfig.from_pretrained(str(tmp_path))
