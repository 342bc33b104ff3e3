"""A comparison of models as tables, for the terminal, for Markdown and for HTML; made from what report.json keeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from distillkit.reporting import numbers

LOST = {"bad": "bad rows skipped", "left_out": "rows left out"}
PRUNED = 0.99  # a model with fewer non-zero weights shows their share


EQUAL, CORRELATED = "share of equal predictions", "correlation of the predictions"  # what agreement is

Show = Callable[[dict[str, Any]], str]  # one model of report.json → a cell


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: Of the column.
        cells: Of each model.
        under: Whether it belongs to the column before, and may stand below it.
    """

    title: str
    cells: list[str]
    under: bool = False


@dataclass(frozen=True)
class Grid:
    """A table with a row for each model."""

    models: list[str]
    columns: list[Column]

    @property
    def titles(self) -> list[str]:
        """Titles of all columns, that of the models included."""
        return ["model", *(column.title for column in self.columns)]

    @property
    def stacks(self) -> list[tuple[Column, Column | None]]:
        """Columns, each with the one that may stand below it."""
        pairs = zip(self.columns, [*self.columns[1:], None], strict=True)
        return [
            (column, after if after is not None and after.under else None)
            for column, after in pairs
            if not column.under
        ]

    @property
    def rows(self) -> list[list[str]]:
        """Cells row by row, the model's name first."""
        return [list(row) for row in zip(self.models, *(column.cells for column in self.columns), strict=True)]


def heading(comparison: Mapping[str, Any]) -> str:
    """Say what the models were compared on."""
    split = "" if comparison["split"] is None else f", {comparison['split']} split"
    return f"{comparison['dataset']}{split}, {comparison['rows']:,} examples"


def kept_share(value: float, teacher: float, more_is_better: bool) -> float:
    """Return the share of the teacher's quality that is kept: 1 means equal, also where lower is better."""
    if more_is_better:
        return value / teacher if teacher else float("nan")
    return teacher / value if value else float("nan")


def quality_grid(comparison: Mapping[str, Any], compact: bool = False) -> Grid:
    """Make the table of quality: the deciding metric first, with its interval and its tests, and agreement.

    Args:
        comparison: Of report.json.
        compact: Write half the width of an interval instead of its ends.
    """
    models, quality = comparison["models"], comparison["quality"]
    made = _Maker(models)
    made.add(numbers.title(quality), lambda model: numbers.metric_value(quality, model["metrics"][quality]))
    if any(model["intervals"] for model in models.values()):
        interval = numbers.half_interval if compact else numbers.metric_interval
        title = "± 95 %" if compact else "95 % interval"
        made.add(title, lambda model: interval(quality, model["intervals"].get(quality)), under=True)
    if len(models) > 1:
        made.add("kept", lambda model: numbers.percent(model["kept"]))
    for other in (comparison["teacher"], comparison["baseline"]):
        if any(other in model["against"] for model in models.values()):
            made.add(f"Δ {other}", _against(other, lambda found: numbers.metric_difference(quality, found["value"])))
            made.add("p", _against(other, lambda found: numbers.p_value(found["p"])), under=True)
    for metric in next(iter(models.values()))["metrics"]:
        if metric != quality:
            made.add(numbers.title(metric), _metric(metric))
    if any(model["agreement"] is not None for model in models.values()):
        shares = comparison["agreement_of"] == EQUAL
        made.add("agreement", lambda m: numbers.percent(m["agreement"]) if shares else numbers.number(m["agreement"]))
    if any(model["divergence"] is not None for model in models.values()):
        made.add("KL", lambda model: numbers.number(model["divergence"]))
    if any(model["calibration"] is not None for model in models.values()):
        made.add("ECE", lambda m: numbers.number(None if m["calibration"] is None else m["calibration"]["error"]))
    return made.grid


def cost_grid(comparison: Mapping[str, Any]) -> Grid:
    """Make the table of cost: size, memory and speed; what was not measured has no column."""
    models = comparison["models"]
    made = _Maker(models)
    made.add("parameters", lambda model: numbers.count(model["parameters"]))
    if any(model["nonzeros"] < PRUNED * model["parameters"] for model in models.values()):
        made.add("non-zero", lambda model: numbers.percent(model["nonzeros"] / max(model["parameters"], 1)))
    made.add("size", lambda model: numbers.megabytes(model["bytes"]))
    if any(model.get("compressed_bytes") is not None for model in models.values()):
        made.add("zipped", lambda model: numbers.megabytes(model["compressed_bytes"]), under=True)
    if any(model["memory"] is not None for model in models.values()):
        made.add("memory", lambda model: numbers.megabytes(model["memory"]))
    if any(model["latency_ms"] is not None for model in models.values()):
        made.add("latency", lambda model: numbers.milliseconds(model["latency_ms"]))
        made.add("p95", lambda model: numbers.milliseconds(model["latency_p95_ms"]))
        for size in next(iter(models.values()))["rows_per_second"]:
            made.add(f"rows/s at {size}", _throughput(size))
    return made.grid


def notes(comparison: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Say what the numbers of a comparison mean: (what, meaning)."""
    quality, teacher, models = comparison["quality"], comparison["teacher"], comparison["models"].values()
    lost = _lost(comparison["data"])
    found = [("data", lost)] if lost else []
    if len(models) > 1:
        lower = "" if comparison["higher_is_better"] else "; lower is better, so it is the teacher’s over the model’s"
        found.append(("kept", f"share of {teacher}’s {numbers.title(quality)}{lower}"))
    if any(model["agreement"] is not None for model in models):
        found.append(("agreement", f"{comparison['agreement_of']} with {teacher}"))
    draws = comparison["resampling"]["count"]
    if any(model["intervals"] for model in models):
        how = f"difference of {numbers.title(quality)}; paired bootstrap, two-sided, {draws:,} resamples of the "
        how += f"{comparison['rows']:,} examples. Another training seed may change more than other examples would"
        found.append(("Δ, p, 95 %", how))
    if any(model["divergence"] is not None for model in models):
        found.append(("KL", f"mean KL({teacher} ‖ model), nats an item"))
    if any(model["calibration"] is not None for model in models):
        found.append(("ECE", "expected calibration error, 15 bins of equal width by confidence"))
    if any(model.get("compressed_bytes") is not None for model in models):
        found.append(("zipped", "what the weights take in a zip file; zeros are stored in full otherwise"))
    if any(model["memory"] is not None for model in models):
        found.append(("memory", comparison["memory_of"]))
    if any(model["latency_ms"] is not None for model in models):
        found.append(("latency, p95", "one row, one forward pass: what 50 and 95 of 100 calls keep; timed in turn"))
    return found + _searched(comparison)


def _searched(comparison: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Say what a search among variants found, if there was one."""
    found = []
    if "front" in comparison:
        names = ", ".join(comparison["front"])
        found.append(("front", f"no other model is as good in quality, size and latency, and better in one: {names}"))
    if "budget" in comparison:
        budget = comparison["budget"]
        limits = ", ".join(f"{key} {limit:g}" for key, limit in budget["limits"].items())
        kept = f"the best variant that keeps it is {budget['chosen']}" if budget["chosen"] else "no variant keeps it"
        found.append(("budget", f"{limits}; {kept}"))
    return found


def _lost(counts: Mapping[str, int]) -> str:
    """Say what became of the rows that the models did not see as they are."""
    parts = [f"{counts[key]:,} {what}" for key, what in LOST.items() if counts.get(key)]
    if counts.get("truncated"):
        share = numbers.percent(counts["truncated"] / max(counts["rows"], 1))
        parts.append(f"{share} of the rows longer than task.max_length and cut")
    return ", ".join(parts)


class _Maker:
    """Collects the columns of a grid."""

    def __init__(self, models: Mapping[str, Any]) -> None:
        self.models = models
        self.grid = Grid(list(models), [])

    def add(self, title: str, show: Show, under: bool = False) -> None:
        self.grid.columns.append(Column(title, [show(model) for model in self.models.values()], under))


def _against(other: str, show: Show) -> Show:
    return lambda model: show(model["against"][other]) if other in model["against"] else numbers.NOTHING


def _metric(metric: str) -> Show:
    return lambda model: numbers.metric_value(metric, model["metrics"].get(metric))


def _throughput(size: str) -> Show:
    return lambda m: numbers.NOTHING if m["rows_per_second"] is None else f"{m['rows_per_second'][size]:,.0f}"
