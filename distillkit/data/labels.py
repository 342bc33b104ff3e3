"""Class names: the columns `label`, `labels` and `tags` as text, and the names in the order of their ids."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Features

from distillkit.data.columns import CLASSES
from distillkit.data.rows import Rows
from distillkit.errors import UserError


def label_names(rows: Rows, column: str = "label") -> list[str]:
    """Return the declared class names, or the sorted ones in a column of the first split, the training split."""
    if rows.labels is not None:
        return rows.labels
    split = next(iter(rows.splits))
    if rows.stream is not None and split == "train":
        what, fix = "the classes of a stream are not known before its end", "list them: dataset.labels=[NAME, …]"
        raise UserError(what, where="dataset.labels", fix=fix)
    table = rows.split(split)
    found: set[str] = set()
    if column in table.column_names:
        for batch in table.select_columns(column).with_format("arrow").iter(batch_size=100_000):
            values = batch[column]
            values = pc.list_flatten(values) if pa.types.is_list(values.type) else values
            found.update(str(name) for name in pc.unique(values).to_pylist() if name is not None)
    if not found:
        raise UserError(f"the {split} split of dataset '{rows.name}' has no labels", where="dataset.labels")
    return sorted(found, key=lambda label: (not label.isdigit(), int(label) if label.isdigit() else 0, label))


def name_classes(table: pa.Table, features: Features) -> tuple[pa.Table, list[str] | None]:
    """Turn the columns of classes into text, without a class null; return the names too if a column declares them.

    No class is what is empty, not a number, or -1 in a column of class ids (how the hub marks hidden test labels).

    Args:
        table: In our columns.
        features: Of its columns, as `datasets` keeps them.
    """
    declared = None
    for column in CLASSES:
        if column in table.column_names:
            names = _declared(features[column])
            declared = declared or names
            texts = pa.chunked_array([_texts(c, names, column) for c in table[column].chunks], type=_kind(column))
            table = table.set_column(table.column_names.index(column), column, texts)
    return table, declared


def _kind(column: str) -> pa.DataType:
    return pa.string() if column == "label" else pa.list_(pa.string())


def _declared(feature: Any) -> list[str] | None:
    inner = feature if isinstance(feature, ClassLabel) else getattr(feature, "feature", None)
    return list(inner.names) if isinstance(inner, ClassLabel) else None


def _texts(values: pa.Array, names: list[str] | None, column: str) -> pa.Array:
    kind = values.type
    if column == "label":
        return _names(values, names, column)
    if pa.types.is_null(kind):
        return pa.nulls(len(values), _kind(column))
    if not pa.types.is_list(kind):
        raise UserError(f"{column} are a list, got {values[0]}", where=f"dataset.columns.{column}")
    whole = values if values.offset == 0 else pa.concat_arrays([values.slice(0, 0), values])
    inner = _names(whole.flatten(), names, column)
    lengths = pc.fill_null(pc.list_value_length(whole), 0).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), inner, mask=whole.is_null())


def _names(values: pa.Array, names: list[str] | None, column: str) -> pa.Array:
    kind = values.type
    if pa.types.is_nested(kind):
        example = next(value for value in values.to_pylist() if value is not None)
        raise UserError(f"a label is text or a number, got {example}", where=f"dataset.columns.{column}")
    if pa.types.is_null(kind):
        return pa.nulls(len(values), pa.string())
    if names is not None and pa.types.is_integer(kind):
        known = pc.if_else(pc.less(values, 0), pa.scalar(None, kind), values)
        return pa.array(names, pa.string()).take(known)
    if pa.types.is_floating(kind):
        coded = values.dictionary_encode()
        texts = [None if value != value else f"{value:g}" for value in coded.dictionary.to_pylist()]
        return pa.array(texts, pa.string()).take(coded.indices)
    texts = values.cast(pa.string())
    return pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.string()), texts)
