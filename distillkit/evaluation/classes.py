"""How a model does on each class, and which classes it takes for which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from distillkit.tasks.base import Answers


@dataclass(frozen=True)
class ClassCounts:
    """Counts for each class, int64 `[classes]`.

    Attributes:
        hits: Items of the class that were taken for it.
        labelled: Items of the class.
        predicted: Items taken for it.
        confusion: `[classes, classes]`, a row for each label; None where an item may be of several classes.
    """

    hits: np.ndarray
    labelled: np.ndarray
    predicted: np.ndarray
    confusion: np.ndarray | None

    @property
    def f1(self) -> list[float | None]:
        """F1 of each class; None for one that is neither label nor prediction."""
        sums = (self.labelled + self.predicted).tolist()
        return [2 * hits / total if total else None for hits, total in zip(self.hits.tolist(), sums, strict=True)]


def count_classes(answers: Answers, classes: Sequence[str]) -> ClassCounts | None:
    """Count labels and predictions of the items that have a label; None for answers that are no classes.

    Args:
        answers: With "prediction" and one of: "label", an id for each row, negative where there is none; "tags", a list
            of names for each row, or None; "labels", 1 or 0 for each class of each row, or all NaN.
        classes: Names in the order of their ids.
    """
    if "labels" in answers:
        return _of_several(answers, len(classes))
    if "tags" in answers:
        ids = {name: index for index, name in enumerate(classes)}
        pairs = [
            (ids[tag], ids[said])
            for tags, prediction in zip(answers["tags"], answers["prediction"], strict=True)
            for tag, said in zip(tags or [], prediction, strict=bool(tags))
            if said in ids  # "O", of a word that was cut off, need not be a class
        ]
    elif all(_is_id(value) for name in ("label", "prediction") for value in answers.get(name, [None])):
        pairs = [pair for pair in zip(answers["label"], answers["prediction"], strict=True) if pair[0] >= 0]
    else:
        return None
    confusion = np.zeros((len(classes), len(classes)), dtype=np.int64)
    if pairs:
        np.add.at(confusion, tuple(np.array(pairs).T), 1)
    return ClassCounts(confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0), confusion)


def _of_several(answers: Answers, classes: int) -> ClassCounts:
    labels, predicted = (
        np.asarray(answers[name], dtype=float).reshape(-1, classes) for name in ("labels", "prediction")
    )
    known = ~np.isnan(labels).any(axis=1)
    true, said = labels[known] == 1, predicted[known] == 1
    return ClassCounts((true & said).sum(axis=0), true.sum(axis=0), said.sum(axis=0), None)


def _is_id(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
