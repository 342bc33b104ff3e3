"""One type for each of our columns, whatever the format of the file: CSV has only text, pandas has categories."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from distillkit.data.columns import COLUMNS


def one_type(table: pa.Table) -> pa.Table:
    """Bring our columns to their types where that loses nothing; what does not fit stays as it is.

    Numbers that are written as text become numbers (empty: null), numbers that are ids text; of lists of texts where
    one text is wanted, the texts are joined by blanks.
    """
    columns = {name: _as(table[name], COLUMNS[name], name) for name in table.column_names}
    return pa.table(columns)


def _as(column: pa.ChunkedArray, kind: str, name: str) -> pa.ChunkedArray:
    found = column.type
    if pa.types.is_dictionary(found):
        return _as(column.cast(found.value_type), kind, name)
    if pa.types.is_large_string(found):
        return column.cast(pa.string())
    if name == "id" and pa.types.is_integer(found):
        return column.cast(pa.string())
    if kind == "text" and pa.types.is_list(found) and pa.types.is_string(found.value_type):
        return pc.binary_join(column, " ")
    if kind == "number" and pa.types.is_string(found):
        try:
            return pc.if_else(pc.equal(column, ""), None, column).cast(pa.float64())
        except pa.ArrowInvalid:
            return column
    return column
