"""Which rows make up each optimiser step: a pure function of the seed and the step."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from math import ceil

import numpy as np

from distillkit.schema import TrainSettings

POOL = 50  # batches that are sorted by length together


class BatchPlan:
    """The global batches of a training run.

    Every epoch shuffles the rows anew. With `group_by_length`, rows of similar length share a batch: pools of
    `POOL` batches are sorted by length and cut, and the batches are shuffled. Nothing depends on the number of
    processes or on what was drawn before, so that a run resumes at any step.

    Args:
        lengths: int `[rows]`.
        batch_size: Rows of an optimiser step, over all processes; the last batch of an epoch may have fewer.
        seed: Of the shuffling.
        group_by_length: See above.
    """

    def __init__(self, lengths: np.ndarray, batch_size: int, seed: int, group_by_length: bool) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.group_by_length = group_by_length
        self.steps_per_epoch = ceil(len(lengths) / batch_size)
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    def rows(self, step: int) -> np.ndarray:
        """Return the row indices of a step (counted from 0)."""
        epoch, position = divmod(step, self.steps_per_epoch)
        return self._epoch(epoch)[position]

    def _make_epoch(self, epoch: int) -> list[np.ndarray]:
        return shuffled(self.lengths, self.batch_size, (self.seed, epoch), self.group_by_length)


def shuffled(lengths: np.ndarray, batch_size: int, seed: tuple[int, ...], group_by_length: bool) -> list[np.ndarray]:
    """Share rows out over batches at random, as `BatchPlan` says; lengths: int `[rows]`."""
    random = np.random.default_rng(seed)
    order = random.permutation(len(lengths))
    if not group_by_length:
        return _cut(order, batch_size)
    batches = []
    for pool in _cut(order, POOL * batch_size):
        batches += _cut(pool[np.argsort(lengths[pool], kind="stable")[::-1]], batch_size)
    return [batches[index] for index in random.permutation(len(batches))]


def planned_steps(rows: int, settings: TrainSettings) -> int:
    """Return the number of optimiser steps of a run over so many rows."""
    return settings.max_steps or max(1, ceil(settings.epochs * ceil(rows / settings.batch_size)))


def micro_batches(rows: np.ndarray, rank: int, processes: int, size: int) -> Iterator[tuple[np.ndarray, bool]]:
    """Yield one process's share of a global batch in pieces of at most `size` rows.

    Every process gets the same number of pieces, since their gradients meet. One that would be empty holds a
    row of somebody else's and is marked False: it must not count.
    """
    pieces = ceil(ceil(len(rows) / processes) / size)
    mine = rows[rank::processes]
    for start in range(0, pieces * size, size):
        piece = mine[start : start + size]
        yield (piece, True) if len(piece) else (rows[:1], False)


def by_length(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Cut all rows, longest first, into batches for evaluation."""
    return _cut(np.argsort(lengths, kind="stable")[::-1], batch_size)


def _cut(order: np.ndarray, size: int) -> list[np.ndarray]:
    return [order[start : start + size] for start in range(0, len(order), size)]
