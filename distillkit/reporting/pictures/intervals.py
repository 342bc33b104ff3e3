"""A small strip for a table's cell: a value with its interval, on an axis that all rows share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from distillkit.reporting import numbers
from distillkit.reporting.pictures.axes import Axis, fitted
from distillkit.reporting.pictures.svg import colour, element, line, marker, picture

WIDTH, HEIGHT, EDGE = 150, 22, 8


def strips(comparison: Mapping[str, Any], series: Mapping[str, int]) -> dict[str, Markup]:
    """Draw a strip for each model: the deciding metric, better to the right, and where the teacher is."""
    quality, models = comparison["quality"], comparison["models"]
    values = {name: model["metrics"].get(quality) for name, model in models.items()}
    bounds = {name: model["intervals"].get(quality) for name, model in models.items()}
    known = [v for v in values.values() if v is not None] + [v for pair in bounds.values() if pair for v in pair]
    if len(known) < 2:
        return {}
    axis = fitted(known, down=not comparison["higher_is_better"], room=0.03)
    teacher = values[comparison["teacher"]]
    return {
        name: _strip(axis, values[name], bounds[name], teacher, series[name], f"{name}: {_written(quality, model)}")
        for name, model in models.items()
        if values[name] is not None
    }


def _strip(
    axis: Axis, value: float, bounds: list[float] | None, teacher: float | None, series: int, hint: str
) -> Markup:
    middle = HEIGHT / 2
    drawn = [line(0, middle, WIDTH, middle, "grid")]
    if teacher is not None:
        drawn.append(line(_at(axis, teacher), 1, _at(axis, teacher), HEIGHT - 1, "reference"))
    if bounds is not None:
        low, high = (_at(axis, bound) for bound in bounds)
        drawn.append(line(low, middle, high, middle, f"whisker {colour(series)}"))
    drawn.append(element("g", marker(_at(axis, value), middle, series, hint)))
    return picture(WIDTH, HEIGHT, hint, drawn)


def _at(axis: Axis, value: float) -> float:
    return EDGE + axis.share(value) * (WIDTH - 2 * EDGE)


def _written(quality: str, model: Mapping[str, Any]) -> str:
    interval = numbers.metric_interval(quality, model["intervals"].get(quality))
    return f"{numbers.metric_value(quality, model['metrics'][quality])}, {interval}"
