"""What every generator of pseudo data is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from distillkit.data.rows import Rows
from distillkit.models.live import LiveModel
from distillkit.tasks.base import Task


class Generator(Protocol):
    """A generate node: a cheap constructor with the YAML arguments, and rows from a teacher."""

    name: str
    required_columns: tuple[tuple[str, ...], ...]  # alternatives: the rows must have all columns of one of them

    def check(self, task: Task) -> None:
        """Refuse a task whose teachers cannot give such data."""
        ...

    def total(self, rows: Rows) -> int:
        """Return how many rows the teacher will be asked about."""
        ...

    def __call__(self, teacher: LiveModel, rows: Rows, share: slice) -> Iterator[list[dict[str, Any]]]:
        """Yield finished rows, batch by batch.

        Args:
            teacher: In evaluation mode.
            rows: The dataset.
            share: Which of the `total` rows this process asks about.
        """
        ...
