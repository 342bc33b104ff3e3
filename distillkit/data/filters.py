"""Declarative filters: which rows of a source are kept, by the values of their columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distillkit.errors import UserError, did_you_mean

# Column → a value, a list of values, or conditions that must all hold; null: no condition.
Filter = Mapping[str, Any]
CONDITIONS = ("is", "not", "min", "max", "min_chars", "max_chars")


def check_filter(wanted: Filter) -> None:
    """Refuse conditions that are none, by their key."""
    for column, condition in wanted.items():
        key = f"dataset.filter.{column}"
        if not isinstance(condition, Mapping):
            _check_values(condition, key)
            continue
        for name, value in condition.items():
            if name not in CONDITIONS:
                raise UserError(f"unknown condition '{name}'", where=key, fix=did_you_mean(str(name), list(CONDITIONS)))
            if name in ("is", "not"):
                _check_values(value, f"{key}.{name}")
            elif not isinstance(value, int | float | None) or isinstance(value, bool):
                raise UserError(f"must be a number, got {value!r}", where=f"{key}.{name}")


def matches(wanted: Filter, columns: Mapping[str, pa.ChunkedArray]) -> np.ndarray:
    """Tell which rows fulfil all conditions: bool `[rows]`. A row without a value fulfils none but `not`.

    Args:
        wanted: The filter.
        columns: The values of the columns that it names, and of no others.
    """
    kept = np.ones(len(next(iter(columns.values()))), dtype=bool)
    for name, condition in wanted.items():
        parts = condition if isinstance(condition, Mapping) else {"is": condition}
        for kind, value in parts.items():
            if value is not None:
                met = pc.fill_null(_met(columns[name], kind, value, f"dataset.filter.{name}"), kind == "not")
                kept &= met.to_numpy()
    return kept


def _met(column: pa.ChunkedArray, condition: str, value: Any, key: str) -> pa.ChunkedArray:
    try:
        if condition in ("min_chars", "max_chars"):
            compare = pc.greater_equal if condition == "min_chars" else pc.less_equal
            return compare(pc.utf8_length(column), value)
        if condition in ("min", "max"):
            compare = pc.greater_equal if condition == "min" else pc.less_equal
            if pa.types.is_string(column.type):
                column = pc.if_else(pc.equal(column, ""), None, column)  # an empty cell of a CSV file
            return compare(column.cast(pa.float64()), float(value))
        same = pc.is_in(column, value_set=_values(value, column.type))
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise UserError(f"'{condition}: {value}' does not suit values like {_example(column)}", where=key) from error
    return same if condition == "is" else pc.invert(same)


def _values(value: Any, kind: pa.DataType) -> pa.Array:
    """Return the wanted values in the column's type; in text, numbers and true and false are written as JSON does."""
    values = value if isinstance(value, list) else [value]
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        values = [str(v).lower() if isinstance(v, bool) else str(v) for v in values]
    return pa.array(values, kind)


def _example(column: pa.ChunkedArray) -> str:
    return next((f"{value!r:.50}" for value in column.to_pylist() if value is not None), "null")


def _check_values(value: Any, key: str) -> None:
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, list | dict):
            raise UserError(f"must be a value or a list of values, got {value!r}", where=key)
