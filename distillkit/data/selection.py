"""Some of a table's rows, looked at batch by batch so that a memory-mapped table is never copied as a whole."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from datasets import Dataset

LARGE = 256 << 20  # bytes: tables of more are not copied in memory
BATCH = 10_000  # rows


def all_but(left_out: Collection[int], count: int) -> np.ndarray:
    """Return the indices below `count` that are not left out: int64, ascending."""
    kept = np.ones(count, dtype=bool)
    kept[list(left_out)] = False
    return np.flatnonzero(kept)


@dataclass(frozen=True)
class Selection:
    """Rows of a table.

    Attributes:
        table: In our columns.
        kept: int64: the indices of the rows, ascending.
    """

    table: pa.Table
    kept: np.ndarray

    @classmethod
    def of(cls, rows: Dataset) -> Selection:
        """Take a split; rows that were picked by index are copied."""
        table = rows.data.table if rows._indices is None else rows.with_format("arrow")[:]
        return cls(table, np.arange(len(table)))

    def __len__(self) -> int:
        return len(self.kept)

    @property
    def names(self) -> list[str]:
        """The columns."""
        return self.table.column_names

    def only(self, chosen: np.ndarray) -> Selection:
        """Keep what is chosen among these rows: bool `[kept]`."""
        return Selection(self.table, self.kept[chosen])

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield the rows, some at a time."""
        table = self.table.select(list(columns))
        for start in range(0, len(table), BATCH):
            first, last = np.searchsorted(self.kept, (start, start + BATCH))
            if last > first:
                piece = table.slice(start, BATCH).combine_chunks()
                whole = last - first == len(piece)
                piece = piece if whole else piece.take(pa.array(self.kept[first:last] - start))
                yield from piece.to_batches()

    def dataset(self) -> Dataset:
        """Return the rows as a dataset."""
        if not self.table.num_columns:
            return Dataset.from_dict({})
        if len(self) == len(self.table):
            return Dataset(self.table, fingerprint="all")
        if self.table.nbytes > LARGE:
            return Dataset(self.table, fingerprint="all").select(self.kept)
        mask = np.zeros(len(self.table), dtype=bool)
        mask[self.kept] = True
        return Dataset(self.table.filter(pa.array(mask)), fingerprint="some")
