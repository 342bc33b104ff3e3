"""Read files from the start to the end, some records at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from datasets import Features

from distillkit.data.blocks import Block, Cursor
from distillkit.data.described import check_described
from distillkit.data.jsonl import parse_lines
from distillkit.data.readers import LINED, READERS, decode_texts
from distillkit.data.records import BLOCK, ROWS, Reading, lines, open_bytes, readable, suffix
from distillkit.errors import UserError


def open_file(path: Path, wanted: Collection[str], lenient: bool) -> Cursor:
    """Open a file by its ending; see `readers.read_file`."""
    ending = suffix(path)
    if ending not in READERS:
        raise UserError(f"unknown file type '{path.suffix}'", where=str(path), fix=f"use {', '.join(READERS)}")
    check_described(path)
    reading = Reading(path, wanted, lenient)
    if ending == ".parquet":
        return ParquetCursor(reading)
    if ending == ".arrow":
        return TableCursor(str(path), _arrow_batches(path))
    if ending in LINED or (ending == ".json" and not _is_array(path)):
        return LineCursor(reading)
    if ending == ".json":
        fix = "write an object a line (.jsonl), or set dataset.streaming=false"
        raise UserError("a JSON array can only be read as a whole", where=str(path), fix=fix)
    return TableCursor(str(path), READERS[ending](reading, lambda: None), reading.passed_over)


class LineCursor:
    """JSON lines or plain text: a record is a line that is not blank."""

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self.lines = lines(reading.path)

    def skip(self, count: int) -> int:
        """Pass over lines; they are not parsed."""
        with readable(str(self.reading.path)):
            return sum(1 for _ in islice(self.lines, count))

    def take(self, count: int) -> Block | None:
        """Read lines, of about `BLOCK` bytes at most."""
        path = self.reading.path
        reading = Reading(path, self.reading.wanted, self.reading.lenient)
        with readable(str(path)):
            found = list(_some(self.lines, count, BLOCK))
            if not found:
                return None
            is_text = suffix(path) == ".txt"
            table = decode_texts(reading, enumerate(found)) if is_text else parse_lines(reading, found)
        numbers = np.array([number for number, _ in found], dtype=np.int64)
        broken = {int(numbers[record]): reason for record, reason in reading.passed_over.items()}
        rows = np.delete(np.arange(len(found)), list(reading.passed_over))
        features = Features.from_arrow_schema(table.schema)
        place = partial(_line, path)
        return Block(len(found), table, features, str(path), rows, numbers[rows], broken, place)

    def close(self) -> None:
        """Close the file."""
        self.lines.close()


class TableCursor:
    """A source that yields tables: a record is a row; what is no row is reported with the row after it.

    Args:
        name: Of the source.
        tables: Its rows, of any number each.
        passed_over: Number of a record that is no row, from 0 → what is wrong; grows while `tables` is read.
    """

    def __init__(self, name: str, tables: Iterator[pa.Table], passed_over: dict[int, str] | None = None) -> None:
        self.name = name
        self.tables = tables
        self.passed_over = {} if passed_over is None else passed_over
        self.record = 0  # the number of the next one
        self.reported = 0  # broken records before this one were
        self.left = pa.table({})

    def skip(self, count: int) -> int:
        """Pass over rows."""
        skipped = 0
        while skipped < count and self._fill():
            piece = self.left.slice(0, count - skipped)
            self._numbers(len(piece))
            self.left = self.left.slice(len(piece))
            skipped += len(piece)
        self.reported = self.record
        return skipped

    def take(self, count: int) -> Block | None:
        """Read rows; at the end perhaps nothing but records that are broken."""
        more = self._fill()
        table = self.left.slice(0, count)
        self.left = self.left.slice(len(table))
        numbers = self._numbers(len(table)) + 1
        end = self.record if more else max(self.passed_over, default=-1) + 1
        broken = {record + 1: why for record, why in self.passed_over.items() if self.reported <= record < end}
        self.reported = max(self.reported, end)
        if not more and not broken:
            return None
        features = Features.from_arrow_schema(table.schema)
        rows = np.arange(len(table))
        return Block(len(table), table, features, self.name, rows, numbers, broken, self._place)

    def close(self) -> None:
        """Forget the source."""
        self.tables = iter(())

    def _place(self, number: int) -> str:
        return f"{self.name}, row {number}"

    def _fill(self) -> bool:
        """Have rows ready; return whether there are any."""
        with readable(self.name):
            while len(self.left) == 0:
                table = next(self.tables, None)
                if table is None:
                    return False
                self.left = table
        return True

    def _numbers(self, rows: int) -> np.ndarray:
        """Move on by so many rows; return the numbers of their records, from 0."""
        numbers = np.arange(self.record, self.record + rows)
        for record in sorted(record for record in self.passed_over if record >= self.record):
            numbers[numbers >= record] += 1
        self.record = int(numbers[-1]) + 1 if rows else self.record
        return numbers


class ParquetCursor(TableCursor):
    """A Parquet file, of which whole row groups are passed over without reading them."""

    def __init__(self, reading: Reading) -> None:
        with readable(str(reading.path)):
            self.file = pyarrow.parquet.ParquetFile(reading.path)
        super().__init__(str(reading.path), self._groups(0))

    def skip(self, count: int) -> int:
        """Pass over rows, as the first thing."""
        about, group, rows = self.file.metadata, 0, 0
        while group < about.num_row_groups and rows + about.row_group(group).num_rows <= count:
            rows += about.row_group(group).num_rows
            group += 1
        self.tables, self.record = self._groups(group), rows
        return rows + super().skip(count - rows)

    def close(self) -> None:
        """Close the file."""
        super().close()
        self.file.close()

    def _groups(self, first: int) -> Iterator[pa.Table]:
        for group in range(first, self.file.metadata.num_row_groups):
            for batch in self.file.iter_batches(ROWS, row_groups=[group]):
                yield pa.Table.from_batches([batch]).replace_schema_metadata(self.file.schema_arrow.metadata)


def _arrow_batches(path: Path) -> Iterator[pa.Table]:
    """Yield what is in an Arrow file, or a stream as `datasets` saves it, memory-mapped."""
    with readable(str(path)), pa.memory_map(str(path)) as source:
        try:
            file = pa.ipc.open_file(source)
            batches = (file.get_batch(index) for index in range(file.num_record_batches))
        except pa.ArrowInvalid:
            source.seek(0)
            batches = iter(pa.ipc.open_stream(source))
        for batch in batches:
            yield pa.Table.from_batches([batch])


def _some(numbered: Iterator[tuple[int, bytes]], count: int, size: int) -> Iterator[tuple[int, bytes]]:
    """Yield at most `count` lines, and no more after so many bytes."""
    for number, line in islice(numbered, count):
        yield number, line
        size -= len(line)
        if size <= 0:
            return


def _line(path: Path, number: int) -> str:
    return f"{path}:{number}"


def _is_array(path: Path) -> bool:
    with open_bytes(path) as file:
        return file.read(1 << 10).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
