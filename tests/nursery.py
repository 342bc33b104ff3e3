"""Command lines in processes of their own, which cost no import: `python -m tests.nursery` forks them.

It imports everything once, and reads requests as JSON lines from its standard input:
{"argv": …, "cwd": …, "printed": …, "most": …, "env": …} starts a process and is answered with its id;
{"wait": id, "block": …} is answered with its exit code, or null while it runs.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


class Nursery:
    """Starts command lines of distillkit; ends with the block."""

    def __init__(self) -> None:
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        command, pipe = [sys.executable, "-m", "tests.nursery"], subprocess.PIPE
        self.process = subprocess.Popen(command, cwd=ROOT, env=env, stdin=pipe, stdout=pipe, text=True)
        self.numbers = count()

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def ask(self, **request: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, argv: list[str], cwd: Path, most: int | None = None, **env: str) -> Child:
        """Run `distillkit ARGV` in a folder, where no file may grow beyond `most` bytes."""
        printed = cwd / f"printed-{next(self.numbers)}"
        return Child(self, self.ask(argv=argv, cwd=str(cwd), printed=str(printed), most=most, env=env), printed)

    def group(self, argv: list[str], cwd: Path, processes: int) -> list[Child]:
        """Run `distillkit ARGV` in several processes that meet over gloo, as torchrun would start them."""
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = str(free.getsockname()[1])
        meeting = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "localhost", "MASTER_PORT": port}
        meeting["ACCELERATE_USE_CPU"] = "true"
        ranks = map(str, range(processes))
        return [self.start(argv, cwd, RANK=rank, LOCAL_RANK=rank, **meeting) for rank in ranks]


@dataclass
class Child:
    """A process that was started, and what it has printed."""

    nursery: Nursery
    pid: int
    printed: Path

    def poll(self) -> int | None:
        """Return the exit code (negative: the signal that ended it); None while it runs."""
        return self.nursery.ask(wait=self.pid, block=False)

    def wait(self) -> int:
        return self.nursery.ask(wait=self.pid, block=True)

    @property
    def out(self) -> str:
        return self.printed.with_suffix(".out").read_text()

    @property
    def err(self) -> str:
        return self.printed.with_suffix(".err").read_text()


def become(argv: list[str], cwd: str, printed: str, most: int | None, env: dict[str, str]) -> int:
    """Be a process that a shell has just started, and return its exit code."""
    from distillkit import cli

    os.setsid()
    os.chdir(cwd)
    os.environ |= env
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for stream, ending in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{printed}.{ending}", os.O_WRONLY | os.O_CREAT), stream)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if most is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    return cli.main(argv)


def serve() -> int:
    """Answer requests until the input ends; a forked process ends with its own exit code."""
    for module in ("distillkit.app", "distillkit.commands.train", "tests.tiny"):
        import_module(module)
    gc.freeze()  # a process that ends would look at every object of what was imported: more than a second
    ended: dict[int, int] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "argv" in request:
            answer: int | None = os.fork()
            if answer == 0:
                return become(**request)
        else:
            pid = request["wait"]
            if pid not in ended:
                found, status = os.waitpid(pid, 0 if request["block"] else os.WNOHANG)
                ended |= {pid: os.waitstatus_to_exitcode(status)} if found else {}
            answer = ended.get(pid)
        print(json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(serve())
