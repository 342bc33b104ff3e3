"""Read one file as a table: JSON lines, JSON, CSV, TSV, Parquet, Arrow and plain text; large ones through the cache.

A reader yields tables, so that a file larger than memory can be written to a memory-mapped one. Reading stops at a
broken record, or passes over it and remembers it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from datasets import Features

from distillkit.data.cache import TableWriter, cached
from distillkit.data.described import check_described
from distillkit.data.digest import code_digest, digest
from distillkit.data.jsonl import read_json, read_json_lines
from distillkit.data.records import BLOCK, ROWS, Reading, lines, readable, suffix
from distillkit.errors import UserError

LARGE = 256 << 20  # bytes: files of more are converted to memory-mapped ones
PACKED = 5  # how much larger a .gz file may get


@dataclass(frozen=True)
class FileRows:
    """The rows of a file.

    Attributes:
        path: The file.
        table: Its rows.
        features: Of its columns, as `datasets` keeps them: with class names, where the file has them.
        passed_over: Records that are no rows, by their number: what is wrong.
    """

    path: Path
    table: pa.Table
    features: Features
    passed_over: dict[int, str]

    def place(self, row: int) -> str:
        """Name the place of a row."""
        return self.record_place(_record(row, sorted(self.passed_over)))

    def record_place(self, record: int) -> str:
        """Name the place of a record, which may be none of the rows."""
        if suffix(self.path) in LINED:
            number, _ = next(islice(lines(self.path), record, None))
            return f"{self.path}:{number}"
        return f"{self.path}, row {record + 1}"


def read_file(path: Path, wanted: Collection[str], lenient: bool, cache: Callable[[], Path | None]) -> FileRows:
    """Read a file by its ending.

    Args:
        path: The file; `.gz` may follow the ending of a text format.
        wanted: Columns that will be used.
        lenient: Pass over broken records.
        cache: Returns where large files are converted.

    Raises:
        UserError: If the ending is unknown or the content does not parse; names the line where there are lines.
    """
    if suffix(path) not in READERS:
        raise UserError(f"unknown file type '{path.suffix}'", where=str(path), fix=f"use {', '.join(READERS)}")

    def make(writer: TableWriter) -> dict[str, list]:
        reading = Reading(path, wanted, lenient)
        for table in READERS[suffix(path)](reading, writer.restart):
            writer.write(table)
        return {"passed_over": list(reading.passed_over.items())}

    about = path.stat()
    large = about.st_size * (PACKED if path.suffix == ".gz" else 1) > LARGE
    key = digest(str(path.resolve()), about.st_size, about.st_mtime_ns, sorted(wanted), lenient, code_digest())
    check_described(path)
    with readable(str(path)):
        if suffix(path) == ".arrow":
            table = _map_arrow(path)
            return FileRows(path, table, Features.from_arrow_schema(table.schema), {})
        table, facts = cached(cache() if large else None, key, make)
        schema = pyarrow.parquet.read_schema(path) if suffix(path) == ".parquet" else table.schema
    return FileRows(path, table, Features.from_arrow_schema(schema), dict(facts["passed_over"]))


def _read_csv(reading: Reading, _: Callable[[], None]) -> Iterator[pa.Table]:
    if not any(True for _ in lines(reading.path)):
        return

    def broken(row: pyarrow.csv.InvalidRow) -> str:
        if not reading.lenient:
            return "error"
        reading.passed_over[row.number - 2] = f"{row.actual_columns} values instead of {row.expected_columns}"
        return "skip"

    parse = pyarrow.csv.ParseOptions(
        delimiter="\t" if suffix(reading.path) == ".tsv" else ",", newlines_in_values=True, invalid_row_handler=broken
    )
    read = pyarrow.csv.ReadOptions(block_size=BLOCK, use_threads=False)
    with pa.input_stream(str(reading.path)) as stream, pyarrow.csv.open_csv(stream, read, parse) as file:
        names = file.schema.names
    reading.passed_over.clear()
    text = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()))
    with pa.input_stream(str(reading.path)) as stream, pyarrow.csv.open_csv(stream, read, parse, text) as file:
        for batch in file:
            yield pa.Table.from_batches([batch])


def _read_parquet(reading: Reading, _: Callable[[], None]) -> Iterator[pa.Table]:
    with pyarrow.parquet.ParquetFile(reading.path) as file:
        yield file.schema_arrow.empty_table()
        for batch in file.iter_batches(ROWS):
            yield pa.Table.from_batches([batch])


def _map_arrow(path: Path) -> pa.Table:
    """Open an Arrow file, or a stream as `datasets` saves it, memory-mapped."""
    source = pa.memory_map(str(path))
    try:
        return pa.ipc.open_file(source).read_all()
    except pa.ArrowInvalid:
        return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()


def _read_text(reading: Reading, _: Callable[[], None]) -> Iterator[pa.Table]:
    records = enumerate(lines(reading.path))
    while chunk := list(islice(records, ROWS)):
        yield decode_texts(reading, chunk)


def decode_texts(reading: Reading, records: Iterable[tuple[int, tuple[int, bytes]]]) -> pa.Table:
    """Return the texts of some lines: their numbers as records and as lines, and their bytes."""
    texts = []
    for record, (number, line) in records:
        try:
            texts.append(line.decode())
        except UnicodeDecodeError as error:
            if not reading.lenient:
                raise UserError(f"not UTF-8 text ({error.reason})", where=f"{reading.path}:{number}") from error
            reading.passed_over[record] = f"not UTF-8 text ({error.reason})"
    return pa.table({"text": pa.array(texts, pa.string())})


def _record(row: int, passed_over: list[int]) -> int:
    """Turn a row's number into that of its record."""
    record = row
    while (before := row + bisect_right(passed_over, record)) != record:
        record = before
    return record


# Each yields tables; it calls the function that it gets to begin anew.
READERS: dict[str, Callable[[Reading, Callable[[], None]], Iterator[pa.Table]]] = {
    ".jsonl": read_json_lines,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
    ".txt": _read_text,
    ".json": read_json,
    ".arrow": _read_parquet,
}
LINED = (".jsonl", ".txt")
