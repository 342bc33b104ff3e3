"""Measure cases against each other: each in a process of its own, taking turns, as machines have good and bad moments.

A script that imports this runs itself once for each case, with `--case NAME` added to its arguments. Such a process
makes its inputs, then runs whenever it is told to. Time is the median over the turns after a first one, which warms
up: by the clock, and the CPU seconds of all threads, which other people's work disturbs less. Memory is the peak that
the operating system has seen (of a GPU: the allocator), above what the process held before its first run.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch

MIB = 1 << 20


@dataclass(frozen=True)
class Measurement:
    """What one case took."""

    seconds: float  # by the clock, median
    fastest: float
    cpu_seconds: float  # of all threads, median
    peak_mib: float  # above what was held before
    total_mib: float  # all that was held at the peak


def serve(run: Callable[[], None], device: str) -> None:
    """Be the process of one case: run once for each line on standard input, and report on standard output."""
    answers, sys.stdout = sys.stdout, sys.stderr
    held = reset(device)
    print("ready", file=answers, flush=True)
    for _ in sys.stdin:
        started, cpu = time.perf_counter(), time.process_time()
        run()
        synchronise(device)
        taken = [time.perf_counter() - started, time.process_time() - cpu]
        print(json.dumps([*taken, held, peak(device)]), file=answers, flush=True)


def measure(cases: dict[str, Sequence[str]], rounds: int) -> dict[str, Measurement]:
    """Run cases (name → arguments of this script) in turn, `rounds` times after the first."""
    command = [sys.executable, sys.argv[0]]
    running = {
        name: subprocess.Popen([*command, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for name, arguments in cases.items()
    }
    turns: dict[str, list[list[float]]] = {name: [] for name in cases}
    for process in running.values():
        _line(process)
    for _ in range(rounds + 1):
        for name, process in running.items():
            assert process.stdin is not None
            print(file=process.stdin, flush=True)
            turns[name].append(json.loads(_line(process)))
    for process in running.values():
        process.communicate()
    return {name: _summary(taken) for name, taken in turns.items()}


def show(title: str, measured: dict[str, Measurement], against: str) -> None:
    """Print a table; ratios are to one of the cases."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in ("", "peak MiB", "of it", "in total", "seconds", "of it", "fastest", "CPU seconds", "of it"):
        table.add_column(column, justify="right" if column else "left")
    base = measured[against]
    for name, it in measured.items():
        shares = (it.peak_mib / base.peak_mib, it.seconds / base.seconds, it.cpu_seconds / base.cpu_seconds)
        memory, clock, cpu = (f"{share:.3f}" for share in shares)
        table.add_row(
            name,
            *(f"{it.peak_mib:.0f}", memory, f"{it.total_mib:.0f}", f"{it.seconds:.3f}", clock),
            *(f"{it.fastest:.3f}", f"{it.cpu_seconds:.3f}", cpu),
        )
    Console(width=120).print(table)


def write(results: dict[str, dict[str, Measurement]], device: str, output: Path | None) -> None:
    """Print the results as JSON, or write them to a file."""
    document = {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} threads",
        "results": {title: {name: asdict(it) for name, it in cases.items()} for title, cases in results.items()},
    }
    text = json.dumps(document, indent=1)
    if output is None:
        print(text)
    else:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text + "\n", encoding="utf-8")


def reset(device: str) -> float:
    """Begin to watch the peak; return the MiB held now."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / MIB
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _status("VmRSS")


def peak(device: str) -> float:
    """Return the most MiB held since `reset`."""
    return torch.cuda.max_memory_allocated() / MIB if device == "cuda" else _status("VmHWM")


def synchronise(device: str) -> None:
    """Wait until a GPU has done all that it was told."""
    if device == "cuda":
        torch.cuda.synchronize()


def _status(key: str) -> float:
    """Read a size from Linux's account of this process, in MiB."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no {key} in /proc/self/status")


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"a case ended with code {process.wait()}: {process.args}")
    return line


def _summary(turns: list[list[float]]) -> Measurement:
    clock, cpu = [turn[0] for turn in turns[1:]], [turn[1] for turn in turns[1:]]
    held, most = turns[0][2], max(turn[3] for turn in turns)
    return Measurement(median(clock), min(clock), median(cpu), most - held, most)
