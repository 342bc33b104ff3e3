"""What to change, from what was found: only what is wrong, or costs something."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from distillkit.diagnosis.collectives import Collectives
from distillkit.diagnosis.devices import Machine
from distillkit.diagnosis.disk import Disk
from distillkit.diagnosis.estimate import Estimate
from distillkit.diagnosis.hub import Hub
from distillkit.diagnosis.speed import Speed
from distillkit.diagnosis.versions import Versions
from distillkit.schema import LaunchSettings, Precision

GB = 1e9
LEAST_SHARED, LEAST_FREE = 256e6, 5 * GB  # bytes: /dev/shm, a disk
SLOW_DISK = 20e6  # bytes a second
WORTH = 1.5  # times as fast, for a change of precision
BUSY = 1.5  # programs a core


@dataclass(frozen=True)
class Advice:
    """One thing to change.

    Attributes:
        broken: Whether training cannot work so.
        what: Was found.
        fix: What to do.
    """

    broken: bool
    what: str
    fix: str


@dataclass(frozen=True)
class Findings:
    """Everything that was found out."""

    versions: Versions
    machine: Machine
    hub: Hub
    speed: Speed
    collectives: Collectives
    disks: Mapping[str, Disk]  # config key → what its folder lies on


def advise(found: Findings, precisions: Collection[Precision], launch: LaunchSettings) -> list[Advice]:
    """List what to change, what is broken first.

    Args:
        found: On this machine.
        precisions: Of the trainings that are planned.
        launch: Of these trainings.
    """
    listed = [
        *_of_installation(found),
        *_of_machine(found, precisions),
        *_of_processes(found, launch),
        *_of_disks(found),
    ]
    return sorted(listed, key=lambda advice: not advice.broken)


def advise_on(stage: str, estimate: Estimate, room: int) -> Iterator[Advice]:
    """Say what would make a training fit into the memory of a device."""
    peak = estimate.memory.peak
    if peak > 0.9 * room:
        rows = max(1, estimate.longest[0] // 2)
        what = f"{stage} needs about {peak / GB:.1f} GB of {room / GB:.1f} GB"
        yield Advice(False, what, f"train.micro_batch_size={rows} (the result stays the same), train.precision=bf16")


def _of_installation(found: Findings) -> Iterator[Advice]:
    for need in found.versions.unmet:
        yield Advice(True, f"needed: {need}", f"pip install '{need.partition(' ')[0]}'")
    machine = found.machine
    if machine.driver is not None and not machine.gpus:
        build = "is built without CUDA" if machine.cuda is None else f"(CUDA {machine.cuda}) does not find it"
        yield Advice(False, f"there is a GPU (driver {machine.driver}), and torch {build}", "install torch for CUDA")
    if found.speed.compilation.works is False:
        missing = found.speed.compilation.problem or ""
        fix = "install g++" if "C++ compiler" in missing else "needed only where torch.compile is asked for"
        yield Advice(False, f"torch.compile does not work: {missing}", fix)


def _of_machine(found: Findings, precisions: Collection[Precision]) -> Iterator[Advice]:
    machine, speed, best = found.machine, found.speed, found.speed.best
    for own in sorted({precision.value for precision in precisions} - {best}):
        gain = speed.matmul[best] / speed.matmul[own]
        if gain > WORTH:
            what = f"train.precision={own} is set, and products in {best} are {gain:.1f} times as fast here"
            yield Advice(False, what.replace("products in no", "products in fp32"), f"train.precision={best}")
    if not machine.gpus:
        yield from _of_cores(machine)
    if machine.shared is not None and machine.shared < LEAST_SHARED:
        what = f"/dev/shm has {machine.shared / 1e6:.0f} MB, and processes on several GPUs talk through it"
        yield Advice(False, what, "docker run --shm-size=8g, or a larger tmpfs")


def _of_cores(machine: Machine) -> Iterator[Advice]:
    idle = machine.cores - machine.threads
    if machine.omp_threads is not None and idle > 0:
        what = f"OMP_NUM_THREADS={machine.omp_threads} leaves {idle} of {machine.cores} cores idle"
        yield Advice(False, what, "unset it, unless several processes share the machine")
    if machine.threads > machine.cores:
        what = f"torch takes {machine.threads} threads for {machine.cores} cores"
        yield Advice(False, what, f"OMP_NUM_THREADS={machine.cores}")
    if machine.load > BUSY * machine.cores:
        what = f"{machine.load:.0f} programs want {machine.cores} cores: what was measured here is too slow"
        yield Advice(False, what, "ask again when the machine is idle")


def _of_processes(found: Findings, launch: LaunchSettings) -> Iterator[Advice]:
    tried = found.collectives
    if tried.problem is not None:
        needed = launch.num_processes > 1 or launch.num_machines > 1
        what = f"{tried.processes} processes cannot work together ({tried.backend}): {tried.problem}"
        firewall = "set GLOO_SOCKET_IFNAME=lo" if tried.backend == "gloo" else "set NCCL_DEBUG=INFO to see why"
        yield Advice(needed, what, firewall)
    gpus = len(found.machine.gpus)
    if gpus > 1 and launch.num_processes == 1:
        yield Advice(False, f"{gpus} GPUs are here, and one is used", f"launch.num_processes={gpus}")
    if launch.num_processes // launch.num_machines > gpus > 0 and not os.environ.get("ACCELERATE_USE_CPU"):
        yield Advice(True, f"{launch.num_processes} processes and {gpus} GPUs", f"launch.num_processes={gpus}")


def _of_disks(found: Findings) -> Iterator[Advice]:
    for key, disk in found.disks.items():
        if disk.problem is not None:
            yield Advice(True, f"cannot write to {disk.tried} ({disk.problem})", f"choose another {key}")
        elif disk.free < LEAST_FREE:
            yield Advice(False, f"{disk.tried} has {disk.free / GB:.1f} GB left", f"make room, or choose another {key}")
        elif disk.write is not None and disk.write < SLOW_DISK:
            what = f"{disk.tried} writes {disk.write / 1e6:.0f} MB a second, so checkpoints will take long"
            yield Advice(False, what, f"choose another {key}, or raise train.checkpoint_every")
