"""Flower's own processes on loopback, all marked by their FLWR_HOME, so that what a test started it can end."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import safetensors.torch
import torch

EXAMPLE = Path(__file__).parents[3] / "examples" / "federated"
_PATIENCE = 300.0


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def until(found: Callable[[], Any], what: str, patience: float = _PATIENCE) -> Any:
    """What a function returns once it is something."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if result := found():
            return result
        time.sleep(0.05)
    raise TimeoutError(f"{what} did not come in {patience:.0f} seconds")


class Flower:
    """Flower's commands with their own home below a folder.

    Used as a context: at its end every process of this home is killed, whoever started it and in whatever session.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "flower"
        self.home.mkdir(parents=True)
        self.port, local = free_port(), free_port()
        connections = {"local": ":local:", "loopback": f"127.0.0.1:{self.port}"}
        lines = ['[superlink]\ndefault = "local"']
        for name, address in connections.items():
            lines.append(f'[superlink.{name}]\naddress = "{address}"\ninsecure = true')
        (self.home / "config.toml").write_text("\n".join(lines) + "\n")
        scripts = str(Path(sys.executable).parent)  # superlinks look for their helpers by name
        self.environment = os.environ | {
            "FLWR_HOME": str(self.home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(local),
            "FLWR_LOCAL_CONTROL_API_PORT": str(free_port()),
            "RAY_TMPDIR": "/tmp",  # its sockets' names have to be short
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "PATH": scripts + os.pathsep + os.environ.get("PATH", ""),
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        self._logs: dict[str, Path] = {}

    def __enter__(self) -> "Flower":
        return self

    def __exit__(self, *args: object) -> None:
        self.stop()

    def start(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        """A command in a session of its own; what it says is in `log(name)`."""
        self._logs[name] = self.folder / f"{name}.log"
        with self._logs[name].open("ab") as log:
            return subprocess.Popen(
                command,
                env=self.environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def log(self, name: str) -> str:
        return self._logs[name].read_text(errors="replace") if name in self._logs else ""

    def start_superlink(self) -> subprocess.Popen[bytes]:
        where = ("--host", "127.0.0.1", "--port", str(self.port))
        process = self.start(
            "superlink", "flower-superlink", "--insecure", *where, "--disable-runtime-dependency-installation"
        )
        until(lambda: _listens(self.port), "the superlink")
        return process

    def start_supernode(self, client: int, clients: int) -> subprocess.Popen[bytes]:
        config = f"partition-id={client} num-partitions={clients}"
        where = ("--superlink", f"127.0.0.1:{self.port}", "--port", str(free_port()))
        return self.start(f"supernode-{client}", "flower-supernode", "--insecure", *where, "--node-config", config)

    def start_run(
        self, name: str, app: Path, connection: str, *options: str, **config: Any
    ) -> subprocess.Popen[bytes]:
        """`flwr run`, which follows the run until its end."""
        said = " ".join(f"{key.replace('_', '-')}={json.dumps(value)}" for key, value in config.items())
        return self.start(
            name, "flwr", "run", str(app), connection, "--stream", *options, *(("--run-config", said) if said else ())
        )

    def finish(self, process: subprocess.Popen[bytes], name: str) -> str:
        """Wait for the end of a command; what it has said."""
        assert process.wait(_PATIENCE) == 0, self.log(name)[-3000:]
        return self.log(name)

    def processes(self, name: str = "") -> list[psutil.Process]:
        """All that run with this home, or those with a word in their commands."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                is_ours = process.environ().get("FLWR_HOME") == str(self.home)
                if is_ours and process.status() != psutil.STATUS_ZOMBIE and name in _command(process):
                    found.append(process)
        return found

    def kill(self, name: str) -> None:
        """Kill -9 those with a word in their commands."""
        for process in self.processes(name):
            _kill(process)

    def stop(self) -> None:
        """Kill all that run with this home; whoever is killed first cannot start others anew."""

        def gone() -> bool:
            left = self.processes()
            for process in left:
                _kill(process)
            return not left

        until(gone, "the end of all processes", 30.0)


def kill_with_children(pid: int) -> None:
    """Kill -9 a process and all that it has started, before any of them notices."""
    first = psutil.Process(pid)
    for process in [first, *first.children(recursive=True)]:
        _kill(process)


def is_training(pid: int) -> bool:
    """Whether a supernode runs a client just now."""
    children = psutil.Process(pid).children(recursive=True)
    return any("flwr-clientapp" in _command(child) for child in children)


def _command(process: psutil.Process) -> str:
    try:
        return "" if process.status() == psutil.STATUS_ZOMBIE else " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _kill(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.Error):
        process.kill()


def _listens(port: int) -> bool:
    with socket.socket() as tried:
        tried.settimeout(0.2)
        return tried.connect_ex(("127.0.0.1", port)) == 0


def model_in(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "model.safetensors")


def ledger_in(folder: Path) -> dict[str, Any]:
    """Of the newest checkpoint."""
    newest = max(folder.glob("round-*"), key=lambda place: int(place.name.partition("-")[2]))
    return json.loads((newest / "federation.json").read_text())["ledger"]


def tree(folder: Path) -> dict[str, bytes]:
    """All files of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
