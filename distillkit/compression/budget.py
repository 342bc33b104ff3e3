"""Which variants no other dominates, and which of them keeps a budget."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Any

from distillkit.errors import UserError
from distillkit.schema import Budget

COSTS = ("bytes", "latency_ms")


def check_budget(budget: Budget, speed: bool) -> None:
    """Refuse limits that cannot be kept, or are not measured."""
    for key in ("size_mb", "latency_ms", "max_quality_drop"):
        value, least = getattr(budget, key), key != "max_quality_drop"
        if value is not None and (value < 0 or (least and value == 0)):
            raise UserError(
                f"must be {'above' if least else 'at least'} 0, got {value}", where=f"compress.budget.{key}"
            )
    if budget.latency_ms is not None and not speed:
        fix = "set evaluate.speed=true"
        raise UserError("latency is not measured", where="compress.budget.latency_ms", fix=fix)


def is_set(budget: Budget) -> bool:
    """Tell whether there is any limit."""
    return any(value is not None for value in (budget.size_mb, budget.latency_ms, budget.max_quality_drop))


def misses(budget: Budget, model: Mapping[str, Any], drop: float) -> list[str]:
    """Say which limits a model of report.json misses, and by what.

    Args:
        budget: The limits.
        model: Of the report.
        drop: What it has lost of the quality metric.
    """
    found = {
        "size_mb": None if model["bytes"] is None else model["bytes"] / 1e6,
        "latency_ms": model["latency_ms"],
        "max_quality_drop": drop,
    }
    limits = {key: limit for key in found if (limit := getattr(budget, key)) is not None}
    return [
        f"{key} {_shown(found[key])} instead of {limit:g}"
        for key, limit in limits.items()
        if found[key] is None or not found[key] <= limit
    ]


def choose(budget: Budget, report: Mapping[str, Any], start: str, variants: list[str]) -> dict[str, Any]:
    """Choose the variant of the best quality that keeps the budget; of equal ones the smallest.

    Returns:
        What report.json keeps: "limits", the "chosen" variant or None, and what each other one "misses".
    """
    models, quality = report["models"], report["quality"]
    drops = {name: _drop(report, models[start], models[name]) for name in variants}
    missed = {name: misses(budget, models[name], drops[name]) for name in variants}
    kept = [name for name in variants if not missed[name]]
    chosen = min(kept, key=lambda name: (drops[name], models[name]["bytes"] or inf), default=None)
    limits = {key: getattr(budget, key) for key in ("size_mb", "latency_ms", "max_quality_drop")}
    return {
        "limits": {key: limit for key, limit in limits.items() if limit is not None},
        "quality": quality,
        "chosen": chosen,
        "misses": {name: found for name, found in missed.items() if found},
    }


def front(report: Mapping[str, Any]) -> list[str]:
    """Return the models that no other dominates: none is as good in quality, size and latency, and better in one."""
    models = report["models"]
    first = next(iter(models.values()))
    costs = [cost for cost in COSTS if all(model[cost] is not None for model in models.values())]
    points = {name: (_drop(report, first, model), *(model[cost] for cost in costs)) for name, model in models.items()}
    return [name for name, own in points.items() if not any(_dominates(other, own) for other in points.values())]


def _dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def _drop(report: Mapping[str, Any], start: Mapping[str, Any], model: Mapping[str, Any]) -> float:
    before, after = (entry["metrics"][report["quality"]] for entry in (start, model))
    return float(before - after if report["higher_is_better"] else after - before)


def _shown(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4g}"
