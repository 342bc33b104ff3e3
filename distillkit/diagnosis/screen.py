"""The screen of `doctor`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path

from rich.table import Table
from rich.text import Text

from distillkit.diagnosis.advice import Advice, Findings
from distillkit.diagnosis.collectives import Collectives
from distillkit.diagnosis.devices import Machine
from distillkit.diagnosis.estimate import Estimate
from distillkit.diagnosis.speed import Speed
from distillkit.diagnosis.versions import Versions
from distillkit.reporting.console import console, heading, remark, show_table
from distillkit.reporting.numbers import NOTHING, count, milliseconds
from distillkit.schema import Precision

NAMES = {"no": "fp32 (no)", "bf16": "bf16", "fp16": "fp16"}
PARTS = ("weights", "gradients", "optimiser", "teacher", "activations", "vocabulary")
ASSUMPTION = (
    "Memory: of one device, which holds the whole student; its peak is less than the sum, since gradients are made "
    "while activations are freed; Python and its libraries take about 1 GB more. Time: of the steps alone, if every "
    "operation is as fast as those measured above ({precision}): expect up to twice as much, and evaluations and "
    "checkpoints on top."
)


def show_findings(found: Findings) -> None:
    """Show what is here and how fast it is."""
    _list(
        {
            "packages": _packages(found.versions),
            "extras": _extras(found.versions),
            "processor": _processor(found.machine),
            "GPU": _gpus(found.machine),
            "memory": _memory(found.machine),
            "hub": f"{'offline' if found.hub.offline else found.hub.endpoint}, cache {short(found.hub.cache)}",
        }
    )
    _arithmetic(found.speed)
    _list(
        {
            "attention": _attention(found.speed),
            "torch.compile": _compilation(found.speed),
            "elementwise": f"{found.speed.bandwidth / 1e9:.1f} GB/s, {1e6 * found.speed.overhead:.0f} µs a call",
            "all-reduce": _collectives(found.collectives),
        }
    )
    rows = [
        [f"{key}: {short(disk.folder)}", size(disk.free), _rate(disk.write), _rate(disk.read)]
        for key, disk in found.disks.items()
    ]
    show_table("", ["disk", "free", "writes", "reads"], rows)


def show_estimates(
    estimates: Mapping[str, tuple[Estimate, Precision]], problems: Mapping[str, str], speed: Speed
) -> None:
    """Show what trainings would need, and why others could not be estimated."""
    if estimates:
        rows = [
            [name, *(_part(getattr(each.memory, part)) for part in PARTS), size(each.memory.peak)]
            for name, (each, _) in estimates.items()
        ]
        show_table("memory of each device", ["training", *PARTS, "peak"], rows)
        rows = [[name, *_time(each, precision, speed)] for name, (each, precision) in estimates.items()]
        show_table("time", ["training", "parameters", "trained", "steps", "tokens", "GFLOP", "a step", "all"], rows)
        used = sorted({"fp32" if precision is Precision.no else precision.value for _, precision in estimates.values()})
        remark(ASSUMPTION.format(precision=", ".join(used)))
    for name, problem in problems.items():
        remark(f"{name}: not estimated, since an earlier stage has to run first ({problem})")


def show_advice(listed: Sequence[Advice]) -> None:
    """Show what to change."""
    heading("what to change" if listed else "nothing to change")
    grid = Table.grid(padding=(0, 1))
    for advice in listed:
        mark = Text("✗", style="bold red") if advice.broken else Text("•", style="yellow")
        grid.add_row("", mark, Text(advice.what) + Text(f"\n→ {advice.fix}", style="dim"))
    if listed:
        console.print(grid, soft_wrap=False)


def _list(lines: Mapping[str, str]) -> None:
    console.print()
    grid = Table.grid(padding=(0, 2))
    for name, text in lines.items():
        grid.add_row("", Text(name, style="dim"), Text(text))
    console.print(grid, soft_wrap=False)


def _packages(versions: Versions) -> str:
    return " · ".join(f"{name} {version}" for name, version in versions.packages.items())


def _extras(versions: Versions) -> str:
    here = [name for name, missing in versions.extras.items() if not missing]
    lacking = [name for name, missing in versions.extras.items() if missing]
    text = ", ".join(here) or "none"
    return f"{text} · not installed: {', '.join(lacking)}" if lacking else text


def _processor(machine: Machine) -> str:
    return f"{machine.processor} · {machine.cores} cores, {machine.threads} threads · {machine.instructions}"


def _gpus(machine: Machine) -> str:
    lines = [
        f"{gpu.name}, {size(gpu.memory)}, {size(gpu.free)} free, capability {gpu.capability}" for gpu in machine.gpus
    ]
    driver = f"driver {machine.driver}, CUDA {machine.cuda or 'none in torch'}"
    return "\n".join(lines + [driver] * (machine.driver is not None)) or "none"


def _memory(machine: Machine) -> str:
    shared = "" if machine.shared is None else f" · /dev/shm {size(machine.shared)} free"
    return f"{size(machine.memory)}, {size(machine.available)} available{shared}"


def _arithmetic(speed: Speed) -> None:
    rows = [
        [
            f"{NAMES[name]}{' ←' if name == speed.best else ''}",
            f"{flops / 1e9:,.1f}",
            f"{flops / speed.matmul['no']:.2f} ×",
        ]
        for name, flops in speed.matmul.items()
    ]
    show_table("", ["train.precision", "matrix products, GFLOP/s", "against fp32"], rows)


def _attention(speed: Speed) -> str:
    runs = [f"{name} {milliseconds(taken)}" for name, taken in speed.attention.items() if taken is not None]
    lacking = [name for name, taken in speed.attention.items() if taken is None]
    return " · ".join(runs) + (f" · not here: {', '.join(lacking)}" if lacking else "")


def _compilation(speed: Speed) -> str:
    tried = speed.compilation
    if tried.works:
        return f"works ({tried.seconds:.0f} s)"
    return f"does not work: {tried.problem}" if tried.works is False else f"not known: {tried.problem}"


def _collectives(tried: Collectives) -> str:
    who = f"{tried.processes} processes over {tried.backend}"
    if tried.latency is None or tried.bandwidth is None:
        return f"{who}: {tried.problem}"
    return f"{who}: {milliseconds(1000 * tried.latency)}, {tried.bandwidth / 1e9:.1f} GB/s"


def _time(each: Estimate, precision: Precision, speed: Speed) -> list[str]:
    seconds = each.step_seconds(speed, precision)
    steps, whole = (NOTHING, NOTHING) if each.steps is None else (f"{each.steps:,}", clock(each.steps * seconds))
    work = f"{each.step.flops / 1e9:,.1f}"
    return [
        count(each.parameters),
        count(each.trained),
        steps,
        f"{each.tokens:,}",
        work,
        milliseconds(1000 * seconds),
        whole,
    ]


def size(value: float) -> str:
    """Write bytes, in MB or GB (10⁹)."""
    return f"{value / 1e9:,.1f} GB" if value >= 1e9 else f"{value / 1e6:,.0f} MB"


def _part(value: int) -> str:
    return size(value) if value else NOTHING


def clock(seconds: float) -> str:
    """Write a time that is not known exactly."""
    if not isfinite(seconds):
        return NOTHING
    return (
        f"{seconds:.0f} s"
        if seconds < 100
        else f"{seconds / 60:.0f} min"
        if seconds < 6000
        else f"{seconds / 3600:,.1f} h"
    )


def short(path: str) -> str:
    """Write a path with "~" for the user's own folder."""
    home = str(Path.home())
    return f"~{path.removeprefix(home)}" if path.startswith(f"{home}/") else path


def _rate(value: float | None) -> str:
    return NOTHING if value is None else f"{value / 1e6:,.0f} MB/s"
