"""Row templates: columns that are written from a row's other columns, such as `"Translate: {source}"`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from string import Formatter
from typing import Any

import pyarrow as pa

from distillkit.data.columns import COLUMNS, ColumnMap
from distillkit.errors import UserError, did_you_mean

# Text with {fields}; a list of texts: the first whose fields all have a value that is not empty, else the last; a
# mapping, or a list of mappings, of these.
Template = str | list[Any] | dict[str, Any]


def check_templates(templates: Mapping[str, Template], columns: ColumnMap) -> None:
    """Refuse templates that cannot be filled, by their key."""
    for name, template in templates.items():
        key = f"dataset.template.{name}"
        if name not in COLUMNS:
            raise UserError(f"unknown column '{name}'", where=key, fix=did_you_mean(name, list(COLUMNS)))
        if columns.get(name) not in (None, name):
            raise UserError(f"dataset.columns.{name} says another thing", where=key, fix="keep one of them")
        if not fields(template, key):
            raise UserError("no {field} of the rows in it", where=key)


def fields(template: Template, key: str) -> set[str]:
    """Return the names of the fields in a template.

    Raises:
        UserError: If it is no template.
    """
    if isinstance(template, str):
        return set(_fields(template, key))
    if not template or not isinstance(template, list | dict):
        raise UserError(f"a template is text, a list or a mapping, got {template!r}", where=key)
    inner = template.values() if isinstance(template, dict) else template
    return set().union(*(fields(part, key) for part in inner))


def fill(template: Template, row: Mapping[str, Any]) -> Any:
    """Write a template's value for a row (field → value).

    Raises:
        KeyError: A field has no value; its argument is the field's name.
    """
    if isinstance(template, str):
        return _fill(template, row)
    if isinstance(template, dict):
        return {name: fill(part, row) for name, part in template.items()}
    if not all(isinstance(part, str) for part in template):
        return [fill(part, row) for part in template]
    for part in template[:-1]:
        if all(row[name] not in (None, "") for name in _fields(part, "")):
            return _fill(part, row)
    return _fill(template[-1], row)


def render(
    template: Template, name: str, columns: Mapping[str, pa.ChunkedArray]
) -> tuple[pa.ChunkedArray, dict[int, str]]:
    """Write a column.

    Args:
        template: Of the column.
        name: Of the column.
        columns: Field → its values.

    Returns:
        The values, null for a bad row; and index → reason of the bad rows.
    """
    names = list(columns)
    values: list[Any] = []
    bad = {}
    for index, row in enumerate(zip(*(columns[field].to_pylist() for field in names), strict=True)):
        try:
            values.append(fill(template, dict(zip(names, row, strict=True))))
        except KeyError as error:
            values.append(None)
            bad[index] = f"{error.args[0]} is missing, which the template of {name} needs"
        except ValueError as error:
            values.append(None)
            bad[index] = f"the template of {name} cannot be filled ({error})"
    return pa.chunked_array([pa.array(values)]), bad


@cache
def _fields(text: str, key: str) -> frozenset[str]:
    try:
        parts = [(field, spec) for _, field, spec, _ in Formatter().parse(text) if field is not None]
    except ValueError as error:
        raise UserError(f"'{text}' is no template ({error})", where=key, fix="write {{ and }} for braces") from error
    for field, spec in parts:
        if not field or not set(".[").isdisjoint(field) or "{" in (spec or ""):
            raise UserError(f"'{{{field}}}' is no field", where=key, fix="a field is the name of a column: {name}")
    return frozenset(field for field, _ in parts)


def _fill(text: str, row: Mapping[str, Any]) -> str:
    for field in _fields(text, ""):
        if row[field] is None:
            raise KeyError(field)
    return text.format_map(row)
