"""Which fast paths of torch work on this device, and how fast they are."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from tempfile import TemporaryDirectory

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

PRECISIONS = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}  # of `train.precision`
KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
SECONDS = 0.3  # of one measurement
LARGEST = 8192  # rows of a matrix
COMPILED = "import torch; torch.compile(lambda x: (x.sin() * 2).sum())(torch.ones(64, device='{}')).item()"


@dataclass(frozen=True)
class Compilation:
    """Whether torch.compile works.

    Attributes:
        works: A tiny function was compiled and run; None if it was given up.
        seconds: That it took, Python's start included.
        problem: Why not.
    """

    works: bool | None
    seconds: float
    problem: str | None = None


@dataclass(frozen=True)
class Speed:
    """What a device can do.

    Attributes:
        matmul: `train.precision` → floating-point operations a second of a large matrix product.
        bandwidth: Bytes a second that an operation on each element reads and writes.
        overhead: Seconds that a call of one operation costs, however small.
        attention: Kernel → milliseconds of an attention in the faster half precision; None: it does not run here.
        compilation: Of torch.compile.
    """

    matmul: dict[str, float]
    bandwidth: float
    overhead: float
    attention: dict[str, float | None]
    compilation: Compilation

    @property
    def best(self) -> str:
        """The `train.precision` with the fastest products; a half precision only if it gains half as much again."""
        fastest = max(self.matmul, key=lambda name: self.matmul[name])
        return fastest if self.matmul[fastest] > 1.5 * self.matmul["no"] else "no"


def measure_speed(device: torch.device, seconds: float = SECONDS, patience: float = 60.0) -> Speed:
    """Try everything.

    Args:
        device: Where.
        seconds: Of each measurement.
        patience: Seconds until torch.compile is given up.
    """
    matmul = {name: matmul_speed(device, dtype, seconds) for name, dtype in PRECISIONS.items()}
    half = max(("bf16", "fp16"), key=lambda name: matmul[name])
    return Speed(
        matmul,
        bandwidth=memory_bandwidth(device, seconds),
        overhead=call_overhead(device),
        attention={name: attention_time(device, PRECISIONS[half], kernel) for name, kernel in KERNELS.items()},
        compilation=try_compile(device, patience),
    )


@torch.no_grad()
def matmul_speed(device: torch.device, dtype: torch.dtype, seconds: float = SECONDS, smallest: int = 512) -> float:
    """Return the floating-point operations a second of a square product as large as the time allows."""
    size = smallest
    while True:
        one, other = torch.randn(2, size, size, device=device).to(dtype)
        taken = _fastest(partial(torch.matmul, one, other), device, seconds)
        if 16 * taken > seconds or size >= LARGEST:  # twice the size takes 8 times as long, twice
            return 2 * size**3 / taken
        size *= 2


@torch.no_grad()
def memory_bandwidth(device: torch.device, seconds: float = SECONDS, size: int = 1 << 24) -> float:
    """Return the bytes a second of adding a number to many: each is read and written once."""
    numbers, result = torch.zeros(2, size, device=device)
    taken = _fastest(lambda: torch.add(numbers, 1.0, out=result), device, seconds)
    return 2 * numbers.nbytes / taken


def call_overhead(device: torch.device, calls: int = 200) -> float:
    """Return the seconds that one small layer costs beyond its arithmetic, its backward pass included, per call."""
    layer = torch.nn.Linear(1, 1, device=device)
    row = torch.ones(1, 1, device=device)

    def forward_and_back() -> None:
        layer(row).backward()

    return min(_timed(forward_and_back, device) for _ in range(calls)) / 4  # a call forward, three back


@torch.no_grad()
def attention_time(device: torch.device, dtype: torch.dtype, kernel: SDPBackend) -> float | None:
    """Return the milliseconds of one causal attention with a kernel; None if it does not run here."""
    query, key, value = torch.randn(3, 2, 8, 512, 64, device=device).to(dtype)
    try:
        with sdpa_kernel([kernel]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch says at length why a kernel does not run
            taken = _fastest(
                lambda: functional.scaled_dot_product_attention(query, key, value, is_causal=True), device, 0.1
            )
    except RuntimeError:  # no kernel of this kind takes these tensors
        return None
    return 1000 * taken


def try_compile(device: torch.device, patience: float) -> Compilation:
    """Compile a tiny function in a process of its own, with an empty cache."""
    started = time.monotonic()
    with TemporaryDirectory(prefix="distillkit-") as folder:
        env = os.environ | {"TORCHINDUCTOR_CACHE_DIR": folder, "TRITON_CACHE_DIR": folder}
        argv = [sys.executable, "-c", COMPILED.format(device.type)]
        try:
            done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=patience, check=False)
        except subprocess.TimeoutExpired:
            return Compilation(None, time.monotonic() - started, f"not done after {patience:.0f} s")
    seconds = time.monotonic() - started
    return Compilation(not done.returncode, seconds, _reason(done.stderr) if done.returncode else None)


def _reason(printed: str) -> str:
    """Find in a traceback what is missing."""
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    if "InvalidCxxCompiler" in printed or "No working C++ compiler found" in printed:
        return "no C++ compiler"
    errors = [line for line in lines if "Error: " in line or "Exception: " in line]
    return (errors or lines or ["it ended without a word"])[-1][:200]


def _fastest(run: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Return the seconds of the fastest of a few calls, after one that does not count."""
    _timed(run, device)
    times = [_timed(run, device)]
    while len(times) < 3 or (len(times) < 20 and sum(times) < seconds / 2):
        times.append(_timed(run, device))
    return min(times)


def _timed(run: Callable[[], object], device: torch.device) -> float:
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
