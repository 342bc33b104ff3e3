"""The comparison of models as a table, for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from distillkit.tasks.base import higher_is_better

PRUNED = 0.99  # a model with fewer non-zero weights shows their share
PERCENT = frozenset({"accuracy", "macro_f1"})


@dataclass(frozen=True)
class Compared:
    """One model of a comparison.

    Attributes:
        path: Where it is.
        metrics: Quality.
        kept: Share of the teacher's quality, teacher ÷ model where lower is better; None without a teacher.
        agreement: Share of the teacher's predictions; None for the teacher.
        parameters: Number of weights.
        nonzeros: Number of weights that are not zero.
        bytes: Of the weight files; None if unknown.
        latency_ms: Median for one row; None if not measured.
        rows_per_second: Median on batches; None if not measured.
    """

    path: str
    metrics: dict[str, float]
    kept: float | None
    agreement: float | None
    parameters: int
    nonzeros: int
    bytes: int | None
    latency_ms: float | None = None
    rows_per_second: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def kept_share(metric: str, value: float, teacher: float) -> float:
    """Return the share of the teacher's quality that is kept: 1 means equal, also where lower is better."""
    if higher_is_better(metric):
        return value / teacher if teacher else float("nan")
    return teacher / value if value else float("nan")


def comparison_table(models: Mapping[str, Compared], quality: str) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows of a comparison; `quality` is the metric of the "kept" column and comes first."""
    first = next(iter(models.values()))
    metrics = [quality, *(name for name in first.metrics if name != quality)]
    sparse = any(model.nonzeros < PRUNED * model.parameters for model in models.values())
    columns = ["model", *(name.replace("_", " ") for name in metrics), "kept", "agreement", "parameters"]
    columns += ["non-zero"] * sparse + ["size"]
    timed = first.latency_ms is not None
    columns += ["latency", "rows/s"] * timed
    rows = []
    for name, model in models.items():
        row = [name, *(_metric(metric, model.metrics[metric]) for metric in metrics)]
        row += [_percent(model.kept), _percent(model.agreement), _count(model.parameters)]
        row += [_percent(model.nonzeros / max(model.parameters, 1))] * sparse
        row += ["–" if model.bytes is None else f"{model.bytes / 1e6:.1f} MB"]
        if timed and model.latency_ms is not None and model.rows_per_second is not None:
            row += [f"{model.latency_ms:.1f} ms", f"{model.rows_per_second:,.0f}"]
        rows.append(row)
    return columns, rows


def _metric(name: str, value: float) -> str:
    return f"{100 * value:.2f} %" if name in PERCENT else f"{value:.4f}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _count(number: int) -> str:
    return f"{number / 1e6:.2f} M" if number >= 1e5 else f"{number:,}"
