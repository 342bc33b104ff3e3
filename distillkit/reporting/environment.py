"""What a result was measured with: versions and hardware."""

from __future__ import annotations

import platform
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from distillkit import __version__

PACKAGES = ("torch", "transformers", "onnxruntime")


def environment() -> dict[str, str]:
    """Return versions, hardware and the present time as text."""
    return {
        "distillkit": __version__,
        "python": platform.python_version(),
        **{name: found for name in PACKAGES if (found := _version(name)) is not None},
        "device": device(),
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def device() -> str:
    """Name what models run on: the GPU, or the processor and the threads that torch uses."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{processor()}, {torch.get_num_threads()} threads"


def processor() -> str:
    """Return the processor's name where the system tells it, else its architecture."""
    listed = Path("/proc/cpuinfo")
    if listed.exists():
        for line in listed.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
