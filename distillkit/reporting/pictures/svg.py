"""SVG elements as markup that is escaped once, and the marks that all pictures share."""

from __future__ import annotations

from collections.abc import Iterable

from markupsafe import Markup, escape

SERIES = 8  # colours in the style sheet: classes s0 to s7; the first is the teacher's
CHARACTER = 6.3  # average width of a character of 11 pixels

# Around (0, 0), one for each series, so that colour alone never decides.
SHAPES = (
    "M-4.5,0a4.5,4.5 0 1,0 9,0a4.5,4.5 0 1,0 -9,0Z",
    "M-4,-4H4V4H-4Z",
    "M0,-5.4L5.4,0L0,5.4L-5.4,0Z",
    "M0,-5L5,4H-5Z",
    "M0,5L5,-4H-5Z",
    "M-1.8,-5H1.8V-1.8H5V1.8H1.8V5H-1.8V1.8H-5V-1.8H-1.8Z",
    "M0,-5.2L4.9,-1.6L3,4.2H-3L-4.9,-1.6Z",
    "M-5,-2.6L0,-5.4L5,-2.6V2.6L0,5.4L-5,2.6Z",
)


def element(name: str, *children: object, **attributes: object) -> Markup:
    """Write an element; attributes whose value is None are left out, `class_` is class, and _ in names is -."""
    written = [
        f' {key.rstrip("_").replace("_", "-")}="{escape(_short(value))}"'
        for key, value in attributes.items()
        if value is not None
    ]
    inner = Markup("").join(escape(child) for child in children)
    return Markup(f"<{name}{''.join(written)}>{inner}</{name}>")


def picture(width: float, height: float, label: str, children: Iterable[Markup]) -> Markup:
    """Write a whole picture that scales with the page; `label` is what a screen reader says."""
    attributes = {"viewBox": f"0 0 {width:g} {height:g}", "role": "img", "aria-label": label}
    opening = "".join(f' {name}="{escape(value)}"' for name, value in attributes.items())
    inner = Markup("").join(children)
    style = f"max-width:{width:g}px"
    return Markup(f'<svg xmlns="http://www.w3.org/2000/svg"{opening} style="{style}">{inner}</svg>')


def text(x: float, y: float, content: object, class_: str = "", anchor: str = "start") -> Markup:
    """Write text; the anchor is start, middle or end."""
    return element("text", content, x=x, y=y, class_=class_ or None, text_anchor=None if anchor == "start" else anchor)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """Draw a straight line."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def path(points: Iterable[tuple[float, float]], class_: str) -> Markup:
    """Draw a line through points."""
    steps = " ".join(f"{'L' if index else 'M'}{x:.1f},{y:.1f}" for index, (x, y) in enumerate(points))
    return element("path", d=steps, class_=class_)


def marker(x: float, y: float, series: int, hint: str) -> Markup:
    """Draw the mark of a series; the hint shows when the mouse rests on it."""
    shape = SHAPES[series % len(SHAPES)]
    return element(
        "path",
        element("title", hint),
        d=shape,
        transform=f"translate({x:.1f},{y:.1f})",
        class_=f"mark {colour(series)}",
    )


def colour(series: int) -> str:
    """Return the class of a series."""
    return f"s{series if series < SERIES else 1 + (series - 1) % (SERIES - 1)}"


def width_of(content: str) -> float:
    """Estimate how wide a label is."""
    return CHARACTER * len(content)


def _short(value: object) -> object:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else value
