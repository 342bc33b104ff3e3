"""Rows: what every source loads, in our columns, where each row came from, and how they are to be handled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
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
class Streaming:
    """How a training split is streamed.

    Attributes:
        window: Records that are read, shuffled and encoded together.
        validation_rows: Records at the start that become the validation split where there is none.
    """

    window: int
    validation_rows: int | None = None

    @classmethod
    def wanted(cls, streaming: bool, window: int, validation_rows: int | None) -> Streaming | None:
        """Check the settings of a dataset node; None if it is not to be streamed."""
        for key, value in (("window", window), ("validation_rows", validation_rows)):
            if value is not None and value < 1:
                raise UserError(f"must be at least 1, got {value}", where=f"dataset.{key}")
        if not streaming and validation_rows is not None:
            fix = "use dataset.validation_share, or dataset.streaming=true"
            raise UserError("only a stream sets its first rows aside", where="dataset.validation_rows", fix=fix)
        return cls(window, validation_rows) if streaming else None


@dataclass(frozen=True)
class Window:
    """Some rows of a stream, which stand one after the other, in our columns.

    Attributes:
        table: The rows.
        start: Records of the source before them.
        end: Records of the source up to their end.
        bad: Records among these that were left out because they could not be read or filled in.
        records: int64 `[rows]`: the number of each row's record in the source, from 0.
        place: Index of a row → its place in the source.
        notes: Subject → what users should know.
    """

    table: Dataset
    start: int
    end: int
    bad: int
    records: np.ndarray
    place: Callable[[int], str]
    notes: Mapping[str, str]

    @property
    def name(self) -> str:
        """Which rows these are, for messages."""
        return f"train, rows {self.start + 1:,} to {self.end:,}"


class Stream(Protocol):
    """A training split that is never held as a whole."""

    @property
    def start(self) -> int:
        """Records of the source before the first window."""
        ...

    @property
    def size(self) -> int:
        """Records of a window; the last one may have fewer."""
        ...

    @property
    def first(self) -> Window:
        """The first window that has rows."""
        ...

    def windows(self, record: int) -> Iterator[Window]:
        """Read window by window, from a record of the source to its end."""
        ...

    def without(self, column: str) -> Stream:
        """Return the same stream without a column."""
        ...


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
        stream: The training rows where they are not held as a whole; the split "train" is then their first window.
    """

    name: str
    splits: dict[str, Dataset]
    labels: list[str] | None = None
    where: Callable[[str, int], str] = split_and_row
    handling: Handling = field(default_factory=Handling)
    notes: tuple[str, ...] = ()
    sources: Mapping[str, tuple[str, tuple[str, ...]]] = field(default_factory=dict)
    stream: Stream | None = None

    def split(self, name: str) -> Dataset:
        """Return a split, which must be there, whole, and not empty."""
        if self.stream is not None and name == "train":
            fix = "set dataset.streaming=false, or use another split"
            raise UserError(f"the training rows of '{self.name}' are a stream", where="dataset.streaming", fix=fix)
        return self.example(name)

    def example(self, name: str) -> Dataset:
        """Return a split, or the first window of a streamed one, which must be there and not empty."""
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
        return replace(self, splits=kept, stream=None if self.stream is None else self.stream.without(column))


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
