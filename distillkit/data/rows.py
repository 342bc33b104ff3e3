"""Rows: what every source loads, in canonical columns, and where each row came from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from datasets import Dataset

from distillkit.errors import UserError, did_you_mean

SPLITS = ("train", "validation", "test")
COLUMNS = ("text", "text_pair", "label", "prompt", "completion", "teacher_logits")


def split_and_row(split: str, index: int) -> str:
    """Name the place of a row whose source has no files."""
    return f"{split}, row {index + 1}"


@dataclass(frozen=True)
class Rows:
    """The rows of a dataset.

    Attributes:
        name: For reports and model cards.
        splits: "train", "validation", "test" → rows; only canonical columns.
        labels: Names of the classes in the order of their ids, as the source declares them; None if it does not.
        where: (split, index) → the place of a row in its source, for messages.
    """

    name: str
    splits: dict[str, Dataset]
    labels: list[str] | None = None
    where: Callable[[str, int], str] = split_and_row

    def split(self, name: str) -> Dataset:
        """Return a split, which must be there and not empty."""
        if name not in self.splits:
            raise UserError(
                f"dataset '{self.name}' has no {name} split", where="dataset", fix=f"it has: {', '.join(self.splits)}"
            )
        if len(self.splits[name]) == 0:
            raise UserError(f"the {name} split of dataset '{self.name}' is empty", where="dataset")
        return self.splits[name]


class Source(Protocol):
    """A dataset node: a cheap constructor with the YAML arguments, and `load`."""

    def load(self) -> Rows:
        """Read the rows of every split."""
        ...


def chosen_columns(columns: Mapping[str, str | None]) -> dict[str, str]:
    """Check the keys of a column map (canonical name → name in the source) and leave out those set to null."""
    for name in columns:
        if name not in COLUMNS:
            raise UserError(f"unknown column '{name}'", where="dataset.columns", fix=did_you_mean(name, list(COLUMNS)))
    return {canonical: column for canonical, column in columns.items() if column is not None}


def select_columns(rows: Dataset, columns: Mapping[str, str], where: str) -> Dataset:
    """Keep the mapped columns under their canonical names.

    Raises:
        UserError: If a mapped column is not in the source.
    """
    for canonical, column in columns.items():
        if column not in rows.column_names:
            raise UserError(
                f"no column '{column}' in {where}",
                where=f"dataset.columns.{canonical}",
                fix=f"its columns are: {', '.join(rows.column_names)}",
            )
    return rows.select_columns(list(columns.values())).rename_columns(
        {column: canonical for canonical, column in columns.items() if column != canonical}
    )
