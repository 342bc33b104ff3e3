"""Whether a model is as sure as it is right: expected calibration error over bins of confidence."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

BINS = 15


@dataclass
class Calibration:
    """Items sorted by confidence, the probability of the most likely answer, into 15 bins of equal width.

    Bin k holds confidences in (k / 15, (k + 1) / 15] (Guo et al. 2017, equation 3).

    Attributes:
        counts: int64 `[15]`: items.
        confidences: float64 `[15]`: their summed confidence.
        hits: float64 `[15]`: how many of them are right.
    """

    counts: np.ndarray = field(default_factory=lambda: np.zeros(BINS, dtype=np.int64))
    confidences: np.ndarray = field(default_factory=lambda: np.zeros(BINS))
    hits: np.ndarray = field(default_factory=lambda: np.zeros(BINS))

    def add(self, confidences: np.ndarray, hits: np.ndarray) -> None:
        """Sort items in: their confidence, and whether they are right, both `[items]`."""
        bins = np.clip(np.ceil(confidences * BINS).astype(np.int64) - 1, 0, BINS - 1)
        self.counts += np.bincount(bins, minlength=BINS)
        self.confidences += np.bincount(bins, weights=confidences, minlength=BINS)
        self.hits += np.bincount(bins, weights=hits, minlength=BINS)

    def merge(self, other: Calibration) -> None:
        """Take over another one's items."""
        self.counts += other.counts
        self.confidences += other.confidences
        self.hits += other.hits

    @property
    def error(self) -> float:
        """ECE: the mean over all items of |share of right ones − mean confidence| of their bin; NaN without items."""
        total = int(self.counts.sum())
        return float(np.abs(self.hits - self.confidences).sum() / total) if total else float("nan")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON: the error, and of each bin its items, mean confidence and share of right."""
        some = np.maximum(self.counts, 1)
        filled = self.counts > 0
        return {
            "error": self.error,
            "counts": self.counts.tolist(),
            "confidence": [float(c) if f else None for c, f in zip(self.confidences / some, filled, strict=True)],
            "accuracy": [float(a) if f else None for a, f in zip(self.hits / some, filled, strict=True)],
        }


def calibration(probabilities: np.ndarray, labels: np.ndarray) -> Calibration:
    """Sort items by the probability of their most likely class.

    Args:
        probabilities: `[items, classes]`.
        labels: int `[items]`; negative where there is none, which does not count.
    """
    known = labels >= 0
    found = Calibration()
    found.add(probabilities.max(axis=1)[known], (probabilities.argmax(axis=1) == labels)[known].astype(np.float64))
    return found
