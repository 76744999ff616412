"""Without PyTorch Geometric the error says how to install it; the arguments need none."""

from collections.abc import Callable
from pathlib import Path

CODE = """
import sys

sys.modules["torch_geometric"] = None  # as if it were not installed
from hf_ext.trainers import GPLArguments

GPLArguments()
try:
    from hf_ext.trainers import GPLTrainer
except ImportError as error:
    print(error)
"""


def test_a_missing_extra_is_named(run_snippet: Callable[..., str], tmp_path: Path) -> None:
    assert "pip install 'hf-ext[graph]'" in run_snippet(CODE, cwd=tmp_path)
