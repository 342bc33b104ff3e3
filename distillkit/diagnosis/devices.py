"""What models run on: processor, GPUs, and their memory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from distillkit.reporting.environment import processor

CGROUP = Path("/sys/fs/cgroup")
SHARED = Path("/dev/shm")
PATIENCE = 10.0  # seconds for nvidia-smi


@dataclass(frozen=True)
class Gpu:
    """One GPU; memory in bytes."""

    name: str
    memory: int
    free: int
    capability: str


@dataclass(frozen=True)
class Machine:
    """What this process may use; memory in bytes.

    Attributes:
        processor: Its name.
        instructions: What torch uses of it, such as "AVX512".
        cores: That this process may run on.
        threads: That torch uses for one operation.
        load: Other work: programs that wanted a core in the last minute.
        omp_threads: OMP_NUM_THREADS of the environment.
        memory: Of the machine, or of the container if that is less.
        available: Of it, without swapping.
        shared: Free in /dev/shm; None where there is none.
        gpus: That torch can use.
        driver: Of the GPUs, even if torch cannot use them; None if there is none.
        cuda: Version that torch was built with; None for a build without.
    """

    processor: str
    instructions: str
    cores: int
    threads: int
    load: float
    omp_threads: str | None
    memory: int
    available: int
    shared: int | None
    gpus: list[Gpu]
    driver: str | None
    cuda: str | None

    @property
    def device(self) -> torch.device:
        """Where models go."""
        return torch.device("cuda", 0) if self.gpus else torch.device("cpu")

    @property
    def room(self) -> int:
        """Memory of one device that training can use."""
        return min(gpu.free for gpu in self.gpus) if self.gpus else self.available


def look_around() -> Machine:
    """Describe the machine."""
    memory = psutil.virtual_memory()
    limit, used = _cgroup("memory.max"), _cgroup("memory.current")
    total, available = memory.total, memory.available
    if limit is not None and limit < total:
        total, available = limit, min(available, limit - (used or 0))
    return Machine(
        processor=processor(),
        instructions=torch.backends.cpu.get_cpu_capability(),
        cores=usable_cores(),
        threads=torch.get_num_threads(),
        load=psutil.getloadavg()[0],
        omp_threads=os.environ.get("OMP_NUM_THREADS"),
        memory=total,
        available=available,
        shared=shutil.disk_usage(SHARED).free if SHARED.is_dir() else None,
        gpus=[_gpu(index) for index in range(torch.cuda.device_count())],
        driver=_driver(),
        cuda=torch.version.cuda,
    )


def usable_cores() -> int:
    """Count the cores that this process may use; a container may have fewer than the machine."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    quota = CGROUP / "cpu.max"
    if quota.is_file():
        share, period = quota.read_text(encoding="utf-8").split()
        if share != "max":
            cores = min(cores, max(1, round(int(share) / int(period))))
    return cores


def _gpu(index: int) -> Gpu:
    about = torch.cuda.get_device_properties(index)
    free, total = torch.cuda.mem_get_info(index)
    return Gpu(about.name, total, free, f"{about.major}.{about.minor}")


def _driver() -> str | None:
    """Ask nvidia-smi for the driver's version."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    argv = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.split()[0] if done.returncode == 0 and done.stdout.strip() else None


def _cgroup(name: str) -> int | None:
    path = CGROUP / name
    text = path.read_text(encoding="utf-8").strip() if path.is_file() else "max"
    return None if text == "max" else int(text)
