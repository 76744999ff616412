"""The README: its snippets run, its tables say what the results say, its methods are those of the registry."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from hf_ext.commands.readme import rewritten
from hf_ext.hub_cards import METHODS

RESULTS = Path(__file__).parents[1] / "examples" / "results"
README = Path(__file__).parents[1] / "README.md"


def test_tables_are_made_from_the_results() -> None:
    text = README.read_text()
    assert rewritten(text, RESULTS, "examples/results") == text


def test_all_results_are_shown() -> None:
    shown = re.findall(r"<!-- results: ([\w-]+) -->\n\|", README.read_text())
    assert sorted(shown) == sorted(folder.name for folder in RESULTS.glob("*") if folder.is_dir())


def test_methods_are_listed() -> None:
    rows = [line for line in README.read_text().splitlines() if line.startswith("| ") and "](http" in line]
    assert len(rows) == len(METHODS)
    for method, row in zip(METHODS.values(), rows, strict=True):
        assert row.startswith(f"| {method.title} | {method.summary} | ") and f"]({method.paper})" in row


@pytest.mark.slow
def test_snippets(tmp_path: Path, run_snippet: Callable[..., str]) -> None:
    """In the order they stand there, in an empty folder."""
    snippets = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len(snippets) >= 3
    for snippet in snippets:
        run_snippet(snippet, cwd=tmp_path)
    assert (tmp_path / "my_lora_for_task_2" / "adapter_model.safetensors").is_file()
