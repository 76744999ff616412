"""Help comes at once, and says what the dataclasses say."""

import re
import subprocess
import sys

import pytest

from hf_ext.commands.help_texts import kept, made
from hf_ext.hub_cards import METHODS

OURS = [name for name, method in METHODS.items() if method.module("commands")]


def words(text: str) -> list[str]:
    """Without line breaks, and without the metavars that argparse repeats or not, by its version."""
    return re.sub(r"\b[A-Z][A-Z_0-9]+\b", "", text).replace(" ,", ",").split()


@pytest.mark.parametrize("method", OURS)
def test_texts_that_are_kept_are_those_of_the_dataclasses(method: str) -> None:
    assert words(kept(method) or "") == words(made(method)), "run python -m hf_ext.commands.help_texts"


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; from hf_ext.commands.cli import main\n"
        "for words in (['--help'], ['train'], ['train', 'disam', '--help']):\n"
        "    try: main(words)\n"
        "    except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0 and "--disam_rho" in result.stdout
