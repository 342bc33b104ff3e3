"""Metrics of scores, by scipy and scikit-learn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

Metric = Callable[[np.ndarray, np.ndarray], float]


def _correlation(measure: Callable[..., Any]) -> Metric:
    def correlation(scores: np.ndarray, predictions: np.ndarray) -> float:
        if len(scores) < 2 or np.ptp(scores) == 0 or np.ptp(predictions) == 0:
            return 0.0  # undefined: a constant explains nothing
        return float(measure(scores, predictions).statistic)

    return correlation


REGRESSION: dict[str, Metric] = {
    "pearson": _correlation(pearsonr),
    "spearman": _correlation(spearmanr),
    "mse": lambda scores, predictions: float(mean_squared_error(scores, predictions)),
    "mae": lambda scores, predictions: float(mean_absolute_error(scores, predictions)),
    "r2": lambda scores, predictions: float(r2_score(scores, predictions)) if len(scores) > 1 else 0.0,
}


def regression_metrics(
    scores: Sequence[float], predictions: Sequence[float], names: Sequence[str] = ("pearson", "spearman", "mse")
) -> dict[str, float]:
    """Return metrics by name; a correlation is 0 where scores or predictions are all the same.

    Args:
        scores: Of each row.
        predictions: Likewise.
        names: Of `REGRESSION`.
    """
    true, predicted = np.asarray(scores, dtype=np.float64), np.asarray(predictions, dtype=np.float64)
    return {name: REGRESSION[name](true, predicted) for name in names}
