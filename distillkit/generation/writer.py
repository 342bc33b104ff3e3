"""Pseudo data on disk: Parquet parts that a dataset config reads, and a description beside them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from datasets import ClassLabel, Features, List, Value

DESCRIPTION = "_pseudo.json"  # the underscore keeps readers of the Parquet folder from taking it for data


def write_part(folder: Path, rank: int, batches: Iterable[list[dict[str, Any]]], labels: list[str] | None) -> int:
    """Write one process's rows to `part-NNNNN.parquet`, whole or not at all; return how many there are.

    Args:
        folder: Made if it is not there.
        rank: Of the process.
        batches: Rows with canonical columns.
        labels: Class names in the order of `teacher_logits`, which the label column declares; None without classes.
    """
    path = folder / f"part-{rank:05d}.parquet"
    beside = path.with_suffix(".partial")
    folder.mkdir(parents=True, exist_ok=True)
    writer, count = None, 0
    try:
        for batch in batches:
            if not batch:
                continue
            table = pyarrow.Table.from_pylist([_with_id(row, labels) for row in batch], schema=schema(batch[0], labels))
            writer = writer or pyarrow.parquet.ParquetWriter(beside, table.schema)
            writer.write_table(table)
            count += len(batch)
    except BaseException:
        if writer is not None:
            writer.close()
        beside.unlink(missing_ok=True)
        raise
    if writer is not None:
        writer.close()
        beside.replace(path)
    return count


def schema(row: dict[str, Any], labels: list[str] | None) -> pyarrow.Schema:
    """Return the Arrow types of canonical columns, with the class names as `datasets` keeps them."""
    kinds = {
        "teacher_logits": List(Value("float32")),
        "finished": Value("bool"),
        "label": ClassLabel(names=labels or []),
    }
    return Features({name: kinds.get(name, Value("string")) for name in row}).arrow_schema


def _with_id(row: dict[str, Any], labels: list[str] | None) -> dict[str, Any]:
    if labels is None or row.get("label") is None:
        return row
    return row | {"label": labels.index(row["label"])}


def describe(folder: Path, facts: dict[str, Any]) -> None:
    """Write what the data is and where it came from."""
    (folder / DESCRIPTION).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
