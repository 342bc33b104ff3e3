"""report.html: one page that needs nothing else, made of report.json and of what lies beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from distillkit.reporting import numbers
from distillkit.reporting.comparison import Grid, cost_grid, heading, notes, quality_grid
from distillkit.reporting.filters import COLUMNS, filter_rows
from distillkit.reporting.outcome import outcome
from distillkit.reporting.parts import Colours, Part, find_parts
from distillkit.reporting.pictures.classes import change, matrix
from distillkit.reporting.pictures.intervals import strips
from distillkit.reporting.pictures.reliability import reliability
from distillkit.reporting.pictures.svg import SHAPES, colour, element
from distillkit.reporting.pictures.tradeoff import tradeoff
from distillkit.reporting.sweeps import CAUTION, sweep_outcome, sweep_picture, sweep_table
from distillkit.reporting.trainings import loss_picture, overlay, trainings
from distillkit.reporting.verdict import verdict

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class ComparisonView:
    """A comparison, ready to be shown."""

    part: Part
    quality: Grid
    cost: Grid
    strips: dict[str, Markup]
    pictures: list[Markup]
    matrices: list[tuple[str, Markup]]
    change: Markup | None
    reliability: list[tuple[str, str, Markup]]
    notes: list[tuple[str, str]]
    series: dict[str, int]

    @property
    def result(self) -> dict[str, Any]:
        """What report.json keeps."""
        return self.part.result


def page(folder: Path, report: Mapping[str, Any]) -> str:
    """Write the page of an output folder.

    Args:
        folder: With metrics.jsonl and frozen configs; what is missing is left out.
        report: Of report.json: command → what it found.
    """
    parts = list(find_parts(folder, report))
    compared = sorted((part for part in parts if "models" in part.result), key=lambda part: part.command != "eval")
    colours = Colours()
    views = [_comparison(part, colours) for part in compared]
    trained = trainings(parts)
    title = report["run"]["name"] if "run" in report else parts[-1].result["name"]
    return _template().render(
        title=title,
        facts=_facts(parts, compared),
        lede=_lede(parts, compared),
        comparisons=views,
        sweeps=[
            (part, *sweep_table(part.result), sweep_picture(part.result)) for part in parts if "trials" in part.result
        ],
        sweep_caution=CAUTION,
        overlay=overlay(trained, colours),
        trainings=[(training, loss_picture(training, colours)) for training in trained],
        filtered=[(part, filter_rows(part.result)) for part in parts if part.result.get("rejected")],
        filter_columns=COLUMNS,
        parts=parts,
        outcomes={part.name: outcome(part.result) for part in parts},
        configs=[(part.name, text) for part in parts if (text := _config(part)) is not None],
        numbers=numbers,
        legend=legend,
        style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
    )


def _lede(parts: list[Part], compared: list[Part]) -> list[str]:
    """Say what matters most."""
    if compared:
        return verdict(compared[0].result)
    swept = [part.result for part in parts if "trials" in part.result]
    if swept:
        return [f"{sweep_outcome(swept[0])}."]
    return [f"{outcome(parts[-1].result)}."] if len(parts) == 1 else []


def legend(series: int) -> Markup:
    """Draw the mark of a series, for text."""
    mark = element("path", d=SHAPES[series % len(SHAPES)], class_=f"mark {colour(series)}")
    return Markup('<svg class="key" viewBox="-7 -7 14 14" aria-hidden="true">{}</svg>').format(mark)


@cache
def _template() -> Template:
    loader = FileSystemLoader(TEMPLATES)
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return made.get_template("report.html")


def _facts(parts: list[Part], compared: list[Part]) -> list[tuple[str, str]]:
    """List what was run: task, data, teacher, seed, versions."""
    results = [part.result for part in (*compared, *parts)]
    found: dict[str, str] = {}
    for key in ("task", "dataset"):
        found[key] = next((str(result[key]) for result in results if result.get(key)), "")
    found["task"] = found["task"].replace("_", " ")
    if compared:
        first = compared[0].result
        found["dataset"] = heading(first)
        found["teacher"] = first["models"][first["teacher"]]["path"]
    else:
        found["teacher"] = next((str(result["teacher"]) for result in results if result.get("teacher")), "")
        made = next((result for result in results if "architecture" in result), None)
        if made is not None:
            found["student"] = f"{made['architecture']}, {numbers.count(made['parameters'])} parameters"
    seeds = dict.fromkeys(str(result["seed"]) for result in results if "seed" in result)
    found["seed"] = ", ".join(seeds)
    surroundings: dict[str, str] = next((result["environment"] for result in results if "environment" in result), {})
    found |= {key: surroundings.get(key, "") for key in ("device", "time")}
    found["time"] = found["time"].replace("T", " ")
    found["versions"] = ", ".join(f"{n} {v}" for n, v in surroundings.items() if n not in ("device", "time"))
    return [(key, value) for key, value in found.items() if value]


def _comparison(part: Part, colours: Colours) -> ComparisonView:
    result, models = part.result, part.result["models"]
    series = {name: colours.of(model["path"]) for name, model in models.items()}
    drawn = [
        tradeoff(result, series, "bytes", "MB on disk", 1e-6),
        tradeoff(result, series, "latency_ms", "ms for one row"),
    ]
    calibrated = {name: model["calibration"] for name, model in models.items() if model["calibration"] is not None}
    return ComparisonView(
        part=part,
        quality=quality_grid(result),
        cost=cost_grid(result),
        strips=strips(result, series),
        pictures=[picture for picture in drawn if picture is not None],
        matrices=[
            (name, matrix(name, model["confusion"], result["classes"], series[name]))
            for name, model in models.items()
            if model["confusion"] is not None
        ],
        change=change(result, series),
        reliability=[
            (name, numbers.number(found["error"]), reliability(name, found, series[name]))
            for name, found in calibrated.items()
            if found["error"] is not None
        ],
        notes=notes(result),
        series=series,
    )


def _config(part: Part) -> str | None:
    path = part.folder / f"{part.command}.yaml"
    return path.read_text(encoding="utf-8") if path.is_file() else None
