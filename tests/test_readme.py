"""Every snippet of the README runs, in the order they stand there, in an empty folder."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.slow
def test_snippets(tmp_path: Path, run_snippet: Callable[..., str]) -> None:
    snippets = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len(snippets) >= 3
    for snippet in snippets:
        run_snippet(snippet, cwd=tmp_path)
    assert (tmp_path / "my_lora_for_task_2" / "adapter_model.safetensors").is_file()
