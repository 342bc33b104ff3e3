"""What a run writes down while it goes: metrics.jsonl, trackers and the progress display."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from distillkit.reporting.console import ProgressDisplay


class Records:
    """Send every event to metrics.jsonl and the trackers, from the main process.

    Args:
        path: The metrics.jsonl; lines are appended.
        accelerator: Knows the main process and the trackers.
    """

    def __init__(self, path: Path, accelerator: Accelerator) -> None:
        self.path = path
        self.accelerator = accelerator
        self.started = time.monotonic()

    def rewind(self, step: int) -> None:
        """Drop the events after a step, which a resumed run will write again; and lines that are no events."""
        if not self.accelerator.is_main_process or not self.path.exists():
            return
        kept = []
        for line in self.path.read_bytes().splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + b"\n")
            except (ValueError, KeyError, TypeError):
                continue
        beside = self.path.with_suffix(".partial")
        beside.write_bytes(b"".join(kept))
        beside.replace(self.path)

    def write(self, event: str, step: int, values: dict[str, Any]) -> None:
        """Write one event.

        Args:
            event: "train", "evaluate" or "skipped".
            step: Optimiser steps done.
            values: Numbers, or mappings of numbers; what is neither does not go to the trackers.
        """
        if not self.accelerator.is_main_process:
            return
        line = {"event": event, "step": step, **values, "seconds": round(time.monotonic() - self.started, 3)}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.accelerator.log({f"{event}/{name}": value for name, value in flat(values).items()}, step=step)

    def progress(self, title: str, steps: int) -> ProgressDisplay:
        """Return the display of a run of so many steps; silent on other processes than the main one."""
        return ProgressDisplay(title, steps, quiet=not self.accelerator.is_main_process)


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Flatten nested mappings of numbers: {"a": {"b": 1}} → {"a/b": 1}; leave out what is not a number."""
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            found[prefix + name] = value
    return found
