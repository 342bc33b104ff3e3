"""Print what `peers.py` measured: medians over the rounds, and how many times distillkit's."""

from __future__ import annotations

from statistics import mean, median
from typing import Any

from rich.console import Console
from rich.table import Table

METRICS = {"classify": "accuracy", "language": "divergence", "embed": "cosine"}
COLUMNS = ("", "items/CPU s", "CPU s, all", "×", "CPU s, training", "×", "wall s, all", "peak MiB", "×", "lines")


def show(result: dict[str, Any], base: str) -> None:
    """Print a table for each job; × is relative to `base`."""
    for job, quality in result["quality"].items():
        metric = METRICS[job]
        table = Table(title=f"{job} (teacher {quality['teacher'].get(metric, 0.0):.4f})", title_justify="left")
        for column in (*COLUMNS, metric, "lowest", "highest"):
            table.add_column(column, justify="right" if column else "left")
        cases = {case: _medians(result["runs"], job, case) for case in result["lines"][job]}
        for case, it in cases.items():
            found = [values[metric] for name, values in quality.items() if name.rsplit("/", 1)[0] == case]
            times = {name: f"{value / cases[base][name]:.2f}" for name, value in it.items()}
            table.add_row(
                case,
                f"{it['items'] / it['training_cpu_seconds']:.1f}",
                *(f"{it['cpu_seconds']:.1f}", times["cpu_seconds"]),
                *(f"{it['training_cpu_seconds']:.1f}", times["training_cpu_seconds"]),
                f"{it['wall_seconds']:.1f}",
                *(f"{it['peak_mib']:.0f}", times["peak_mib"]),
                str(result["lines"][job][case]),
                *(f"{value:.4f}" for value in (mean(found), min(found), max(found))),
            )
        Console(width=150).print(table)


def _medians(runs: list[dict[str, Any]], job: str, case: str) -> dict[str, float]:
    own = [run for run in runs if (run["job"], run["case"]) == (job, case)]
    names = [name for name in own[0] if name not in ("job", "case", "seed")]
    return {name: median(run[name] for run in own) for name in names}
