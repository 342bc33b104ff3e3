"""Reliability: how often a model is right, by how sure it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from distillkit.reporting import numbers
from distillkit.reporting.pictures.axes import Axis, Frame
from distillkit.reporting.pictures.svg import colour, element, line, path, picture

SIZE = 232


def reliability(name: str, found: Mapping[str, Any], series: int) -> Markup:
    """Draw the share of right answers against confidence; bars at the foot tell how many items a bin holds."""
    frame = Frame(SIZE, SIZE, Axis(0, 1, percent=True), Axis(0, 1, percent=True), left=44, right=18)
    drawn = frame.draw("confidence", "share right", x_ticks=2, y_ticks=4)
    drawn.append(line(frame.at_x(0), frame.at_y(0), frame.at_x(1), frame.at_y(1), "reference"))
    counts, total = found["counts"], max(sum(found["counts"]), 1)
    wide = (frame.at_x(1) - frame.at_x(0)) / len(counts)
    for index, count in enumerate(counts):
        high = 0.3 * count / max(counts) * (frame.at_y(0) - frame.at_y(1)) if max(counts) else 0.0
        place = {"x": frame.at_x(index / len(counts)) + 1, "y": frame.at_y(0) - high, "width": wide - 2, "height": high}
        drawn.append(element("rect", class_=f"bar {colour(series)}", **place))
    bins = [
        (confidence, right, count)
        for confidence, right, count in zip(found["confidence"], found["accuracy"], counts, strict=True)
        if count
    ]
    drawn.append(path(((frame.at_x(c), frame.at_y(r)) for c, r, _ in bins), f"curve faint {colour(series)}"))
    for confidence, right, count in bins:
        hint = f"{count:,} items ({numbers.percent(count / total)}): {numbers.percent(confidence)} sure, "
        hint += f"{numbers.percent(right)} right"
        circle = {"cx": frame.at_x(confidence), "cy": frame.at_y(right), "r": 1.8 + 3.2 * (count / max(counts)) ** 0.5}
        drawn.append(element("circle", element("title", hint), class_=f"mark {colour(series)}", **circle))
    return picture(SIZE, SIZE, f"reliability of {name}", drawn)
