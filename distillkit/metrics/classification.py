"""Metrics of classes, by scikit-learn: one class a row, or any number of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, precision_score, recall_score

Metric = Callable[[np.ndarray, np.ndarray, int], float]  # labels, predictions, the positive class → value


def _averaged(score: Callable[..., Any], average: str) -> Metric:
    return lambda labels, predictions, _: float(score(labels, predictions, average=average, zero_division=0))


def _of_one(score: Callable[..., Any]) -> Metric:
    return lambda labels, predictions, positive: float(
        score(labels == positive, predictions == positive, zero_division=0)
    )


MULTI_LABEL: dict[str, Metric] = {
    "accuracy": lambda labels, predictions, _: float(accuracy_score(labels, predictions)),
    "micro_precision": _averaged(precision_score, "micro"),
    "micro_recall": _averaged(recall_score, "micro"),
    "micro_f1": _averaged(f1_score, "micro"),
    "macro_precision": _averaged(precision_score, "macro"),
    "macro_recall": _averaged(recall_score, "macro"),
    "macro_f1": _averaged(f1_score, "macro"),
    "weighted_f1": _averaged(f1_score, "weighted"),
}
CLASSIFICATION: dict[str, Metric] = MULTI_LABEL | {
    "precision": _of_one(precision_score),
    "recall": _of_one(recall_score),
    "f1": _of_one(f1_score),
    "matthews": lambda labels, predictions, _: float(matthews_corrcoef(labels, predictions)),
}
OF_ONE_CLASS = frozenset({"precision", "recall", "f1"})


def classification_metrics(
    labels: Sequence[Any],
    predictions: Sequence[Any],
    names: Sequence[str] = ("accuracy", "macro_f1"),
    positive: int = 1,
) -> dict[str, float]:
    """Return metrics by name; averages are over the classes that occur as label or prediction.

    Args:
        labels: Class of each row; or, for each row, 1 or 0 for every class. Accuracy then asks that all are right.
        predictions: Likewise.
        names: Of `CLASSIFICATION`, or of `MULTI_LABEL`.
        positive: The class that precision, recall and f1 are about.
    """
    true, predicted = np.asarray(labels), np.asarray(predictions)
    return {name: CLASSIFICATION[name](true, predicted, positive) for name in names}
