"""Run a command here, or in N processes (Accelerate) on one or more machines. Imports no torch.

`python -m distillkit.launch ARGUMENTS` is the agent in between: `accelerate launch` that knows when to use gloo,
passes exit codes through, and ends with the process that started it.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from distillkit.errors import UserError, report
from distillkit.freeze import freeze
from distillkit.schema import Config, LaunchSettings
from distillkit.worker import COMPLAINT, RESTARTS, run

ASKED = (128 + signal.SIGINT, 128 + signal.SIGTERM)  # exit codes of a run that was asked to end


def start(command: str, config: Config, *stages: Any) -> dict[str, Any] | None:
    """Run a command and return its report, or None if other processes wrote it.

    One process works in place, and so does each process that torchrun or Slurm started. `run` works in place too:
    it starts its stages from here; and `doctor`, which tries how processes are started.

    Raises:
        UserError: Bad input, found by any process.
        SystemExit: A process failed; it has said why.
    """
    settings = config.launch
    alone = settings.num_processes == 1 and settings.num_machines == 1 and settings.config_file is None
    if command in ("run", "doctor") or alone or {"RANK", "LOCAL_RANK"} & set(os.environ):
        return run(command, config, *stages)
    with TemporaryDirectory(prefix="distillkit-") as folder:
        _spawn(command, config, Path(folder))
    return None


def accelerate_config(settings: LaunchSettings) -> dict[str, Any]:
    """Say everything that `accelerate launch` would otherwise look up in the user's default config.

    MULTI_GPU is the form that starts N processes on CPUs too; MULTI_CPU starts one unless MPI is there.
    """
    machines, processes = settings.num_machines, settings.num_processes
    if machines < 1 or processes < 1 or processes % machines:
        raise UserError(f"{processes} processes do not spread over {machines} machines", where="launch.num_processes")
    if machines > 1 and not (settings.main_process_ip and settings.main_process_port):
        raise UserError("needed with several machines", where="launch.main_process_ip and launch.main_process_port")
    if not 0 <= settings.machine_rank < machines:
        raise UserError(f"must be from 0 to {machines - 1}, got {settings.machine_rank}", where="launch.machine_rank")
    return {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "MULTI_GPU",
        "num_processes": processes,
        "num_machines": machines,
        "machine_rank": settings.machine_rank,
        "main_process_ip": settings.main_process_ip,
        "main_process_port": settings.main_process_port or 0,
        "gpu_ids": "all",
        "mixed_precision": "no",
        "use_cpu": False,
        "debug": False,
    }


def agent_command(settings: LaunchSettings, folder: Path, work: list[str]) -> list[str]:
    """Return the argv of an agent that starts the processes.

    Args:
        settings: How many, and where.
        folder: For the agent's own config.
        work: The module that each process runs, and its arguments.
    """
    if settings.config_file is None:
        launcher = folder / "accelerate.yaml"
        launcher.write_text(yaml.safe_dump(accelerate_config(settings)), encoding="utf-8")
    else:
        launcher = Path(settings.config_file)
        if not launcher.is_file():
            raise UserError(f"no such file: {launcher}", where="launch.config_file")
    here = settings.num_processes // settings.num_machines
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // max(1, here)))
    flags = ["--config_file", str(launcher), "--num_cpu_threads_per_process", threads]
    if settings.config_file is None:
        flags += ["--num_processes", str(settings.num_processes), "--num_machines", str(settings.num_machines)]
    return [sys.executable, "-m", "distillkit.launch", *flags, "--module", *work]


def _spawn(command: str, config: Config, folder: Path) -> None:
    frozen = folder / f"{command}.yaml"
    frozen.write_text(freeze(config), encoding="utf-8")
    argv, most = agent_command(config.launch, folder, ["distillkit.worker", command, str(frozen)]), config.launch
    for restarts in range(most.max_restarts + 1):
        code = _wait(argv, restarts)
        complaint = folder / COMPLAINT
        if complaint.exists():
            raise UserError(complaint.read_text(encoding="utf-8"))
        if code in (0, *ASKED):
            break
        if restarts < most.max_restarts:
            print(f"distillkit: starting again, {restarts + 1} of {most.max_restarts} times", file=sys.stderr)
    if code:
        raise SystemExit(code)


def _wait(argv: list[str], restarts: int) -> int:
    """Run the agent in a session of its own; when this process ends, however it ends, the closed pipe tells it."""
    env = {**os.environ, RESTARTS: str(restarts)}
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, start_new_session=True, env=env)
    assert process.stdin is not None
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        return process.wait()
    finally:
        process.stdin.close()
        process.wait()
        signal.signal(signal.SIGTERM, before)


def agent(arguments: list[str]) -> int:
    """Be `accelerate launch`, and return the exit code of the first process that failed."""
    threading.Thread(target=_end_with_parent, daemon=True).start()

    import torch
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.disable(logging.ERROR)  # torchrun's reports about processes that have reported themselves
    parsed = launch_command_parser().parse_args(arguments)
    try:
        choose_devices((parsed.num_processes or 1) // (parsed.num_machines or 1), torch.cuda.device_count())
        launch_command(parsed)
    except UserError as error:
        return report(error)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            print(f"distillkit: error: process {rank} was ended by {name}; the others were stopped", file=sys.stderr)
        return failure.exitcode if failure.exitcode > 0 else 1
    except SignalException as error:
        return 128 + error.sigval
    return 0


def choose_devices(processes: int, gpus: int) -> None:
    """Let this machine's processes use its CPU (gloo) where it has no GPU, and refuse GPUs that are too few."""
    if gpus == 0:
        os.environ["ACCELERATE_USE_CPU"] = "true"
    elif processes > gpus and os.environ.get("ACCELERATE_USE_CPU") != "true":
        raise UserError(
            f"{processes} processes on a machine with {gpus} GPUs",
            where="launch.num_processes",
            fix=f"take at most {gpus}, or set ACCELERATE_USE_CPU=true in the environment",
        )


def _end_with_parent() -> None:
    os.read(0, 1)  # returns when the pipe closes
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(agent(sys.argv[1:]))
