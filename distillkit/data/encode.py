"""Encode the rows of a split once, for one task and one tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from datasets import Dataset

from distillkit.data.rows import Rows
from distillkit.errors import UserError, did_you_mean
from distillkit.signals import Batch
from distillkit.tasks.base import Task


@dataclass(frozen=True)
class Encoded:
    """Encoded rows that turn into batches by their indices.

    Attributes:
        rows: The encoded rows.
        lengths: int64 `[rows]`: tokens of each.
        collate: Encoded rows → batch.
    """

    rows: Dataset
    lengths: np.ndarray
    collate: Callable[[list[dict[str, Any]]], Batch]

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Sequence[int] | np.ndarray) -> Batch:
        """Collate the given rows."""
        columns = self.rows[[int(index) for index in indices]]
        names = list(columns)
        return self.collate([dict(zip(names, values, strict=True)) for values in zip(*columns.values(), strict=True)])


def label_names(rows: Rows) -> list[str]:
    """Return the declared class names, or the sorted labels of the training split."""
    if rows.labels is not None:
        return rows.labels
    split = next(iter(rows.splits))
    found = {label for label in rows.split(split)["label"][:] if label is not None}
    if not found:
        raise UserError(f"the {split} split of dataset '{rows.name}' has no labels", where="dataset.labels")
    return sorted(found, key=lambda label: (not label.isdigit(), int(label) if label.isdigit() else 0, label))


class Reader(Protocol):
    """What reads columns: a task, or a generator."""

    name: str
    required_columns: tuple[tuple[str, ...], ...]


def check_columns(rows: Rows, reader: Reader) -> None:
    """Refuse rows that lack what is read of them."""
    for split, table in rows.splits.items():
        if not any(set(needed) <= set(table.column_names) for needed in reader.required_columns):
            options = " or ".join(" + ".join(needed) for needed in reader.required_columns)
            raise UserError(
                f"{reader.name} needs the columns {options}; the {split} split has {', '.join(table.column_names)}",
                where="dataset.columns",
                fix="map them: dataset.columns.text=NAME",
            )


def encode(rows: Rows, split: str, task: Task, tokenizer: Any, labels: list[str] | None) -> Encoded:
    """Encode one split.

    Args:
        rows: The dataset.
        split: Which of its splits.
        task: How rows are encoded and collated.
        tokenizer: A transformers tokenizer.
        labels: Class names in the order of their ids; None for tasks without classes.

    Raises:
        UserError: If a row does not fit, with its file and line; or if nothing is left.
    """
    table = rows.split(split)
    check_columns(rows, task)
    _check_values(rows, split, table, labels)
    ids = None if labels is None else {name: index for index, name in enumerate(labels)}
    encoded = table.map(
        lambda columns: task.encode(columns, tokenizer, ids),
        batched=True,
        remove_columns=table.column_names,
        keep_in_memory=True,
        load_from_cache_file=False,  # a cache entry would have to know task, tokenizer and labels
        new_fingerprint="encoded",
    )
    if len(encoded) == 0:
        raise UserError(f"no row of the {split} split of '{rows.name}' is long enough to learn from", where="dataset")
    lengths = np.fromiter(map(len, encoded["input_ids"]), dtype=np.int64, count=len(encoded))
    return Encoded(encoded, lengths, lambda batch: task.collate(batch, tokenizer))


def _check_values(rows: Rows, split: str, table: Dataset, labels: list[str] | None) -> None:
    for column in ("text", "text_pair", "prompt", "completion"):
        for index, value in enumerate(_values(table, column)):
            if not isinstance(value, str):
                found = "missing" if value is None else f"{type(value).__name__}, not text"
                raise UserError(f"{column} is {found}", where=rows.where(split, index))
    if labels is None:
        return
    known = set(labels)
    for index, label in enumerate(_values(table, "label")):
        if label is not None and label not in known:
            fix = did_you_mean(label, labels) if len(labels) <= 20 else None
            raise UserError(f"label '{label}' is not among the declared ones", where=rows.where(split, index), fix=fix)
    for index, logits in enumerate(_values(table, "teacher_logits")):
        if logits is not None and len(logits) != len(labels):
            problem = f"{len(logits)} teacher_logits for {len(labels)} classes ({', '.join(labels[:8])})"
            raise UserError(problem, where=rows.where(split, index))


def _values(table: Dataset, column: str) -> list[Any]:
    return table[column][:] if column in table.column_names else []
