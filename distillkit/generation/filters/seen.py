"""A compact memory of hashes: 12 bytes for each, looked up for many at a time."""

from __future__ import annotations

import numpy as np


class Seen:
    """Remember which row each of many hashes belongs to; one hash may belong to several rows.

    Hashes lie in a few sorted runs, each at least twice as long as the next, so that adding n of them costs
    O(n log² n) in all, and a look-up one binary search in each run.
    """

    def __init__(self) -> None:
        self.runs: list[tuple[np.ndarray, np.ndarray]] = []

    def __len__(self) -> int:
        return sum(len(keys) for keys, _ in self.runs)

    def add(self, keys: np.ndarray, rows: np.ndarray) -> None:
        """Remember hashes.

        Args:
            keys: uint64 `[hashes]`.
            rows: Of each: uint32 `[hashes]`.
        """
        if not len(keys):
            return
        order = np.argsort(keys, kind="stable")
        self.runs.append((keys[order], rows[order].astype(np.uint32)))
        while len(self.runs) > 1 and len(self.runs[-2][0]) < 2 * len(self.runs[-1][0]):
            self.runs.append(_merged(self.runs.pop(-2), self.runs.pop()))

    def contains(self, keys: np.ndarray) -> np.ndarray:
        """Tell which hashes are known: bool, in the shape of `keys`."""
        found = np.zeros(keys.shape, dtype=bool)
        for known, _ in self.runs:
            place = np.searchsorted(known, keys)
            found |= known[np.minimum(place, len(known) - 1)] == keys
        return found

    def rows(self, keys: np.ndarray) -> np.ndarray:
        """Return the rows of some hashes `[hashes]`, each once, in ascending order."""
        found = [
            rows[start:stop]
            for known, rows in self.runs
            for start, stop in zip(np.searchsorted(known, keys), np.searchsorted(known, keys, "right"), strict=True)
            if start < stop
        ]
        return np.unique(np.concatenate(found)) if found else np.zeros(0, dtype=np.uint32)


def _merged(
    first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    place = np.searchsorted(first[0], second[0], "right")
    return np.insert(first[0], place, second[0]), np.insert(first[1], place, second[1])
