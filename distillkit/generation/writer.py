"""Pseudo data on disk: Parquet parts that a dataset config reads, and a description beside them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

DESCRIPTION = "pseudo.json"


def write_part(folder: Path, rank: int, batches: Iterable[list[dict[str, Any]]]) -> int:
    """Write one process's rows to `part-NNNNN.parquet`, whole or not at all; return how many there are."""
    path = folder / f"part-{rank:05d}.parquet"
    beside = path.with_suffix(".partial")
    folder.mkdir(parents=True, exist_ok=True)
    writer, count = None, 0
    try:
        for batch in batches:
            if not batch:
                continue
            table = pyarrow.Table.from_pylist(batch, schema=schema(batch[0]))
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


def schema(row: dict[str, Any]) -> pyarrow.Schema:
    """Return the Arrow types of canonical columns."""
    types = {"teacher_logits": pyarrow.list_(pyarrow.float32()), "finished": pyarrow.bool_()}
    return pyarrow.schema([(name, types.get(name, pyarrow.string())) for name in row])


def describe(folder: Path, facts: dict[str, Any]) -> None:
    """Write what the data is and where it came from."""
    (folder / DESCRIPTION).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
