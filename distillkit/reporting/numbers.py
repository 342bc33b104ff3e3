"""How numbers are written: metrics, intervals, p-values, sizes and times."""

from __future__ import annotations

import json
from math import isfinite
from typing import Any

NOTHING = "–"
SHARES = frozenset({"accuracy", "acc", "f1", "precision", "recall", "exact"})  # words of metrics from 0 to 1


def is_share(metric: str) -> bool:
    """Tell whether a metric is a share, which is written in percent: "f1", "macro_f1", "arc_easy:acc_norm"."""
    return not SHARES.isdisjoint(metric.rpartition(":")[2].split("_"))


def title(metric: str) -> str:
    """Write a metric's name for readers."""
    return metric.replace("_", " ").replace(":", " ")


def metric_value(metric: str, value: float | None) -> str:
    """Write a metric: shares in percent, others with four decimals, fewer from 10 on."""
    if value is None or not isfinite(value):
        return NOTHING
    return f"{100 * value:.2f} %" if is_share(metric) else _decimal(value)


def metric_interval(metric: str, bounds: list[float] | None) -> str:
    """Write an interval of a metric."""
    if bounds is None:
        return NOTHING
    low, high = bounds
    if is_share(metric):
        return f"{100 * low:.1f}–{100 * high:.1f} %"
    decimals = 1 if abs(high) >= 100 else 2 if abs(high) >= 10 else 3
    return f"{low:.{decimals}f}–{high:.{decimals}f}"


def half_interval(metric: str, bounds: list[float] | None) -> str:
    """Write half the width of an interval."""
    if bounds is None:
        return NOTHING
    half = (bounds[1] - bounds[0]) / 2
    return f"± {100 * half:.2f} %" if is_share(metric) else f"± {_decimal(half)}"


def metric_difference(metric: str, value: float | None) -> str:
    """Write a difference of two values of a metric, with its sign."""
    if value is None or not isfinite(value):
        return NOTHING
    if is_share(metric):
        return _signed(f"{100 * value:+.2f}") + " %"
    return _signed(f"{value:+.2f}" if abs(value) >= 10 else f"{value:+.4f}")


def p_value(p: float | None) -> str:
    """Write a p-value."""
    if p is None:
        return NOTHING
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def percent(share: float | None) -> str:
    """Write a share."""
    return NOTHING if share is None or not isfinite(share) else f"{100 * share:.1f} %"


def number(value: float | None, decimals: int = 4) -> str:
    """Write a plain number."""
    return NOTHING if value is None or not isfinite(value) else f"{value:.{decimals}f}"


def count(value: int) -> str:
    """Write a number of things, in millions from a hundred thousand on."""
    return f"{value / 1e6:.2f} M" if value >= 1e5 else f"{value:,}"


def megabytes(value: int | None) -> str:
    """Write bytes in megabytes (10⁶), few of them in kilobytes."""
    if value is None:
        return NOTHING
    if value < 1e5:
        return f"{value / 1e3:,.0f} kB"
    return f"{value / 1e6:,.1f} MB" if value < 1e9 else f"{value / 1e6:,.0f} MB"


def milliseconds(value: float | None) -> str:
    """Write a time."""
    if value is None:
        return NOTHING
    return f"{value:.2f} ms" if value < 1 else f"{value:.1f} ms" if value < 100 else f"{value:,.0f} ms"


def shown(value: Any) -> str:
    """Write what a model read or said: text as it is, numbers short, all else as JSON."""
    if isinstance(value, str):
        return value
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def duration(seconds: float) -> str:
    """Write seconds as minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _decimal(value: float) -> str:
    return f"{value:.4g}" if abs(value) >= 1e6 else f"{value:.2f}" if abs(value) >= 10 else f"{value:.4f}"


def _signed(text: str) -> str:
    return text.replace("-", "−")
