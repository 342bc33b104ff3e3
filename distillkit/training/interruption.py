"""Signals that ask a run to end: the step is finished and a checkpoint is written first."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any, NoReturn

from distillkit.reporting.console import notice
from distillkit.worker import RESTARTS

PREEMPTED = 128 + signal.SIGTERM  # the exit code, whichever signal a scheduler sends
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def restarted() -> bool:
    """Tell whether this process replaces one that died (`launch.max_restarts`, or torchrun's own)."""
    return any(int(os.environ.get(name, "0")) for name in (RESTARTS, "TORCHELASTIC_RESTART_COUNT"))


class Interruption:
    """While it is entered, SIGTERM, SIGUSR1 and the first Ctrl-C only set `asked`; a second Ctrl-C stops at once.

    Outside the main thread, where Python takes no signals, it does nothing.
    """

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def end(self) -> NoReturn:
        """End as the signal wants it.

        Raises:
            KeyboardInterrupt: After Ctrl-C.
            SystemExit: With code 143 after any other signal, or where only another process was asked.
        """
        raise KeyboardInterrupt if self.asked is signal.SIGINT else SystemExit(PREEMPTED)

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        if self.asked is signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = signal.Signals(number)
        again = " (Ctrl-C again: at once)" if number == signal.SIGINT else ""
        notice(f"{self.asked.name}: ending after this step and a checkpoint{again}")
