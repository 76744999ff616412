"""Help comes at once, and says what the dataclasses say."""

import contextlib
import re
import subprocess
import sys

import pytest

from hf_ext.commands.help_texts import check_required, kept, made, required
from hf_ext.hub_cards import METHODS

OURS = [name for name, method in METHODS.items() if method.module("commands")]


def words(text: str) -> list[str]:
    """Without line breaks, and without the metavars that argparse repeats or not, by its version."""
    return re.sub(r"\b[A-Z][A-Z_0-9]+\b", "", text).replace(" ,", ",").split()


@pytest.mark.parametrize("method", OURS)
def test_texts_that_are_kept_are_those_of_the_dataclasses(method: str) -> None:
    assert words(kept(method) or "") == words(made(method)), "run python -m hf_ext.commands.help_texts"


def test_help_and_what_is_missing_need_no_torch() -> None:
    code = (
        "import sys; from hf_ext.commands.cli import main\n"
        "for words in (['--help'], ['train'], ['train', 'disam', '--help'], ['train', 'disam', '--disam_rho', '1']):\n"
        "    try: main(words)\n"
        "    except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0 and "--disam_rho" in result.stdout
    assert result.stderr.startswith(
        "hf-ext: error: model_name_or_path: found nothing, allowed is a Hub id or a folder"
    )


def test_what_is_required_is_read_from_the_text() -> None:
    assert {method: [*required(method)] for method in OURS if method not in ("causald", "fer", "gpl", "rd")} == {
        method: ["model_name_or_path"] for method in OURS if method not in ("causald", "fer", "gpl", "rd")
    }
    assert [*required("rd")] == ["model_name_or_path", "dataset"]
    assert [*required("causald")] == [*required("fer")] == ["dataset"]
    assert {name: one.unless for name, one in required("gpl").items()} == {"dataset": "nodes", "edges": "dataset"}
    assert required("rd")["dataset"] == (
        "a folder (images, csv, parquet), a Hub id, a file or an embedded name (digits)",
        None,
    )


@pytest.mark.parametrize(
    "words",
    [
        ["--model_name_or_path", "m", "--dataset", "d"],
        ["--model-name-or-path=m", "--dataset="],  # what it is, is asked later
        ["--config", "file.yaml"],
        ["--config=file.yaml"],
        ["--help-all"],
        ["--lora_r", "4", "-h"],
    ],
    ids=" ".join,
)
def test_nothing_is_missing(words: list[str]) -> None:
    check_required("rd", words)


@pytest.mark.parametrize(
    ("words", "missing"),
    [([], "model_name_or_path"), (["--model_name_or_path", "m"], "dataset"), (["--dataset=d"], "model_name_or_path")],
    ids=str,
)
def test_what_is_missing_is_named(words: list[str], missing: str) -> None:
    with pytest.raises(ValueError, match=f"{missing}: found nothing, allowed is a "):
        check_required("rd", words)


@pytest.mark.parametrize(
    ("words", "missing"),
    [
        ([], "dataset"),
        (["--nodes", "n.csv"], "edges"),
        (["--edges", "e.csv"], "dataset"),
        (["--dataset", "digits-graph"], None),
        (["--nodes", "n.csv", "--edges", "e.csv"], None),
    ],
    ids=str,
)
def test_one_of_two_ways_is_enough(words: list[str], missing: str | None) -> None:
    with pytest.raises(ValueError, match=f"^{missing}: ") if missing else contextlib.nullcontext():
        check_required("gpl", words)
