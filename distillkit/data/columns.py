"""The columns that tasks read: their names and kinds, how a source's columns become them, and what is wrong in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from distillkit.errors import UserError, did_you_mean

# Column → kind.
# text: str. label: a class, as text. labels: a list of them. number: int or float. texts: a list of str. numbers: a
# list of float. flag: bool. answers: {"text": [str], "answer_start": [int]}, both empty where there is no answer.
# messages: [{"role": str, "content": str | None, …}]. image: a file's path, or {"bytes", "path"}. any: as it is.
COLUMNS = {
    "id": "text",
    "text": "text",
    "text_pair": "text",
    "label": "label",
    "labels": "labels",
    "score": "number",
    "tokens": "texts",
    "tags": "labels",
    "question": "text",
    "context": "text",
    "answers": "answers",
    "source": "text",
    "target": "text",
    "references": "texts",
    "instruction": "text",
    "input": "text",
    "prompt": "text",
    "completion": "text",
    "system": "text",
    "messages": "messages",
    "tools": "any",
    "image": "image",
    "finished": "flag",
    "teacher_logits": "numbers",
}
MAY_BE_EMPTY = frozenset({"input", "prompt", "system"})
CLASSES = ("label", "labels", "tags")  # columns of class names

# What identifies a row when rows are compared: the first group whose first column is there.
KEYS = (
    ("text", "text_pair"),
    ("tokens",),
    ("context",),
    ("source",),
    ("instruction", "input"),
    ("prompt",),
    ("messages",),
    ("question",),
)

ColumnMap = Mapping[str, str | list[str] | None]


@dataclass(frozen=True)
class Problem:
    """What is wrong with some rows of a column: bool `[rows]` (null: nothing), and why."""

    rows: pa.ChunkedArray
    reason: str


def chosen_columns(columns: ColumnMap) -> dict[str, list[str]]:
    """Check the keys of a column map (our name → name in the source, or several to look for) and leave out nulls."""
    for name in columns:
        if name not in COLUMNS:
            fix = did_you_mean(name, list(COLUMNS))
            raise UserError(f"unknown column '{name}'", where="dataset.columns", fix=fix)
    return {ours: [theirs] if isinstance(theirs, str) else theirs for ours, theirs in columns.items() if theirs}


def find_columns(schema: pa.Schema, columns: Mapping[str, list[str]], source: str) -> dict[str, str]:
    """Find the mapped columns among those of a source; one that is mapped to its own name need not be there.

    Args:
        schema: Of the source.
        columns: Our name → the names to look for, in this order: of columns, or of their parts (see `part`).
        source: For messages.

    Returns:
        Our name → the name in the source.

    Raises:
        UserError: If a mapped column is not in the source.
    """
    found = {}
    empty = schema.empty_table()
    for ours, candidates in columns.items():
        present = [name for name in candidates if part(empty, name) is not None]
        if present:
            found[ours] = present[0]
        elif candidates != [ours]:
            raise missing_column(ours, candidates, schema.names, source)
    return found


def part(table: pa.Table, name: str) -> pa.ChunkedArray | None:
    """Return a column, or a part of one: "translation.de" of an object, "target.0" of a list; None if not there."""
    if name in table.column_names:
        return table[name]
    head, *path = name.split(".")
    column = table[head] if head in table.column_names else None
    for step in path:
        if column is not None and pa.types.is_struct(column.type) and column.type.get_field_index(step) >= 0:
            column = pc.struct_field(column, step)
        elif column is not None and _is_list(column.type) and step.isdigit():
            at = int(step)
            column = pc.list_element(pc.list_slice(column, at, at + 1, return_fixed_size_list=True), 0)
        else:
            return None
    return column


def missing_column(ours: str, candidates: Sequence[str], names: Sequence[str], source: str) -> UserError:
    """Say that none of the candidates for a column is in the source, and what is."""
    wanted = " or ".join(f"'{name}'" for name in candidates)
    there = f"its columns are: {', '.join(names)}" if names else "it has none"
    return UserError(f"no column {wanted} in {source}", where=f"dataset.columns.{ours}", fix=there)


def problems(name: str, column: pa.ChunkedArray, required: bool) -> Iterator[Problem]:
    """Yield what is wrong in a column: missing (if required), of another kind, or empty.

    Args:
        name: Ours.
        column: Its values.
        required: Whether every row must have a value that is not empty.
    """
    kind, missing = column.type, pc.is_null(column)
    if required:
        yield Problem(missing, f"{name} is missing")
    wrong = _wrong_kind(COLUMNS[name], kind)
    if wrong is not None:
        yield Problem(pc.invert(missing), f"{name} is {_python_name(kind)}, not {wrong}")
        return
    if COLUMNS[name] == "answers" and not pa.types.is_null(kind):
        texts, starts = (pc.list_value_length(pc.struct_field(column, part)) for part in ("text", "answer_start"))
        yield Problem(pc.not_equal(texts, starts), f"{name} has not as many texts as starts")
    if not required or name in MAY_BE_EMPTY:
        return
    if _is_text(kind):
        yield Problem(pc.invert(pc.match_substring_regex(column, r"\S")), f"{name} is empty")
    elif _is_list(kind):
        yield Problem(pc.equal(pc.list_value_length(column), 0), f"{name} is empty")
        if COLUMNS[name] == "texts" and pc.list_flatten(column).null_count:
            holes = [row is not None and None in row for row in column.to_pylist()]
            yield Problem(pa.chunked_array([holes]), f"{name} holds null")


def _wrong_kind(kind: str, found: pa.DataType) -> str | None:
    """Name what a column of some kind should hold, if its type is another; null suits every kind."""
    if pa.types.is_null(found):
        return None
    if kind in ("text", "label"):
        return None if _is_text(found) else "text"
    if kind in ("texts", "labels"):
        suits = _is_list(found) and (_is_text(found.value_type) or pa.types.is_null(found.value_type))
        return None if suits else "a list of texts"
    if kind == "number":
        return None if _is_number(found) else "a number"
    if kind == "numbers":
        return None if _is_list(found) and _is_number(found.value_type) else "a list of numbers"
    if kind == "flag":
        return None if pa.types.is_boolean(found) else "true or false"
    if kind == "answers":
        return None if _has_fields(found, "text", "answer_start") else "{text: […], answer_start: […]}"
    if kind == "messages":
        suits = _is_list(found) and (_has_fields(found.value_type, "role") or pa.types.is_null(found.value_type))
        return None if suits else "a list of {role: …, content: …}"
    return None


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _has_fields(kind: pa.DataType, *names: str) -> bool:
    return pa.types.is_struct(kind) and all(kind.get_field_index(name) >= 0 for name in names)


def _python_name(kind: pa.DataType) -> str:
    """Name an Arrow type as Python does."""
    if pa.types.is_boolean(kind):
        return "bool"
    if pa.types.is_integer(kind):
        return "int"
    if pa.types.is_floating(kind):
        return "float"
    if _is_text(kind):
        return "str"
    if _is_list(kind):
        return "list"
    return "dict" if pa.types.is_struct(kind) else str(kind)
