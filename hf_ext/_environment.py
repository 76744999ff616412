"""Where something ran: versions and hardware, as cards, studies and benchmarks note them."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version

LIBRARIES = ("torch", "transformers", "peft", "accelerate", "datasets", "timm", "flwr", "torch-geometric")


def versions() -> dict[str, str]:
    """Versions of Python, this package and the libraries it stands on, as far as they are installed."""
    from hf_ext import __version__

    installed = {"python": platform.python_version(), "hf_ext": __version__}
    for library in LIBRARIES:
        try:
            installed[library] = version(library)
        except PackageNotFoundError:
            continue
    return installed


def hardware(device: str | None = None) -> str:
    """The accelerators of this process in words, or else, and for the device "cpu", the CPU and its cores."""
    import torch

    if device == "cpu":
        return f"{_cpu_name()}, {usable_cores()} cores"
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
    if torch.backends.mps.is_available():
        return f"Apple {platform.machine()} GPU"
    return f"{_cpu_name()}, {usable_cores()} cores"


def usable_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
