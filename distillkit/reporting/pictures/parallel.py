"""Parallel coordinates: every trial a line across the axes of its values to what it came to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from distillkit.reporting.pictures.axes import Axis, fitted, labelled
from distillkit.reporting.pictures.svg import colour, element, line, path, picture, text, width_of

HEIGHT, TOP, BOTTOM, GAP = 300.0, 40.0, 14.0, 170.0
FEW = 5  # different numbers, each of which is marked
FAINT = 0.18  # opacity of the worst line; the best has 1


@dataclass(frozen=True)
class Column:
    """An axis.

    Attributes:
        title: Written above it.
        values: Of each line, as numbers or texts.
        scale: "log", "linear", or "choice" for values without an order.
        down: Whether small values are better and stand at the top.
        percent: Whether ticks are written in percent.
    """

    title: str
    values: Sequence[float | str]
    scale: str = "linear"
    down: bool = False
    percent: bool = False


@dataclass(frozen=True)
class Trace:
    """A line: how good it is, from 0 to 1, its colour, what shows when the mouse rests on it, and its dashes."""

    goodness: float
    series: int
    hint: str
    style: str = ""


def parallel(columns: Sequence[Column], traces: Sequence[Trace]) -> Markup | None:
    """Draw lines across axes, better ones over worse ones; None where there are fewer than two lines."""
    if len(traces) < 2:
        return None
    left = max(12 + max(width_of(label) for _, label in _ticks(columns[0])), width_of(columns[0].title) / 2)
    right = 8 + width_of(columns[-1].title) / 2
    places = [left + GAP * number for number in range(len(columns))]
    heights = [_heights(column) for column in columns]
    drawn: list[Markup] = []
    order = sorted(range(len(traces)), key=lambda index: traces[index].goodness)
    for index in order:
        trace = traces[index]
        points = [(x, at(column.values[index])) for x, column, at in zip(places, columns, heights, strict=True)]
        style = f"curve {trace.style} {colour(trace.series)}".replace("  ", " ")
        opacity = FAINT + (1 - FAINT) * trace.goodness**2
        drawn.append(element("g", element("title", trace.hint), path(points, style), opacity=f"{opacity:.2f}"))
    for x, column, at in zip(places, columns, heights, strict=True):
        drawn += _axis(x, column, at)
    width = places[-1] + right
    return picture(width, HEIGHT, f"{columns[-1].title} by {', '.join(c.title for c in columns[:-1])}", drawn)


def _axis(x: float, column: Column, at: Callable[[float | str], float]) -> list[Markup]:
    drawn = [line(x, TOP, x, HEIGHT - BOTTOM, "base"), text(x, 14, column.title, "axis", "middle")]
    for value, label in _ticks(column):
        y = at(value)
        drawn += [line(x - 4, y, x, y, "base"), text(x - 7, y + 3.5, label, "tick label", "end")]
    return drawn


def _ticks(column: Column) -> list[tuple[float | str, str]]:
    """Return marks with their texts: round numbers, or the values themselves where they are few."""
    found = list(dict.fromkeys(column.values))
    if column.scale == "choice":
        return [(value, str(value)) for value in found]
    if len(found) <= FEW and not column.percent:
        return [(value, f"{value:g}") for value in found]
    return list(labelled(_axis_of(column), 4))


def _heights(column: Column) -> Callable[[float | str], float]:
    """Return what turns a value into a pixel."""
    if column.scale == "choice":
        known = list(dict.fromkeys(column.values))
        shares = {value: (number + 0.5) / len(known) for number, value in enumerate(known)}
        return lambda value: HEIGHT - BOTTOM - shares[value] * (HEIGHT - TOP - BOTTOM)
    axis = _axis_of(column)
    return lambda value: HEIGHT - BOTTOM - axis.share(float(value)) * (HEIGHT - TOP - BOTTOM)


def _axis_of(column: Column) -> Axis:
    numbers = [float(value) for value in column.values]
    return fitted(numbers, log=column.scale == "log", percent=column.percent, down=column.down, room=0.05)
