"""What a command came to, in a few words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distillkit.reporting import numbers


def outcome(result: Mapping[str, Any]) -> str:
    """Say in a few words what a command came to."""
    if "models" in result:
        return f"{len(result['models'])} models compared"
    if "metrics" in result:
        metrics = ", ".join(f"{numbers.title(n)} {numbers.metric_value(n, v)}" for n, v in result["metrics"].items())
        return f"{result['steps']:,} steps in {numbers.duration(result['seconds'])}{'; ' if metrics else ''}{metrics}"
    if "trials" in result:
        return f"{sum(trial['value'] is not None for trial in result['trials'])} trials compared"
    if "stores" in result:
        return f"{len(result['stores'])} teacher stores compared with their teachers"
    return f"{result['rows']:,} rows" if "rows" in result else "done"
