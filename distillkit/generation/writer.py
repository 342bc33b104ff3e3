"""Pseudo data on disk: Parquet parts that a dataset config reads, and a description beside them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from datasets import ClassLabel, Features, List, Value

from distillkit.data.columns import COLUMNS

DESCRIPTION = "_pseudo.json"  # the underscore keeps readers of the Parquet folder from taking it for data


def write_part(
    folder: Path,
    rank: int,
    batches: Iterable[list[dict[str, Any]]],
    labels: list[str] | None,
    column: str | None = "label",
) -> int:
    """Write one process's rows to `part-NNNNN.parquet`, whole or not at all; return how many there are.

    Args:
        folder: Made if it is not there.
        rank: Of the process.
        batches: Rows with canonical columns.
        labels: Class names in the order of `teacher_logits`, which the column of the labels declares; None without
            classes.
        column: The column of the labels: `label` or `labels`.
    """
    path = folder / f"part-{rank:05d}.parquet"
    beside = path.with_suffix(".partial")
    folder.mkdir(parents=True, exist_ok=True)
    writer, count = None, 0
    try:
        for batch in batches:
            if not batch:
                continue
            rows = [_with_ids(row, labels, column) for row in batch]
            table = pyarrow.Table.from_pylist(rows, schema=schema(batch[0], labels, column))
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


def schema(row: dict[str, Any], labels: list[str] | None, column: str | None = "label") -> pyarrow.Schema:
    """Return the Arrow types of canonical columns, with the class names as `datasets` keeps them."""
    kinds = {
        "text": Value("string"),
        "label": Value("string"),
        "labels": List(Value("string")),
        "number": Value("float64"),
        "texts": List(Value("string")),
        "numbers": List(Value("float32")),
        "flag": Value("bool"),
        "answers": {"text": List(Value("string")), "answer_start": List(Value("int64"))},
    }
    found = Features.from_arrow_schema(pyarrow.Table.from_pylist([row]).schema)
    names = ClassLabel(names=labels or [])
    own = {} if labels is None or column is None else {column: names if column == "label" else List(names)}
    return Features({name: own.get(name) or kinds.get(COLUMNS[name], found[name]) for name in row}).arrow_schema


def _with_ids(row: dict[str, Any], labels: list[str] | None, column: str | None) -> dict[str, Any]:
    given = row.get(column or "")
    if labels is None or column is None or given is None:
        return row
    return row | {column: labels.index(given) if column == "label" else [labels.index(name) for name in given]}


def describe(folder: Path, facts: dict[str, Any]) -> None:
    """Write what the data is and where it came from."""
    (folder / DESCRIPTION).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
