"""What filters rejected, as a table and with examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distillkit.reporting import numbers
from distillkit.reporting.files import markdown_table

COLUMNS = ("filter", "rows", "rejected", "share", "such as")


def filter_rows(result: Mapping[str, Any]) -> list[list[str]]:
    """Return a row of text for each filter: name, the rows it saw, how many it rejected, their share, and why one was.

    Args:
        result: With `generated` rows, filter → `rejected` rows, and filter → `rejects`: examples with a `reason`.
    """
    left, rows = result["generated"], []
    for name, count in result["rejected"].items():
        reason = next((example["reason"] for example in result["rejects"].get(name, ())), numbers.NOTHING)
        share = numbers.percent(count / left if left else None)
        rows.append([name, f"{left:,}", f"{count:,}", share, reason])
        left -= count
    return rows


def filters_markdown(result: Mapping[str, Any]) -> str:
    """Write what report.md says about the filters; nothing if there are none."""
    if not result["rejected"]:
        return ""
    return markdown_table(list(COLUMNS), [[" ".join(cell.split()) for cell in row] for row in filter_rows(result)])
