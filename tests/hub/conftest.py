"""A Hub of this machine, and processes that know no other."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # pytest's import mode adds no folders

from server import Hub


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub().running() as running:
        yield running


@pytest.fixture
def in_process(hub: Hub, tmp_path: Path) -> Callable[..., Any]:
    """Run Python code in a process of its own, whose Hub is `hub`; returns what it has put into `result`.

    The client reads its settings as it is imported, and pytest's own process is offline. `HF_HOME` is the same folder
    for all processes of a test; keywords are further variables of the environment.
    """

    def run(code: str, **environment: str) -> Any:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTEST_"))}
        settings = {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "hf_home"),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": "hf_any",
            "NO_PROXY": "127.0.0.1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        answer = tmp_path / "result.json"
        answer.unlink(missing_ok=True)
        script = f"{code}\nimport json\nopen({str(answer)!r}, 'w').write(json.dumps(result))\n"
        command = [sys.executable, "-c", script]
        done = subprocess.run(
            command,
            env=inherited | settings | environment,
            capture_output=True,
            text=True,
            timeout=300,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr[-6000:]
        return json.loads(answer.read_text())

    return run
