"""What every generator of pseudo data is: rows from a teacher, shard by shard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from distillkit.data.encode import Encoded
from distillkit.data.rows import Rows
from distillkit.errors import UserError
from distillkit.generation.filters.base import Filter
from distillkit.models.live import LiveModel
from distillkit.tasks.base import Task

SHARD_ROWS = 512  # source rows of a shard, unless the config says otherwise


class Asked(Protocol):
    """A teacher and the rows that it is asked about, ready for any shard."""

    def answer(self, start: int, stop: int) -> list[dict[str, Any]] | pa.Table:
        """Return what the teacher makes of the source rows `[start, stop)`, in their order.

        The result depends on nothing but the arguments, the teacher and the data: whatever is random is seeded by the
        source row, never by the batch, the shard or the process.
        """
        ...


class Generator(Protocol):
    """A generate node: a cheap constructor with the YAML arguments, and rows from a teacher."""

    name: str
    split: str  # the rows that are asked about
    required_columns: tuple[tuple[str, ...], ...]  # alternatives: the rows must have all columns of one of them
    shard_rows: int  # source rows of a shard
    filters: Mapping[str, Filter | None]  # name → filter that the rows pass through, in order; None: switched off
    asks: str | None  # what answers instead of the config's teacher, such as a server's model; None: the teacher

    def check(self, task: Task) -> None:
        """Refuse a task whose teachers cannot give such data."""
        ...

    def total(self, rows: Rows) -> int:
        """Return how many source rows the teacher will be asked about."""
        ...

    def prepare(self, teacher: LiveModel | None, rows: Rows, task: Task) -> Asked:
        """Do once what does not depend on the shard.

        Args:
            teacher: In evaluation mode; None if `asks` names another.
            rows: The dataset.
            task: Of the config.
        """
        ...


def ordered_origins(data: Encoded) -> np.ndarray:
    """Return the source row of each encoded row, int64 `[rows]`, ascending.

    Raises:
        UserError: If the task encodes rows in another order than they stand.
    """
    origins = data.origins
    if (np.diff(origins) < 0).any():
        raise UserError("encodes rows in another order than they stand: they cannot be cut into shards", where="task")
    return origins


def at_least_one(value: int, key: str) -> int:
    """Refuse a count below 1."""
    if value < 1:
        raise UserError(f"must be at least 1, got {value}", where=key)
    return value
