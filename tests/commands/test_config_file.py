"""YAML files of options: what a value is read as, and what is refused, by name."""

import re
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import pytest

from hf_ext.commands.cli import guarded
from hf_ext.commands.config_file import read_config
from hf_ext.commands.loading import ModelArguments
from hf_ext.commands.parsing import parse
from hf_ext.trainers import DISAMConfig


class When(Enum):
    NO = "no"
    STEPS = "steps"


class WordOrNumber(str):
    """What a command line reads as text, and its own dataclass as a number, where it is one."""


OPTIONS: dict[str, Any] = {
    "share": WordOrNumber,
    "folder": str | None,
    "steps": int,
    "rate": float,
    "on": bool,
    "maybe": bool | None,
    "when": When | str,
    "kind": Literal["task", "off"],
    "names": list[str] | None,
    "report": None | str | list[str],
    "settings": dict | str | None,
    "text": str,
}

NESTED = {"a": 0.001, "b": True, "c": [None, "1", "x"], "d": {"e": 2}}


def read(tmp_path: Path, content: str | bytes) -> dict[str, Any]:
    file = tmp_path / "options.yaml"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_config(str(file), OPTIONS)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("folder: 2024", "2024"),
        ("folder: 2024-01-01", "2024-01-01"),
        ("folder: no", "no"),
        ("share: bbe", "bbe"),
        ("share: 0.3", "0.3"),
        ("folder: ~", None),
        ("folder: 'null'", "null"),
        ("rate: 1e-3", 0.001),
        ("rate: '0.5'", 0.5),
        ("rate: .inf", float("inf")),
        ("rate: 3", 3.0),
        ("steps: 2.0", 2),
        ("steps: 1e3", 1000),
        ("steps: 1_000", 1000),
        ("steps: 010", 10),
        ("steps: &anchor 5", 5),
        ("on: no", False),
        ("on: 'True'", True),
        ("on: 1", True),
        ("maybe: null", None),
        ("when: no", "no"),
        ("kind: off", "off"),
        ("names: q", ["q"]),
        ("names: [1, no]", ["1", "no"]),
        ("report: none", "none"),
        ("report: [a, b]", ["a", "b"]),
        ("settings: {a: 1e-3, b: yes, c: [null, '1', x], d: {e: 2}}", NESTED),
        ("settings: path.json", "path.json"),
        ("settings: {}", {}),
    ],
)
def test_values_are_read_by_their_types(line: str, value: Any, tmp_path: Path) -> None:
    name = line.partition(":")[0]
    found = read(tmp_path, line)[name]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("rate: [1]", "rate: found [1] in FILE, line 1, allowed are numbers"),
        ("text: a\nrate: null", "rate: found null in FILE, line 2, allowed are numbers"),
        ("rate: .nan", "rate: found .nan"),
        ("steps: 2.5", "steps: found 2.5 in FILE, line 1, allowed are integers"),
        ("steps: yes", "steps: found yes"),
        ("steps: 2024-01-01", "steps: found 2024-01-01"),
        ("steps: 1:30", "steps: found 1:30"),
        ("steps: .inf", "steps: found .inf"),
        ("steps: {a: 1}", "steps: found a mapping"),
        ("steps: 1\nsteps: 1", "steps: found a second value in FILE, line 2, allowed is one"),
        ("on: maybe", "on: found 'maybe' in FILE, line 1, allowed are true, false"),
        ("when: often", "when: found 'often' in FILE, line 1, allowed are 'no', 'steps'"),
        ("kind: 5", "kind: found 5 in FILE, line 1, allowed are 'task', 'off'"),
        ("text: null", "text: found null in FILE, line 1, allowed are text"),
        ("text: [a]", "text: found ['a']"),
        ("names: [a, [b]]", "names: found a list in FILE, line 1, allowed are lists of text, null"),
        ("names: {a: b}", "names: found a mapping"),
        ("settings: {1: 2}", "keys that are no text"),
        ("settings: {a: 1, a: 2}", "twice the same"),
        ("settings: {a: !!python/name:os.system ''}", "with the tag"),
        ("settings: &a {b: *a}", "settings: found a mapping (too large or deep)"),
        ("steps: !!python/object/apply:os.system [ls]", "steps: found the tag"),
        ("steps: !mine 5", "steps: found the tag '!mine'"),
        ("step: 5", "--config: found 'step' in FILE, line 1, an unknown option; did you mean steps?"),
        ("1: 5", "--config: found '1'"),
        ("? [a]\n: 5", "an unknown option"),
        ("<<: {steps: 1}", "--config: found '<<'"),
        ("- a", "--config: found ['a'] in FILE, allowed is a mapping"),
        ("steps", "--config: found 'steps' in FILE, allowed is a mapping"),
        ("", "--config: found nothing in FILE, allowed is a mapping"),
        ("# only\n", "--config: found nothing"),
        ("steps: 1\n---\nsteps: 2", "is not one YAML document"),
        ("\tsteps: 1", "is not one YAML document"),
        ("steps: " + "[" * 5000, "is not one YAML document"),
        ("steps: *nowhere", "is not one YAML document"),
        (b"steps: \x80", "is not one YAML document"),
        (b"\x00", "is not one YAML document"),
        ("# " + "x" * 2**20, "bytes in FILE, allowed are"),
    ],
)
def test_refusals_are_one_line_that_names_the_key(content: str | bytes, message: str, tmp_path: Path) -> None:
    file = f"'{tmp_path / 'options.yaml'}'"
    with pytest.raises(ValueError, match=re.escape(message.replace("FILE", file))) as refusal:
        read(tmp_path, content)
    assert "\n" not in str(refusal.value)


def test_an_alias_of_aliases_is_not_written_out(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    with pytest.raises(ValueError, match="too large or deep"):
        read(tmp_path, "settings:\n" + "\n".join(f"  {line}" for line in lines))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_says_how_to_read(encoding: str, tmp_path: Path) -> None:
    assert read(tmp_path, "text: é\n".encode(encoding)) == {"text": "é"}


@pytest.mark.parametrize("place", ["", ".", "nowhere.yaml", "/dev/null"])
def test_what_is_no_file(place: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"--config: found {place!r}, which is no file")):
        read_config(place, OPTIONS)


def parsed(tmp_path: Path, *words: str, content: str = "") -> Any:
    file = tmp_path / "options.yaml"
    file.write_text(f"use_cpu: true\n{content}")
    return parse((ModelArguments, DISAMConfig), ["--config", str(file), *words], prog="x", description="")


def test_options_of_the_trainer_and_the_method(tmp_path: Path) -> None:
    content = (
        "output_dir: 2024\neval_strategy: no\nlearning_rate: 1e-3\nmax_steps: 2.0\ndisam_sync_perturbation: off\n"
    )
    _, args = parsed(tmp_path, "--seed", "5", content=f"{content}seed: 4\nreport_to: [none]\n")
    assert (args.output_dir, args.eval_strategy, args.learning_rate, args.max_steps) == ("2024", "no", 1e-3, 2)
    assert args.disam_sync_perturbation is False and args.report_to == []
    assert args.seed == 5  # the command line wins
    _, args = parsed(tmp_path, "--no_disam_sync_perturbation")
    assert args.disam_sync_perturbation is False


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("log_level: loud", "log_level: found 'loud'"),
        ("lr_scheduler_kwargs: '{bad'", "options: found '{bad'"),
        ("optim: 5", "optim: found 5"),
        ("disam_rho: -1", "disam_rho: found -1.0, allowed are numbers >= 0"),
    ],
)
def test_values_that_the_trainer_would_trip_over(content: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parsed(tmp_path, content=content)


@pytest.mark.parametrize("words", [["--config"], ["--config", ""]])
def test_a_config_without_a_name(words: list[str]) -> None:
    with pytest.raises(ValueError, match=r"--?config"):
        parse((ModelArguments,), words, prog="x", description="")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (FloatingPointError("the gradient is not finite"), "hf-ext: error: the gradient is not finite"),
        (OSError("many\n  lines\n"), "hf-ext: error: many lines"),
        (ValueError(), "hf-ext: error: ValueError"),
    ],
)
def test_errors_are_one_line(error: Exception, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> None:
        raise error

    assert guarded(fails) == 2
    assert capsys.readouterr().err.splitlines() == [line, "(--debug shows where)"]
