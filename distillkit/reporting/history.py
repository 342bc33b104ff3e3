"""What a training run wrote down: metrics.jsonl as curves."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class History:
    """One training run.

    Attributes:
        name: Of the stage or step.
        terms: Name → (steps, values) of each loss term, and of "loss", their weighted sum.
        metrics: Name → (steps, values) of each metric on validation.
    """

    name: str
    terms: dict[str, tuple[list[float], list[float]]] = field(default_factory=dict)
    metrics: dict[str, tuple[list[float], list[float]]] = field(default_factory=dict)


def read_history(name: str, path: Path) -> History | None:
    """Read a metrics.jsonl; None if there is none or nothing in it. A line that is no event is passed over."""
    if not path.is_file():
        return None
    history = History(name)
    for line in path.read_bytes().splitlines():
        try:
            event = dict(json.loads(line))
        except (ValueError, TypeError):
            continue
        if event.get("event") == "train":
            _add(history.terms, event["step"], {"loss": event.get("loss"), **event.get("terms", {})})
        elif event.get("event") == "evaluate":
            _add(
                history.metrics,
                event["step"],
                {k: v for k, v in event.items() if k not in ("event", "step", "seconds")},
            )
    return history if history.terms or history.metrics else None


def _add(curves: dict[str, tuple[list[float], list[float]]], step: float, values: dict[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, int | float) and value == value and abs(value) != float("inf"):
            steps, found = curves.setdefault(name, ([], []))
            steps.append(step)
            found.append(value)
