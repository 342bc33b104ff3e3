"""Quality against what it costs: every model a labelled point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from distillkit.reporting import numbers
from distillkit.reporting.pictures.axes import Frame, fitted
from distillkit.reporting.pictures.svg import colour, line, marker, path, picture, text, width_of

WIDTH, HEIGHT = 460, 320
LINE = 13  # height of a label


@dataclass(frozen=True)
class Point:
    """One model: its cost, its quality with the interval, and its place in the order of colours."""

    name: str
    cost: float
    quality: float
    bounds: Sequence[float] | None
    series: int


def tradeoff(
    comparison: Mapping[str, Any], series: Mapping[str, int], cost: str, title: str, factor: float = 1.0
) -> Markup | None:
    """Draw quality against the cost under a key of the models; better is up, and cheaper is to the left.

    Of a search, a line joins the models that no other dominates in the two.

    Args:
        comparison: Of report.json.
        series: Of each model.
        cost: "bytes", "memory" or "latency_ms".
        title: Of the axis.
        factor: Of the values shown.

    Returns:
        The picture; None if fewer than two models have both values.
    """
    quality = comparison["quality"]
    points = [
        Point(name, model[cost] * factor, model["metrics"][quality], model["intervals"].get(quality), series[name])
        for name, model in comparison["models"].items()
        if model[cost] and model["metrics"].get(quality) is not None
    ]
    if len(points) < 2:
        return None
    heights = [v for point in points for v in (point.quality, *(point.bounds or ()))]
    x = fitted((point.cost for point in points), log=True, room=0.12)
    y = fitted(heights, percent=numbers.is_share(quality), down=not comparison["higher_is_better"])
    frame = Frame(WIDTH, HEIGHT, x, y, left=52, right=22)
    drawn = frame.draw(title, f"{numbers.title(quality)}, better is up")
    if "front" in comparison:
        drawn.append(_front(frame, points, comparison["higher_is_better"]))
    for point in points:
        drawn += _whisker(frame, point)
    taken = [_box(frame.at_x(p.cost), frame.at_y(p.quality)) for p in points]
    for point in points:
        hint = f"{point.name}: {numbers.metric_value(quality, point.quality)} at {point.cost:,.4g} {title}"
        drawn.append(marker(frame.at_x(point.cost), frame.at_y(point.quality), point.series, hint))
    drawn += [_label(frame, point, taken) for point in points]
    return picture(WIDTH, HEIGHT, f"{numbers.title(quality)} against {title}", drawn)


def _front(frame: Frame, points: list[Point], higher: bool) -> Markup:
    """Draw a line through the points than which none is both cheaper and better."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.cost, -p.quality if higher else p.quality)):
        if not best or (point.quality > best[-1].quality if higher else point.quality < best[-1].quality):
            best.append(point)
    return path([(frame.at_x(point.cost), frame.at_y(point.quality)) for point in best], "front")


def _whisker(frame: Frame, point: Point) -> list[Markup]:
    if point.bounds is None:
        return []
    x, (low, high) = frame.at_x(point.cost), (frame.at_y(bound) for bound in point.bounds)
    return [line(x, low, x, high, f"whisker thin {colour(point.series)}")]


Box = tuple[float, float, float, float]


def _box(x: float, y: float, half: float = 6) -> Box:
    return x - half, y - half, x + half, y + half


def _label(frame: Frame, point: Point, taken: list[Box]) -> Markup:
    """Write the name beside the point where it covers nothing, and remember the place."""
    x, y, wide = frame.at_x(point.cost), frame.at_y(point.quality), 1.15 * width_of(point.name)
    places = [
        (anchor, x + dx, y + dy)
        for dy in (4, -9, 17, -22, 30, -35, 43)
        for anchor, dx in (("start", 10), ("end", -10), ("middle", 0))
        if not (anchor == "middle" and dy == 4)
    ]
    boxes = {place: _text_box(*place, wide) for place in places}
    free = [place for place in places if _fits(boxes[place], frame) and not any(_meet(boxes[place], b) for b in taken)]
    chosen = free[0] if free else places[0]
    taken.append(boxes[chosen])
    anchor, at_x, at_y = chosen
    return text(at_x, at_y, point.name, f"label {colour(point.series)}", anchor)


def _text_box(anchor: str, x: float, y: float, wide: float) -> Box:
    start = x - {"start": 0.0, "middle": 0.5, "end": 1.0}[anchor] * wide
    return start, y - LINE + 3, start + wide, y + 3


def _fits(box: Box, frame: Frame) -> bool:
    return box[0] >= 2 and box[2] <= frame.width - 2 and box[1] >= 14 and box[3] <= frame.height - frame.bottom


def _meet(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
