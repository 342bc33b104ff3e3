"""The entry of one process: a frozen config → its command. `python -m distillkit.worker COMMAND FROZEN.yaml`."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

from distillkit.errors import TRACEBACK, UserError, report, told
from distillkit.freeze import load
from distillkit.schema import Config

COMPLAINT = "complaint"  # beside the frozen config: bad input that a process found, for the launcher to report once
RESTARTS = "DISTILLKIT_RESTARTS"  # in the environment: how often a process of this run has died (`launch.max_restarts`)


def run(command: str, config: Config, *stages: Any) -> dict[str, Any]:
    """Run a command in this process and return its report."""
    return import_module(f"distillkit.commands.{command.replace('-', '_')}").main(config, *stages)


def main(command: str, frozen: Path) -> int:
    """Run a command with a frozen config; return the exit code."""
    try:
        run(command, load(frozen))
    except (Exception, KeyboardInterrupt) as error:
        complaint = told(error)
        if not isinstance(complaint, UserError):
            return report(error)
        if os.environ.get(TRACEBACK):
            traceback.print_exception(error)
        with contextlib.suppress(FileExistsError), frozen.with_name(COMPLAINT).open("x", encoding="utf-8") as file:
            file.write(str(complaint))
        return 2
    return 0


if __name__ == "__main__":
    atexit.register(gc.freeze)  # as in app.main
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
