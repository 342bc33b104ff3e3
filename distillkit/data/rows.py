"""Rows: what every source loads, in our columns, where each row came from, and how they are to be handled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from datasets import Dataset

from distillkit.errors import UserError, did_you_mean

SPLITS = ("train", "validation", "test")
ON_BAD_ROW = ("refuse", "skip")


def split_and_row(split: str, index: int) -> str:
    """Name the place of a row whose source has no files."""
    return f"{split}, row {index + 1}"


@dataclass(frozen=True)
class Handling:
    """How rows are encoded.

    Attributes:
        on_bad_row: "refuse" the dataset, or "skip" the row; both say which rows are bad and why.
        cache: Folder of encoded rows; None or true: the user's cache folder; false: encode anew, in memory.
        num_workers: Processes that encode; None: by the number of rows and cores.
    """

    on_bad_row: str = "refuse"
    cache: str | bool | None = None
    num_workers: int | None = None

    def __post_init__(self) -> None:
        check_choice(self.on_bad_row, ON_BAD_ROW, "dataset.on_bad_row")
        if self.num_workers is not None and self.num_workers < 0:
            raise UserError(f"must be at least 0, got {self.num_workers}", where="dataset.num_workers")


@dataclass(frozen=True)
class Rows:
    """The rows of a dataset.

    Attributes:
        name: For reports and model cards.
        splits: "train", "validation", "test" → rows; only our columns. A class is text, or null.
        labels: Names of the classes in the order of their ids, as the source declares them; None if it does not.
        where: (split, index) → the place of a row in its source, for messages.
        handling: How they are encoded.
        notes: What users should know: rows skipped or filtered, leaks.
        sources: Split → what it was read from, and the names of the columns there, for messages.
    """

    name: str
    splits: dict[str, Dataset]
    labels: list[str] | None = None
    where: Callable[[str, int], str] = split_and_row
    handling: Handling = field(default_factory=Handling)
    notes: tuple[str, ...] = ()
    sources: Mapping[str, tuple[str, tuple[str, ...]]] = field(default_factory=dict)

    def split(self, name: str) -> Dataset:
        """Return a split, which must be there and not empty."""
        if name not in self.splits:
            raise UserError(
                f"dataset '{self.name}' has no {name} split", where="dataset", fix=f"it has: {', '.join(self.splits)}"
            )
        if len(self.splits[name]) == 0:
            raise UserError(f"the {name} split of dataset '{self.name}' is empty", where="dataset")
        return self.splits[name]

    def without(self, column: str) -> Rows:
        """Return the same rows without a column."""
        kept = {
            name: rows.remove_columns(column) if column in rows.column_names else rows
            for name, rows in self.splits.items()
        }
        return replace(self, splits=kept)


class Source(Protocol):
    """A dataset node: a cheap constructor with the YAML arguments, and `load`."""

    def load(self) -> Rows:
        """Read the rows of every split."""
        ...


def check_choice(value: str, known: tuple[str, ...], where: str) -> str:
    """Refuse a word that is none of the known ones."""
    if value not in known:
        raise UserError(f"unknown choice '{value}'", where=where, fix=did_you_mean(value, list(known)))
    return value
