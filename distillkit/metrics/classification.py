"""Metrics of classes, by scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.metrics import accuracy_score, f1_score


def classification_metrics(labels: Sequence[int], predictions: Sequence[int]) -> dict[str, float]:
    """Return accuracy and macro F1, over the classes that occur as label or prediction.

    Args:
        labels: Class of each row.
        predictions: Likewise.
    """
    true, predicted = np.asarray(labels), np.asarray(predictions)
    return {
        "accuracy": float(accuracy_score(true, predicted)),
        "macro_f1": float(f1_score(true, predicted, average="macro", zero_division=0)),
    }
