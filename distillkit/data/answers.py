"""One form of answers: SQuAD's files list {text, answer_start}, the hub's copies have a list of each."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

NAMES = ("text", "answer_start")


def read_answers(table: pa.Table) -> pa.Table:
    """Turn [{text: …, answer_start: …}, …] into {text: […], answer_start: […]}; what is neither stays as it is."""
    if "answers" not in table.column_names or not _listed(table["answers"].type):
        return table
    index = table.column_names.index("answers")
    chunks = [_turned(chunk) for chunk in table["answers"].chunks]
    return table.set_column(index, "answers", pa.chunked_array(chunks, type=_kind(table["answers"].type)))


def _listed(kind: pa.DataType) -> bool:
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return False
    inner = kind.value_type
    return pa.types.is_null(inner) or (
        pa.types.is_struct(inner) and all(inner.get_field_index(name) >= 0 for name in NAMES)
    )


def _kind(kind: pa.DataType) -> pa.DataType:
    inner = kind.value_type
    types = (pa.string(), pa.int64()) if pa.types.is_null(inner) else tuple(inner.field(name).type for name in NAMES)
    return pa.struct([(name, pa.list_(own)) for name, own in zip(NAMES, types, strict=True)])


def _turned(values: pa.Array) -> pa.Array:
    kind = _kind(values.type)
    lengths = pc.fill_null(pc.list_value_length(values), 0)
    offsets = pa.concat_arrays([pa.array([0], pa.int32()), pc.cumulative_sum(lengths).cast(pa.int32())])
    inner = pc.list_flatten(values)
    lists = [
        pa.ListArray.from_arrays(offsets, _field(inner, name, field.type.value_type))
        for name, field in zip(NAMES, (kind.field(name) for name in NAMES), strict=True)
    ]
    return pa.StructArray.from_arrays(lists, fields=list(kind), mask=values.is_null())


def _field(inner: pa.Array, name: str, kind: pa.DataType) -> pa.Array:
    return pa.nulls(0, kind) if pa.types.is_null(inner.type) else pc.struct_field(inner, name)
