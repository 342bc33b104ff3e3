"""report.json, report.md and report.html of an output folder."""

from __future__ import annotations

import json
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np


def read_report(folder: Path) -> dict[str, Any]:
    """Return the report.json of a folder, empty if there is none: command → what it found."""
    path = folder / "report.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write_report(folder: Path, command: str, result: dict[str, Any], markdown: str) -> None:
    """Put one command's result into report.json and its text into report.md, keeping those of other commands.

    report.html is made anew of all of them.
    """
    from distillkit.reporting.page import page  # loads torch, which those who only read a report do without

    folder.mkdir(parents=True, exist_ok=True)
    report = read_report(folder) | {command: plain({**result, "markdown": markdown})}
    _replace(folder / "report.json", json.dumps(report, indent=1, allow_nan=False) + "\n")
    _replace(folder / "report.md", "\n\n".join(part["markdown"] for part in report.values()) + "\n")
    _replace(folder / "report.html", page(folder, report))


def plain(value: Any) -> Any:
    """Turn a value into what JSON knows: no numpy, null for what is not finite, and of bytes how many there are."""
    if isinstance(value, dict):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    return value if isinstance(value, str | int | bool | None) else str(value)


def markdown_table(columns: list[str], rows: list[list[str]]) -> str:
    """Format a Markdown table, numbers on the right."""
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    rule = ["---", *["---:"] * (len(columns) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [columns, rule, *escaped])


def _replace(path: Path, text: str) -> None:
    beside = path.with_suffix(".partial")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)
