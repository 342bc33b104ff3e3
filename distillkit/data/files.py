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

from distillkit.data.rows import SPLITS, Rows, chosen_columns, select_columns
from distillkit.errors import UserError


class FileDataset:
    """Read local files, one row a line (JSONL, CSV, TSV, text) or a record (Parquet).

    Args:
        train: A file, a glob pattern or a list of them; the ending decides the format.
        validation: Likewise.
        test: Likewise.
        columns: Canonical column → its name in the files; null leaves a column out.
        labels: Names of the classes in the order of their ids; null: the sorted labels of the training split.
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
        self.limit = limit
        self.name = name

    def load(self) -> Rows:
        """Read every split.

        Raises:
            UserError: If a file is missing or unreadable (with its line), or lacks a column.
        """
        splits, places = {}, {}
        for split, patterns in self.files.items():
            paths = find_files(patterns, f"dataset.{split}")
            parts = [read_table(path) for path in paths]
            rows = Dataset(_concatenate(parts, paths))
            kept = sample(len(rows), self.limit)
            splits[split] = select_columns(rows.select(kept) if self.limit else rows, self.columns, str(paths[0]))
            places[split] = (paths, list(accumulate(part.num_rows for part in parts)), kept)
        name = self.name or Path(next(iter(places.values()))[0][0]).resolve().parent.name
        return Rows(name, splits, self.labels, _locator(places))


def find_files(patterns: str | list[str], key: str) -> list[Path]:
    """Resolve file names and glob patterns, in sorted order for each pattern."""
    found = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        matches = sorted(glob(str(Path(pattern).expanduser()), recursive=True))
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
    except (pyarrow.ArrowInvalid, UnicodeDecodeError) as error:
        raise UserError(f"cannot be read: {str(error).splitlines()[0]}", where=str(path)) from error


def sample(rows: int, limit: int | None) -> np.ndarray:
    """Draw at most `limit` of `rows` indices with a fixed seed, in ascending order."""
    if limit is None or limit >= rows:
        return np.arange(rows)
    return np.sort(np.random.default_rng(0).choice(rows, size=limit, replace=False))


def _read_jsonl(path: Path) -> pyarrow.Table:
    if path.stat().st_size == 0:
        return pyarrow.table({})
    try:
        return pyarrow.json.read_json(path, read_options=pyarrow.json.ReadOptions(block_size=1 << 27))
    except pyarrow.ArrowInvalid as error:
        raise _first_bad_line(path) or error from error


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
    with path.open(encoding="utf-8") as file:
        yield from ((number, line) for number, line in enumerate(file, start=1) if line.strip())


def _read_csv(path: Path) -> pyarrow.Table:
    options = pyarrow.csv.ParseOptions(delimiter="\t" if path.suffix == ".tsv" else ",", newlines_in_values=True)
    return pyarrow.table({}) if path.stat().st_size == 0 else pyarrow.csv.read_csv(path, parse_options=options)


def _read_text(path: Path) -> pyarrow.Table:
    return pyarrow.table({"text": [line.rstrip("\n") for _, line in _lines(path)]})


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
