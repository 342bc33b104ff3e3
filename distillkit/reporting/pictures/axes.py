"""Axes: from values to pixels, with ticks at round numbers, and the frame that is drawn around a plot."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, floor, isclose, log10

from markupsafe import Markup

from distillkit.reporting.pictures.svg import line, text

STEPS = (1.0, 2.0, 2.5, 5.0)  # times a power of ten


@dataclass(frozen=True)
class Axis:
    """A range of values.

    Attributes:
        low: Smallest value shown.
        high: Largest.
        log: Whether equal factors take equal space.
        percent: Whether ticks are written in percent.
        down: Whether small values are better and stand at the far end.
    """

    low: float
    high: float
    log: bool = False
    percent: bool = False
    down: bool = False

    def share(self, value: float) -> float:
        """Return where a value lies, from 0 to 1."""
        low, high, place = (log10(v) if self.log else v for v in (self.low, self.high, value))
        share = (place - low) / (high - low)
        return 1 - share if self.down else share

    def ticks(self, about: int = 5) -> list[float]:
        """Return round values inside the range."""
        return _log_ticks(self.low, self.high) if self.log else _ticks(self.low, self.high, about)

    def written(self, value: float, step: float) -> str:
        """Write a tick."""
        if self.percent:
            return f"{100 * value:.{_decimals(100 * step)}f} %"
        return f"{value:,.{_decimals(step)}f}"


def fitted(
    values: Iterable[float], log: bool = False, percent: bool = False, down: bool = False, room: float = 0.08
) -> Axis:
    """Fit an axis to values, with some room at both ends."""
    found = list(values)
    low, high = min(found), max(found)
    if log:
        wide = max(high / low, 1.5) ** max(room, 0.1)
        return Axis(low / wide, high * wide, log, percent, down)
    wide = (high - low) * room or abs(high) * 0.1 or 1.0
    return Axis(low - wide, high + wide, log, percent, down)


@dataclass(frozen=True)
class Frame:
    """The area of a plot inside a picture, in pixels, and its axes."""

    width: float
    height: float
    x: Axis
    y: Axis
    left: float = 46
    right: float = 14
    top: float = 26
    bottom: float = 36

    def at_x(self, value: float) -> float:
        """Return the pixel of a value."""
        return self.left + self.x.share(value) * (self.width - self.left - self.right)

    def at_y(self, value: float) -> float:
        """Return the pixel of a value; more is higher."""
        return self.height - self.bottom - self.y.share(value) * (self.height - self.top - self.bottom)

    def draw(self, x_title: str, y_title: str, x_ticks: int = 5, y_ticks: int = 5) -> list[Markup]:
        """Draw grid, ticks and titles."""
        end, floor_ = self.width - self.right, self.height - self.bottom
        drawn = [text(0, 11, y_title, "axis"), text(end, self.height - 4, x_title, "axis", "end")]
        for value, label in labelled(self.y, y_ticks):
            y = self.at_y(value)
            drawn += [line(self.left, y, end, y, "grid"), text(self.left - 7, y + 3.5, label, "tick", "end")]
        drawn.append(line(self.left, floor_, end, floor_, "base"))
        for value, label in labelled(self.x, x_ticks):
            x = self.at_x(value)
            drawn += [line(x, floor_, x, floor_ + 4, "base"), text(x, floor_ + 16, label, "tick", "middle")]
        return drawn


def labelled(axis: Axis, about: int) -> list[tuple[float, str]]:
    """Return ticks with their texts."""
    ticks = axis.ticks(about)
    step = min((b - a for a, b in pairwise(ticks)), default=abs(ticks[0]) if ticks else 1.0)
    return [(tick, axis.written(tick, tick if axis.log else step)) for tick in ticks]


def _ticks(low: float, high: float, about: int) -> list[float]:
    """Choose the round step that gives about so many ticks."""
    power = 10.0 ** (floor(log10(high - low)) - 1)
    steps = [power * tens * step for tens in (1, 10) for step in STEPS]
    found = [_multiples(low, high, step) for step in steps]
    return min(found, key=lambda ticks: abs(len(ticks) - about))


def _multiples(low: float, high: float, step: float) -> list[float]:
    first, last = ceil(low / step - 1e-9), floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(floor(log10(low)), ceil(log10(high)) + 1)
    for steps in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)):
        ticks = [step * 10.0**power for power in powers for step in steps]
        inside = [tick for tick in ticks if low <= tick <= high]
        if len(inside) >= 3:
            return inside
    return _ticks(low, high, 4)


def _decimals(step: float) -> int:
    for decimals in range(7):
        if isclose(round(step, decimals), step, rel_tol=1e-6):
            return decimals
    return 7
