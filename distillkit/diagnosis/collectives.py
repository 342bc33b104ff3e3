"""Whether processes can work together: two of them are started as training starts them, and add up tensors.

`python -m distillkit.diagnosis.collectives ANSWER SECONDS` is one of these processes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from distillkit.launch import agent_command
from distillkit.schema import LaunchSettings

TEST_SECONDS = 10.0  # of the test itself
START_SECONDS = 60.0  # of starting Python and importing torch in every process
LARGE = 16 << 20  # bytes
SMALL_CALLS, LARGE_CALLS = 20, 5


@dataclass(frozen=True)
class Collectives:
    """What an all-reduce over a few processes came to.

    Attributes:
        processes: How many.
        backend: "gloo" or "nccl".
        latency: Seconds of one number.
        bandwidth: Bytes a second of a large tensor, counted once.
        problem: Why it failed; the numbers are None then.
    """

    processes: int
    backend: str
    latency: float | None = None
    bandwidth: float | None = None
    problem: str | None = None


def try_collectives(gpus: int, seconds: float = TEST_SECONDS, start: float = START_SECONDS) -> Collectives:
    """Start the processes and wait for what they measure, but no longer than `start + seconds`."""
    processes, backend = (gpus, "nccl") if gpus > 1 else (2, "gloo")
    with TemporaryDirectory(prefix="distillkit-") as name:
        folder = Path(name)
        answer, said = folder / "answer.json", folder / "said"
        work = ["distillkit.diagnosis.collectives", str(answer), str(seconds)]
        argv = agent_command(LaunchSettings(num_processes=processes), folder, work)
        env = os.environ | ({} if backend == "nccl" else {"ACCELERATE_USE_CPU": "true"})
        with said.open("wb") as file:
            code = _run(argv, env, file.fileno(), start + seconds)
        if answer.exists():
            latency, bandwidth = json.loads(answer.read_text(encoding="utf-8"))
            return Collectives(processes, backend, latency, bandwidth)
        text = said.read_text(encoding="utf-8", errors="replace")
    late = f"no answer within {start + seconds:.0f} s"
    return Collectives(processes, backend, problem=late if code is None else _reason(text, code))


def _run(argv: list[str], env: dict[str, str], output: int, seconds: float) -> int | None:
    """Run the agent in a session of its own; return its exit code, or None if it had to be ended."""
    process = subprocess.Popen(
        argv, env=env, stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True
    )
    assert process.stdin is not None
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        process.stdin.close()  # tells the agent, which ends the processes
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _reason(printed: str, code: int) -> str:
    """Find in what the processes printed why they failed."""
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line or "error:" in line]
    return (errors or lines or [f"the processes ended with {code}"])[-1][:200]


def worker(answer: Path, seconds: float) -> None:
    """Be one of the processes: join, add up, and let the first one write what it measured."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(int(START_SECONDS + seconds) + 1)  # whatever happens, this process ends

    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    limit = InitProcessGroupKwargs(timeout=timedelta(seconds=seconds))
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=[limit])
    small = torch.ones(1, device=accelerator.device)
    large = torch.ones(LARGE // 4, device=accelerator.device)
    latency, bandwidth = _fastest(small, SMALL_CALLS), LARGE / _fastest(large, LARGE_CALLS)
    total = torch.ones(1, device=accelerator.device)
    torch.distributed.all_reduce(total)
    if total.item() != accelerator.num_processes:
        raise RuntimeError(f"Error: the sum of {accelerator.num_processes} ones is {total.item()}")
    if accelerator.is_main_process:
        answer.write_text(json.dumps([latency, bandwidth]), encoding="utf-8")
    accelerator.end_training()


def _fastest(tensor: torch.Tensor, calls: int) -> float:
    """Return the seconds of the fastest of a few all-reduces after the first; every process does as many."""
    times = []
    for _ in range(calls):
        tensor.fill_(1.0)
        started = time.perf_counter()
        torch.distributed.all_reduce(tensor)
        if tensor.is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return min(times[1:])


if __name__ == "__main__":
    worker(Path(sys.argv[1]), float(sys.argv[2]))
