"""Numbers of items, flat as they are stored and side by side as they are used."""

from __future__ import annotations

import numpy as np


def sums(counts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Add up what the items of each row have."""
    return np.diff(np.concatenate([[0], np.cumsum(counts)])[np.concatenate([[0], np.cumsum(lengths)])])


def table(values: np.ndarray, counts: np.ndarray, empty: float) -> np.ndarray:
    """Lay out flat values as `[items, most]`; int64 or float32."""
    kind = np.float32 if values.dtype == np.float32 else np.int64
    table = np.full((len(counts), int(counts.max(initial=0))), empty, dtype=kind)
    table[np.arange(table.shape[1]) < counts[:, None]] = values
    return table


def spread(gaps: np.ndarray, count: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """Return log-probabilities `[items, k]` that sum to 1 − exp(rest), from the gaps `[items, k - 1]` to the first."""
    shape = np.exp(-gaps).sum(axis=1, keepdims=True) + 1
    first = np.log(-np.expm1(np.minimum(rest, -1e-7)))[:, None] - np.log(shape)
    table = np.concatenate([first, first - gaps], axis=1)
    return np.where(np.arange(table.shape[1]) < count[:, None], table, -np.inf)[:, : int(count.max(initial=0))]


def merge(drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keep each class once of draws `[items, n]` in ascending order; return how often it was drawn as well."""
    again = np.zeros(drawn.shape, dtype=bool)
    again[:, 1:] = (drawn[:, 1:] == drawn[:, :-1]) & (drawn[:, 1:] >= 0)
    if not again.any():
        return drawn, np.ones(drawn.shape)
    times = np.ones(drawn.shape)
    for column in range(drawn.shape[1] - 2, -1, -1):
        times[:, column] += times[:, column + 1] * again[:, column + 1]
    return np.where(again, -1, drawn), times
