"""Shared by all tests: no network, one thread, and a launcher of real processes."""

import gc
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest


def pytest_collection_finish() -> None:
    """What is imported stays: Trainer looks for garbage in every training, which takes longer than the small ones."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _environment(**extra: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE_", "PYTEST_"))}
    return inherited | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""} | extra


@pytest.fixture(scope="session")
def launch() -> Callable[..., dict[str, Any]]:
    """Run a script with a JSON file of options in 1 or N processes; returns the JSON it wrote to `options["result"]`.

    `killed=True` expects the script to have killed itself, in one process at least, and returns nothing.
    """

    def run(
        script: Path, options: dict[str, Any], *, folder: Path, processes: int = 1, killed: bool = False
    ) -> dict[str, Any]:
        result, options_file = folder / "result.json", folder / "options.json"
        result.unlink(missing_ok=True)
        options_file.write_text(json.dumps({**options, "result": str(result)}))
        command, environment = [sys.executable, str(script), str(options_file)], _environment()
        if processes > 1:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = str(free.getsockname()[1])
            # `accelerate launch --cpu --num_processes 2` starts one process; this starts two, over gloo
            start = ["--multi_gpu", "--num_processes", str(processes), "--main_process_port", port]
            command = [sys.executable, "-m", "accelerate.commands.launch", *start, str(script), str(options_file)]
            environment = _environment(ACCELERATE_USE_CPU="true")
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd=folder)
        if killed:
            assert done.returncode == (-signal.SIGKILL if processes == 1 else 1), done.stderr[:6000]
            assert processes == 1 or "Signal 9 (SIGKILL)" in done.stderr, done.stderr[:6000]
            return {}
        assert done.returncode == 0, done.stderr[:6000]
        written: dict[str, Any] = json.loads(result.read_text())
        assert written["num_processes"] == processes
        return written

    return run


@pytest.fixture
def run_script(launch: Callable[..., dict[str, Any]], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """`launch` with the files in the test's own folder."""
    return partial(launch, folder=tmp_path)


@pytest.fixture
def run_snippet() -> Callable[..., str]:
    """Run Python code in a process of its own; returns what it printed."""

    def run(code: str, *, cwd: Path) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code], env=_environment(), capture_output=True, text=True, timeout=300, cwd=cwd
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run
