"""Rows that say nearly the same as an earlier one."""

from __future__ import annotations

import numpy as np

from distillkit.errors import UserError
from distillkit.generation.filters.base import Filter, Given, Of, Row, text_of
from distillkit.generation.filters.minhash import MinHash
from distillkit.generation.filters.seen import Seen
from distillkit.generation.filters.words import hashes, runs, words


class NearDuplicates(Filter):
    """Reject rows most of whose runs of words stand in one earlier row that was kept, estimated by MinHash.

    Two rows are alike by the share of their runs of `ngram` words that both have (Jaccard). With the default threshold
    380 bytes a row are remembered.

    Args:
        of: What is compared: the whole "row" (prompt and answer), the "answer" or the "prompt".
        threshold: Estimated similarity from which on the later row is rejected.
        ngram: Words of a run; signs are words too.
        permutations: More of them estimate better and take longer.
    """

    hint = "raise its threshold, or ask more prompts"

    def __init__(self, of: Of = "row", threshold: float = 0.8, ngram: int = 3, permutations: int = 128) -> None:
        if not 0 < threshold <= 1:
            raise UserError(f"must be above 0 and at most 1, got {threshold}", where="threshold")
        if ngram < 1 or permutations < 1:
            raise UserError(f"must be at least 1, got {min(ngram, permutations)}", where="ngram, permutations")
        self.of: Of = of
        self.threshold = threshold
        self.ngram = ngram
        self.minhash = MinHash(threshold, permutations)
        self._forget()

    def begin(self, given: Given) -> None:  # noqa: ARG002
        """Forget all rows."""
        self._forget()

    def _forget(self) -> None:
        self.seen = Seen()
        self.kept = np.zeros((0, len(self.minhash.factors)), dtype=np.uint8)  # grows by half when it is full
        self.count = 0

    def judge(self, rows: list[Row]) -> list[str | None]:
        """Keep a row that is like none of the kept ones before it."""
        sets = [hashes(runs(words(text_of(row, self.of), signs=True), self.ngram)) for row in rows]
        fresh = _Fresh()
        reasons = [self._reason(hashed, fresh) if len(hashed) else None for hashed in sets]
        keys, owners = fresh.arrays()
        self.seen.add(keys, owners)
        return reasons

    def _reason(self, hashed: np.ndarray, fresh: _Fresh) -> str | None:
        minima = self.minhash.minima(hashed)
        keys, short = self.minhash.keys(minima), self.minhash.short(minima)
        candidates = np.union1d(self.seen.rows(keys), fresh.rows(keys))
        if len(candidates):
            best = self.minhash.similarity(short, self.kept[candidates]).max()
            if best >= self.threshold:
                return f"{best:.0%} like an earlier {self.of}"
        fresh.add(keys, self._keep(short))
        return None

    def _keep(self, short: np.ndarray) -> int:
        if self.count == len(self.kept):
            grown = np.zeros((max(1024, self.count + self.count // 2), self.kept.shape[1]), dtype=np.uint8)
            grown[: self.count] = self.kept
            self.kept = grown
        self.kept[self.count] = short
        self.count += 1
        return self.count - 1


class _Fresh:
    """The bands of the rows of one call, which are not yet sorted into the memory."""

    def __init__(self) -> None:
        self.owners: dict[int, list[int]] = {}

    def add(self, keys: np.ndarray, row: int) -> None:
        for key in keys.tolist():
            self.owners.setdefault(key, []).append(row)

    def rows(self, keys: np.ndarray) -> np.ndarray:
        found = [row for key in keys.tolist() for row in self.owners.get(key, ())]
        return np.array(found, dtype=np.uint32)

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        keys = [key for key, rows in self.owners.items() for _ in rows]
        rows = [row for rows in self.owners.values() for row in rows]
        return np.array(keys, dtype=np.uint64), np.array(rows, dtype=np.uint32)
