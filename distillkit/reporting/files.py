"""report.json and report.md of an output folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_report(folder: Path) -> dict[str, Any]:
    """Return the report.json of a folder, empty if there is none: command → what it found."""
    path = folder / "report.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write_report(folder: Path, command: str, result: dict[str, Any], markdown: str) -> None:
    """Put one command's result into report.json and its text into report.md, keeping those of other commands."""
    folder.mkdir(parents=True, exist_ok=True)
    report = read_report(folder) | {command: {**result, "markdown": markdown}}
    _replace(folder / "report.json", json.dumps(report, indent=1) + "\n")
    _replace(folder / "report.md", "\n\n".join(part["markdown"] for part in report.values()) + "\n")


def markdown_table(columns: list[str], rows: list[list[str]]) -> str:
    """Format a Markdown table, numbers on the right."""
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    rule = ["---", *["---:"] * (len(columns) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [columns, rule, *escaped])


def _replace(path: Path, text: str) -> None:
    beside = path.with_suffix(".partial")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)
