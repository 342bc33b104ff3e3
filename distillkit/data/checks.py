"""Check rows before they are encoded: what a task reads is there, of the right kind, and of known classes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from distillkit.data.columns import COLUMNS, missing_column, problems
from distillkit.data.rows import Rows
from distillkit.errors import UserError, did_you_mean
from distillkit.tasks.base import Task

CHECKED = 100_000  # rows at a time
LISTED = 20  # classes: of more, no list is shown


class Reader(Protocol):
    """What reads columns: a task, or a generator."""

    name: str
    required_columns: tuple[tuple[str, ...], ...]


def check_columns(rows: Rows, reader: Reader) -> None:
    """Refuse rows that lack what is read of them."""
    for split, table in rows.splits.items():
        missing = [set(needed) - set(table.column_names) for needed in reader.required_columns]
        if all(missing):
            options = zip(reader.required_columns, missing, strict=True)
            nearest = min(
                reversed(list(options)), key=lambda option: (len(option[1]) == len(option[0]), len(option[1]))
            )
            raise _lacking(rows, split, reader, nearest[1])


def required(reader: Reader, table: Dataset) -> tuple[str, ...]:
    """Return the first of the reader's alternatives that the rows have."""
    return next(needed for needed in reader.required_columns if set(needed) <= set(table.column_names))


def find_bad_rows(table: Dataset, task: Task, labels: list[str] | None) -> dict[int, str]:
    """Find the rows that cannot be encoded: index → reason."""
    needed = required(task, table)
    optional = [name for name in ("text_pair", task.label_column or "", "teacher_logits") if name not in needed]
    bad: dict[int, str] = {}
    for start, piece in pieces(table):
        found: Iterator[tuple[int, str]]
        for name in (*needed, *optional):
            if name in piece.column_names:
                found = _bad_values(piece[name], name, task, labels, name in needed or name == "text_pair")
                for index, reason in found:
                    bad.setdefault(start + index, reason)
    return bad


def pieces(table: Dataset) -> Iterator[tuple[int, pa.Table]]:
    """Yield a split in pieces, each with the index of its first row."""
    arrow = table.with_format("arrow")
    for start in range(0, len(table), CHECKED):
        yield start, arrow[start : start + CHECKED]


def _lacking(rows: Rows, split: str, reader: Reader, missing: set[str]) -> UserError:
    source, names = rows.sources.get(split, ("", ()))
    name = sorted(missing, key=list(COLUMNS).index)[0]
    if names and name not in names:
        error = missing_column(name, [name], names, source)
        return UserError(str(error), fix=f"{reader.name} needs {name}")
    options = " or ".join(" + ".join(needed) for needed in reader.required_columns)
    there = ", ".join(rows.splits[split].column_names) or "none"
    return UserError(
        f"{reader.name} needs the columns {options}; the {split} split has {there}",
        where="dataset.columns",
        fix=f"map them: dataset.columns.{name}=NAME",
    )


def _bad_values(
    column: pa.ChunkedArray, name: str, task: Task, labels: list[str] | None, needed: bool
) -> Iterator[tuple[int, str]]:
    for problem in problems(name, column, needed):
        for index in np.flatnonzero(pc.fill_null(problem.rows, False).to_numpy()):
            yield int(index), problem.reason
    if labels is None:
        return
    if task.has_classes and name == task.label_column:
        yield from _unknown_classes(column, labels)
    if name == "teacher_logits" and (pa.types.is_list(column.type)):
        counts = pc.list_value_length(column)
        for index in np.flatnonzero(pc.fill_null(pc.not_equal(counts, len(labels)), False).to_numpy()):
            yield int(index), f"{counts[int(index)]} teacher_logits for {len(labels)} classes ({', '.join(labels[:8])})"


def _unknown_classes(column: pa.ChunkedArray, labels: list[str]) -> Iterator[tuple[int, str]]:
    nested = pa.types.is_list(column.type)
    names = pc.unique(pc.list_flatten(column) if nested else column).to_pylist()
    unknown = {name: _unknown(name, labels) for name in names if name is not None and name not in set(labels)}
    if not unknown:
        return
    for index, value in enumerate(column.to_pylist()):
        for name in (value or []) if nested else [value]:
            if name in unknown:
                yield index, unknown[name]
                break


def _unknown(label: str, labels: list[str]) -> str:
    near = did_you_mean(label, labels) if len(labels) <= LISTED else None
    return f"label '{label}' is not among the declared ones" + (f"; {near}" if near else "")
