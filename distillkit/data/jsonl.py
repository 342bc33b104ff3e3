"""Read JSON lines and JSON arrays of objects.

Arrow parses what is regular. Where it gives up, Python reads record by record: it finds the broken ones, and the
columns that are text here and a number there.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.json

from distillkit.data.records import BLOCK, ROWS, Reading, lines, open_bytes
from distillkit.errors import UserError

Row = dict[str, Any]


def read_json_lines(reading: Reading, restart: Callable[[], None]) -> Iterator[pa.Table]:
    """Yield the rows of a file with a JSON object in each line."""
    rows = 0
    try:
        count = sum(bool(line.decode()) for _, line in lines(reading.path))
        if count == 0:
            return
        for table in _parse(reading.path):
            rows += table.num_rows
            yield table
    except (pa.ArrowInvalid, UnicodeDecodeError):
        count = -1
    if rows != count:  # Arrow also takes objects over several lines, or several in one
        restart()
        yield from _read_records(reading, lambda: _decode_lines(reading.path, lines(reading.path)))


def parse_lines(reading: Reading, numbered: Sequence[tuple[int, bytes]]) -> pa.Table:
    """Return the rows of some lines, which are numbered; broken ones are passed over by their place among these."""
    block = b"\n".join(line for _, line in numbered)
    try:
        block.decode()
        table = _parse_block(block)
        if table.num_rows == len(numbered):
            return table
    except (pa.ArrowInvalid, UnicodeDecodeError):
        pass
    tables = list(_read_records(reading, lambda: _decode_lines(reading.path, numbered)))
    return pa.concat_tables(tables, promote_options="permissive")


def read_json(reading: Reading, restart: Callable[[], None]) -> Iterator[pa.Table]:
    """Yield the rows of a file that holds a JSON array of objects; or else JSON lines."""
    with open_bytes(reading.path) as file:
        start = file.read(1 << 10).removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start.startswith(b"["):
        yield from read_json_lines(reading, restart)
        return
    with open_bytes(reading.path) as file:
        try:
            records = json.loads(file.read().decode("utf-8-sig"))
        except ValueError as error:  # not JSON, or not UTF-8
            raise UserError(f"not valid JSON ({error})", where=str(reading.path)) from error
    places = [f"{reading.path}, row {number}" for number in range(1, len(records) + 1)]
    yield from _read_records(reading, lambda: zip(places, records, strict=True))


def _parse(path: Path) -> Iterator[pa.Table]:
    """Let Arrow parse JSON lines. Its types are those of the first block, except that it takes dates for text."""
    read = pyarrow.json.ReadOptions(block_size=BLOCK)
    with pa.input_stream(str(path)) as stream:
        schema = pyarrow.json.open_json(stream, read).schema
    with pa.input_stream(str(path)) as stream:
        for batch in pyarrow.json.open_json(stream, read, _without_dates(schema)):
            yield pa.Table.from_batches([batch])


def _parse_block(block: bytes) -> pa.Table:
    """Let Arrow parse JSON lines; its types are those of all of them, except that it takes dates for text."""
    read = pyarrow.json.ReadOptions(block_size=len(block) + 1)
    table = pyarrow.json.read_json(pa.BufferReader(block), read)
    parse = _without_dates(table.schema)
    return table if parse is None else pyarrow.json.read_json(pa.BufferReader(block), read, parse)


def _without_dates(schema: pa.Schema) -> pyarrow.json.ParseOptions | None:
    """Return how to parse columns that were taken for dates, which are text; None if there are none."""
    dates = [field.with_type(_undated(field.type)) for field in schema if _undated(field.type) != field.type]
    return pyarrow.json.ParseOptions(explicit_schema=pa.schema(dates)) if dates else None


def _undated(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_timestamp(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(_undated(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_undated(field.type)) for field in kind])
    return kind


Records = Callable[[], Iterator[tuple[str, Any]]]  # each time anew: place and record, or a ValueError in its stead


def _decode_lines(path: Path, numbered: Iterable[tuple[int, bytes]]) -> Iterator[tuple[str, Any]]:
    for number, line in numbered:
        record: Any
        try:
            record = json.loads(line.decode())
        except UnicodeDecodeError as error:
            record = ValueError(f"not UTF-8 text ({error.reason})")
        except json.JSONDecodeError as error:
            record = ValueError(f"not valid JSON ({error.msg}, column {error.colno})")
        yield f"{path}:{number}", record


def _read_records(reading: Reading, records: Records) -> Iterator[pa.Table]:
    """Yield records as tables; the kind of a column is that of most records."""
    kinds, first = _kinds(records())
    usual = {name: counter.most_common(1)[0][0] for name, counter in kinds.items()}
    mixed = {name for name, counter in kinds.items() if len(counter) > 1 and name not in reading.wanted}
    names = [name for name in kinds if name not in mixed]
    numbered = enumerate(records())
    while chunk := list(islice(numbered, ROWS)):
        good = {}
        for number, (place, record) in chunk:
            problem = _problem(record, usual, mixed, first)
            if problem is None:
                good[number] = (place, record)
            else:
                _pass_over(reading, number, place, problem)
        try:
            yield _table([record for _, record in good.values()], names)
        except (pa.ArrowInvalid, pa.ArrowTypeError):  # something inside a list or an object
            yield _fitting(reading, good, names)


def _kinds(records: Iterator[tuple[str, Any]]) -> tuple[dict[str, Counter[type]], dict[tuple[str, type], str]]:
    """Count the kinds of values of each column, and remember where each kind came first."""
    kinds: dict[str, Counter[type]] = {}
    first: dict[tuple[str, type], str] = {}
    for place, record in records:
        for name, value in record.items() if isinstance(record, dict) else ():
            counter = kinds.setdefault(name, Counter())
            if value is not None:
                kind = _kind(value)
                counter[kind] += 1
                if (name, kind) not in first:
                    first[name, kind] = place.rpartition(":")[2].rpartition(", ")[2]
    return {name: counter or Counter([type(None)]) for name, counter in kinds.items()}, first


def _kind(value: Any) -> type:
    return float if type(value) is int else type(value)


def _problem(record: Any, usual: dict[str, type], mixed: set[str], first: dict[tuple[str, type], str]) -> str | None:
    if isinstance(record, ValueError):
        return str(record)
    if not isinstance(record, dict):
        return "each line must hold one JSON object"
    for name, value in record.items():
        if value is not None and name not in mixed and _kind(value) is not usual[name]:
            place = first[name, usual[name]]
            there = f"line {place}" if place.isdigit() else place
            return f"'{name}' is {type(value).__name__} here and {usual[name].__name__} in {there}"
    return None


def _pass_over(reading: Reading, number: int, place: str, problem: str) -> None:
    if not reading.lenient:
        raise UserError(problem, where=place)
    reading.passed_over[number] = problem


def _table(rows: list[Row], names: list[str]) -> pa.Table:
    return pa.table({name: pa.array([row.get(name) for row in rows]) for name in names})


def _fitting(reading: Reading, records: dict[int, tuple[str, Row]], names: list[str]) -> pa.Table:
    """Make a table of the records that fit the ones before them."""
    schema, rows = pa.schema([]), []
    for number, (place, row) in records.items():
        try:
            schema = pa.unify_schemas([schema, _table([row], names).schema], promote_options="permissive")
            rows.append(row)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            _pass_over(reading, number, place, f"does not fit the rows before it ({str(error).splitlines()[0]})")
    return _table(rows, names)
