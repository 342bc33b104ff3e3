"""Local files as a dataset: JSON lines, CSV, TSV, Parquet and plain text."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Iterator
from glob import glob
from itertools import accumulate, islice
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet
from datasets import Dataset

from distillkit.data.rows import SPLITS, Rows, check_limit, chosen_columns, name_labels, select_columns
from distillkit.errors import UserError


class FileDataset:
    """Read local files: a row is a line (JSONL, text) or a record (CSV, TSV, Parquet).

    Values in CSV and TSV are text, whatever they look like. A blank line is no row.

    Args:
        train: A file, a glob pattern or a list of them; the ending decides the format.
        validation: Likewise.
        test: Likewise.
        columns: Canonical column → its name in the files; null leaves a column out.
        labels: Names of the classes in the order of their ids; null: those that the files declare (Parquet), or the
            sorted labels of the training split.
        limit: Use at most so many rows of each split, drawn with a fixed seed.
        name: For reports; null: the folder of the training file.
    """

    def __init__(
        self,
        train: str | list[str] | None = None,
        validation: str | list[str] | None = None,
        test: str | list[str] | None = None,
        columns: dict[str, str | None] | None = None,
        labels: list[str] | None = None,
        limit: int | None = None,
        name: str | None = None,
    ) -> None:
        self.files = {split: files for split, files in zip(SPLITS, (train, validation, test), strict=True) if files}
        if not self.files:
            raise UserError("no files given", where="dataset", fix="set dataset.train=FILE")
        self.columns = chosen_columns(columns or {"text": "text", "label": "label"})
        self.labels = labels
        self.limit = check_limit(limit)
        self.name = name

    def load(self) -> Rows:
        """Read every split.

        Raises:
            UserError: If a file is missing or unreadable (with its line), has no rows or lacks a column.
        """
        splits, places, labels = {}, {}, self.labels
        for split, patterns in self.files.items():
            paths = find_files(patterns, f"dataset.{split}")
            parts = [read_table(path) for path in paths]
            rows = Dataset(_concatenate(parts, paths))
            if len(rows) == 0:
                raise UserError("there are no rows in it", where=", ".join(map(str, paths)))
            kept = sample(len(rows), self.limit)
            rows = select_columns(rows.select(kept) if self.limit else rows, self.columns, str(paths[0]))
            splits[split], declared = name_labels(rows)
            labels = labels or declared
            places[split] = (paths, list(accumulate(part.num_rows for part in parts)), kept)
        name = self.name or Path(next(iter(places.values()))[0][0]).resolve().parent.name
        return Rows(name, splits, labels, _locator(places))


def find_files(patterns: str | list[str], key: str) -> list[Path]:
    """Resolve file names and glob patterns, in sorted order for each pattern."""
    found = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        path = Path(pattern).expanduser()
        matches = [str(path)] if path.is_file() else sorted(glob(str(path), recursive=True))  # noqa: PTH207
        if not matches:
            raise UserError(f"no such file: {pattern}", where=key)
        found += [Path(match) for match in matches]
    return found


def read_table(path: Path) -> pyarrow.Table:
    """Read one file by its ending.

    Raises:
        UserError: If the ending is unknown or the content does not parse; names the line where there are lines.
    """
    if path.suffix not in READERS:
        raise UserError(f"unknown file type '{path.suffix}'", where=str(path), fix=f"use {', '.join(READERS)}")
    try:
        return READERS[path.suffix](path)
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"cannot be read: {str(error).splitlines()[0]}", where=str(path)) from error


def sample(rows: int, limit: int | None) -> np.ndarray:
    """Draw at most `limit` of `rows` indices with a fixed seed, in ascending order."""
    if limit is None or limit >= rows:
        return np.arange(rows)
    return np.sort(np.random.default_rng(0).choice(rows, size=limit, replace=False))


def _read_jsonl(path: Path) -> pyarrow.Table:
    if path.stat().st_size == 0:
        return pyarrow.table({})
    options = pyarrow.json.ReadOptions(block_size=1 << 27)
    try:
        table = pyarrow.json.read_json(path, read_options=options)
        dates = [column.name for column in table.schema if pyarrow.types.is_timestamp(column.type)]
        if dates:  # Arrow takes text that looks like a date for one
            schema = pyarrow.schema([(name, pyarrow.string()) for name in dates])
            table = pyarrow.json.read_json(path, options, pyarrow.json.ParseOptions(explicit_schema=schema))
    except pyarrow.ArrowInvalid as error:
        raise _first_bad_line(path) or error from error
    if table.num_rows != sum(1 for _ in _lines(path)):  # Arrow takes objects over several lines, or several in one
        raise _first_bad_line(path) or UserError("each line must hold one JSON object", where=str(path))
    return table


def _first_bad_line(path: Path) -> UserError | None:
    kinds: dict[str, tuple[type, int]] = {}
    for number, line in _lines(path):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            return UserError(f"not valid JSON ({error.msg}, column {error.colno})", where=f"{path}:{number}")
        if not isinstance(row, dict):
            return UserError("each line must hold one JSON object", where=f"{path}:{number}")
        for column, value in row.items():
            kind, first = kinds.setdefault(column, (type(value), number))
            if value is not None and kind is not type(value) and kind is not type(None):
                problem = f"'{column}' is {type(value).__name__} here and {kind.__name__} in line {first}"
                return UserError(problem, where=f"{path}:{number}")
    return None


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not blank, with their numbers."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise UserError(f"not UTF-8 text ({error.reason})", where=f"{path}:{number}") from error
            if text.strip():
                yield number, text


def _read_csv(path: Path) -> pyarrow.Table:
    if path.stat().st_size == 0:
        return pyarrow.table({})
    parse = pyarrow.csv.ParseOptions(delimiter="\t" if path.suffix == ".tsv" else ",", newlines_in_values=True)
    with pyarrow.csv.open_csv(path, parse_options=parse) as file:
        names = file.schema.names
    text = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pyarrow.string()))
    return pyarrow.csv.read_csv(path, parse_options=parse, convert_options=text)


def _read_text(path: Path) -> pyarrow.Table:
    return pyarrow.table({"text": [line for _, line in _lines(path)]})


READERS: dict[str, Callable[[Path], pyarrow.Table]] = {
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": pyarrow.parquet.read_table,
    ".txt": _read_text,
}


def _concatenate(parts: list[pyarrow.Table], paths: list[Path]) -> pyarrow.Table:
    try:
        return pyarrow.concat_tables(parts, promote_options="permissive")
    except pyarrow.ArrowTypeError as error:
        names = ", ".join(str(path) for path in paths)
        raise UserError(f"files with different columns: {str(error).splitlines()[0]}", where=names) from error


def _locator(places: dict[str, tuple[list[Path], list[int], np.ndarray]]) -> Callable[[str, int], str]:
    def where(split: str, index: int) -> str:
        paths, ends, kept = places[split]
        row = int(kept[index])
        part = bisect_right(ends, row)
        path, row = paths[part], row - (ends[part - 1] if part else 0)
        if path.suffix in (".jsonl", ".txt"):
            number, _ = next(islice(_lines(path), row, None))
            return f"{path}:{number}"
        return f"{path}, row {row + 1}"

    return where
