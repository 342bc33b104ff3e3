"""Pseudo data as tables that a dataset config reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
from datasets import ClassLabel, Features, List, Value

from distillkit.data.columns import COLUMNS

KINDS = {
    "text": Value("string"),
    "label": Value("string"),
    "labels": List(Value("string")),
    "number": Value("float64"),
    "texts": List(Value("string")),
    "numbers": List(Value("float32")),
    "flag": Value("bool"),
    "answers": {"text": List(Value("string")), "answer_start": List(Value("int64"))},
}


def to_table(rows: Sequence[dict[str, Any]], labels: list[str] | None = None, column: str | None = "label") -> pa.Table:
    """Return rows with canonical columns as a table; labels become ids.

    Args:
        rows: A column that a row lacks is null.
        labels: Class names in the order of `teacher_logits`, which the column of the labels declares; None without
            classes.
        column: The column of the labels: `label` or `labels`.
    """
    given = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in given}
    if labels is not None and column in columns:
        columns[column] = [_ids(value, labels, column) for value in columns[column]]
    found = pa.table({name: pa.array(values) for name, values in columns.items()}).schema
    return pa.Table.from_pydict(columns, schema=declared(found, labels, column))


def declared(found: pa.Schema, labels: list[str] | None = None, column: str | None = "label") -> pa.Schema:
    """Return the types of canonical columns, with the class names as `datasets` keeps them; of others as found."""
    names = ClassLabel(names=labels or [])
    own = {} if labels is None or column is None else {column: names if column == "label" else List(names)}
    kinds = Features.from_arrow_schema(found.remove_metadata())
    kinds |= {name: KINDS[COLUMNS[name]] for name in kinds if COLUMNS.get(name) in KINDS}
    return Features(kinds | {name: kind for name, kind in own.items() if name in kinds}).arrow_schema


def common(schemas: Iterable[pa.Schema], labels: list[str] | None = None, column: str | None = "label") -> pa.Schema:
    """Return the types that the tables of all shards fit into."""
    bare = [one.remove_metadata() for one in schemas]
    return declared(pa.unify_schemas(bare, promote_options="permissive"), labels, column)


def _ids(given: Any, labels: list[str], column: str | None) -> Any:
    if given is None:
        return None
    return labels.index(given) if column == "label" else [labels.index(name) for name in given]
