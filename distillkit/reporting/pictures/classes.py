"""Classes: what is taken for what, and how each class does against the teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from distillkit.reporting import numbers
from distillkit.reporting.pictures.axes import Frame, fitted, labelled
from distillkit.reporting.pictures.svg import colour, element, line, marker, picture, text, width_of

CLASSES = 16  # drawn at most: those that changed most
NUMBERED = 8  # classes up to which a matrix shows its numbers
LONGEST = 18  # characters of a class name


def matrix(name: str, counts: Sequence[Sequence[int]], classes: Sequence[str], series: int) -> Markup:
    """Draw a confusion matrix: a row for each label, shaded by the share of the row."""
    names = [shorter(c) for c in classes]
    cell = 46.0 if len(names) <= 4 else 34.0 if len(names) <= NUMBERED else 18.0
    left, top = 10 + max(map(width_of, names)), 34.0
    slanted = max(map(width_of, names)) > cell - 4
    top = 34 + (0.75 * max(map(width_of, names)) if slanted else 0)
    size = cell * len(names)
    # Slanted names of the last columns lean out of the matrix.
    wide, high = left + size + (0.6 * max(map(width_of, names)) if slanted else 4), top + size + 4
    drawn = [text(left, 11, "predicted →", "axis"), text(left - 8, top - 8, "label ↓", "axis", "end")]
    for row, numbers_of_row in enumerate(counts):
        total = max(sum(numbers_of_row), 1)
        y = top + row * cell
        drawn.append(text(left - 8, y + cell / 2 + 4, names[row], "tick", "end"))
        for column, count in enumerate(numbers_of_row):
            x, share = left + column * cell, count / total
            hint = f"{classes[row]} taken for {classes[column]}: {count:,} ({numbers.percent(share)})"
            box = {"x": x + 1, "y": y + 1, "width": cell - 2, "height": cell - 2, "rx": 3}
            shade = element(
                "rect", element("title", hint), class_=f"cell {colour(series)}", **box, fill_opacity=_opacity(share)
            )
            drawn.append(shade)
            if len(names) <= NUMBERED:
                drawn.append(text(x + cell / 2, y + cell / 2 + 4, f"{count:,}", "on" if share > 0.5 else "", "middle"))
    for column, label in enumerate(names):
        x = left + column * cell + cell / 2
        turn = {"transform": f"rotate(-45 {x:.1f} {top - 8:.1f})"} if slanted else {}
        anchor = "start" if slanted else "middle"
        drawn.append(element("text", label, x=x, y=top - 8.0, class_="tick", text_anchor=anchor, **turn))
    return picture(wide, high, f"confusion matrix of {name}", drawn)


def change(comparison: Mapping[str, Any], series: Mapping[str, int]) -> Markup | None:
    """Draw F1 of each class for all models, the classes that differ most from the teacher first; None if unknown."""
    models, classes = comparison["models"], comparison["classes"]
    found = {name: model["class_f1"] for name, model in models.items()}
    if classes is None or len(models) < 2 or any(values is None for values in found.values()):
        return None
    teacher = found[comparison["teacher"]]
    known = [index for index in range(len(classes)) if all(values[index] is not None for values in found.values())]
    known.sort(key=lambda index: -max(abs(values[index] - teacher[index]) for values in found.values()))
    chosen = known[:CLASSES]
    if not chosen:
        return None
    names = [shorter(classes[index], 26) for index in chosen]
    row, width = 26, 460
    height = 58 + row * len(chosen)
    x = fitted((values[index] for values in found.values() for index in chosen), percent=True)
    frame = Frame(width, height, x, fitted([0, 1]), left=14 + max(map(width_of, names)), right=18, top=18, bottom=40)
    drawn = [text(frame.left, 11, "F1 of the class", "axis")]
    bottom = frame.height - frame.bottom
    for value, label in labelled(x, 4):
        at = frame.at_x(value)
        drawn += [line(at, frame.top, at, bottom, "grid"), text(at, bottom + 16, label, "tick", "middle")]
    for place, index in enumerate(chosen):
        y = frame.top + row * (place + 0.5)
        ends = [frame.at_x(values[index]) for values in found.values()]
        drawn += [text(frame.left - 10, y + 4, names[place], "tick", "end"), line(min(ends), y, max(ends), y, "link")]
        for name, values in reversed(found.items()):
            hint = f"{name}, {classes[index]}: {numbers.percent(values[index])}"
            drawn.append(marker(frame.at_x(values[index]), y, series[name], hint))
    return picture(width, height, "F1 of each class", drawn)


def shorter(name: str, longest: int = LONGEST) -> str:
    """Cut a long name."""
    return name if len(name) <= longest else f"{name[: longest - 1]}…"


def _opacity(share: float) -> str:
    return f"{0.06 + 0.94 * share:.3f}"
