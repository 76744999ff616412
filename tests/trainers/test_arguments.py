"""Arguments of methods: every option is checked against its type, whoever makes them."""

import math
import re
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from transformers import HfArgumentParser, TrainingArguments

import hf_ext.trainers
from hf_ext._arguments import Bounds, Count, NonNegative, Share
from hf_ext.models import FERConfig, RDConfig
from hf_ext.trainers import DISAMArguments, DivBSArguments, FERArguments, RDArguments, TARFArguments
from hf_ext.trainers.arguments import MethodArguments, option

ALL = [getattr(hf_ext.trainers, name) for name in dir(hf_ext.trainers) if name.endswith("Arguments")]


@dataclass
class Cool(MethodArguments):
    cool_rho: NonNegative = option(0.1, "Rho.")
    cool_share: Share | None = option(None, "Share.")
    cool_decay: Annotated[float, Bounds(at_least=0, below=1)] = option(0.5, "Decay.")
    cool_rows: Count = option(1, "Rows.")
    cool_kind: Literal["a", "b"] = option("a", "Kind.")
    cool_prior: float | Literal["auto"] = option("auto", "Prior.")
    cool_flag: bool = option(False, "Flag.")
    cool_column: str | None = option(None, "Column.")
    cool_names: list[str] | None = option(None, "Names.")

    def check_options(self) -> None:
        super().check_options()
        if self.cool_flag and self.cool_kind == "b":
            raise ValueError("cool_flag: found True with cool_kind='b', allowed is False")


@dataclass
class CoolConfig(DISAMArguments, Cool, TrainingArguments):
    pass


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cool_rho": math.inf}, "cool_rho: found inf, allowed are finite numbers >= 0"),
        ({"cool_rho": math.nan}, "cool_rho: found nan, allowed are finite numbers >= 0"),
        ({"cool_rho": -1e-9}, "cool_rho: found -1e-09, allowed are numbers >= 0"),
        ({"cool_rho": "0.1"}, "cool_rho: found '0.1', allowed are numbers >= 0"),
        ({"cool_rho": True}, "cool_rho: found True, allowed are numbers >= 0"),
        ({"cool_rho": None}, "cool_rho: found None, allowed are numbers >= 0"),
        ({"cool_share": 0}, r"cool_share: found 0, allowed are None, numbers in \(0, 1\]"),
        ({"cool_share": 1.5}, r"cool_share: found 1.5, allowed are None, numbers in \(0, 1\]"),
        ({"cool_decay": 1.0}, r"cool_decay: found 1.0, allowed are numbers in \[0, 1\)"),
        ({"cool_rows": 0}, "cool_rows: found 0, allowed are integers >= 1"),
        ({"cool_rows": 1.5}, "cool_rows: found 1.5, allowed are integers >= 1"),
        ({"cool_kind": "c"}, "cool_kind: found 'c', allowed are 'a', 'b'"),
        ({"cool_kind": ["a"]}, r"cool_kind: found \['a'\], allowed are 'a', 'b'"),
        ({"cool_prior": "none"}, "cool_prior: found 'none', allowed are numbers, 'auto'"),
        ({"cool_flag": "no"}, "cool_flag: found 'no', allowed are True, False"),
        ({"cool_column": 3}, "cool_column: found 3, allowed are None, text"),
        ({"cool_flag": True, "cool_kind": "b"}, "cool_flag: found True with cool_kind='b'"),
    ],
)
@pytest.mark.parametrize("kind", [Cool, CoolConfig])
def test_wrong_values(kind: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"cool_rho": 0},
        {"cool_rho": np.float32(0.5), "cool_rows": np.int64(3), "cool_flag": np.bool_(True)},
        {"cool_share": 1, "cool_decay": 0},
        {"cool_prior": 0.3},
        {"cool_names": ["a"]},
    ],
)
@pytest.mark.parametrize("kind", [Cool, CoolConfig])
def test_right_values(kind: Any, options: dict[str, Any]) -> None:
    made = kind(**options)
    assert all(getattr(made, name) == value for name, value in options.items())


def test_all_of_a_combination_are_checked() -> None:
    with pytest.raises(ValueError, match="disam_rho: found inf"):
        CoolConfig(disam_rho=math.inf)
    with pytest.raises(ValueError, match="nope"):  # TrainingArguments' own check has its turn
        CoolConfig(eval_strategy="nope")


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_no_number_is_infinite(kind: type[MethodArguments]) -> None:
    for one in fields(kind):
        if isinstance(one.default, float) or "float" in str(one.type):
            infinite = () if one.name in ("tarf_beta", "tarf_max_forget_loss") else (math.inf, -math.inf)
            for value in (math.nan, *infinite):
                with pytest.raises(ValueError, match=f"{one.name}: found {value}, allowed are"):
                    kind(**{one.name: value})


def test_infinity_leaves_nothing_out() -> None:
    assert TARFArguments(tarf_beta=math.inf).tarf_beta == math.inf


@pytest.mark.parametrize("kind", [DISAMArguments, DivBSArguments, FERArguments, RDArguments, TARFArguments])
def test_options_are_read_from_the_command_line(kind: Any) -> None:
    defaults = kind()
    words = [
        f"--{one.name}={value}" for one in fields(kind) if isinstance(value := getattr(defaults, one.name), float)
    ]
    (parsed,) = HfArgumentParser(kind).parse_args_into_dataclasses(words)
    assert parsed == defaults


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_help_stands_alone(kind: type) -> None:
    for one in fields(kind):
        text = one.metadata["help"]
        assert text[-1] == "." and len(text.split()) > 3
        if one.default is None:  # the printer drops "None", so the words say what holds
            assert "default" in text or "need" in text, one.name


@dataclass
class _Own(DISAMArguments, TrainingArguments):
    """A user's, with fields that are none of ours."""

    own_limit: int = None  # type: ignore[assignment]
    own_noise: float = math.inf
    own_thing: "NoSuchName | None" = None  # type: ignore[name-defined]  # noqa: F821


def test_fields_of_a_users_own_configuration_are_theirs() -> None:
    assert _Own(disam_rho=0.2).own_noise == math.inf
    with pytest.raises(ValueError, match="disam_rho: found inf"):
        _Own(disam_rho=math.inf)


def test_defaults_that_the_help_names_are_the_models() -> None:
    for kind, config in ((RDArguments, RDConfig), (FERArguments, FERConfig)):
        for one in fields(kind):
            if default := re.search(r"\(([^()]+) in a new one\)", one.metadata["help"]):
                value = getattr(config(), one.name.partition("_")[2])
                assert default[1] == (repr(value) if isinstance(value, str | bool) else f"{value:g}"), one.name
