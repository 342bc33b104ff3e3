"""Rows: what every source loads, in canonical columns, and where each row came from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from datasets import ClassLabel, Dataset, Value

from distillkit.errors import UserError, did_you_mean

SPLITS = ("train", "validation", "test")
COLUMNS = ("text", "text_pair", "label", "prompt", "completion", "finished", "teacher_logits")


def split_and_row(split: str, index: int) -> str:
    """Name the place of a row whose source has no files."""
    return f"{split}, row {index + 1}"


@dataclass(frozen=True)
class Rows:
    """The rows of a dataset.

    Attributes:
        name: For reports and model cards.
        splits: "train", "validation", "test" → rows; only canonical columns. A label is text, or null.
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


def name_labels(rows: Dataset) -> tuple[Dataset, list[str] | None]:
    """Turn the label column into text, without a label null; return the class names too if the column declares them.

    No label is what is empty, not a number, or -1 in a column of class ids (how the hub marks hidden test labels).
    """
    kind = rows.features.get("label")
    if kind is None:
        return rows, None
    names = list(kind.names) if isinstance(kind, ClassLabel) else None
    texts = [_label_text(label, names) for label in rows["label"][:]]
    named = rows.add_column("its name", texts, feature=Value("string"))  # a table without columns has no rows
    return named.remove_columns("label").rename_column("its name", "label"), names


def _label_text(label: Any, names: list[str] | None) -> str | None:
    if isinstance(label, list | dict):
        raise UserError(f"a label is text or a number, got {label}", where="dataset.columns.label")
    if label is None or label == "" or label != label:
        return None
    if names is not None:
        return names[label] if label >= 0 else None
    if isinstance(label, bool):
        return str(label).lower()
    return f"{label:g}" if isinstance(label, float) else str(label)


def check_limit(limit: int | None) -> int | None:
    """Refuse a limit that leaves no rows."""
    if limit is not None and limit < 1:
        raise UserError(f"{limit} rows are none", where="dataset.limit", fix="give at least 1, or null for all rows")
    return limit
