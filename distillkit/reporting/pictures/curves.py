"""Curves over the steps of training, each with its name at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from distillkit.reporting.pictures.axes import Axis, Frame, fitted
from distillkit.reporting.pictures.svg import colour, element, marker, path, picture, text, width_of

POINTS = 240  # of a curve that are drawn; more are averaged
SPAN = 60.0  # factor between the largest and the smallest value from which the axis is logarithmic
LINE = 13


@dataclass(frozen=True)
class Curve:
    """A named line.

    Attributes:
        name: Written at its end.
        steps: Where.
        values: What.
        series: Its colour.
        style: "" for a solid line, "dash1" to "dash3", or "points" for one with marks.
    """

    name: str
    steps: Sequence[float]
    values: Sequence[float]
    series: int
    style: str = ""


def curves(
    lines: Sequence[Curve],
    title: str,
    percent: bool = False,
    down: bool = False,
    width: float = 460,
    height: float = 260,
) -> Markup | None:
    """Draw curves over steps; None if there are none with at least one value."""
    lines = [line for line in lines if len(line.values)]
    if not lines:
        return None
    lines = [_thinned(line) for line in lines]
    found = [value for line in lines for value in line.values]
    log = not percent and min(found) > 0 and max(found) / min(found) > SPAN
    y = fitted(found, log=log, percent=percent, down=down, room=0.06)
    steps = [step for line in lines for step in line.steps]
    x = Axis(min(0, *steps), max(steps) or 1)
    right = 12 + max(width_of(line.name) for line in lines)
    frame = Frame(width, height, x, y, left=52, right=min(right, width / 3))
    drawn = frame.draw("step", f"{title}{', logarithmic' if log else ''}", x_ticks=4)
    for line in lines:
        drawn += _line(frame, line)
    ends = _apart([frame.at_y(line.values[-1]) + 4 for line in lines], frame.top + 4, frame.height - frame.bottom)
    drawn += [
        text(frame.at_x(line.steps[-1]) + 8, y_, line.name, f"label {colour(line.series)}")
        for line, y_ in zip(lines, ends, strict=True)
    ]
    return picture(width, height, f"{title} by step", drawn)


def _line(frame: Frame, curve: Curve) -> list[Markup]:
    points = [(frame.at_x(s), frame.at_y(v)) for s, v in zip(curve.steps, curve.values, strict=True)]
    hint = f"{curve.name}: {curve.values[-1]:.4g} at step {curve.steps[-1]:,.0f}"
    style = "" if curve.style == "points" else curve.style
    drawn = [path(points, f"curve {style} {colour(curve.series)}".replace("  ", " "))]
    if curve.style == "points" or len(points) == 1:
        drawn += [element("g", marker(x, y, curve.series, hint), class_="small") for x, y in points]
    return drawn


def _thinned(curve: Curve) -> Curve:
    """Average neighbours where there are more points than pixels would show."""
    if len(curve.values) <= POINTS:
        return curve
    parts = np.array_split(np.arange(len(curve.values)), POINTS)
    steps, values = (np.asarray(column, dtype=float) for column in (curve.steps, curve.values))
    means = [[float(column[part].mean()) for part in parts] for column in (steps, values)]
    return Curve(curve.name, means[0], means[1], curve.series, curve.style)


def _apart(places: Sequence[float], top: float, bottom: float) -> list[float]:
    """Move labels up and down until none covers another, in their order."""
    order = sorted(range(len(places)), key=places.__getitem__)
    moved = [places[index] for index in order]
    for index in range(1, len(moved)):
        moved[index] = max(moved[index], moved[index - 1] + LINE)
    over = moved[-1] - bottom
    if over > 0:
        moved[-1] -= over
        for index in range(len(moved) - 2, -1, -1):
            moved[index] = min(moved[index], moved[index + 1] - LINE)
    found = dict(zip(order, moved, strict=True))
    return [max(found[index], top) for index in range(len(places))]
